"""Trains the small image towers that ship with the package, on drawn people that no data set shows.

    jaxreid make-tower --out jaxreid/backbones/weights/walkers_vit_tiny.safetensors
    jaxreid make-tower --tower dinov2:walkers_vit_tiny --places_steps 0 --out …
    jaxreid make-tower --tower resnet_tiny --places_steps 0 --out …

How: `jaxreid.training.starting_tower`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.backbones.saving import save_params
from jaxreid.errors import command
from jaxreid.files import expand
from jaxreid.training.drawn_pictures import draw_pictures
from jaxreid.training.starting_tower import STAGES, TOWER, make_reader, tower_of, train

log = logging.getLogger(__name__)


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid make-tower", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=expand, required=True, help="safetensors file to write")
    parser.add_argument("--tower", default="walkers_vit_tiny", help="a name of jaxreid.backbones.frame_encoder")
    parser.add_argument("--identities", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0, help="of the training; the people's seed is fixed")
    for stage in STAGES:
        parser.add_argument(f"--{stage.name}_steps", type=int, default=stage.steps)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    tower: Any = encoder_config(options.tower, TOWER.image_size, "float32")
    pictures = draw_pictures(options.identities, TOWER)
    log.info("%d pictures drawn in %.0f s", len(pictures.frames), time.perf_counter() - start)
    stages = [dataclasses.replace(s, steps=getattr(options, f"{s.name}_steps")) for s in STAGES]
    reader, variables = make_reader(pictures, options.seed, tower)
    for index, stage in enumerate(stages):
        if stage.steps:
            variables = train(reader, variables, pictures, stage, seed=1000 * options.seed + index)
    save_params(options.out, (jax.device_get(tower_of(variables)), tower))
    log.info("%s written after %.0f s", options.out, time.perf_counter() - start)
    return 0
