"""How long published backbones take to load, at full size with random weights.

    python benchmarks/load_weights.py [--only ViT-L/14 …] [--folder DIR]

Writes each network's tensors as safetensors, then reads them into the library's parameter tree, every key accounted
for. `read` is the time of safetensors alone with every byte copied, the least that a loader needs. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.imagenet import imagenet_config
from jaxreid.backbones.pretrained import load
from jaxreid.backbones.saving import save_params
from jaxreid.backbones.text import TextConfig, TextTower, text_config
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.files import expand

NETWORKS: dict[str, ViTConfig | TextConfig] = {
    "ViT-B/16": vision_config("ViT-B/16"),
    "ViT-L/14": vision_config("ViT-L/14"),
    "ViT-L/14 text": text_config("ViT-L/14"),
    "dinov2:ViT-S/14": dinov2_config("ViT-S/14"),
    "dinov2:ViT-L/14": dinov2_config("ViT-L/14"),
    "dinov2:ViT-g/14": dinov2_config("ViT-g/14"),
    "imagenet:ViT-B/16": imagenet_config("ViT-B/16"),
}


def random_params(config: ViTConfig | TextConfig) -> dict:
    if isinstance(config, TextConfig):
        shapes = jax.eval_shape(TextTower(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    else:
        shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), jnp.zeros((1, *config.image_size, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes["params"])


def seconds(function, *arguments) -> float:
    """The faster of two calls: the file is then in the system's cache."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        found = function(*arguments)
        times.append(time.perf_counter() - start)
        del found
    return round(min(times), 3)


def read(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in safetensors.numpy.load_file(path).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--folder", type=expand, help="for the files; a temporary one by default")
    arguments = parser.parse_args()
    for name in arguments.only:
        config = NETWORKS[name]
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "weights.safetensors"
            params = random_params(config)
            count = sum(leaf.size for leaf in jax.tree.leaves(params))
            save_params(path, (params, config))
            del params
            row = {
                "network": name,
                "parameters": count,
                "load": seconds(load, path, config),
                "read": seconds(read, path),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
