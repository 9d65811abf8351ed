"""Stage 1 of CLIP-ReID on cached features: what reading the text tower only up to the end token is worth.

    python benchmarks/prompt_learning.py [--tower ViT-B/16] [--identities 625] [--batch 64] [--steps 10]

One line of JSON for each length of the sentences (cut after the end token, and CLIP's 77 positions), on random weights:
seconds of a training step and of encoding the bank of all identities, identities per second, and the largest
difference of the two banks. The two lengths take turns, and the quickest of each is reported: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.text import text_config
from jaxreid.backbones.word_table import walkers_words
from jaxreid.devices import parallel
from jaxreid.layers.prompts import PromptedText, PromptTemplate
from jaxreid.losses.image_text import supervised_contrastive

TEXT = "A photo of a X X X X person."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tower", default="ViT-B/16", help="text tower by the name of its image tower")
    parser.add_argument("--identities", type=int, default=625, help="training identities (MARS: 625)")
    parser.add_argument("--batch", type=int, default=64, help="features in a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each length")
    parser.add_argument("--precision", default="float32", help="compute type")
    options = parser.parse_args()
    tower = text_config(options.tower, dtype=jnp.dtype(options.precision))
    words = walkers_words()  # random weights: only the length of the sentence matters
    rng = np.random.default_rng(0)
    identity = jnp.asarray(rng.integers(0, options.identities, options.batch), jnp.int32)
    features = jnp.asarray(rng.normal(size=(options.batch, tower.projection)), jnp.float32)
    mesh = parallel.make_mesh()
    with jax.set_mesh(mesh):
        variables, runs = None, {}
        for context in (None, tower.context):
            module = PromptedText(
                tower, PromptTemplate.of_text(TEXT, words, own=4, context=context), options.identities
            )
            variables = variables or jax.jit(module.init)(jax.random.key(0), identity)
            runs[len(module.template.ids)] = (jax.jit(step_of(module)), jax.jit(bank_of(module, mesh.size)))
        seconds = {(length, part): [] for length in runs for part in ("step", "bank")}
        banks = {}
        for turn in range(options.steps + 1):
            for length, (step, bank) in runs.items():
                for part, call in (
                    ("step", lambda s=step: s(variables, features, identity)),
                    ("bank", lambda b=bank: b(variables)),
                ):
                    start = time.perf_counter()
                    found = jax.block_until_ready(call())
                    if turn:  # the first turn compiles
                        seconds[length, part].append(time.perf_counter() - start)
                    if part == "bank":
                        banks[length] = found
    short, long = runs
    for length in runs:
        step, bank = (min(seconds[length, part]) for part in ("step", "bank"))
        print(
            json.dumps(
                {
                    "benchmark": "prompt_learning",
                    "device": jax.devices()[0].device_kind,
                    "tower": options.tower,
                    "precision": options.precision,
                    "positions": length,
                    "step_seconds": round(step, 4),
                    "bank_seconds": round(bank, 4),
                    "identities_per_second": round(options.identities / bank, 1),
                    "times_faster": round(min(seconds[long, "step"]) / step, 2),
                    "largest_difference": float(jnp.abs(banks[short] - banks[long]).max()),
                }
            )
        )


def step_of(module: PromptedText):
    """Loss and gradient with respect to the learned words, as a training step computes them."""

    def step(variables, features, identity):
        params = dict(variables["params"])
        own = params.pop("own")

        def loss(own):
            t = module.apply({"params": {**params, "own": own}}, identity)
            valid = jnp.ones(len(identity), bool)
            return supervised_contrastive(features, t, identity, valid) + supervised_contrastive(
                t, features, identity, valid
            )

        return jax.value_and_grad(loss)(own)

    return step


def bank_of(module: PromptedText, devices: int):
    return lambda variables: module.apply(variables, 8 * devices, method="bank")


if __name__ == "__main__":
    main()
