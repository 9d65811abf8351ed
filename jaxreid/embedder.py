"""A trained run that turns tracklets into features; `jaxreid.load` makes one.

embedder = jaxreid.load("runs/hitpro-walkers-seed1")
feature = embedder.embed(frames)                    # u8[T, H, W, 3] → f32[D]
features = embedder.embed([frames, others])         # tracklets of any length and size → f32[2, D]
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxreid.data.loose import ArrayReader, loose_split
from jaxreid.data.split import UNKNOWN, FrameReader, Split
from jaxreid.errors import UserError
from jaxreid.extract import Extractor, tracklet_features
from jaxreid.files import expand
from jaxreid.run import open_model
from jaxreid.steps import variables_of
from jaxreid.train import restore_judged


class Embedder:
    """Features of tracklets as the evaluation of a run computes them: its clips, resizing, pooling, normalisation.

    Args:
      workdir: of a run with a checkpoint; the newest is taken.
      data_dir: where built data sets live; asked for only by a workdir without `dataset_info.npz`.
      batch_size: clips in a step; the run's `extraction_batch` where not given. A tracklet costs a whole step, so a
        small one suits single queries.

    Attributes:
      info: what the run's method was told of its data set.
      epochs: how many were done when the checkpoint was written.

    Raises:
      UserError: the workdir holds no run or no checkpoint.
    """

    def __init__(self, workdir: str | Path, data_dir: Path | None = None, batch_size: int | None = None) -> None:
        self.workdir = expand(workdir)
        model = open_model(self.workdir, data_dir)
        state, frozen, self.epochs, _ = restore_judged(model)
        self.info = model.method.info
        self._config, self._rule = model.config.to_json(sort_keys=True), model.method.evaluation()
        self._state = variables_of(state, frozen), state.memory
        self._loading = dataclasses.replace(model.loading, workers=0, cache=False)
        size = -(-(batch_size or model.config.extraction_batch) // model.mesh.size) * model.mesh.size
        self._extractor = Extractor(model.method.embed, model.pixels, model.mesh, size, self._rule.flip)

    @property
    def batch_size(self) -> int:
        return self._extractor.batch_size

    def embed(self, frames: Any, modality: str | Sequence[str] = "rgb", camera: int | None = None) -> np.ndarray:
        """A unit feature of a tracklet, f32[D]; of each of a list of N tracklets, f32[N, D].

        Args:
          frames: u8[T, H, W, 3] in RGB order, of any length and size, or a list of such (each may be a list of frames).
          modality: "rgb" or "ir", of all or of each; networks with a stem of its own for each look at it.
          camera: number in the training data set, for networks that know their cameras.

        Raises:
          UserError: not frames, an unknown modality, or a camera that was not in training.
        """
        single = isinstance(frames, np.ndarray) and frames.ndim == 4
        tracklets = [frames] if single else list(frames)
        for number, tracklet in enumerate(tracklets):
            if not len(tracklet) or any(
                getattr(x, "dtype", None) != np.uint8 or x.ndim != 3 or x.shape[2] != 3 for x in tracklet
            ):
                raise UserError(f"tracklet {number} is not u8[T, H, W, 3] with at least one frame")
        index = UNKNOWN
        if camera is not None:
            known = np.flatnonzero(self.info.cameras == camera)
            if not len(known):
                raise UserError(f"camera {camera} was not in training; known: {', '.join(map(str, self.info.cameras))}")
            index = int(known[0])
        split = loose_split([len(tracklet) for tracklet in tracklets], modality, index)
        found = self.embed_split(split, ArrayReader(tracklets))
        return found[0] if single else found

    def embed_split(
        self, split: Split, reader: FrameReader | None = None, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Unit features f32[N, D] of the tracklets `rows` of a split (all where not given).

        A frame that cannot be decoded raises a UserError that names it.
        """
        found = tracklet_features(self._extractor, *self._state, split, self._rule, self._loading, reader, rows)
        return found["feature"]

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What tells these features from those of another run or checkpoint: `digest`, of every weight and the config;
        `workdir` and `epochs` are for people."""
        digest = hashlib.sha256(self._config.encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._state):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return {"digest": digest.hexdigest(), "workdir": str(self.workdir.resolve()), "epochs": self.epochs}
