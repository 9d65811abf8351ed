"""Workdirs as finished runs leave them, with scores that a test chooses."""

import json

V2I, I2V = "visible_to_infrared", "infrared_to_visible"


def score(direction, mAP, **changes):
    return {
        "direction": direction, "mAP": mAP, "mINP": 5.0, "rank-1": mAP + 10, "rank-5": 80.0, "protocol": "market",
        "queries": 348, "unmatched": 0, "gallery": 337, "seq_len": 6, "clip_sampling": "packed",
        "distance": "cosine", "reranking": False, "checkpoint": "epoch 6 (last)", "cmc": [mAP + 10, 80.0],
        "median_rank": mAP / 2, "by_camera": [mAP],
    } | changes  # fmt: skip


def make_run(
    workdir, mAP, seed=1, method="hitpro", settings=(), data=(), conditions=(), unit="tracklet", start=(), **results
):
    """A workdir as a finished run leaves it. `mAP` is that of visible → infrared; the way back has 1 less."""
    config = {
        "method": method,
        "preset": "walkers",
        "seed": seed,
        "epochs": 6,
        "dataset": {"name": "walkers", "config": "vvi", "path": "", "protocols": []},
        "loading": {"threads": 2, "interpolation": "bilinear"},
        "mesh": {"devices": 0},
        "kappa": [0.5, -0.5],
    }
    assumptions = {"identity labels": "yes"}
    if method == "hitpro":
        config["levels"] = {"cross_weight": 1.0, "temperature": 0.07}
        assumptions = {"identity labels": "no", "prototype unit": unit}
    for key, value in dict(settings).items():
        *path, last = key.split(".")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    fingerprint = {"name": "walkers/vvi", "version": "1.0.0", "tracklets": {"train": 987}} | dict(data)
    found = {
        "method": method,
        "dataset": fingerprint["name"],
        "seed": seed,
        "scores": [score(V2I, mAP, **dict(conditions)), score(I2V, mAP - 1, **dict(conditions))],
        "before_training": [{"features": name, **score(V2I, value)} for name, value in dict(start).items()],
        "epochs_done": 6,
        "epochs": 6,
        "assumptions": assumptions,
        "notes": [],
        "seconds": {"steps": 60.0, "evaluation": 20.5},
    } | results
    workdir.mkdir(parents=True)
    for name, value in (("config", config), ("dataset", fingerprint), ("results", found)):
        (workdir / f"{name}.json").write_text(json.dumps(value))
    return workdir
