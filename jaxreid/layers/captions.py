"""A text tower on captions, of which every token is kept."""

from __future__ import annotations

import flax.linen as nn

from jaxreid.backbones.text import TextConfig, TextTower
from jaxreid.shapes import Array, Float, Int


class CaptionTower(nn.Module):
    """Captions in the joint space, token by token; at its end token a caption is CLIP's own text feature."""

    tower: TextConfig

    def setup(self):
        self.text_tower = TextTower(self.tower, name="tower")

    def __call__(self, ids: Int[Array, "rows tokens"]) -> Float[Array, "rows tokens dim"]:
        return self.text_tower.project(self.text_tower(ids)["tokens"])
