"""CSIP-ReID on drawn people: what its first stage learns, its parts one by one, and what its skeletons are worth.

    python benchmarks/csip_reid.py --out runs/csip_reid [--world visible] [--clothes clothes] [--seeds 1 2 3] \
        [--rows …] [--config.key=value …]

Trains every row once per seed; finished runs are not repeated, stopped ones go on, and a row without results is not in
a table. Prints Markdown, in per cent, mean ± sample deviation over the seeds:

1. How often the skeletons of a test tracklet find pictures of their person among the test tracklets (rank-1 and mAP of
   the first stage's encoder against the starting tower), and how far that is above chance and above the shuffled
   control, with an interval over the identities of 1,000 bootstrap samples (of the first seed); and how well mean
   lengths of bones alone find pictures and skeletons of a person.
2. mAP and rank-1 of the rows on the world.
3. Those of three of them on `clothes`, under its own protocols.
4. Skeletons alone: the config csip_skeleton, and its start from the first stage.
5. mAP of the features of the main stage one by one: of SGTM without skeletons, as in every test, and for once with
   those of the test tracklets, and with those of other tracklets.

`lift0` makes a copy of the built set (`--out`/data), whose joints are its key points laid into a plane. `--config.…`
goes to every run; built sets are looked for in $JAXREID_DATA_DIR.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from runs import flags, over_seeds, printed, reopened, train, workdir_of

from jaxreid.backbones.skeleton_graph import TREES
from jaxreid.config import config_module, find_config
from jaxreid.evaluation.examination import mean_over
from jaxreid.files import expand
from jaxreid.run.workdirs import read_results

NO_BRANCH: dict[str, Any] = {
    "sgtm.use": False,
    "triplet.features": ("last", "projected"),
    "embedding": ("last", "projected"),
}
FULL, SHUFFLED, MEMORY, LIFTED = "CSIP-ReID", "shuffled skeletons", "memory", "lift0"
ALWAYS = "SGTM always with skeletons"
# Row → config and what differs from it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "TF-CLIP": ("tf_clip", {}),
    MEMORY: ("csip_reid", {**NO_BRANCH, "pfu.use": False}),
    "+ PFU": ("csip_reid", NO_BRANCH),
    "+ SGTM": ("csip_reid", {"pfu.use": False}),
    FULL: ("csip_reid", {}),
    SHUFFLED: ("csip_reid", {"skeleton.shuffle": True}),
    LIFTED: ("csip_reid", {}),
    ALWAYS: ("csip_reid", {"sgtm.drop": 0.0}),
}
ONE_SEED: dict[str, tuple[str, dict[str, Any]]] = {
    "released layout": ("csip_reid", {"sgtm.layout": "released"}),
    "random signs": ("csip_reid", {"skeleton.random_signs": True}),
    "encoder trains on": ("csip_reid", {"skeleton.finetune": True}),
    "time embedding": ("csip_reid", {"sgtm.time_embedding": True, "evaluation.seq_len": 4}),
    "unit features in stage 1": ("csip_reid", {"stage1.normalize": True, "stage1.temperature": 0.1}),
}
DRAWS = 20  # random orders that tell what chance is
ON_CLOTHES = (MEMORY, FULL, SHUFFLED)
ALONE, STARTED = "skeletons alone", "skeletons alone, from the first stage"
# TF-CLIP with the clips, the budget and the augmentation of csip_reid's preset.
SMALL = config_module(Path(find_config("csip_reid"))).SMALL
LIKE = ("epochs", "weights.bank", "batch.num_identities", "batch.seq_len")
LIKE += tuple(f"augment.{name}" for name in ("channel_exchange", "infrared_mix", "contrast", "gamma", "negative"))
SAME: dict[str, Any] = {"ssp.self_attention": True, **{key: SMALL[key] for key in LIKE}}

# --- runs -------------------------------------------------------------------------------------------------------------


def lifted(world: str, out: Path) -> Path:
    """A folder of built sets in which the world's joints are its key points in a plane."""
    from jaxreid.data.build import build
    from jaxreid.tools import make_sidecars

    original, folder = Path(build("walkers", world)), out / "data"
    copy = folder.joinpath(*original.parts[-3:])
    if not (copy / "whole").exists():
        shutil.copytree(original, copy, dirs_exist_ok=True)
        line = [str(copy), "--kind=joints3d", "--backend=lift0", "--overwrite"]
        if make_sidecars.main(line):
            raise SystemExit("lift0 was not made")
        (copy / "whole").touch()
    return folder


