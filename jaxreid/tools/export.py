"""Trained backbones of a workdir as a safetensors file, under Hugging Face's key names.

    jaxreid export --workdir runs/hitpro-walkers-seed1 --out tower.safetensors

The file starts another run (`--config.backbone.checkpoint=tower.safetensors`) and is read by PyTorch users; of a CLIP
with both towers it holds both. Their format says more in `jaxreid/backbones/pretrained.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxreid.backbones.resnet import ResNetConfig
from jaxreid.backbones.saving import save_params
from jaxreid.errors import UserError, command
from jaxreid.files import expand
from jaxreid.run.model import open_model
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of


def export(workdir: Path, out: Path, data_dir: Path | None = None) -> list[str]:
    """Writes the backbones of a workdir's newest checkpoint to `out`; returns their places among the parameters.

    Raises:
      UserError: the workdir holds no checkpoint, or a backbone that has no such format.
    """
    run = open_model(workdir, data_dir)
    state, frozen, *_ = restore_judged(run)
    params = jax.device_get(variables_of(state, frozen)["params"])
    towers = []
    for backbone in run.method.backbones():
        if isinstance(backbone.config, ResNetConfig):
            raise UserError(f"{'/'.join(backbone.path)} is a ResNet, which is not written in this format")
        tree = params
        for key in backbone.path:
            tree = tree[key]
        towers.append((tree, backbone.config))
    if not towers:
        raise UserError(f"the method {run.config.method} names no backbones")
    scale = params.get("logit_scale")
    save_params(out, *towers, logit_scale=None if scale is None else float(scale))
    return ["/".join(backbone.path) for backbone in run.method.backbones()]


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=expand, required=True, help="of a run with a checkpoint")
    parser.add_argument("--out", type=expand, required=True, help="safetensors file to write")
    parser.add_argument("--data_dir", type=expand, help="where built data sets live")
    options = parser.parse_args(arguments)
    places = export(options.workdir, options.out, options.data_dir)
    print(f"{', '.join(places)}: {options.out} ({options.out.stat().st_size:,} bytes)")
    return 0
