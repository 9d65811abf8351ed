"""What each world of `walkers` leaves a method to gain: a colour histogram, the packaged tower, the baseline, a bound.

    python benchmarks/walkers_worlds.py --out runs/worlds [--worlds visible teams …] [--seeds 1 2 3] [--config.key=v …]

Trains `configs/baseline.py` once per world and seed, and again on `<world>_many`: 480 more training people
(`clothes`: 1440) before the same cameras, the same test people. That is the bound: what the small tower learns of a
world where people to learn from are no shortage; it learns faster and longer there, of clips of one frame. Finished
runs are not repeated, stopped ones go on. Prints a Markdown table: mAP in per cent, mean ± sample deviation over the
seeds, of the world's first protocol (`clothes_cc` where people change clothes, the mean over queries of all cases where
drones look). `--config.…` goes to every run of the baseline itself.
"""

from __future__ import annotations

import argparse
import statistics

import cv2
import numpy as np
from runs import flags, over_seeds, train
from walkers_difficulty import colour_histogram

from data_builders.walkers.walkers_dataset_builder import CASES, WalkersConfig, camera_in_records, divide
from data_builders.walkers.world import CONFIGS, World
from jaxreid import retrieval
from jaxreid.files import expand
from jaxreid.run.workdirs import read_results

WORLDS = ("visible", "teams", "aerial", "clothes")
BOUND_EPOCHS = {"clothes": 6, "clothes_dev": 6}  # others 8; there they are two and a half times as long
BOUND = {"batch.seq_len": 1, "optimizer.groups": (("^encoder/", 1 / 9, None),), "evaluate_start": False}


def scored_by(name: str) -> str:
    """The protocol that a world was made for."""
    protocols = WalkersConfig(name=name, world=CONFIGS[name]).protocols
    return "clothes_cc" if "clothes_cc" in protocols else protocols[0]


def histogram_score(name: str) -> float:
    """mAP of colour histograms on the test tracklets."""
    world, protocol = World(CONFIGS[name]), scored_by(name)
    splits = divide(world.specs("test"), world, protocol)
    specs = {spec.tracklet_id: spec for members in splits.values() for spec in members}
    size = world.config.width, world.config.height
    features = {
        key: colour_histogram(np.stack([cv2.resize(frame, size) for frame in world.draw(spec).frames]))
        for key, spec in specs.items()
    }
    numbers = {key: number for number, key in enumerate(specs)}

    def side(members):
        columns = {
            "identity": [spec.pid for spec in members],
            "camera": [camera_in_records(world.cameras[spec.camera - 1], world)[0] for spec in members],
            "modality": [int(spec.modality == "ir") for spec in members],
            "clothes": [spec.pid * world.config.outfits + spec.outfit for spec in members],
            "tracklet": [numbers[spec.tracklet_id] for spec in members],
        }
        rows = retrieval.Rows(**{key: np.array(values, np.int32) for key, values in columns.items()})
        return np.stack([features[spec.tracklet_id] for spec in members]).astype(np.float32), rows

    pairs = [("query", "gallery")]
    if "query_case1" in splits:
        pairs = [(f"query_{case}", f"gallery_{case}") for case in CASES]
    elif protocol == "cross_modal_cam":
        pairs.append(("gallery", "query"))
    parts = []
    for query, gallery in pairs:
        (first, asked), (second, listed) = side(splits[query]), side(splits[gallery])
        parts.append(retrieval.score(first, second, asked, listed, protocol))
    return retrieval.pooled(parts).mAP


def map_of(records: list[dict], protocol: str) -> float:
    """mAP of a protocol among the records of a run: over all cases where there are several, else over directions."""
    found = [record for record in records if record["protocol"] == protocol]
    return statistics.mean(record["mAP"] for record in [r for r in found if r["direction"] == "overall"] or found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expand, required=True)
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=CONFIGS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--bound-seeds", type=int, nargs="*", help="of the bound, where not those of the baseline")
    arguments, extra = parser.parse_known_args()
    print("| world | protocol | colour histogram | packaged tower | baseline | many people | seeds |\n|" + "---|" * 7)
    for world in arguments.worlds:
        protocol = scored_by(world)
        tower, baseline, bound = [], [], []
        for seed in arguments.seeds:
            workdir = arguments.out / f"{world}-{seed}"
            train("baseline", world, seed, workdir, extra)
            results = read_results(workdir)
            untouched = [r for r in results["before_training"] if r["features"] == "untouched tower"]
            tower.append(map_of(untouched, protocol))
            baseline.append(map_of(results["scores"], protocol))
        for seed in arguments.seeds if arguments.bound_seeds is None else arguments.bound_seeds:
            changes = flags({**BOUND, "epochs": BOUND_EPOCHS.get(world, 8)})
            workdir = arguments.out / f"{world}_many-{seed}"
            train("baseline", f"{world}_many", seed, workdir, changes)
            bound.append(map_of(read_results(workdir)["scores"], protocol))
        row = [world, protocol, f"{histogram_score(world):.1f}", f"{statistics.mean(tower):.1f}", over_seeds(baseline)]
        row += [over_seeds(bound) if bound else "", ", ".join(map(str, arguments.seeds))]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
