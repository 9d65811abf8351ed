"""What saving a state takes, digests included, and what restoring notices of single flipped bits, as JSON lines.

    python -m benchmarks.checkpoint --out DIR [--turns 3] [--flips 60] [--seed 0]

The state is HiTPro's with ViT-B/16 (`hitpro:hitsz_vcm`) with random contents, 1,056 MB. Seconds are the quickest of
`--turns`, after a first one that is not counted: `digests` alone, `returns` when training goes on,
`written` when the checkpoint is on disk. Bits are flipped one at a time in files of a small checkpoint, drawn by their
size: `format` counts what restoring without digests makes of them, `digests` with. `changed` is another array without
an error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.papers import preset_run
from jaxreid.devices import parallel
from jaxreid.files import expand
from jaxreid.training.checkpoints import STATE, Checkpoints, DamagedCheckpoint, digests
from jaxreid.training.start import abstract_train_state


def cost(folder: Path, turns: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    shapes, _ = abstract_train_state(*preset_run("hitpro:hitsz_vcm", {}))
    state = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)).astype(x.dtype), shapes)
    best = {"digests": np.inf, "returns": np.inf, "written": np.inf}
    checkpoints = Checkpoints(folder)
    for turn in range(turns + 1):
        start = time.perf_counter()
        digests(state)
        seconds = {"digests": time.perf_counter() - start}
        start = time.perf_counter()
        checkpoints.save(turn + 1, state, {})
        seconds["returns"] = time.perf_counter() - start
        checkpoints.wait()
        seconds["written"] = time.perf_counter() - start
        if turn:
            best = {name: min(best[name], seconds[name]) for name in best}
    checkpoints.close()
    return {"megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6} | best


def flips(folder: Path, count: int, seed: int) -> dict[str, dict[str, int]]:
    rng = np.random.default_rng(seed)
    state = {f"kernel_{i}": jnp.asarray(rng.normal(size=(64, 64)).astype(np.float32)) for i in range(20)}
    state["ids"] = jnp.arange(5000)
    place = parallel.state_sharding(state, parallel.make_mesh(1, 1))
    like = parallel.with_shardings(state, place)
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    checkpoints.close()
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = np.array([path.stat().st_size for path in files])
    readers: dict[str, Any] = {
        "format": lambda opened: opened._restore(1, STATE, ocp.args.StandardRestore(like)),
        "digests": lambda opened: opened.restore(1, state, place),
    }
    found = {name: Counter() for name in readers}
    for _ in range(count):
        path = files[rng.choice(len(files), p=sizes / sizes.sum())]
        whole = path.read_bytes()
        data, bit = bytearray(whole), int(rng.integers(8 * len(whole)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        for name, read in readers.items():
            opened = Checkpoints(folder)
            try:
                restored = read(opened)
                same = all(np.asarray(restored[key]).tobytes() == np.asarray(state[key]).tobytes() for key in state)
                found[name]["nothing" if same else "changed"] += 1
            except DamagedCheckpoint:
                found[name]["error"] += 1
            opened.close()
        path.write_bytes(whole)
    return {name: dict(counts) for name, counts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expand, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--flips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in ("cost", "flips"):
        shutil.rmtree(args.out / name, ignore_errors=True)
    print(json.dumps({"flips": args.flips, **flips(args.out / "flips", args.flips, args.seed)}), flush=True)
    print(json.dumps({name: round(value, 2) for name, value in cost(args.out / "cost", args.turns).items()}))


if __name__ == "__main__":
    main()
