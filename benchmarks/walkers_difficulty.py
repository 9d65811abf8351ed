"""Is `walkers` hard enough? Cross-modality mAP of features that must not work, and the renderer's speed.

    python benchmarks/walkers_difficulty.py [vvi]

Prints one JSON line per feature: mAP in per cent with visible test tracklets as queries and infrared ones as gallery
(V→I) and the other way round, and per modality across cameras as a scale for what the feature sees. Where people
change clothes, also among those in other clothes (CC), and where drones look, from the air to the ground (A→G).
"""

from __future__ import annotations

import json
import sys
import time

import cv2
import numpy as np

from data_builders.walkers.world import CONFIGS, World


def mean_average_precision(query, gallery, query_pid, gallery_pid, ignore=None) -> float:
    """mAP in per cent by cosine; `ignore` bool[Q, G] takes entries out of a query's gallery."""
    similarity = _unit(query) @ _unit(gallery).T
    scores = []
    for row, pid in enumerate(query_pid):
        keep = np.ones(len(gallery_pid), bool) if ignore is None else ~ignore[row]
        match = (gallery_pid[keep] == pid)[np.argsort(-similarity[row, keep], kind="stable")]
        if match.any():
            hits = np.flatnonzero(match)
            scores.append(np.mean((np.arange(len(hits)) + 1) / (hits + 1)))
    return 100 * float(np.mean(scores))


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def colour_histogram(frames):
    """8×8×8 RGB histogram of the person's half of the frame."""
    inner = frames[:, :, 8:24] // 32
    index = (inner[..., 0].astype(int) * 8 + inner[..., 1]) * 8 + inner[..., 2]
    return np.bincount(index.ravel(), minlength=512).astype(float)


def raw_pixels(frames):
    return frames.mean((0, 3)).ravel()


def mean_intensity(frames):
    """Mean grey of 16 horizontal bands."""
    return frames.mean((0, 2, 3)).reshape(16, -1).mean(1)


def main(name: str = "vvi") -> None:
    world = World(CONFIGS[name])
    specs = world.specs("test")
    start, frames = time.perf_counter(), 0
    drawn = []
    for spec in specs:
        tracklet = world.draw(spec).frames
        for frame in tracklet:
            cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        frames += len(tracklet)
        # Far people have small crops.
        size = (world.config.width, world.config.height)
        drawn.append(np.stack([cv2.resize(frame, size) for frame in tracklet]))
    print(json.dumps({"frames_per_second_with_jpeg": round(frames / (time.perf_counter() - start))}))
    pid = np.array([spec.pid for spec in specs])
    camera = np.array([spec.camera for spec in specs])
    outfit = np.array([spec.outfit for spec in specs])
    aerial = np.array([world.cameras[spec.camera - 1].aerial for spec in specs])
    infrared = np.array([spec.modality == "ir" for spec in specs])
    every = np.ones(len(specs), bool)
    pairs = {"V->I": (~infrared, infrared), "I->V": (infrared, ~infrared), "V->V": (~infrared, ~infrared),
             "I->I": (infrared, infrared), "A->G": (aerial, ~aerial)}  # fmt: skip
    if outfit.any():
        pairs["CC"] = every, every
    rng = np.random.default_rng(0)
    features = {
        "random": lambda frames: rng.standard_normal(64),
        "colour histogram": colour_histogram,
        "raw pixels": raw_pixels,
        "band intensity": mean_intensity,
    }
    for feature, compute in features.items():
        rows = np.stack([compute(tracklet) for tracklet in drawn])
        centred = rows.copy()
        for group in (infrared, ~infrared):
            if group.any():
                centred[group] -= rows[group].mean(0)
        result = {"feature": feature}
        for label, (source, target) in pairs.items():
            if source.any() and target.any():
                ignore = camera[source][:, None] == camera[target]
                if label == "CC":
                    ignore |= (pid[:, None] == pid) & (outfit[:, None] == outfit)
                for form, x in (("", rows), (" centred", centred)):
                    score = mean_average_precision(x[source], x[target], pid[source], pid[target], ignore)
                    result[label + form] = round(score, 1)
        print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
