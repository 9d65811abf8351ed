"""What CG-CLIP's token-based feature extraction costs beside the module of TF-CLIP whose place it takes.

    python benchmarks/token_extraction.py [--clips 2] [--frames 8] [--turns 10] [--precision float32]

A Markdown table at the size of CLIP ViT-B/16, 256 × 128: parameters, multiply-adds of a clip's forward pass (counted
in the traced program), and milliseconds of a clip, forward and with gradients, on random weights. The forms take turns,
and the quickest of each is reported: the machine may be busy.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxreid.backbones.flops import count
from jaxreid.layers.tf_clip import TemporalMemoryDiffusion
from jaxreid.layers.token_extraction import TokenExtraction

TOKENS, WIDTH, HEADS = 129, 768, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--precision", default="float32", help="type of the tower's tokens")
    options = parser.parse_args()
    forms: dict[str, Any] = {
        f"TFE, {n} tokens": TokenExtraction(HEADS, queries=n, frames=options.frames) for n in (4, 8, 16, 32)
    }
    forms["TMD"] = TemporalMemoryDiffusion(HEADS)
    shape = (options.clips, options.frames, TOKENS, WIDTH)
    x = jax.random.normal(jax.random.key(0), shape).astype(options.precision)
    mask = jnp.ones(shape[:2], bool)
    variables = {name: jax.jit(module.init)(jax.random.key(1), x, mask) for name, module in forms.items()}

    def forward(module: Any) -> Any:
        return lambda v, x: jax.tree.leaves(module.apply(v, x, mask))[0]

    def slopes(module: Any) -> Any:
        return jax.grad(lambda v, x: (forward(module)(v, x) ** 2).sum())

    runs = {
        (name, part): jax.jit(of(module))
        for name, module in forms.items()
        for part, of in (("forward", forward), ("slopes", slopes))
    }
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(options.turns + 1):
        for (name, part), run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(variables[name], x))
            if turn:  # the first turn compiles
                best[name, part] = min(best[name, part], time.perf_counter() - start)
    print(f"{jax.devices()[0].device_kind}, {options.precision}, {options.clips} clips of {options.frames} frames\n")
    print("| | parameters | GMAC a clip | ms a clip | with gradients |\n|" + "---|" * 5)
    for name, module in forms.items():
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables[name]))
        work = count(forward(module), variables[name], x) / 2 / options.clips / 1e9
        times = (f"{1000 * best[name, part] / options.clips:.0f}" for part in ("forward", "slopes"))
        print(f"| {name} | {parameters:,} | {work:.2f} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
