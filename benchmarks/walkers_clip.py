"""What the small CLIP knows of drawn people whom it never saw: pictures to captions, captions to pictures.

    python benchmarks/walkers_clip.py [--weights walkers_vit_tiny] [--config captioned] [--seed N]

Test tracklets of a world, the mean of six frames in the joint space, against the different captions of its test
people, by cosine; nothing is trained. Prints JSON lines, in per cent:

image_to_caption   top-1 and top-5 of the right caption among all
caption_to_image   rank-1 and mAP of the tracklets that a caption belongs to
across             mAP of pictures among pictures of the other modality and another camera, where the world has two
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from data_builders.walkers.caption import describe
from data_builders.walkers.world import CONFIGS, World
from jaxreid import retrieval
from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.pretrained import load
from jaxreid.backbones.text import TextTower, text_config, text_tokenizer
from jaxreid.backbones.vit import ViT

NAME, MEAN, STD, FRAMES, BATCH = "walkers_vit_tiny", 0.5, 0.5, 6, 64


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embed_tracklets(params, world: World) -> np.ndarray:
    """f32[N, E], unit rows: means of frames in the joint space."""
    tower = ViT(vision_config(NAME))
    embed = jax.jit(lambda x: tower.apply({"params": params}, (x / 255 - MEAN) / STD)["projected"])
    rows = []
    for spec in world.specs("test"):
        drawn = world.draw(spec).frames
        rows.append(drawn[np.linspace(0, len(drawn) - 1, FRAMES).round().astype(int)])
    frames = np.concatenate(rows)
    padded = np.concatenate([frames, np.zeros((-len(frames) % BATCH, *frames.shape[1:]), np.uint8)])
    found = [np.asarray(embed(padded[i : i + BATCH].astype(np.float32))) for i in range(0, len(padded), BATCH)]
    return unit(np.concatenate(found)[: len(frames)].reshape(len(rows), FRAMES, -1).mean(1))


def embed_captions(params, captions: list[str]) -> np.ndarray:
    tower = TextTower(text_config(NAME))
    return unit(np.asarray(tower.apply({"params": params}, jnp.asarray(text_tokenizer(NAME)(captions)))["projected"]))


def figures(similarity: np.ndarray, right: np.ndarray) -> dict[str, dict[str, float]]:
    """Scores of similarity f32[tracklets, captions] where `right` i64[tracklets] is each tracklet's caption."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    place = (order == right[:, None]).argmax(1)
    precisions, first = [], []
    for caption in range(similarity.shape[1]):
        hits = (right == caption)[np.argsort(-similarity[:, caption], kind="stable")]
        precisions.append(np.mean(np.arange(1, hits.sum() + 1) / (np.flatnonzero(hits) + 1)))
        first.append(hits[0])
    return {
        "image_to_caption": {"top-1": 100 * np.mean(place < 1), "top-5": 100 * np.mean(place < 5)},
        "caption_to_image": {"rank-1": 100 * np.mean(first), "mAP": 100 * np.mean(precisions)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=NAME, help="a file with both towers")
    parser.add_argument("--config", default="captioned", choices=CONFIGS)
    parser.add_argument("--seed", type=int, help="of the world, where not the configuration's")
    arguments = parser.parse_args()
    config = CONFIGS[arguments.config]
    world = World(config if arguments.seed is None else dataclasses.replace(config, seed=arguments.seed))
    specs = world.specs("test")
    infrared = np.array([spec.modality == "ir" for spec in specs])
    images = embed_tracklets(load(arguments.weights, vision_config(NAME)), world)
    text = load(arguments.weights, text_config(NAME))
    if infrared.any():
        rows = retrieval.Rows(
            identity=np.array([spec.pid for spec in specs]),
            camera=np.array([spec.camera for spec in specs]),
            modality=infrared.astype(np.int32),
        )
        for direction, one in (("visible_to_infrared", ~infrared), ("infrared_to_visible", infrared)):
            scores = retrieval.score(images[one], images[~one], rows[one], rows[~one], "cross_modal_cam")
            print(json.dumps({"world": arguments.config, "across": direction, "mAP": round(scores.mAP, 1)}))
    for modality, members in (("visible", ~infrared), ("infrared", infrared)):
        if not members.any():
            continue
        described = [
            describe(world.persons[s.pid], s.modality == "ir") for s, m in zip(specs, members, strict=True) if m
        ]
        captions, right = np.unique(described, return_inverse=True)
        similarity = images[members] @ embed_captions(text, captions.tolist()).T
        chance = np.random.default_rng(0).normal(size=similarity.shape)
        for name, values in (("chance", chance), (arguments.weights, similarity)):
            rounded = {k: {n: round(x, 1) for n, x in v.items()} for k, v in figures(values, right).items()}
            counts = {"tracklets": int(members.sum()), "captions": len(captions)}
            print(json.dumps({"world": arguments.config, "modality": modality, "tower": name, **counts, **rounded}))


if __name__ == "__main__":
    main()
