"""A method with a score of pairs, of pixels alone: it never trains, and its score is not symmetric. As a program it
scores the test tracklets of `walkers/tiny` and dies where it is told to (see killed_run.py):

    python tests/pair_method.py MOMENT WORKDIR DATA_DIR
    python tests/pair_method.py never WORKDIR DATA_DIR INDEX PORT       as one of two processes
"""

import dataclasses
import importlib
import sys

import jax.numpy as jnp
import numpy as np
from finished import CONFIG, SMALL

from jaxreid.arrays import masked_mean
from jaxreid.backbones import clip
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.baseline import Baseline
from jaxreid.run.model import start_run

WEIGHTS = {"shift": np.float32(0.25)}
SMALLEST = {
    **CONFIG,
    "method": "pair_method",
    "dataset.protocols": ("cross_modal_cam", "bupt_full"),
    "evaluation.rescore_size": 4,
    "evaluation.rescore_block": 8,
}


class Pairs(Baseline):
    def embed(self, variables, memory, batch):
        del variables, memory
        x = masked_mean(batch.frames.astype(jnp.float32).mean(axis=3), batch.frame_mask)  # [B, H, 3]
        return {"feature": x[:, ::8].reshape(len(x), -1)}

    def pair_features(self, variables, memory, batch):
        del variables, memory
        x = masked_mean(batch.frames.astype(jnp.float32).mean(axis=2), batch.frame_mask)  # [B, W, 3]
        return {"rows": x, "tone": x.mean(axis=1).astype(jnp.bfloat16), "long": batch.frame_mask.sum(axis=1)}

    def pair_score(self, variables, memory, queries, gallery):
        del memory
        moved = queries["rows"] - jnp.roll(gallery["rows"], 1, axis=1) + variables["shift"]
        tone = queries["tone"].astype(jnp.float32) * gallery["tone"].astype(jnp.float32)
        return -jnp.abs(moved).mean(axis=(1, 2)) + 0.1 * tone.sum(axis=1) + 0.01 * gallery["long"]

    def examine_pairs(self, variables, memory, queries, gallery):
        del variables, memory
        return {
            "frames": 100 * queries["long"] + gallery["long"],
            "tone": queries["tone"][:, 0] - gallery["tone"][:, 0],
        }


METHOD = Pairs


def make_evaluator(workdir, data_dir, **changes):
    """An evaluator of `Pairs` on two protocols of two directions; the tower that nobody asks has its name."""
    clip.VISION_TOWERS["small"] = SMALL
    config = importlib.import_module("configs.baseline").get_config()
    config.update_from_flattened_dict(SMALLEST | changes)
    workdir.mkdir(exist_ok=True)
    return Evaluator(start_run(config, workdir, data_dir))


def final(evaluator, variables=None):
    """What the evaluation finds, with all distances of the shortlists."""
    kept, rescore = [], evaluator.rescorer

    def keeping(*arguments):
        kept.append(rescore(*arguments))
        return kept[0]

    keeping.extractor, evaluator.rescorer = rescore.extractor, keeping
    found = evaluator.final(variables or WEIGHTS, {}, 1)
    evaluator.rescorer = rescore
    every = [np.asarray(d(*(np.arange(len(x)) for x in (d.query, d.gallery)))) for d in kept[0].distances]
    scores = [d.pair_score(np.arange(len(d.query)), d.index) for d in kept[0].distances]
    return dataclasses.replace(found, strips=(every, scores))


if __name__ == "__main__":
    from pathlib import Path

    import jax
    import killed_run

    from jaxreid.devices import processes

    moment, workdir, data_dir, *one_of_two = sys.argv[1], *map(Path, sys.argv[2:4]), *sys.argv[4:]
    jax.config.update("jax_num_cpu_devices", 4 if one_of_two else 8)  # as the tests
    if one_of_two:
        processes.start(f"localhost:{one_of_two[1]}", 2, int(one_of_two[0]), 60)
    else:
        killed_run.at_call(*moment.split()[1:])
    found = final(make_evaluator(workdir, data_dir, **{"mesh.devices": 8 if one_of_two else 1}))
    np.savez(workdir / f"scores.{jax.process_index()}.npz", *found.strips[1])