def trained(name: str, world: str, seed: int, out: Path, extra: Sequence[str]) -> Path:
    """The workdir of a row on a world with a seed."""
    config, changes = {**ROWS, **ONE_SEED}[name]
    workdir = workdir_of(out / world, name, seed)
    line = [*flags({**(SAME if config == "tf_clip" else {}), **changes}), *extra]
    line += [f"--data_dir={lifted(world, out)}"] if name == LIFTED else []
    train(config, world, seed, workdir, line)
    return workdir


def exported(workdir: Path, out: Path) -> Path:
    """The encoders of a run as a file."""
    from jaxreid.tools.export import export

    if not out.exists():
        export(workdir, out)
    return out


# --- the first stage --------------------------------------------------------------------------------------------------


Arrays = dict[str, np.ndarray]


def with_joints(run: Any, extractor: Any, variables: Any, memory: Any, split: Any, rule: Any) -> Arrays:
    """Features of a split's tracklets, whose joints are read too: no test does."""
    from jaxreid.data.extras import ExtraReader
    from jaxreid.evaluation.extract import tracklet_features

    reader, options = run.reader(split), run.loading.for_tests()
    extras = ExtraReader(split, reader, run.method.extras("extract"))
    return tracklet_features(extractor, variables, memory, split, rule, options, reader, extras=extras)


def of_tracklets(workdir: Path, data_dir: Path | None = None) -> tuple[Arrays, Arrays]:
    """Of the test tracklets, and of those of training: "skeleton" f32[N, E] and "picture" f32[N, E] (of the starting
    tower), "bones" f32[N, 16], "identity" and "camera" i32[N]."""
    import jax

    from jaxreid.evaluation.extract import make_extractor
    from jaxreid.training.start import init_variables
    from jaxreid.training.steps import variables_of

    run, state, frozen = reopened(workdir, data_dir)
    method: Any = run.method
    variables = variables_of(state, frozen)
    # The tower has trained since: its place is taken by the one that training started from.
    variables["params"]["image_tower"] = init_variables(run)["params"]["image_tower"]

    def find(variables: Any, memory: Any, batch: Any) -> dict[str, Any]:
        found = method.find_prototypes(variables, memory, batch)
        joints, seen = batch.extras["joints3d"], batch.extras["joints3d_mask"] & batch.frame_mask
        ends = np.array(TREES[joints.shape[2]])
        length = jax.numpy.linalg.norm(joints[:, :, ends[:, 0]] - joints[:, :, ends[:, 1]], axis=-1)
        count = jax.numpy.maximum(seen.sum(1), 1)[:, None]
        bones = jax.numpy.where(seen[..., None], length, 0).sum(1) / count
        return {"skeleton": found["skeleton"], "picture": found["projected"], "bones": bones}

    rule = dataclasses.replace(method.evaluation(), normalize=False, pool="before")
    extractor, parts = make_extractor(run, "pretrained_step", find), []
    for split in (*run.dataset.test_splits, run.dataset.train):
        arrays = with_joints(run, extractor, variables, state.memory, split, rule)
        parts.append({**arrays, "identity": split.labels.pid, "camera": split.table.camera})
    *tests, training = parts
    return {name: np.concatenate([part[name] for part in tests]) for name in training}, training


def pictures_of_bones(tests: Arrays, training: Arrays) -> np.ndarray:
    """What ridge regression, learned on the training tracklets, makes of the lengths of bones: features of pictures."""
    mean, spread = training["bones"].mean(0), training["bones"].std(0) + 1e-9
    x, middle = (training["bones"] - mean) / spread, training["picture"].mean(0)
    weights = np.linalg.solve(x.T @ x + 0.01 * len(x) * np.eye(x.shape[1]), x.T @ (training["picture"] - middle))
    return (tests["bones"] - mean) / spread @ weights


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


class Found(NamedTuple):
    """Rank-1 and average precision of every query that has a match in another camera, each beside its chance."""

    first: np.ndarray
    precision: np.ndarray
    first_chance: np.ndarray
    precision_chance: np.ndarray
    rows: np.ndarray  # which queries these are


