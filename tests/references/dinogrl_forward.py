"""What DinoGRL's released code computes, in PyTorch, from tensors under its names; the rest of the batch norms of a
training step as it computes them, over gathered cells.

Restated from the order of its operations; nothing of the library is used. Maps are [N, C, H, W], parts [B, D, P].
"""

import torch
import torch.nn.functional as F

BINS, GRANULARITIES = (1, 2, 4, 8, 16), (2, 4, 8, 16)


class DinoGRL:
    def __init__(self, tensors, heads, dino_size, depths, bins=BINS, granularities=GRANULARITIES, train=False):
        self.t = {name: torch.as_tensor(x).to(torch.float64) for name, x in tensors.items()}
        self.heads, self.dino_size, self.depths = heads, dino_size, depths
        self.bins, self.granularities, self.train = bins, granularities, train

    def linear(self, key, x):
        return F.linear(x, self.t[f"{key}.weight"], self.t[f"{key}.bias"])

    def layer_norm(self, key, x):
        return F.layer_norm(x, x.shape[-1:], self.t[f"{key}.weight"], self.t[f"{key}.bias"], 1e-6)

    def batch_norm(self, key, x):
        """Of batches in training; running statistics move in place, as PyTorch's do."""
        t = self.t
        scale, shift = t.get(f"{key}.weight"), t.get(f"{key}.bias")
        return F.batch_norm(x, t[f"{key}.running_mean"], t[f"{key}.running_var"], scale, shift, self.train, 0.1, 1e-5)

    def conv(self, key, x, stride=1, padding=0):
        return F.conv2d(x, self.t[f"{key}.weight"], None, stride, padding)

    # DINOv2 and what is made of its tokens

    def tokens(self, frames):
        """frames [N, 3, H, W] → last tokens and those of four blocks, [N, C, h, w]."""
        x = F.interpolate(frames, size=self.dino_size, mode="bilinear", align_corners=False)
        key = "dinov2.dinov2"
        x = F.conv2d(
            x, self.t[f"{key}.patch_embed.proj.weight"], self.t[f"{key}.patch_embed.proj.bias"],
            stride=self.t[f"{key}.patch_embed.proj.weight"].shape[-1],
        )  # fmt: skip
        n, dim, rows, columns = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.t[f"{key}.cls_token"].expand(n, 1, dim), x], 1) + self.positions(rows, columns)
        depth = len({name.split(".")[3] for name in self.t if name.startswith(f"{key}.blocks.")})
        taps = []
        for i in range(depth):
            x = self.block(f"{key}.blocks.{i}", x)
            if (i + 1) % (depth // 4) == 0:
                taps.append(x[:, 1:])
        four = torch.cat(taps, -1)
        four = F.layer_norm(four, four.shape[-1:], eps=1e-6)
        last = self.layer_norm(f"{key}.norm", x)[:, 1:]
        return [y.transpose(1, 2).reshape(n, -1, rows, columns) for y in (last, four)]

    def positions(self, rows, columns):
        table = self.t["dinov2.dinov2.pos_embed"]
        side = round((table.shape[1] - 1) ** 0.5)
        patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        assert patches.shape[-2:] == (rows, columns)
        return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], 1)

    def block(self, key, x):
        n, length, dim = x.shape
        qkv = self.linear(f"{key}.attn.qkv", self.layer_norm(f"{key}.norm1", x))
        q, k, v = qkv.reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, dim)
        x = x + self.t[f"{key}.ls1.gamma"] * self.linear(f"{key}.attn.proj", y)
        y = F.gelu(self.linear(f"{key}.mlp.fc1", self.layer_norm(f"{key}.norm2", x)))
        return x + self.t[f"{key}.ls2.gamma"] * self.linear(f"{key}.mlp.fc2", y)

    def cells(self, x):
        """[N, C, a, b] → the finer grid as rows [N·h·w, C]."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        self.grid = x.shape[-2:]
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])

    def shares(self, last):
        """Without dropout: (d [N·h·w, 2], L_mse)."""
        x = self.cells(last)
        key = "dinov2.Mask_Branch"
        d = torch.softmax(self.linear(f"{key}.down_sampling", self.batch_norm(f"{key}.bn_s", x)), 1)
        return d, ((self.linear(f"{key}.up_sampling", d) - x) ** 2).mean()

    def maps(self, four, active):
        """Gathered active cells through both branches, put back: (P, Q) [N·h·w, 16]."""
        y = self.cells(four)[active]
        key = "dinov2.Denoising_Branch"
        hidden = self.linear(f"{key}.down_sampling.0", self.batch_norm(f"{key}.bn_s", y))
        hidden = F.gelu(self.batch_norm(f"{key}.down_sampling.1", hidden))
        parts = torch.softmax(self.linear(f"{key}.down_sampling.3", hidden), 1)
        key = "dinov2.Appearance_Branch"
        texture = self.linear(f"{key}.down_sampling", self.batch_norm(f"{key}.bn_s", y))
        texture = torch.sigmoid(self.batch_norm(f"{key}.bn_t", texture))
        found = []
        for each in (parts, texture):
            whole = torch.zeros(len(active), each.shape[1], dtype=each.dtype)
            whole[active] = each
            found.append(whole)
        return found

    # Networks

    def trunk(self, key, x):
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                at, stride = f"{key}.{i}.{j}", 2 if j == 0 and 0 < i < len(self.depths) - 1 else 1
                y = F.relu(self.batch_norm(f"{at}.bn1", self.conv(f"{at}.conv1", x)))
                y = F.relu(self.batch_norm(f"{at}.bn2", self.conv(f"{at}.conv2", y, stride, 1)))
                y = self.batch_norm(f"{at}.bn3", self.conv(f"{at}.conv3", y))
                if j == 0:
                    x = self.batch_norm(f"{at}.downsample.1", self.conv(f"{at}.downsample.0", x, stride))
                x = F.relu(x + y)
        return x

    def stem(self, key, x):
        at = f"{key}.forward_block"
        x = F.relu(self.batch_norm(f"{at}.bn1", self.conv(f"{at}.conv1.conv", x, 1, 1)))
        y = F.relu(self.batch_norm(f"{at}.layer1.0.bn1", self.conv(f"{at}.layer1.0.conv1", x, 1, 1)))
        return F.relu(x + self.batch_norm(f"{at}.layer1.0.bn2", self.conv(f"{at}.layer1.0.conv2", y, 1, 1)))

    def fusion(self, first, second):
        at = "dinov2.gait_net.fusion.conv.forward_block"
        x = torch.cat([first, second], 1)
        x = F.relu(self.batch_norm(f"{at}.1", self.conv(f"{at}.0", x)))
        x = F.relu(self.batch_norm(f"{at}.4", self.conv(f"{at}.3", x, 1, 1)))
        n, c, h, w = first.shape
        share = torch.softmax(self.conv(f"{at}.6", x).view(n, c, 2, h, w), 2)
        return first * share[:, :, 0] + second * share[:, :, 1]

    def head(self, key, maps, clips):
        """[N, C, h, w] → parts [B, D, P]."""
        maps = maps.reshape(clips, -1, *maps.shape[1:]).max(1)[0]
        strips = []
        for count in self.bins:
            z = maps.reshape(*maps.shape[:2], count, -1)
            strips.append(z.mean(-1) + z.max(-1)[0])
        x = torch.cat(strips, -1).permute(2, 0, 1)  # [P, B, C]
        return x.matmul(self.t[f"{key}FCs.fc_bin"]).permute(1, 2, 0)

    def silhouette(self, d):
        """d [N·h·w, 2] → g [N, h, w]."""
        h, w = self.grid
        m = d[:, 0].reshape(-1, h, w)
        hard, band = torch.round(m), max(int(5 * h / 64 + 0.5), 1)
        turned = (hard[:, :band].sum((1, 2)) + hard[:, -band:].sum((1, 2))) > band * w
        m = torch.where(turned[:, None, None], d[:, 1].reshape(-1, h, w), m)
        grow, shrink = int(1 * h / 64 + 0.5), int(2 * h / 64 + 0.5)
        wide = F.max_pool2d(torch.round(m)[:, None], 2 * grow + 1, 1, grow)
        core = -F.max_pool2d(-wide, 2 * shrink + 1, 1, shrink)
        edge = (wide > 0.5) ^ (core > 0.5)
        return (edge * m[:, None] + (core > 0.5))[:, 0]

    # PBMGE

    def exchange(self, key, v, c):
        """X(query v, context c) of [B, D], with every token lifted to D numbers."""
        t, dim = self.t, v.shape[1]

        def lift(name, x):  # [B, D] → [B, lifted, D]
            return F.conv1d(x[:, None], t[f"{key}.{name}.weight"], t[f"{key}.{name}.bias"])

        theta, phi, g = lift("theta", v), lift("phi", c), lift("g.0", c)
        f = theta.transpose(1, 2) @ phi / dim
        found = []
        for name, x in (("W1", F.relu(f)), ("W2", F.relu(-f))):
            y = (x @ g.transpose(1, 2)).transpose(1, 2)
            y = F.conv1d(y, t[f"{key}.{name}.0.weight"], t[f"{key}.{name}.0.bias"])
            found.append(self.batch_norm(f"{key}.{name}.1", y)[:, 0])
        return found[0] - found[1]

    def enriched(self, gait, appearance):
        """Parts [B, D, P] of both with a global of each granularity behind them."""
        more_gait, more_appearance = [], []
        for count in self.granularities:
            start = sum(self.bins[: self.bins.index(count)])
            g, a = gait[:, :, 0], appearance[:, :, 0]
            for i in range(start, start + count):
                g = g + self.exchange("enhance_shape_net_3", g, appearance[:, :, i])
                a = a + self.exchange("enhance_app_net_3", a, gait[:, :, i])
            more_gait.append(g)
            more_appearance.append(a)
        return torch.cat([gait, torch.stack(more_gait, -1)], -1), torch.cat(
            [appearance, torch.stack(more_appearance, -1)], -1
        )

    def cosines(self, key, parts):
        """[B, D, P] → [B, C, P]."""
        n, dim, count = parts.shape
        x = self.batch_norm(f"{key}BNNecks.bn1d", parts.reshape(n, -1)).reshape(n, dim, count)
        classes = F.normalize(self.t[f"{key}BNNecks.fc_bin"], dim=1)
        return F.normalize(x, dim=1).permute(2, 0, 1).matmul(classes).permute(1, 2, 0)

    def __call__(self, frames, modality):
        """Frames [B, T, H, W, 3], modality [B], the visible ones first → all that is found on the way, by name."""
        clips, length = frames.shape[:2]
        x = torch.as_tensor(frames).to(torch.float64).flatten(0, 1).permute(0, 3, 1, 2)
        last, four = self.tokens(x)
        d, mse = self.shares(last)
        g = self.silhouette(d)
        parts, texture = self.maps(four, g.reshape(-1) != 0)
        n, (h, w) = len(x), self.grid
        grids = [y.reshape(n, h, w, -1).permute(0, 3, 1, 2) for y in (parts, texture)]
        net = "dinov2.gait_net."
        fused = self.fusion(self.stem(f"{net}pre_part", grids[0]), self.stem(f"{net}pre_rgb", grids[1]))
        gait = self.head(net, self.trunk(f"{net}post_backbone.resnet_conv", fused), clips)
        visible = int((torch.as_tensor(modality) == 0).sum()) * length
        stems = []
        for number, each in enumerate((x[:visible], x[visible:]), 1):
            y = self.conv(f"image_encoder{number}.resnet_conv.0", each, 2, 3)
            stems.append(F.max_pool2d(self.batch_norm(f"image_encoder{number}.resnet_conv.1", y), 3, 2, 1))
        appearance = self.head("", self.trunk("share_encoder.resnet_conv", torch.cat(stems)), clips)
        gait, appearance = self.enriched(gait, appearance)
        return {
            "last": last, "four": four, "shares": d, "mse": mse, "silhouette": g, "parts": parts, "texture": texture,
            "gait": gait, "appearance": appearance,
            "gait_cosines": self.cosines(net, gait), "appearance_cosines": self.cosines("", appearance),
        }  # fmt: skip


def distance(query, gallery):
    """Parts [Q, D, P] and [G, D, P] → the mean over parts of Euclidean distances."""
    total = 0
    for part in range(query.shape[2]):
        total = total + torch.cdist(query[:, :, part], gallery[:, :, part], compute_mode="donot_use_mm_for_euclid_dist")
    return total / query.shape[2]


def sobel(maps):
    """Maps [N, c, h, w]: kernels summed over the channels, zeros around."""
    n, c, h, w = maps.shape
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=maps.dtype)
    total = 0
    for each in (kernel, kernel.T):
        total = total + F.conv2d(maps, each.expand(1, c, 3, 3), padding=1).abs().sum()
    return total / (n * c * h * w)


def triplet(parts, label, margin=0.2):
    """OpenGait's, over parts [B, D, P]; as many clips of every label."""
    x = parts.permute(2, 0, 1)
    square = (x**2).sum(2)
    apart = torch.sqrt(F.relu(square[:, :, None] + square[:, None] - 2 * x @ x.transpose(1, 2)))
    same = label[:, None] == label
    n = len(label)
    positive = apart[:, same].view(len(x), n, -1, 1)
    negative = apart[:, ~same].view(len(x), n, 1, -1)
    hinge = F.relu(positive - negative + margin).view(len(x), -1)
    above = (hinge != 0).sum(1)
    total = hinge.sum(1)
    return torch.where(above > 0, total / above.clamp(min=1), torch.zeros_like(total)).mean()


def identity(cosines, label, scale=16.0, smoothing=0.1):
    """Cosines [B, C, P], the mean over clips and parts."""
    logits = (scale * cosines).permute(0, 2, 1).flatten(0, 1)
    return F.cross_entropy(logits, label.repeat_interleave(cosines.shape[2]), label_smoothing=smoothing)
