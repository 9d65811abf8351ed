"""The sorts of networks that weights are read for, and the shapes of their variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxreid.backbones.layouts import LAYOUTS, Layout
from jaxreid.backbones.mask_branch import MaskBranch, MaskBranchConfig
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.skeleton_graph import SkeletonConfig, SkeletonGraph
from jaxreid.backbones.swinir import SwinIR, SwinIRConfig
from jaxreid.backbones.swinir_layout import SWINIR
from jaxreid.backbones.text import TextConfig, TextTower
from jaxreid.backbones.vit import ViT, ViTConfig

Config = ViTConfig | TextConfig | ResNetConfig | SwinIRConfig | SkeletonConfig | MaskBranchConfig


class Kind(NamedTuple):
    """A sort of network: its name in messages, its formats, and its abstract variables by configuration."""

    name: str
    layouts: tuple[Layout, ...]
    init: Callable[[Any], Any]


def kind_of(config: Config) -> Kind:
    return next(kind for of, kind in KINDS.items() if isinstance(config, of))


def _abstract_vit(c: ViTConfig) -> Any:
    return ViT(c).init(jax.random.key(0), jnp.zeros((1, *c.image_size, 3)))


def _abstract_text(c: TextConfig) -> Any:
    return TextTower(c).init(jax.random.key(0), jnp.zeros((1, c.context), jnp.int32))


def _abstract_resnet(c: ResNetConfig) -> Any:
    if c.stems == 0:
        return ResNet(c).init(jax.random.key(0), jnp.zeros((1, 8, 8, c.width)), method="run_layers")
    return ResNet(c).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), modality=jnp.zeros(1, jnp.int32))


def _abstract_swinir(c: SwinIRConfig) -> Any:
    return SwinIR(c).init(jax.random.key(0), jnp.zeros((1, 1, *c.size, 3)))


def _abstract_skeleton(c: SkeletonConfig) -> Any:
    made = SkeletonGraph(c).init(jax.random.key(0), jnp.zeros((1, c.joints, 3)))
    return {"params": made["params"]}  # nothing in it depends on the tree, whose code no file holds


def _abstract_mask_branch(c: MaskBranchConfig) -> Any:
    return MaskBranch(c).init(jax.random.key(0), jnp.zeros((1, 1, 1, c.width)))


KINDS = {
    ViTConfig: Kind("image tower", LAYOUTS[ViTConfig], _abstract_vit),
    TextConfig: Kind("text tower", LAYOUTS[TextConfig], _abstract_text),
    ResNetConfig: Kind("ResNet", LAYOUTS[ResNetConfig], _abstract_resnet),
    SwinIRConfig: Kind("super-resolution network", (SWINIR,), _abstract_swinir),
    SkeletonConfig: Kind("skeleton encoder", LAYOUTS[SkeletonConfig], _abstract_skeleton),
    MaskBranchConfig: Kind("mask branch", LAYOUTS[MaskBranchConfig], _abstract_mask_branch),
}


def shapes_of(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shape of every variable by collection and path; a path occurs in one collection only."""
    variables = jax.eval_shape(lambda: kind_of(config).init(config))
    leaves: dict[str, dict[str, Any]] = {name: flatten_dict(tree, sep="/") for name, tree in variables.items()}
    return {name: {path: leaf.shape for path, leaf in tree.items()} for name, tree in leaves.items()}


def summary(config: Config) -> str:
    if isinstance(config, ResNetConfig):
        return f"a ResNet of {config.depths} bottlenecks, width {config.width}, {config.stems} stems"
    if isinstance(config, SwinIRConfig):
        layout = f"{config.groups} groups of {config.depth} blocks, width {config.width}, window {config.cell[0]}"
        return f"a SwinIR of {layout}, head {config.head!r} ×{config.scale}"
    if isinstance(config, SkeletonConfig):
        return f"a skeleton encoder of {config.depth} blocks, width {config.width}, projection {config.projection}"
    if isinstance(config, MaskBranchConfig):
        return f"a mask branch of width {config.width}"
    rest = (
        f"patch {config.patch}, grid {config.grid[0]}×{config.grid[1]}"
        if isinstance(config, ViTConfig)
        else f"vocabulary {config.vocabulary}, context {config.context}"
    )
    kind = "tower" if isinstance(config, ViTConfig) else "text tower"
    return f"a {kind} of {config.depth} blocks, width {config.width}, {rest}, projection {config.projection}"
