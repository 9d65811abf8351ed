"""HAMoBE's head in PyTorch, by the names of its released tensors: forward pass of one clip or of two, and losses.

Plain forms: tables are gathered for every pair of cells, clips of a pair are laid side by side, losses go over pairs.
"""

import torch
import torch.nn.functional as F

GATE_HEADS, GAIT_HEADS = 8, 12


class HAMoBE:
    """`t`: tensors by name. Inputs are lists of (tokens, queries, keys) of blocks, each [N, T, L, …]."""

    def __init__(self, tensors, grid, train=False):
        self.t = {name: torch.as_tensor(x).clone() for name, x in tensors.items()}
        self.grid, self.train = grid, train
        self.blocks = sum(name.startswith("decoder.temporal_pos_embed") for name in tensors)
        self.count = sum(name.startswith("moe_first.experts") and name.endswith(".0.weight") for name in tensors)

    def linear(self, name, x):
        return F.linear(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.t[f"{name}.weight"], self.t[f"{name}.bias"], 1e-5)

    def two(self, name, x, activation=F.relu):
        return self.linear(f"{name}.2", activation(self.linear(f"{name}.0", x)))

    # ------------------------------------------------------------------------------------------------- the decoder

    def neighbours(self, q, k, table):
        """Patches of frames [N, T', P, H, c] among those of other frames; a row of the table for each pair of cells."""
        h, w = self.grid
        cell = torch.arange(h * w)
        down = cell[:, None] // w - cell // w + h - 1
        across = cell[:, None] % w - cell % w + w - 1
        attention = torch.einsum("ntqhc,ntkhc->nthqk", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("ntqk,qkd->ntqd", attention.softmax(-1).mean(2), table[down * (2 * w - 1) + across])

    def decoder(self, taps):
        found = []
        for i, (o, q, k) in enumerate(taps):
            n, t, length, dim = o.shape
            x = o.permute(0, 2, 3, 1).reshape(n * length, dim, t)
            name = f"decoder.temporal_conv.{i}"
            x = F.conv1d(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"], padding=1, groups=dim)
            h = o + x.reshape(n, length, dim, t).permute(0, 3, 1, 2)
            h = h + self.t[f"decoder.temporal_pos_embed.{i}"][:, None]
            tables = [self.t[f"decoder.cross_attention.{i}.{name}"] for name in ("w1", "w2")]
            r = torch.zeros_like(h)
            r[:, 1:, 1:] += self.neighbours(q[:, 1:, 1:], k[:, :-1, 1:], tables[0])
            r[:, :-1, 1:] += self.neighbours(q[:, :-1, 1:], k[:, 1:, 1:], tables[1])
            found.append(h + r)
        return self.linear("decoder.decoder_layers", torch.cat(found, -1))

    # --------------------------------------------------------------------------------------------------- the gates

    def gate(self, name, before, after, xs, activation):
        zs = [activation(self.linear(f"{name}.{before}.0", x)) for x in xs]
        dim = zs[0].shape[-1]
        z = torch.cat([z + self.t[f"{name}.pos_embed.emb.weight"] * dim**-0.5 for z in zs], 2)
        n, t, length, _ = z.shape
        q, k, v = (
            self.linear(f"{name}.attn.to_{each}", z).reshape(n * t, length, GATE_HEADS, -1).transpose(1, 2)
            for each in "qkv"
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        z = z + self.linear(f"{name}.attn.to_out", (weights @ v).transpose(1, 2).reshape(n, t, length, dim))
        return self.linear(f"{name}.{after}", z).chunk(len(xs), 2)

    def level1(self, fs):
        """[N, T, L, K, 3] and [N, T, L, d, 3] of each clip."""
        shares, streams = [], []
        for f, logits in zip(fs, self.gate("moe_first.gating", "fc_pre", "fc_post", fs, F.relu), strict=True):
            shares.append(logits.reshape(*logits.shape[:3], self.count, 3).softmax(3))
            experts = torch.stack([self.two(f"moe_first.experts.{k}", f) for k in range(self.count)], 3)
            streams.append(torch.einsum("ntlkd,ntlkj->ntldj", experts, shares[-1]))
        return shares, streams

    def gate2(self, streams):
        xs = [torch.cat(s.unbind(-1), -1) for s in streams]
        found = []
        for logits in self.gate("gating_second", "fc1_pre", "fc1_post", xs, F.leaky_relu):
            x = self.two("gating_second.patch_agg", logits.transpose(2, 3))[..., 0]  # [N, T, 3]
            found.append(self.two("gating_second.fc2", x.transpose(1, 2), F.leaky_relu)[..., 0].softmax(1))
        return found

    # ------------------------------------------------------------------------------------------------- the experts

    def per_frame(self, name, stream):
        x = self.two(f"{name}.layer", stream)
        return self.two(f"{name}.patch_agg", x.transpose(2, 3))[..., 0]

    def gait(self, stream):
        name = "moe_pose.pose_agg"
        tokens = self.two("moe_pose.layer", stream).flatten(1, 2)
        query = self.t["moe_pose.cls_token"].expand(len(tokens), 1, -1)
        y, x = self.norm(f"{name}.norm3", tokens), self.norm(f"{name}.norm1", query)
        q, k, v = (
            self.linear(f"{name}.attn.{each}_proj", z).reshape(len(z), z.shape[1], GAIT_HEADS, -1).transpose(1, 2)
            for each, z in (("q", x), ("k", y), ("v", y))
        )
        seen = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        query = query + self.linear(f"{name}.attn.out_proj", seen.transpose(1, 2).flatten(2))
        hidden = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", query))
        return (query + self.linear(f"{name}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden)))[:, 0]

    # ------------------------------------------------------------------------------------------------------- clips

    def __call__(self, *clips):
        """For each of one or two lists of taps: frames c and a [N, T, d], G [N, d], w [N, 3], shares, embedding."""
        shares, streams = self.level1([self.decoder(taps) for taps in clips])
        found = []
        for g, s, w in zip(shares, streams, self.gate2(streams), strict=True):
            c = self.per_frame("moe_canonical", s[..., 0])
            a = self.per_frame("moe_appearance", s[..., 1])
            gait = self.gait(s[..., 2])
            x = self.linear("fc", w[:, :1] * c.mean(1) + w[:, 1:2] * a.mean(1) + w[:, 2:] * gait)
            running = [self.t[f"bn.running_{name}"] for name in ("mean", "var")]
            f = F.batch_norm(x, *running, self.t["bn.weight"], self.t["bn.bias"], training=self.train)
            found.append({"c": c, "a": a, "gait": gait, "weights": w, "shares": g, "feature": f})
        return found


# ------------------------------------------------------------------------------------------------------------- losses


def intra(u):
    t = u.shape[1]
    apart = [((u[:, i] - u[:, j]) ** 2).sum(-1) for i in range(t) for j in range(t) if i != j]
    return torch.stack(apart).mean()


def inter(u, label):
    pairs = [(i, j) for i in range(len(u)) for j in range(len(u)) if label[i] == label[j]]
    return torch.stack([((u[i] - u[j]) ** 2).sum() for i, j in pairs]).mean()


def gait(g, label):
    means = torch.stack([g[label == own].mean(0) for own in label])
    return ((g - means) ** 2).sum(1).mean()


def identity(feature, vectors, label):
    return F.cross_entropy(16.0 * F.normalize(feature) @ F.normalize(vectors).T, label)


def pair(one, other, same, threshold):
    cosine = F.cosine_similarity(one, other)
    return F.softplus(-(2.0 * same - 1.0) * (10.0 * cosine - threshold)).mean()
