"""A frozen block of CLIP's tower with VSLA-CLIP's adapters and platform prompts, in jax and in plain PyTorch, in turns.

    python benchmarks/adapted_block.py [--towers ViT-B/16 ViT-L/14] [--clips 2] [--frames 8] [--length 4]
                                       [--forms jaxreid torch] [--precision float32] [--turns 3] [--out FILE]

Twelve (ViT-B/16) or twenty-four (ViT-L/14) of them are most of what a step of `vsla_clip`, `vreid_xfd` and `clip_xfd`
does. Each token has an adapter beside the MLP and, beside attention, one that looks over the frames of its clip; every
frame attends to `--length` prompts too. Both forms have the same weights, drawn at random. Milliseconds per clip are
those of the quickest turn: `forward` pass alone, `both` with gradients of the tokens, adapters and prompts, and of
nothing that is frozen; `ratio` is `both` over that of the first form, `gap` the output's largest
difference from its.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from attention import compare, of_jax, printed, torch_calls

from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.transformer import Adapters, Block
from jaxreid.files import expand
from jaxreid.layers.adapters import TemporalAdapter, TokenAdapter

SIZES = {"ViT-B/16": (256, 128), "ViT-L/14": (252, 126)}
WIDTH, HEADS = 256, 4  # of an adapter
ADAPTERS = ("beside_attention", "beside_mlp")


def inputs(tower, clips, frames, length, precision):
    """The block, its frozen weights, and what has gradients: its adapters, tokens and prompts."""
    config = vision_config(tower, SIZES[tower], dtype=jnp.dtype(precision))
    kinds = {"zero_init": False, "dtype": config.dtype}
    over_frames, of_tokens = partial(TemporalAdapter, WIDTH, HEADS, **kinds), partial(TokenAdapter, WIDTH, **kinds)
    block = Block(config, Adapters(beside_attention=over_frames, beside_mlp=of_tokens))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(clips * frames, config.tokens, config.width)), precision)
    prompts = jnp.asarray(0.02 * rng.normal(size=(1, length, config.width)), precision)
    mask = jnp.ones((clips, frames), bool)
    params = jax.jit(partial(block.init, frame_mask=mask, prompts=prompts))(jax.random.key(0), tokens)["params"]
    frozen = {name: value for name, value in params.items() if name not in ADAPTERS}
    return config, block, frozen, ({name: params[name] for name in ADAPTERS}, tokens, prompts)


def in_jax(block, frozen, clips, adapters, tokens, prompts):
    mask = jnp.ones((clips, len(tokens) // clips), bool)
    return block.apply({"params": {**frozen, **adapters}}, tokens, frame_mask=mask, prompts=prompts).tokens


def of_torch(config, frozen, trained, clips, precision):
    import torch
    from torch.nn.functional import layer_norm, scaled_dot_product_attention

    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, precision)

    def tensor(x, gradient=True):
        return torch.tensor(np.asarray(x, np.float32), device=device, requires_grad=gradient)

    p = jax.tree.map(partial(tensor, gradient=False), frozen)
    adapters = jax.tree.map(tensor, trained[0])
    tokens, prompts = (tensor(x).to(dtype).detach().requires_grad_() for x in trained[1:])
    leaves = [*jax.tree.leaves(adapters), tokens, prompts]

    def linear(layer, x):
        return x @ layer["kernel"].to(x.dtype) + layer["bias"].to(x.dtype)

    def norm(layer, x):
        return layer_norm(x.float(), x.shape[-1:], layer["scale"], layer["bias"], config.eps).to(x.dtype)

    def quick_gelu(x):
        return x * torch.sigmoid(1.702 * x)

    def mixed(layer, q, kv, heads):
        q, k, v = (
            linear(layer[name], x).unflatten(-1, (heads, -1)).transpose(-3, -2)
            for name, x in (("query", q), ("key", kv), ("value", kv))
        )
        return linear(layer["out"], scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))

    def over_frames(layer, x):
        y = linear(layer["down"], x.unflatten(0, (clips, -1))).transpose(1, 2)  # clips, tokens, frames, width
        return linear(layer["up"], mixed(layer, y, y, HEADS).transpose(1, 2)).flatten(0, 1)

    def run():
        y = norm(p["norm_1"], tokens)
        seen = torch.cat([y, prompts.expand(len(y), -1, -1)], 1)
        x = tokens + mixed(p["attention"], y, seen, config.heads) + over_frames(adapters["beside_attention"], tokens)
        y = linear(p["mlp"]["down"], quick_gelu(linear(p["mlp"]["up"], norm(p["norm_2"], x))))
        beside = adapters["beside_mlp"]
        return x + y + linear(beside["up"], quick_gelu(linear(beside["down"], x)))

    return torch_calls(run, leaves)


def make(form, tower, clips, frames, length, precision):
    """Calls and output of a form, as `attention.compare` wants them."""
    config, block, frozen, trained = inputs(tower, clips, frames, length, precision)
    if form == "torch":
        return of_torch(config, frozen, trained, clips, precision)
    return of_jax("library", partial(in_jax, block, frozen, clips), trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=[*SIZES], choices=[*SIZES])
    parser.add_argument("--forms", nargs="+", default=["jaxreid", "torch"], choices=["jaxreid", "torch"])
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--precision", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=expand, help="file that lines are added to")
    args = parser.parse_args()
    for tower in args.towers:
        fields = {key: getattr(args, key) for key in ("clips", "frames", "length", "precision")}
        for form, found in compare(partial(make, tower=tower, **fields), args.forms, args.turns).items():
            found |= {kind: found[kind] / args.clips for kind in ("forward", "both") if kind in found}
            printed({"tower": tower, **fields, "form": form, **found}, args.out)


if __name__ == "__main__":
    main()
