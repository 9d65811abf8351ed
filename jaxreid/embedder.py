"""A trained run that turns tracklets into features; `jaxreid.load` makes one.

embedder = jaxreid.load("runs/hitpro-walkers-seed1")
feature = embedder.embed(frames)                    # u8[T, H, W, 3] → f32[D]
features = embedder.embed([frames, others])         # tracklets of any length and size → f32[2, D]
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxreid.data.extras import OF_SIDECARS, ArrayExtras, ExtraReader
from jaxreid.data.loose import ArrayReader, loose_split
from jaxreid.data.split import UNKNOWN, FrameReader, Split
from jaxreid.errors import UserError
from jaxreid.evaluation.extract import Extractor, embedding, tracklet_features
from jaxreid.evaluation.pairs import PairScorer, Rows, pair_rows
from jaxreid.files import expand
from jaxreid.run.model import abstract_batch, open_model
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of


class Embedder:
    """Features of tracklets as the evaluation of a run computes them: its clips, resizing, pooling, normalization.

    Args:
      workdir: of a run with a checkpoint; the newest is taken.
      data_dir: where built data sets live; asked for only by a workdir without `dataset_info.npz`.
      batch_size: clips in a step; the run's `extraction_batch_size` where not given. A tracklet costs a whole step,
        so a small one suits single queries.

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
        self._loading = dataclasses.replace(model.loading.for_tests(), workers=0, cache=False)
        size = -(-(batch_size or model.config.extraction_batch_size) // model.mesh.size) * model.mesh.size
        self._wanted = model.method.extras("test")
        self._opened: ExtraReader | None = None
        self._extractor = Extractor(embedding(model.method), model.pixels, model.mesh, size, self._rule.flip)
        self._model = model

    @property
    def batch_size(self) -> int:
        return self._extractor.batch_size

    @property
    def distance(self) -> str:
        """By which the run compares features, a key of `jaxreid.retrieval.DISTANCES`; "own" is the method's."""
        return self._rule.distance

    @property
    def sidecars(self) -> tuple[str, ...]:
        """What the run's method takes beside frames that pictures do not tell: kinds of sidecars."""
        return tuple(name for name in self._wanted if name in OF_SIDECARS)

    def embed(
        self,
        frames: Any,
        modality: str | Sequence[str] = "rgb",
        camera: int | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> Any:
        """The feature of a tracklet that the run is judged by, f32[D]; of each of a list of N tracklets, f32[N, D]. A
        unit vector, unless the run's `evaluation.normalize` is off; of body parts f32[P, D], or
        `jaxreid.retrieval.Parts`.

        Args:
          frames: a tracklet, u8[T, H, W, 3] in RGB order of any length and size: an array of NumPy or JAX, one picture
            [H, W, 3], or a list of pictures, which may be PIL's. Or a list of tracklets, each of them such.
          modality: "rgb" or "ir", of all or of each; networks with a stem of its own for each look at it.
          camera: number in the training data set, for networks that know their cameras.
          extras: what the run's method takes beside frames, by name, as a sidecar holds it: "keypoints" f32[T, 17, 3],
            pixels of these frames and scores; of a tracklet or, for a list of them, a list.

        Raises:
          UserError: not frames, an unknown modality, a camera that was not in training, or other extras than the
            method takes.
        """
        single = _is_tracklet(frames)
        tracklets = [_frames(x, number) for number, x in enumerate([frames] if single else frames)]
        index = UNKNOWN
        if camera is not None:
            known = np.flatnonzero(self.info.cameras == camera)
            if not len(known):
                raise UserError(f"camera {camera} was not in training; known: {', '.join(map(str, self.info.cameras))}")
            index = int(known[0])
        split = loose_split([len(tracklet) for tracklet in tracklets], modality, index)
        given = {name: [x] if single else x for name, x in (extras or {}).items()}
        loose = ArrayExtras(split, self._wanted, given) if self._wanted or given else None
        found = self.embed_split(split, ArrayReader(tracklets), extras=loose)
        return jax.tree.map(lambda x: x[0], found) if single else found

    def embed_split(
        self,
        split: Split,
        reader: FrameReader | None = None,
        rows: np.ndarray | None = None,
        extras: ExtraReader | None = None,
    ) -> Any:
        """Features f32[N, D], as `embed` gives them, of the tracklets `rows` of a split (all where not given).

        What the run's method takes beside frames comes from `extras` or, of a built data set, from its sidecars. A
        frame that cannot be decoded raises a UserError that names it, and so does a sidecar that is not there.
        """
        extras = extras or self._extras(split, reader)
        found = tracklet_features(self._extractor, *self._state, split, self._rule, self._loading, reader, rows, extras)
        return found[self._rule.headline]

    def _extras(self, split: Split, reader: FrameReader | None) -> ExtraReader | None:
        if not self._wanted:
            return None
        if self._opened is None or self._opened.split is not split:  # callers come with a few rows at a time
            reader = reader or split.reader(cache=False)
            self._opened = ExtraReader(split, reader, self._wanted, self.info.tokenize)
        return self._opened

    # --- pairs --------------------------------------------------------------------------------------------------

    @property
    def scores_pairs(self) -> bool:
        """Whether the run's method has a score of pairs."""
        return self._model.method.scores_pairs()

    @property
    def rescoring(self) -> tuple[int, float]:
        """How many of the nearest the run's evaluation re-scores, 0 where none; the weight of the pair's score."""
        return self._rule.rescore_size, self._rule.rescore_mix

    @functools.cached_property
    def _pair_extractor(self) -> Extractor:
        model = self._model
        return Extractor(model.method.pair_features, model.pixels, model.mesh, self.batch_size, dtype=None)

    def pair_bytes(self) -> int:
        """Bytes of what a tracklet has for a score of pairs."""
        batch = abstract_batch(self._model, self.batch_size, self._rule.seq_len, "test")
        found = self._pair_extractor.step.result_shapes(*self._state, batch).arrays
        return sum(x.size // len(x) * x.dtype.itemsize for x in found.values())

    def embed_pairs(self, split: Split, reader: FrameReader | None, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What the tracklets `rows` of a split have for a score of pairs, [N, …] by name; raises as `embed_split`."""
        reading = self._loading, reader, rows, self._extras(split, reader)
        return pair_rows(self._pair_extractor, *self._state, split, self._rule, *reading)

    def score_pairs(self, rows: Rows) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """(numbers i64[N] of some of these rows, of others) → their scores f32[N]."""
        mesh = self._model.mesh
        block = -(-self._rule.rescore_block // mesh.size) * mesh.size
        scorer = PairScorer(self._model.method, mesh, block, rows, room=0)  # queries are few

        def score(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
            found = []
            for start in range(0, len(query), block):
                some = slice(start, start + block)
                scores = scorer(*self._state, query[some], gallery[some])
                found.append(np.asarray(scores)[: len(query[some])])
            return np.concatenate(found)

        return score

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What tells these features from those of another run or checkpoint: `digest`, of every weight and the config;
        `workdir` and `epochs` are for people."""
        digest = hashlib.sha256(self._config.encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._state):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return {"digest": digest.hexdigest(), "workdir": str(self.workdir.resolve()), "epochs": self.epochs}


def _is_picture(x: Any) -> bool:
    return hasattr(x, "convert") or getattr(x, "ndim", 0) == 3


def _is_tracklet(x: Any) -> bool:
    """Whether it is one tracklet: a picture, an array of frames, or a list of pictures."""
    return _is_picture(x) or getattr(x, "ndim", 0) == 4 or (isinstance(x, list | tuple) and all(map(_is_picture, x)))


def _frames(tracklet: Any, number: int) -> list[np.ndarray]:
    """The frames of a tracklet, u8[H, W, 3]."""
    pictures = [tracklet] if _is_picture(tracklet) else list(tracklet) if _is_tracklet(tracklet) else []
    if not pictures:
        raise UserError(
            f"tracklet {number} has no frame: a tracklet is u8[T, H, W, 3], a picture or a list of pictures"
        )
    frames = [np.asarray(x.convert("RGB") if hasattr(x, "convert") else x) for x in pictures]
    for index, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise UserError(
                f"frame {index} of tracklet {number} is {frame.dtype}{list(frame.shape)}: u8[H, W, 3] is needed, in "
                "RGB order with values from 0 to 255"
            )
    return frames
