"""A layer of HAMoBE's temporal decoder in its forms and in plain PyTorch, in turns, as JSON lines.

    python benchmarks/temporal_layer.py [--towers ViT-L/14 walkers_clip] [--forms windows gathered torch]
                                        [--clips 1] [--frames 8] [--precision float32] [--turns 3] [--out FILE]

On what a block of the tower gives: convolution over time, places of frames, and what patches find in the frames before
and after. `windows` is the library's form, `gathered` makes a row of the table for each pair of cells, as published,
and `torch` is the same in PyTorch. All have the same random weights. Milliseconds per clip are those of the quickest
turn: `forward` pass alone, `both` with the gradients of the weights; `ratio` is `both` over that of the first form,
`gap` the largest difference of the output to its.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from attention import compare, of_jax, printed, torch_calls

from jaxreid.backbones.transformer import Tap
from jaxreid.files import expand
from jaxreid.layers import cross_frame
from jaxreid.layers.cross_frame import TemporalLayer

SIZES = {"ViT-L/14": ((16, 16), 1024, 16), "walkers_clip": ((8, 8), 128, 4)}  # grid, width, heads


def inputs(tower, clips, frames, precision):
    """The layer, its weights, and tokens, queries and keys of a block."""
    grid, width, heads = SIZES[tower]
    rng, tokens = np.random.default_rng(0), 1 + grid[0] * grid[1]
    shape = (clips, frames, tokens)
    tap = Tap(
        jnp.asarray(rng.normal(size=(*shape, width)), precision),
        *(jnp.asarray(rng.normal(size=(*shape, heads, width // heads)), precision) for _ in range(2)),
    )
    layer = TemporalLayer(grid, frames, dtype=jnp.dtype(precision))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), tap)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), shapes)
    return layer, params, tap


def offsets(grid):
    """i64[P, P]: the row of the table for every pair of cells."""
    h, w = grid
    down, across = np.divmod(np.arange(h * w), w)
    return (down[:, None] - down + h - 1) * (2 * w - 1) + across[:, None] - across + w - 1


def gathered(attention, table, grid):
    """`offset_sum` with a table [P, P, D]."""
    return jnp.einsum("nqk,qkd->nqd", attention, table[offsets(grid)])


def of_torch(layer, params, tap, precision):
    import torch
    from torch.nn import functional

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, precision)
    p = {
        name: torch.tensor(np.asarray(x), device=device, requires_grad=True) for name, x in params.items()
    }  # float32, used in `precision`
    o, q, k = (torch.tensor(np.asarray(x, np.float32), dtype=dtype, device=device) for x in tap)
    rows = torch.tensor(offsets(layer.grid), device=device)
    n, frames, length, width = o.shape

    def looks(q, k, name):
        scores = torch.einsum("ntqhc,ntkhc->nthqk", q, k).float() / q.shape[-1] ** 0.5
        return torch.einsum("ntqk,qkd->ntqd", scores.softmax(-1).mean(2).to(dtype), p[name].to(dtype)[rows])

    def run():
        x = o.permute(0, 2, 3, 1).reshape(n * length, width, frames)
        kernel = p["conv_kernel"].to(dtype).T[:, None]
        x = functional.conv1d(x, kernel, p["conv_bias"].to(dtype), padding=1, groups=width)
        h = o + x.reshape(n, length, width, frames).permute(0, 3, 1, 2) + p["position"].to(dtype)[:, None]
        before = looks(q[:, 1:, 1:], k[:, :-1, 1:], "previous")
        after = looks(q[:, :-1, 1:], k[:, 1:, 1:], "next")
        return h + functional.pad(before, (0, 0, 1, 0, 1, 0)) + functional.pad(after, (0, 0, 1, 0, 0, 1))

    return torch_calls(run, [*p.values()])


def make(form, tower, clips, frames, precision):
    """Calls and output of a form, as `attention.compare` wants them."""
    layer, params, tap = inputs(tower, clips, frames, precision)
    if form == "torch":
        return of_torch(layer, params, tap, precision)
    own, usual = {"windows": cross_frame.offset_sum, "gathered": gathered}[form], cross_frame.offset_sum
    cross_frame.offset_sum = own
    try:
        return of_jax("library", lambda params, tap: layer.apply({"params": params}, tap), (params, tap))
    finally:
        cross_frame.offset_sum = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=[*SIZES], choices=[*SIZES])
    forms = ["windows", "gathered", "torch"]
    parser.add_argument("--forms", nargs="+", default=forms, choices=forms)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--precision", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=expand, help="file that lines are added to")
    args = parser.parse_args()
    for tower in args.towers:
        fields = {"tower": tower, "clips": args.clips, "frames": args.frames, "precision": args.precision}
        own = functools.partial(make, **fields)
        for form, found in compare(own, args.forms, args.turns).items():
            found |= {kind: found[kind] / args.clips for kind in ("forward", "both") if kind in found}
            printed({**fields, "form": form, **found}, args.out)


if __name__ == "__main__":
    main()