def retrieved(similar: np.ndarray, identity: np.ndarray, camera: np.ndarray) -> Found:
    """What is of the query's own camera is left out. Chance is the share of matches, and the mean average precision of
    `DRAWS` random orders."""

    def average_precision(hits: np.ndarray) -> np.ndarray:
        places = np.flatnonzero(hits)
        return (np.arange(1, len(places) + 1) / (places + 1)).mean()

    rng, found = np.random.default_rng(0), []
    for row, scores in enumerate(similar):
        kept = camera != camera[row]
        match = identity[kept] == identity[row]
        if match.any():
            hits = match[np.argsort(-scores[kept], kind="stable")]
            drawn = np.mean([average_precision(rng.permutation(match)) for _ in range(DRAWS)])
            found.append((float(hits[0]), average_precision(hits), match.mean(), drawn, row))
    return Found(*map(np.array, zip(*found, strict=True)))


def apart(values: np.ndarray, others: np.ndarray, identity: np.ndarray) -> str:
    """Mean difference in percent, with 95 % of the mean over bootstrap samples of identities."""
    low, high = mean_over(100 * (values - others), identity)["interval"]
    return f"{100 * (values - others).mean():.1f} ({low:.1f} … {high:.1f})"


def of_the_first_stage(workdirs: dict[str, list[Path]], data: dict[str, Path | None]) -> tuple[list[list[str]], str]:
    """Rows of the first table, and how far true skeletons are above the shuffled control, "" without it."""

    def row(what: str, over: list[Found], identity: np.ndarray) -> list[str]:
        x, person = over[0], identity[over[0].rows]
        return [
            what,
            over_seeds([100 * float(each.first.mean()) for each in over]),
            f"{100 * x.first_chance.mean():.1f}",
            apart(x.first, x.first_chance, person),
            over_seeds([100 * float(each.precision.mean()) for each in over]),
            f"{100 * x.precision_chance.mean():.1f}",
            apart(x.precision, x.precision_chance, person),
        ]

    def pictures(x: Arrays) -> Found:
        return retrieved(unit(x["skeleton"]) @ unit(x["picture"]).T, x["identity"], x["camera"])

    found = {name: [of_tracklets(folder, data[name]) for folder in folders] for name, folders in workdirs.items()}
    scores = {name: [pictures(tests) for tests, _ in seeds] for name, seeds in found.items()}
    table = [row(f"skeleton → pictures, {name}", scores[name], found[name][0][0]["identity"]) for name in found]
    if FULL not in found:
        return table, ""
    learned = [pictures(training) for _, training in found[FULL]]
    x, training = found[FULL][0]
    table.append(row("the same of the people that it learned from", learned, training["identity"]))
    centred = x["picture"] - training["picture"].mean(0)
    similar = {"lengths of bones → pictures": unit(pictures_of_bones(x, training)) @ unit(centred).T}
    for what, values in (("skeleton → skeletons", x["skeleton"]), ("lengths of bones → the same", x["bones"])):
        similar[what] = -np.linalg.norm(values[:, None] - values[None], axis=-1)
    table += [
        row(what, [retrieved(matrix, x["identity"], x["camera"])], x["identity"]) for what, matrix in similar.items()
    ]
    if SHUFFLED not in found:
        return table, ""
    true, control = scores[FULL][0], scores[SHUFFLED][0]
    person = x["identity"][true.rows]
    above = apart(true.first, control.first, person), apart(true.precision, control.precision, person)
    return table, f"above the shuffled control: rank-1 {above[0]}, mAP {above[1]}"


# --- the main stage ---------------------------------------------------------------------------------------------------


