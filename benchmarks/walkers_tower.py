"""What the starting tower knows of `walkers` before any training on it.

    python benchmarks/walkers_tower.py [--weights PATH] [--tower NAME] [--config vvi] [--seed 0]

Prints JSON lines. `mAP`: per cent, test tracklets, mean class feature of the frames after the final norm (of a
ResNet the pooled map), cosine; V→I and I→V across modalities, V→V and I→I across the cameras of one modality. The free
controls change nothing but the features' statistics: standardised with the training tracklets' (as HiTPro's neck does
before its first epoch), centred per modality, centred per camera (the last two with the statistics of the test
tracklets).
`association`: HiTPro's first mining on the training tracklets, precision and coverage in per cent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from walkers_difficulty import mean_average_precision

from data_builders.walkers.world import CONFIGS, World
from jaxreid.arrays import unit_rows
from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.backbones.pretrained import load_variables
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.vit import ViT
from jaxreid.memory.association import AssociationConfig, associate
from jaxreid.memory.prototypes import empty_memory, rebuild
from jaxreid.training.starting_tower import MEAN, STD, TOWER


def tracklet_features(tower, variables, world: World, split: str, frames: int) -> tuple[np.ndarray, list]:
    """f32[N, D] mean feature of up to `frames` evenly spaced frames (the class token, of a ResNet the pooled map), and
    the specs."""
    model: Any = ResNet(tower) if isinstance(tower, ResNetConfig) else ViT(tower)
    output = "pooled" if isinstance(tower, ResNetConfig) else "class_token"
    embed = jax.jit(lambda x: model.apply(variables, (x / 255 - MEAN) / STD)[output])
    specs = world.specs(split)
    pictures, owner = [], []
    for row, spec in enumerate(specs):
        drawn = world.draw(spec).frames
        chosen = np.unique(np.linspace(0, len(drawn) - 1, frames).round().astype(int))
        pictures.append(drawn[chosen])
        owner += [row] * len(chosen)
    pictures, owner = np.concatenate(pictures), np.array(owner)
    step = 256
    padded = np.concatenate([pictures, np.zeros((-len(pictures) % step, *pictures.shape[1:]), np.uint8)])
    features = np.concatenate(
        [np.asarray(embed(padded[i : i + step].astype(np.float32))) for i in range(0, len(padded), step)]
    )[: len(pictures)]
    total = np.zeros((len(specs), features.shape[1]))
    np.add.at(total, owner, features)
    return total / np.bincount(owner)[:, None], specs


def columns(specs):
    pid, camera = (np.array([getattr(spec, name) for spec in specs]) for name in ("pid", "camera"))
    return pid, camera, np.array([spec.modality == "ir" for spec in specs])


def centred(features, groups):
    features = features.copy()
    for group in np.unique(groups):
        features[groups == group] -= features[groups == group].mean(0)
    return features


def scores(features, pid, camera, infrared):
    result = {}
    for label, source, target in (
        ("V->I", ~infrared, infrared),
        ("I->V", infrared, ~infrared),
        ("V->V", ~infrared, ~infrared),
        ("I->I", infrared, infrared),
    ):
        ignore = camera[source][:, None] == camera[target]
        value = mean_average_precision(features[source], features[target], pid[source], pid[target], ignore)
        result[label] = round(value, 1)
    return result


def association(features, pid, camera, infrared, threshold):
    """Precision and coverage of the first mining, one prototype per tracklet."""
    modality = np.array([infrared[camera == c][0] for c in np.unique(camera)]).astype(int)
    # What a tower says by itself, before mining makes up for its cameras.
    plain: dict[str, Any] = {"stage1_space": "raw", "stage2_space": "centred", "metric_rounds": 0}
    config = AssociationConfig(cross_positives=4, threshold=threshold, **plain)
    memory = empty_memory(camera - 1, modality, features.shape[1], cross_positives=4)
    rows = jnp.arange(len(pid))
    memory = rebuild(memory, unit_rows(jnp.asarray(features)), rows, jnp.ones(len(pid), bool))
    memory = associate(memory, 0.0, config)
    result = {}
    for name, index in (("within", memory.within_index), ("across", memory.cross_index)):
        index = np.asarray(index)
        found = index >= 0
        right = (pid[np.maximum(index, 0)] == pid[:, None]) & found
        result[f"{name} precision"] = round(100 * right.sum() / max(found.sum(), 1), 1)
        result[f"{name} coverage"] = round(100 * found.any(1).mean(), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="walkers_vit_tiny")
    parser.add_argument("--tower", default="walkers_vit_tiny", help="a name of jaxreid.backbones.frame_encoder")
    parser.add_argument("--config", default="vvi", choices=sorted(CONFIGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=6)
    arguments = parser.parse_args()
    tower = encoder_config(arguments.tower, TOWER.image_size, "float32")
    variables = load_variables(arguments.weights, tower)
    world = World(dataclasses.replace(CONFIGS[arguments.config], seed=arguments.seed))
    train, train_specs = tracklet_features(tower, variables, world, "train", arguments.frames)
    test, test_specs = tracklet_features(tower, variables, world, "test", arguments.frames)
    pid, camera, infrared = columns(test_specs)
    mean, std = train.mean(0), train.std(0) + 1e-6
    forms = {
        "random": np.random.default_rng(0).standard_normal(test.shape),
        "raw": test,
        "standardised": (test - mean) / std,
        "centred per modality": centred(test, infrared),
        "centred per camera": centred(test, camera),
    }
    for form, features in forms.items():
        result = scores(features, pid, camera, infrared)
        across = round((result["V->I"] + result["I->V"]) / 2, 1)
        print(json.dumps({"mAP": form, "across": across, **result}), flush=True)
    for threshold in ("dynamic", "none"):
        figures = association((train - mean) / std, *columns(train_specs), threshold)
        print(json.dumps({"association": threshold, **figures}), flush=True)


if __name__ == "__main__":
    main()
