"""Memory of an evaluation with wide features: clips pooled as they arrive, tracklets scored in blocks.

    python benchmarks/wide_features.py [--width 19200] [--queries 1980] [--gallery 9330] [--clips 4] [--batch 64]

Draws clip features batch by batch, pools them with `TrackletPool`, and scores the queries against the whole test set
(queries are in MARS's gallery) by Euclidean distance. Prints a JSON line: `features_mb` is what the pooled features
take, `beyond_mb` by how much more than that the process grew. The sizes that are default are MARS's and the
evaluation of KeyRe-ID's.
"""

import argparse
import json
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid import retrieval
from jaxreid.data.loose import loose_split
from jaxreid.data.split import join
from jaxreid.evaluation.cases import Side
from jaxreid.evaluation.pooling import TrackletPool
from jaxreid.methods.method import Features


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def pooled(tracklets: int, clips: int, width: int, batch: int, seed: int) -> np.ndarray:
    """Features f32[tracklets, width] of clips that are drawn on the device, a batch at a time."""
    pool = TrackletPool(np.arange(tracklets), [str(row) for row in range(tracklets)], "before", normalize=False)
    draw = jax.jit(lambda key: jax.random.normal(key, (batch, width)))
    for number, start in enumerate(range(0, tracklets * clips, batch)):
        row = jnp.arange(start, start + batch) // clips
        valid = row < tracklets
        found = draw(jax.random.fold_in(jax.random.PRNGKey(seed), number))
        pool.add(Features({"feature": found}, jnp.where(valid, row, -1), jnp.zeros_like(row), valid))
    return pool.finish()["feature"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=19_200)
    parser.add_argument("--queries", type=int, default=1980)
    parser.add_argument("--gallery", type=int, default=9330)
    parser.add_argument("--clips", type=int, default=4, help="of a tracklet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--distance", default="euclidean", choices=("cosine", "euclidean"))
    options = parser.parse_args()
    pooled(2, 1, 8, options.batch, 0)
    before, start = peak_mb(), time.perf_counter()
    splits = [loose_split(np.ones(count, int), names=[f"{name}{row}" for row in range(count)])
              for name, count in (("q", options.queries), ("g", options.gallery))]  # fmt: skip
    features = {}
    for number, (split, name) in enumerate(zip(splits, ("query", "gallery"), strict=True)):
        object.__setattr__(split, "name", name)
        features[name] = pooled(len(split), options.clips, options.width, options.batch, number)
    after_pooling, pooling_s = peak_mb(), time.perf_counter() - start
    rng, whole = np.random.default_rng(0), join(splits)

    def rows(count: int) -> retrieval.Rows:
        return retrieval.Rows(identity=rng.integers(0, 600, count), camera=rng.integers(0, 6, count))

    query = Side(splits[0], np.arange(options.queries), np.arange(options.queries, dtype=np.int32))
    gallery = Side(whole, np.arange(len(whole)), np.arange(len(whole), dtype=np.int32))
    start = time.perf_counter()
    scores = retrieval.score(query.of(features), gallery.of(features), rows(len(query.rows)), rows(len(gallery.rows)),
                             "market", options.distance)  # fmt: skip
    own = sum(x.nbytes for x in features.values()) / 2**20
    print(json.dumps({
        "width": options.width, "queries": options.queries, "gallery": options.gallery,
        "clips": options.clips * len(whole), "features_mb": round(own),
        "beyond_mb": round(peak_mb() - before - own), "beyond_while_pooling_mb": round(after_pooling - before - own),
        "pooling_seconds": round(pooling_s, 1), "scoring_seconds": round(time.perf_counter() - start, 1),
        "mAP": round(scores.mAP, 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
