"""What CSIP-ReID's released modules compute with these parameters, by PyTorch's own layers; nothing of the library is
used. Parameters are nested dicts of arrays: a linear layer {kernel [inputs, outputs], bias}, a norm {scale, bias}, an
attention {query, key, value {kernel [D, H, d], bias [H, d]}, out {kernel [H, d, D], bias}}.
"""

import numpy as np
import torch
from torch.nn import functional


def tensor(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def linear(p, x):
    y = x @ tensor(p["kernel"])
    return y + tensor(p["bias"]) if "bias" in p else y


def norm(p, x):
    return functional.layer_norm(x, x.shape[-1:], tensor(p["scale"]), tensor(p["bias"]), 1e-5)


def attention(p, heads, x, context):
    """One sequence [L, D] looks at another."""
    width = x.shape[-1]
    module = torch.nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        names = ("query", "key", "value")
        module.in_proj_weight.copy_(torch.cat([tensor(p[name]["kernel"]).reshape(width, width).T for name in names]))
        module.in_proj_bias.copy_(torch.cat([tensor(p[name]["bias"]).reshape(-1) for name in names]))
        module.out_proj.weight.copy_(tensor(p["out"]["kernel"]).reshape(width, width).T)
        module.out_proj.bias.copy_(tensor(p["out"]["bias"]))
    return module(x[None], context[None], context[None], need_weights=False)[0][0].detach()


def skeleton_tokens(p, code, joints, heads):
    """Joints [J, 3] of a frame → tokens [J, P], one joint's look at another after the other."""
    x = tensor(joints) - tensor(joints)[:1]
    x = linear(p["embed_out"], torch.relu(linear(p["embed_in"], x))) + linear(p["embed_code"], tensor(code))
    for number in range(sum(name.startswith("block_") for name in p)):
        b = p[f"block_{number:02d}"]
        q, k, v = (linear(b[name], x).unflatten(-1, (heads, -1)) for name in ("query", "key", "value"))
        mixed = torch.zeros_like(q)
        for head in range(heads):
            for joint in range(len(x)):
                logits = (k[:, head] @ q[joint, head] / q.shape[-1] ** 0.5).clamp(-5, 5)
                mixed[joint, head] = torch.softmax(logits, 0) @ v[:, head]
        x = norm(b["norm_1"], x + linear(b["out"], mixed.flatten(1)))
        x = norm(b["norm_2"], x + linear(b["down"], torch.relu(linear(b["up"], x))))
    return linear(p["projection"], x)


def fused(p, skeletons, images):
    """One prototype [E] of a skeleton's and an image's."""
    s, v = tensor(skeletons), tensor(images)
    share = torch.sigmoid(linear(p["gate_out"], torch.relu(linear(p["gate_in"], torch.cat([s, v])))))
    return share * s + (1 - share) * v


def guided(p, heads, tokens, joints=None):
    """Of a clip with image tokens [T, L, D] and, in training, joint tokens [T, J, P]: frame features [T, D]."""
    tokens, types = tensor(tokens), tensor(p["types"])
    m = linear(p["message"], tokens.mean(1))
    n = norm(p["message_norm"], m)
    m = m + attention(p["over_frames"], heads, n, n)
    if joints is not None:
        s = linear(p["joints"], tensor(joints))
        guide = s.mean(1)
        n = norm(p["guide_norm"], guide)
        guide = guide + attention(p["over_skeletons"], heads, n, n)
        m = m + attention(p["distil"], heads, norm(p["distil_norm"], m), norm(p["distil_context_norm"], guide))
    found = []
    for t in range(len(tokens)):
        x = torch.cat([tokens[t] + types[0], m[t : t + 1] + types[1]])
        if joints is not None:
            x = torch.cat([x, s[t] + types[2], guide[t : t + 1] + types[3]])
        n = norm(p["norm_1"], x)
        x = x + attention(p["over_tokens"], heads, n, n)
        x = x + linear(p["down"], functional.gelu(linear(p["up"], norm(p["norm_2"], x))))
        g = torch.sigmoid(linear(p["weight"], x))
        found.append((g / (g.sum() + 1e-6) * x).sum(0))
    return torch.stack(found).detach()
