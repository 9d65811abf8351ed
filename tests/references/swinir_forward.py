"""SwinIR in PyTorch, in its published names of tensors; restated from the paper and its code."""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads, window):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        index = torch.zeros(window**2, window**2, dtype=torch.long)
        for a in range(window**2):
            for b in range(window**2):
                down, right = a // window - b // window, a % window - b % window
                index[a, b] = (down + window - 1) * (2 * window - 1) + right + window - 1
        self.register_buffer("relative_position_index", index)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, mask):
        """x [M, w², C] of single windows; mask [M, w², w²] or None."""
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        scores = scores if mask is None else scores + mask[:, None]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, window, shift, size):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads, window), Mlp(width)
        if shift:
            self.register_buffer("attn_mask", self.seam(*size))

    def cut(self, x):
        """[N, H, W, C] → one picture's windows after the other's, [N·M, w², C]."""
        w = self.window
        tiles = x.unfold(1, w, w).unfold(2, w, w)  # [N, rows, columns, C, w, w]
        return tiles.permute(0, 1, 2, 4, 5, 3).reshape(-1, w * w, x.shape[-1])

    def seam(self, rows, columns):
        """Which pixels of a window were neighbours before the map was rolled: the others are −100 apart."""
        label = torch.zeros(1, rows, columns, 1)
        number = 0
        for down in (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None)):
            for right in (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None)):
                label[:, down, right] = number
                number += 1
        label = self.cut(label)[..., 0]
        return (label[:, :, None] != label[:, None]) * -100.0

    def forward(self, x):
        n, rows, columns, width = x.shape
        w, s = self.window, self.shift
        y = self.norm1(x)
        y = torch.roll(y, (-s, -s), (1, 2)) if s else y
        windows = self.cut(y)
        windows = self.attn(windows, self.seam(rows, columns).repeat(n, 1, 1) if s else None)
        tiles = windows.reshape(n, rows // w, columns // w, w, w, width).permute(0, 1, 3, 2, 4, 5)
        y = tiles.reshape(n, rows, columns, width)
        x = x + (torch.roll(y, (s, s), (1, 2)) if s else y)
        return x + self.mlp(self.norm2(x))


class Blocks(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class Group(nn.Module):
    def __init__(self, width, depth, heads, window, shift, size):
        super().__init__()
        self.residual_group = Blocks([Block(width, heads, window, shift * (i % 2), size) for i in range(depth)])
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x):
        y = x
        for block in self.residual_group.blocks:
            y = block(y)
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Embedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)


class SwinIR(nn.Module):
    def __init__(self, width, groups, depth, heads, window, head, scale, size):
        super().__init__()
        self.head, self.scale, self.window = head, scale, window
        shift = window // 2
        if min(size) <= window:
            self.window, shift = min(size), 0
        self.conv_first = nn.Conv2d(3, width, 3, 1, 1)
        self.patch_embed = Embedding(width)
        made = [Group(width, depth, heads, self.window, shift, size) for _ in range(groups)]
        self.layers = nn.ModuleList(made)
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, 1, 1)
        doublings = scale.bit_length() - 1
        if head == "light":
            self.upsample = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale))
            return
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(width, 64, 3, 1, 1), nn.LeakyReLU())
        if head == "classical":
            pairs = [(nn.Conv2d(64, 256, 3, 1, 1), nn.PixelShuffle(2)) for _ in range(doublings)]
            self.upsample = nn.Sequential(*[layer for pair in pairs for layer in pair])
        else:
            for i in range(doublings):
                setattr(self, f"conv_up{i + 1}", nn.Conv2d(64, 64, 3, 1, 1))
            self.conv_hr = nn.Conv2d(64, 64, 3, 1, 1)
        self.conv_last = nn.Conv2d(64, 3, 3, 1, 1)

    def forward(self, x):
        """[N, 3, H, W] of values in 0…1 → [N, 3, H·scale, W·scale]."""
        rows, columns = x.shape[2:]
        mean = torch.tensor([0.4488, 0.4371, 0.4040]).reshape(1, 3, 1, 1)
        x = F.pad(x - mean, (0, -columns % self.window, 0, -rows % self.window), "reflect")
        shallow = self.conv_first(x)
        y = self.patch_embed.norm(shallow.permute(0, 2, 3, 1))
        for layer in self.layers:
            y = layer(y)
        x = self.conv_after_body(self.norm(y).permute(0, 3, 1, 2)) + shallow
        if self.head == "light":
            x = self.upsample(x)
        elif self.head == "classical":
            x = self.conv_last(self.upsample(self.conv_before_upsample(x)))
        else:
            x = self.conv_before_upsample(x)
            for i in range(self.scale.bit_length() - 1):
                x = F.leaky_relu(
                    getattr(self, f"conv_up{i + 1}")(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2
                )
            x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))
        return (x + mean)[:, :, : rows * self.scale, : columns * self.scale]