def one_by_one(workdir: Path, data_dir: Path | None = None) -> dict[str, float]:
    """mAP in percent of the first case, feature by feature; the temporal one by what it was given."""
    import jax

    from jaxreid import retrieval
    from jaxreid.evaluation.evaluator import Evaluator
    from jaxreid.evaluation.extract import make_extractor
    from jaxreid.methods.csip_reid import joints_of
    from jaxreid.training.steps import variables_of

    run, state, frozen = reopened(workdir, data_dir)
    method: Any = run.method

    def find(variables: Any, memory: Any, batch: Any) -> dict[str, Any]:
        def features(network: Any, order: Any = None, given: bool = True) -> dict[str, Any]:
            skeletons = network.skeletons(*joints_of(batch, order), False) if given else None
            return network.encode(batch, False, skeletons, all_tokens=True)

        plain, own, others = (
            method.network.apply(variables, **asked, method=features)
            for asked in ({"given": False}, {}, {"order": jax.random.key(0)})
        )
        of_temporal = {"with": own, "with others'": others, "without": plain}
        found = {f"temporal, {how} skeletons": each["temporal"] for how, each in of_temporal.items()}
        return {"last": plain["last"], "projected": plain["projected"], **found}

    case, extractor, features = Evaluator(run).cases[0], make_extractor(run, "branch_step", find), {}
    for split in run.dataset.test_splits:
        given = variables_of(state, frozen), state.memory, split, method.evaluation()
        features[split.name] = with_joints(run, extractor, *given)
    query, gallery = case.query, case.gallery
    found = {}
    for name in next(iter(features.values())):
        asked, listed = (side.of({split: x[name] for split, x in features.items()}) for side in (query, gallery))
        found[name] = retrieval.score(asked, listed, query.columns(), gallery.columns(), case.protocol).mAP
    return found


# --- tables -----------------------------------------------------------------------------------------------------------


def figures(workdirs: Sequence[Path], protocol: str = "") -> list[str]:
    """mAP and rank-1 over seeds, under a protocol (the headline's where not given)."""
    records = [
        next(
            r
            for r in read_results(folder)["scores"]
            if r.get("output", "feature") == "feature" and protocol in ("", r["protocol"])
        )
        for folder in workdirs
    ]
    return [over_seeds([record[key] for record in records]) for key in ("mAP", "rank-1")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expand, required=True)
    parser.add_argument("--world", default="visible")
    parser.add_argument("--clothes", default="clothes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    known = [*ROWS, *ONE_SEED, ALONE, STARTED]
    parser.add_argument("--rows", nargs="+", default=known, choices=known)
    arguments, extra = parser.parse_known_args()
    out, rows, seeds = arguments.out, arguments.rows, arguments.seeds

    def of(name: str, world: str) -> list[Path]:
        wanted = seeds if name in ROWS else seeds[:1]
        return [trained(name, world, seed, out, extra) for seed in wanted]

    workdirs = {name: of(name, arguments.world) for name in rows if name in ROWS or name in ONE_SEED}
    pretrained = {name: workdirs[name] for name in (FULL, SHUFFLED, LIFTED) if name in workdirs}
    data = {name: out / "data" if name == LIFTED else None for name in pretrained}
    if pretrained:
        found, above = of_the_first_stage(pretrained, data)
        printed(["", *(head for key in ("rank-1", "mAP") for head in (key, "chance", "above, 95 %"))], found)
        print(f"\n{above}")
    table = [[name, *figures(folders), str(len(folders))] for name, folders in workdirs.items()]
    if table:
        printed([arguments.world, "mAP", "rank-1", "seeds"], table)

    branch = {
        name: [one_by_one(folder, data.get(name)) for folder in workdirs[name]]
        for name in (*pretrained, ALWAYS)
        if name in workdirs
    }
    if branch:
        heads = [*next(iter(branch.values()))[0]]
        cells = [[over_seeds([one[head] for one in found]) for head in heads] for found in branch.values()]
        printed(["mAP", *heads], [[name, *row] for name, row in zip(branch, cells, strict=True)])

    found = []
    for name in rows:
        if name in ON_CLOTHES:
            folders = of(name, arguments.clothes)
            protocols = dict.fromkeys(record["protocol"] for record in read_results(folders[0])["scores"])
            found.append([name, *(each for key in protocols for each in figures(folders, key))])
            heads = [f"{measure}, {key}" for key in protocols for measure in ("mAP", "rank-1")]
    if found:
        printed([arguments.clothes, *heads], found)  # pyright: ignore[reportPossiblyUnbound]

    alone = []
    for name in (ALONE, STARTED):
        if name not in rows:
            continue
        folders = []
        for seed in seeds:
            start = {}
            if name == STARTED:
                file = exported(trained(FULL, arguments.world, seed, out, extra), out / f"encoder-{seed}.safetensors")
                start = {"skeleton.checkpoint": file}
            workdir = workdir_of(out / arguments.world, name, seed)
            train("csip_skeleton", arguments.world, seed, workdir, flags(start))
            folders.append(workdir)
        alone.append([name, *figures(folders), str(len(folders))])
    if alone:
        printed([arguments.world, "mAP", "rank-1", "seeds"], alone)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
