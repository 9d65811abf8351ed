"""jaxreid: video person re-identification in JAX/Flax. Import the room that is needed, nothing is loaded here.

`jaxreid.load(workdir)` opens a trained run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jaxreid.embedder import Embedder

__version__ = "0.1.0"


def load(workdir: str | Path, data_dir: Path | None = None, batch_size: int | None = None) -> Embedder:
    """Opens a trained run for embedding: `load(workdir).embed(frames)`; see `jaxreid.embedder.Embedder`."""
    from jaxreid.embedder import Embedder

    return Embedder(workdir, data_dir, batch_size)
