"""SAS-VPReID's modules behind the tower in PyTorch, by the names of their released tensors; loops in place of scans.

`released` is the form that the published weights were trained in; of tests with one clip at a time.
"""

import torch
import torch.nn.functional as F

SEGMENTS = {"TMD_mamba": 1, "Her_t_mamba1": 2, "Her_t_mamba2": 4}


class Forward:
    """`t`: tensors by name."""

    def __init__(self, tensors, heads=8):
        self.t = {name: torch.as_tensor(x).clone() for name, x in tensors.items()}
        self.heads = heads

    def linear(self, name, x):
        return F.linear(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.t[f"{name}.weight"], self.t[f"{name}.bias"], 1e-5)

    def batch_norm(self, name, x):
        mean, var = self.t[f"{name}.running_mean"], self.t[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, self.t[f"{name}.weight"], self.t[f"{name}.bias"])

    # ------------------------------------------------------------------------------------------------------- MGTM

    def scan(self, name, suffix, u):
        """u [N, L, d], in the order in which it is scanned → [N, L, d]."""
        t, at = self.t, f"{name}.%s{suffix}"
        kernel = t[f"{at % 'conv1d'}.weight"]
        x = F.conv1d(
            u.transpose(1, 2), kernel, t[f"{at % 'conv1d'}.bias"], padding=kernel.shape[-1] - 1, groups=u.shape[-1]
        )
        x = F.silu(x[..., : u.shape[1]]).transpose(1, 2)
        a = -torch.exp(t[f"{name}.A{suffix}_log"])
        rank, state = t[f"{at % 'dt_proj'}.weight"].shape[1], a.shape[1]
        dt, b, c = torch.split(self.linear(at % "x_proj", x), [rank, state, state], dim=-1)
        dt = F.softplus(self.linear(at % "dt_proj", dt))
        h, found = torch.zeros(len(u), *a.shape), []
        for i in range(u.shape[1]):
            h = torch.exp(dt[:, i, :, None] * a) * h + dt[:, i, :, None] * b[:, i, None] * x[:, i, :, None]
            found.append((h * c[:, i, None]).sum(-1) + t[f"{name}.D{suffix}"] * x[:, i])
        return torch.stack(found, 1)

    def mixer(self, name, x, pieces):
        length = x.shape[1]
        u, gate = self.linear(f"{name}.in_proj", x).chunk(2, dim=-1)
        order = torch.arange(length).reshape(pieces, -1).T.reshape(-1)
        orders = {"": torch.arange(length), "_b": torch.arange(length).flip(0), "_s": order}
        total = torch.zeros_like(u)
        for suffix, order in orders.items():
            y = self.scan(name, suffix, u[:, order]) * F.silu(gate[:, order])
            total = total + y[:, torch.argsort(order)]
        return self.linear(f"{name}.out_proj", total / 3)

    def layer(self, name, x, pieces):
        x = x + self.mixer(f"{name}.mamba", self.norm(f"{name}.norm1", x), pieces)
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
        return self.norm(f"{name}.ln_2", x + self.linear(f"{name}.mlp.fc2", hidden))

    def mgtm(self, tokens, pieces):
        """tokens [B, T, L, D] → (h [B, D], h_t [B, T, D])."""
        b, _, length, width = tokens.shape
        found = {}
        for name, count in SEGMENTS.items():
            parts = [
                self.layer(name, part.reshape(b, -1, width), pieces // count) for part in tokens.chunk(count, dim=1)
            ]
            found[name] = torch.cat([part.reshape(b, -1, length, width) for part in parts], 1).mean(2)
        frames = self.norm("norm3_mamba", found["TMD_mamba"])
        features = [found["Her_t_mamba2"].mean(1), found["Her_t_mamba1"].mean(1), frames.mean(1)]
        mixed = sum(w * u for w, u in zip(self.t["alpha"].softmax(0), features, strict=True))
        return self.norm("norm4_mamba", mixed), frames

    # ------------------------------------------------------------------------------------------------------- PRSD

    def gru(self, name, x):
        """PyTorch's own, [L, N, D] → [L, N, H]."""
        own = {key.removeprefix(f"{name}."): value for key, value in self.t.items() if key.startswith(f"{name}.")}
        hidden, inputs = own["weight_hh_l0"].shape[1], own["weight_ih_l0"].shape[1]
        return torch.func.functional_call(torch.nn.GRU(inputs, hidden, num_layers=2), own, (x,))[0]

    def regressor(self, x, name="tsm.regressor"):
        b, t, _ = x.shape
        parts = {"pose": "init_pose", "shape": "init_shape", "cam": "init_cam"}
        now = {key: self.t[f"{name}.{start}"][0].expand(b, t, -1) for key, start in parts.items()}
        hidden = x
        for _ in range(3):
            hidden = torch.cat([x, now["pose"], now["shape"], now["cam"]], -1)
            hidden = self.linear(f"{name}.fc2", self.linear(f"{name}.fc1", hidden))
            now = {key: value + self.linear(f"{name}.dec{key}", hidden) for key, value in now.items()}
        return now["shape"], hidden

    def attention(self, name, x):
        b, t, width = x.shape
        qkv = F.linear(x, self.t[f"{name}.in_proj_weight"], self.t[f"{name}.in_proj_bias"]).chunk(3, -1)
        q, k, v = (y.reshape(b, t, self.heads, -1).transpose(1, 2) for y in qkv)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width)
        return self.linear(f"{name}.out_proj", y)

    def shape(self, tokens, released):
        """tokens [B, T, L, D] → (b [B, 10], s_t [B, T, 10], β [B, T, 10])."""
        x = self.linear("pro_tsm", tokens.mean(2))
        y = self.gru("tsm.encoder.gru", x.transpose(0, 1)).transpose(0, 1)
        betas, hidden = self.regressor(x + self.linear("tsm.encoder.linear", F.relu(y)))
        shapes = self.linear("shape_agg.layer1", hidden)
        if released:  # the first axis is the batch, of one clip
            y = torch.cat([self.gru("shape_agg.gru", clip[None]) for clip in shapes])
        else:
            y = self.gru("shape_agg.gru", shapes.transpose(0, 1)).transpose(0, 1)
        depth = sum(key.startswith("shape_agg.attention") and key.endswith("norm1.weight") for key in self.t)
        for i in range(depth):
            at = f"shape_agg.attention.layers.{i}"
            y = self.norm(f"{at}.norm1", y + self.attention(f"{at}.self_attn", y))
            y = self.norm(f"{at}.norm2", y + self.linear(f"{at}.ffn.3", F.relu(self.linear(f"{at}.ffn.0", y))))
        return self.linear("shape_agg.fc", y.mean(1)), shapes, betas

    # -------------------------------------------------------------------------------------------------- embedding

    def embed(self, f, g, tokens, pieces, released=True):
        """Mean class tokens [B, D], mean projected ones [B, E], tokens [B, T, L, D] → [B, 2D + E + 10]."""
        parts = {
            "bottleneck": f,
            "bottleneck_proj": g,
            "bottleneck_proj_temp2": self.mgtm(tokens, pieces)[0],
            "bottleneck_proj_tsm": self.shape(tokens, released)[0],
        }
        return torch.cat([self.batch_norm(name, x) for name, x in parts.items()], -1)
