"""KeyRe-ID's local branch in its forms and in plain PyTorch, in turns, as JSON lines.

    python benchmarks/part_attention.py [--towers ViT-B/16 walkers_vit_tiny] [--forms fast plain published torch]
                                        [--clips 4] [--precision float32] [--turns 3] [--out FILE]

One block, T times as wide as the tower, for each of six parts. `fast` and `plain` are `local.fast=True` and False and
compute one row of the block; `published` lets the block compute all rows, and `torch` is the same, part after part, on
scaled_dot_product_attention. All have the same weights. Milliseconds per clip are those of the quickest turn: `forward`
pass alone, `both` with the gradients of weights and inputs; `ratio` is `both` over that of the first form, `gap` the
largest difference of the output to its.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attention import compare, of_jax, printed, torch_calls

from jaxreid.backbones.imagenet import imagenet_config
from jaxreid.backbones.transformer import Block, LayerNorm, TransformerConfig
from jaxreid.files import expand
from jaxreid.layers.part_attention import PartAttention

PARTS, LENGTH = 6, 4
SIZES = {"ViT-B/16": (256, 128), "walkers_vit_tiny": (64, 32)}


def inputs(tower, clips, precision):
    """The block's config, its weights, tokens [B, 1 + N, T·D] and weights of patches f32[B, 6, N]."""
    of_frames = imagenet_config(tower, SIZES[tower])
    config = TransformerConfig(
        width=LENGTH * of_frames.width, depth=1, heads=of_frames.heads, activation="gelu", eps=1e-6,
        dtype=jnp.dtype(precision),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(clips, of_frames.tokens, config.width)), precision)
    weights = jnp.asarray(rng.random((clips, PARTS, of_frames.patches)), jnp.float32)
    return config, jax.jit(PartAttention(config).init)(jax.random.key(0), tokens, weights), tokens, weights


def published(config, variables, tokens, weights):
    """The block as it stands, on the rows of every part."""
    scale = jnp.pad(weights, ((0, 0), (0, 0), (1, 0)), constant_values=1.0)[..., None]
    rows = (tokens[:, None] * scale).astype(tokens.dtype).reshape(-1, *tokens.shape[1:])
    params = variables["params"]
    found: Any = Block(config).apply({"params": params["block"]}, rows)
    normed: Any = LayerNorm(1e-5).apply({"params": params["norm"]}, found.tokens)
    return normed[:, 0].reshape(*weights.shape[:2], -1)


def of_torch(config, variables, tokens, weights, precision):
    import torch
    from torch.nn import functional

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def tensor(x, dtype):
        return torch.tensor(np.asarray(x, np.float32), dtype=dtype, device=device, requires_grad=True)

    p = jax.tree.map(lambda x: tensor(x, torch.float32), variables["params"])
    inner = p["block"]
    leaves = [*jax.tree.leaves(p), tensor(tokens, getattr(torch, precision)), tensor(weights, torch.float32)]
    tokens, weights = leaves[-2:]

    def linear(layer, x):
        return x @ layer["kernel"].to(x.dtype) + layer["bias"].to(x.dtype)

    def norm(layer, x, eps):
        return functional.layer_norm(x.float(), x.shape[-1:], layer["scale"], layer["bias"], eps)

    def run():
        parts = []
        for k in range(PARTS):
            x = torch.cat([tokens[:, :1], (tokens[:, 1:] * weights[:, k, :, None]).to(tokens.dtype)], 1)
            y = norm(inner["norm_1"], x, 1e-6).to(x.dtype)
            q, k, v = (
                linear(inner["attention"][name], y).unflatten(-1, (config.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
            x = x + linear(inner["attention"]["out"], y)
            y = norm(inner["norm_2"], x, 1e-6).to(x.dtype)
            x = x + linear(inner["mlp"]["down"], functional.gelu(linear(inner["mlp"]["up"], y)))
            parts.append(norm(p["norm"], x, 1e-5)[:, 0])
        return torch.stack(parts, 1)

    return torch_calls(run, leaves)


def make(form, tower, clips, precision):
    """Calls and output of a form, as `attention.compare` wants them."""
    config, *arguments = inputs(tower, clips, precision)
    if form == "torch":
        variables, tokens, weights = arguments
        return of_torch(config, variables, tokens, weights, precision)
    if form == "published":
        return of_jax("library", functools.partial(published, config), arguments)
    return of_jax("library", PartAttention(config, fast=form == "fast").apply, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=[*SIZES], choices=[*SIZES])
    forms = ["fast", "plain", "published", "torch"]
    parser.add_argument("--forms", nargs="+", default=forms, choices=forms)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--precision", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=expand, help="file that lines are added to")
    args = parser.parse_args()
    for tower in args.towers:
        fields = {"tower": tower, "clips": args.clips, "precision": args.precision}
        own = functools.partial(make, tower=tower, clips=args.clips, precision=args.precision)
        for form, found in compare(own, args.forms, args.turns).items():
            found |= {kind: found[kind] / args.clips for kind in ("forward", "both") if kind in found}
            printed({**fields, "form": form, **found}, args.out)


if __name__ == "__main__":
    main()
