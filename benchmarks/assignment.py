"""Seconds of one-to-one assignment at several capacities, a quarter of the slots used, beside scipy; JSON lines.

    python benchmarks/assignment.py [--slots 256 1024 4096]

`costs`: exp(−cosine) of independent features, or of the same people seen twice. `scipy_seconds` is
`linear_sum_assignment` of the used rows and columns alone, on the host; `same` says whether both chose the same pairs.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxreid.retrieval import linear_assignment


def problem(slots: int, seen_twice: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs f32[slots, slots], and which rows and columns are used, bool[slots] each."""
    rng = np.random.default_rng(slots)
    sides = rng.standard_normal((2, slots, 64))
    if seen_twice:
        sides = rng.standard_normal((slots, 64)) + 0.5 * sides
    sides /= np.linalg.norm(sides, axis=2, keepdims=True)
    used = rng.permuted(np.tile(np.arange(slots) < slots // 4, (2, 1)), axis=1)
    return np.exp(-sides[0] @ sides[1].T).astype(np.float32), *used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[256, 1024, 4096])
    for slots in parser.parse_args().slots:
        step = None
        for costs in ("independent", "seen twice"):
            arguments = tuple(map(jnp.asarray, problem(slots, costs == "seen twice")))
            start = time.perf_counter()
            step = step or jax.jit(linear_assignment).lower(*arguments).compile()
            compiled = time.perf_counter()
            found = np.asarray(step(*arguments))
            end = time.perf_counter()
            cost, rows, columns = map(np.asarray, arguments)
            row, column = np.flatnonzero(rows), np.flatnonzero(columns)
            best = linear_sum_assignment(cost[np.ix_(row, column)])
            print(
                json.dumps(
                    {
                        "slots": slots,
                        "used": len(row),
                        "costs": costs,
                        "seconds": round(end - compiled, 3),
                        "compile_seconds": round(compiled - start, 3),
                        "scipy_seconds": round(time.perf_counter() - end, 3),
                        "same": bool(np.array_equal(found[row[best[0]]], column[best[1]])),
                        "device": jax.devices()[0].platform,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
