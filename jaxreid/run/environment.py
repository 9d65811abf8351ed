"""What a run was trained with: versions, devices, the state of the code, and the weights that it started from."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from jaxreid import __version__
from jaxreid.files import read_json, write_json
from jaxreid.run.workdirs import TRAINING

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, str]:
    """Versions, devices, and the commit of the code where it lies in its repository."""
    commit = _commit(Path(__file__).resolve().parents[1])
    return {
        "jaxreid": __version__,
        **({"commit": commit} if commit else {}),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "backend": jax.default_backend(),
        "processes": str(jax.process_count()),
    }


def _commit(root: Path) -> str:
    """The commit of the repository at `root`, marked where files have changed since; "" where there is none."""
    if not (root / ".git").exists():  # an installed copy may lie within somebody else's repository
        return ""
    line = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def note_training(workdir: Path, starting_weights: str | None) -> None:
    """Writes down what a run is trained with, and the digest of the weights that it starts from; where it goes on
    (None), that stays."""
    weights = starting_weights or read_training(workdir).get("starting_weights")
    write_json(workdir / TRAINING, {"environment": environment(), "starting_weights": weights})


def read_training(workdir: Path) -> dict[str, Any]:
    """`environment` and `starting_weights` as `note_training` left them; {} where a workdir does not hold them."""
    path = workdir / TRAINING
    return read_json(path, "delete it: results then do without it") if path.exists() else {}
