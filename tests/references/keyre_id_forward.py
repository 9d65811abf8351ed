"""What KeyRe-ID's released code computes in evaluation, from its tensors and key points, in float64.

Restated from the order of its operations; nothing of the library is used. Key points are pixels of the frame, [17, 3].
"""

import numpy as np
from scipy.special import erf

GROUPS = ((0, 1, 2, 3, 4), (5, 6, 11, 12), (7, 9), (8, 10), (13, 15), (14, 16))


def norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def linear(t, key, x):
    return x @ t[f"{key}.weight"].T + t[f"{key}.bias"]


def block(t, key, x, heads):
    """timm's: [N, L, D]."""
    n, length, dim = x.shape
    y = linear(t, f"{key}.attn.qkv", norm(x, t[f"{key}.norm1.weight"], t[f"{key}.norm1.bias"], 1e-6))
    q, k, v = y.reshape(n, length, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    score = q @ k.swapaxes(-1, -2) / np.sqrt(dim // heads)
    share = np.exp(score - score.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    x = x + linear(t, f"{key}.attn.proj", (share @ v).swapaxes(1, 2).reshape(x.shape))
    hidden = linear(t, f"{key}.mlp.fc1", norm(x, t[f"{key}.norm2.weight"], t[f"{key}.norm2.bias"], 1e-6))
    return x + linear(t, f"{key}.mlp.fc2", hidden * (1 + erf(hidden / np.sqrt(2))) / 2)


def batch_norm(t, key, x):
    scaled = (x - t[f"{key}.running_mean"]) / np.sqrt(t[f"{key}.running_var"] + 1e-5)
    return scaled * t[f"{key}.weight"] + t[f"{key}.bias"]


def part_maps(points, height, width):
    """[6, H, W] pixel by pixel: the largest kernel of each group."""
    radius = width // 11
    sigma = (2 * radius + 1) / 4
    maps = np.zeros((len(GROUPS), height, width))
    for group, members in enumerate(GROUPS):
        for x, y, score in points[list(members)]:
            if score <= 0.1 or not (0 <= x < width and 0 <= y < height):
                continue
            for row in range(height):
                for column in range(width):
                    down, across = row - int(y), column - int(x)
                    if max(abs(down), abs(across)) <= radius:
                        value = np.exp(-(down**2 + across**2) / (2 * sigma**2))
                        maps[group, row, column] = max(maps[group, row, column], value)
    return maps


def released_weights(points, height, width, patch):
    """Clips [B, T, 17, 3] → [B, N, 6]: every map stretched to [−1, 1], means of patches, mean over frames."""
    clips, frames = points.shape[:2]
    found = np.zeros((clips, frames, height // patch * (width // patch), len(GROUPS)))
    for clip, frame in np.ndindex(clips, frames):
        maps = part_maps(points[clip, frame], height, width)
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        maps = ((maps - low) / (high - low + 1e-6) - 0.5) / 0.5
        tiles = maps.reshape(len(GROUPS), height // patch, patch, width // patch, patch).mean((2, 4))
        found[clip, frame] = tiles.reshape(len(GROUPS), -1).T
    return found.mean(1)


def feature(tensors, frames, camera, points, patch, heads):
    """Frames [B, T, H, W, 3], cameras [B] → [B, D + 6·T·D]."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    clips, length, height, width, _ = frames.shape
    rows, columns = height // patch, width // patch
    x = np.asarray(frames, np.float64).reshape(clips * length, rows, patch, columns, patch, 3)
    x = np.einsum("nrpcqk,dkpq->nrcd", x, t["base.patch_embed.proj.weight"]) + t["base.patch_embed.proj.bias"]
    x = x.reshape(clips * length, rows * columns, -1)
    x = np.concatenate([np.repeat(t["base.cls_token"], len(x), 0), x], 1) + t["base.pos_embed"]
    x = x + 3.0 * np.repeat(t["base.Cam"][camera], length, 0)
    depth = 1 + max(int(name.split(".")[2]) for name in t if name.startswith("base.blocks."))
    for i in range(depth - 1):
        x = block(t, f"base.blocks.{i}", x, heads)

    g = norm(block(t, "b1.0", x, heads), t["b1.1.weight"], t["b1.1.bias"], 1e-6)[:, 0].reshape(clips, length, -1)
    hidden = np.maximum(g @ t["attention_conv.weight"][:, :, 0, 0].T + t["attention_conv.bias"], 0)
    padded = np.pad(hidden, ((0, 0), (1, 1), (0, 0)))
    kernel = t["attention_tconv.weight"][0]  # [channels, 3]
    a = sum(padded[:, i : i + length] @ kernel[:, i] for i in range(3)) + t["attention_tconv.bias"]
    a = np.maximum(a, 0)
    share = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    found = [batch_norm(t, "bottleneck", (share[..., None] * g).sum(1))]

    wide = x.reshape(clips, x.shape[1], -1)  # a view of the memory
    token, others = wide[:, :1], np.concatenate([wide[:, 5:], wide[:, 1:5]], 1)
    others = others.reshape(clips, 2, -1, wide.shape[-1]).swapaxes(1, 2).reshape(others.shape)
    m = released_weights(points, height, width, patch)
    for k in range(len(GROUPS)):
        part = np.concatenate([token, others * m[:, :, k, None]], 1)
        part = norm(block(t, "block1", part, heads), t["b2.1.weight"], t["b2.1.bias"], 1e-5)[:, 0]
        found.append(batch_norm(t, f"bottleneck_{k + 1}", part) / len(GROUPS))
    return np.concatenate(found, 1)
