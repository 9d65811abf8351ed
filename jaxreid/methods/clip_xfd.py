"""CLIP for extreme far distance: VSLA-CLIP on a larger tower, of which the last blocks train too, and frames that count
by what is seen on them.

Rajbhandari, Chakravarthi, "Scale-Aware Vision-Language Adaptation for Extreme Far-Distance Video Person
Re-identification", arXiv 2604.04183. Read were the abstract, a summary, and the first author's code of an earlier form
on ViT-B/16; below that level the modules are VSLA-CLIP's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
from flax.traverse_util import path_aware_map

from jaxreid.backbones.clip import VISION_TOWERS
from jaxreid.backbones.transformer import Adapters
from jaxreid.data.batch import Batch
from jaxreid.layers.clip_tower import PlatformPrompts
from jaxreid.layers.prompts import GEOMETRY
from jaxreid.layers.temporal import AttentionPooling, MeanPooling
from jaxreid.methods.method import Variables
from jaxreid.methods.released import clip_xfd
from jaxreid.methods.vsla_clip import VALUES as VSLA_VALUES
from jaxreid.methods.vsla_clip import VslaClip
from jaxreid.optimizers import Group, Optimizer, is_trained
from jaxreid.values import flag, positive, some_of, under, whole

OF_BLOCKS = r"(norm_|attention/|mlp/)"  # of a block of the tower, what is CLIP's
CAST = r"(/block_\d+/(attention|mlp)/|/patch_embedding/)"  # …, and used in the compute type alone

VALUES = {
    **VSLA_VALUES,
    "unfreeze_last": whole(0),
    **under("attention_pooling", {"temperature": positive, "unit": flag}),
    "adapters.tokens": flag,
    "platform_prompts.geometry": some_of(GEOMETRY),
    "released": flag,
}


class ClipXFD(VslaClip):
    """See the module's docstring."""

    values = VALUES
    released = clip_xfd.RELEASED

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        depth = VISION_TOWERS[config.backbone.name].depth
        if config.unfreeze_last > depth:
            yield f"config.unfreeze_last={config.unfreeze_last} of a tower of {depth} blocks"
        if config.platform_prompts.geometry and not config.platform_prompts.blocks:
            yield "config.platform_prompts.geometry changes prompts: config.platform_prompts.blocks must be at least 1"
        if config.released and config.pooling != "attention":
            yield "config.released=True needs config.pooling='attention', whose scores stay as they are drawn"

    # --- 1: the tower, frozen ------------------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """What no stage trains and the towers use in the compute type alone is held in it, once: the same numbers."""
        variables = super().init(rng, batch)
        optimizers = tuple(update.optimizer for stage in self.stages() for update in stage.updates)

        def held(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            name = "/".join(path)
            return leaf.astype(self.image.dtype) if re.search(CAST, name) and not is_trained(name, optimizers) else leaf

        return {**variables, "params": path_aware_map(held, variables["params"])}

    # --- 2: backbone-aware selective tuning ----------------------------------------------------------------------

    def optimizer(self) -> Optimizer:
        """The groups of the config, in which all blocks train, without the blocks before the last `unfreeze_last`."""
        found, blocks = super().optimizer(), self.image.depth - self.config.unfreeze_last
        if self.config.released:  # no block trains, and what was added by names that its filters do not know
            blocks = self.image.depth
        numbers = "|".join(f"{number:02d}" for number in range(blocks))
        frozen = [Group(rf"^image_tower/block_({numbers})/{OF_BLOCKS}", 0.0)] if blocks else []
        frozen += [Group(r"^(platform_prompts|geometry_prompts|pool)", 0.0)] if self.config.released else []
        return dataclasses.replace(found, groups=(*frozen, *found.groups))

    # --- 3: temporal attention pooling ---------------------------------------------------------------------------

    def shared(self) -> dict[str, Any]:
        """As all members have it; the scores start at 0, as the mean. One is shared by the features of the tower's own
        space, another is the joint space's."""
        config, pooling = self.config, MeanPooling
        if config.pooling == "attention":
            pooling = partial(AttentionPooling, **config.attention_pooling, zero_init=not config.released)
        return {**super().shared(), "pooling": pooling, "neck_shift": config.released}

    # --- 4: adapters and prompts ---------------------------------------------------------------------------------

    def adapters(self) -> Adapters:
        """Over the frames of a clip ("inter"), of every token ("intra"), or both."""
        found = super().adapters()
        return found if self.config.adapters.tokens else dataclasses.replace(found, beside_mlp=None)

    def prompts(self) -> PlatformPrompts | None:
        """Tokens of the platform and, if asked for, of altitude, distance and angle."""
        found = super().prompts()
        return found and dataclasses.replace(found, geometry=tuple(self.config.platform_prompts.geometry))

    # 5, the losses, are VSLA-CLIP's; schedule and colour jitter (5), and re-ranking (6), are values of the config.


METHOD = ClipXFD
