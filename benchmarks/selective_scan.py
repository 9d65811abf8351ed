"""The selective scan in chunks, beside the plain loop over tokens, as JSON lines.

    python benchmarks/selective_scan.py [--frames 8] [--tokens 33] [--width 128] [--state 4] [--clips 32]
                                        [--chunks 1 3 33] [--turns 5] [--out FILE]

`loop` is lax.scan over single tokens, which keeps the state after each of them for the backward pass; `chunk N` is
`jaxreid.layers.mamba.selective_scan`. The forms take turns on the same random numbers. Milliseconds are those of the
quickest turn: `forward` pass alone, `both` with the gradients of all arguments; `ratio` is `both` over that of the
loop, `gap` the largest difference of the output to its; `compiled` are seconds, `MiB` the compiler's work space. At the
full size of ViT-L/14: --frames 16 --tokens 163 --width 2048 --state 16 --clips 1 --chunks 1 16 163.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreid.files import expand
from jaxreid.layers.mamba import selective_scan


def loop(x, delta, a, b, c, skip):
    """One token after another, without chunks and without computing anything anew."""

    def step(h: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, delta, b, c = inputs
        h = jnp.exp(delta[..., None] * a) * h + (delta * x)[..., None] * b[:, None]
        return h, (h * c[:, None]).sum(-1) + skip * x

    steps = tuple(y.swapaxes(0, 1) for y in (x, delta, b, c))
    return jax.lax.scan(step, jnp.zeros((len(x), *a.shape)), steps)[1].swapaxes(0, 1)


def compiled(scan: Callable[..., jax.Array], arguments: tuple[jax.Array, ...]) -> dict[str, Any]:
    """{"forward", "both"}: compiled functions; what compiling took; the work space of the second."""
    forward = jax.jit(lambda arguments: scan(*arguments))
    both = jax.jit(jax.grad(lambda arguments: (scan(*arguments) ** 2).sum()))
    start = time.perf_counter()
    found = {"forward": forward.lower(arguments).compile(), "both": both.lower(arguments).compile()}
    memory = found["both"].memory_analysis()
    return {**found, "compiled": time.perf_counter() - start, "MiB": memory and memory.temp_size_in_bytes / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 8), ("tokens", 33), ("width", 128), ("state", 4), ("clips", 32), ("turns", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 3, 33])
    parser.add_argument("--out", type=expand, help="file that lines are added to")
    args = parser.parse_args()
    length = args.frames * args.tokens
    wide, narrow = (args.clips, length, args.width), (args.clips, length, args.state)
    shapes = (wide, wide, (args.width, args.state), narrow, narrow, (args.width,))
    x, delta, a, b, c, skip = map(jax.random.normal, jax.random.split(jax.random.key(0), len(shapes)), shapes)
    arguments = x, jax.nn.softplus(delta - 2), -jnp.exp(a), b, c, skip

    forms = {"loop": loop} | {f"chunk {n}": functools.partial(selective_scan, chunk=n) for n in args.chunks}
    runs = {name: compiled(form, arguments) for name, form in forms.items()}
    best = {(name, part): float("inf") for name in runs for part in ("forward", "both")}
    for _ in range(args.turns):
        for name, part in best:
            start = time.perf_counter()
            jax.block_until_ready(runs[name][part](arguments))
            best[name, part] = min(best[name, part], time.perf_counter() - start)
    wanted = runs["loop"]["forward"](arguments)
    size = {name: getattr(args, name) for name in ("clips", "frames", "tokens", "width", "state")}
    for name, run in runs.items():
        row = {"device": jax.devices()[0].device_kind, **size, "form": name}
        row |= {part: 1e3 * best[name, part] for part in ("forward", "both")}
        row |= {"ratio": best[name, "both"] / best["loop", "both"], "compiled": run["compiled"], "MiB": run["MiB"]}
        row["gap"] = float(jnp.abs(run["forward"](arguments) - wanted).max())
        line = json.dumps({key: float(f"{x:.4g}") if isinstance(x, float) else x for key, x in row.items()})
        print(line, flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
