"""CG-CLIP's bank: TF-CLIP's mean image features, and beside each row what the captions of its identity say.

On the host, captions of training tracklets become a few for every identity, then ids; before the training, the text
tower makes features of them, once. Test features need none of it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean
from jaxreid.backbones.frame_encoder import PRECISIONS
from jaxreid.data.batch import Batch
from jaxreid.data.sidecar_files import refuses_to_tell
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.memory.class_bank import group_mean
from jaxreid.methods.class_banks import BankMemory, ImageBank
from jaxreid.methods.method import Context, Features, Variables

SOURCES = ("file", "shuffled", "template")
LEVELS = ("token", "sentence")
TEMPLATE = "A photo of a person."
LONGEST = 1024  # tokens up to which is counted what is cut


class CaptionMemory(BankMemory):
    """Rows of identities, and features of their captions; rows beyond the last identity have none."""

    captions: jax.Array  # [R, K, S, E]: S tokens of each of K captions, or with level "sentence" the end token alone
    length: jax.Array  # i32[R, K], tokens of a caption with its start and end; 0 = there is none

    def mean_end(self) -> jax.Array:
        """f32[R, E]: the mean of the end tokens of a row's captions, 0 where it has none."""
        place = jnp.clip(self.length - 1, 0, self.captions.shape[2] - 1)
        ends = jnp.take_along_axis(self.captions, place[..., None, None], axis=2)[:, :, 0]
        return masked_mean(ends, self.length > 0)


def captions_of(info: DatasetInfo, count: int) -> list[list[str]]:
    """At most `count` different captions of every identity: first ones of tracklets before second ones, of cameras that
    have none yet before others, of longer tracklets before shorter ones, then by the tracklet's id."""
    assert info.captions is not None and info.labels is not None
    found: list[list[tuple[int, int, int, str, str]]] = [[] for _ in range(info.num_classes)]
    rows = zip(
        info.labels.identity, info.table.camera, info.table.length, info.labels.names, info.captions, strict=True
    )
    of_camera: dict[tuple[int, int], int] = {}
    for person, camera, length, name, texts in sorted(rows, key=lambda row: (-row[2], row[3])):
        texts = [text for text in texts if text.strip() and not refuses_to_tell(text)]
        if person < 0 or not texts:
            continue
        turn = of_camera[person, camera] = of_camera.get((person, camera), -1) + 1
        found[person] += [(place, turn, -length, name, text) for place, text in enumerate(texts)]
    return [list(dict.fromkeys(text for *_, text in sorted(each)))[:count] for each in found]


def shuffled(captions: list[list[str]]) -> list[list[str]]:
    """Every identity with the captions of another: the next one in an order that is always the same."""
    order = np.random.default_rng(0).permutation(len(captions))
    return [captions[other] for other in np.roll(order, 1)[np.argsort(order)]]


def draw(rng: jax.Array, length: jax.Array) -> jax.Array:
    """i32[R]: one of the captions of every row, 0 where it has none; `length` i32[R, K] as in `CaptionMemory`."""
    return jax.random.randint(rng, length.shape[:1], 0, jnp.maximum((length > 0).sum(axis=1), 1))


@dataclasses.dataclass(frozen=True)
class CaptionBank(ImageBank):
    """Mean image features and captions, made once; rows stay, or with `memory.momentum` below 1 follow the batches.

    Attributes:
      texts: (variables, ids i32[N, L]) → f32[N, L, E], captions in the joint space, token by token.
      captions: whether there are any.
    """

    texts: Callable[[Variables, jax.Array], jax.Array]
    captions: bool = True

    def init(self) -> BankMemory:
        empty, options = super().init(), self.config.captions
        if not self.captions:
            return empty
        rows = -(-self.info.num_classes // options.pad_to_multiple_of) * options.pad_to_multiple_of
        kept = options.length if options.level == "token" else 1
        shape, dtype = (rows, options.per_identity, kept, self.width), PRECISIONS[self.config.precision]
        return CaptionMemory(empty.bank, jnp.zeros(shape, dtype), jnp.zeros(shape[:2], jnp.int32))

    @functools.cached_property
    def of_identities(self) -> list[list[str]]:
        """The captions of every identity.

        Raises:
          UserError: nobody has any.
        """
        options = self.config.captions
        if options.source == "template":
            return [[TEMPLATE]] * self.info.num_classes
        found = captions_of(self.info, options.per_identity)
        if not any(found):
            raise UserError(
                f"{self.info.name}: no training identity has a caption; bring some (jaxreid import-sidecar captions), "
                "or train without: config.captions.source='template', or config.cmr.depth=0"
            )
        return shuffled(found) if options.source == "shuffled" else found

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """i32[C, K, L], rows of zeros where there is no caption; L is a multiple of eight, or `captions.length`."""
        options, texts = self.config.captions, self.of_identities
        assert self.info.tokenize is not None
        flat = list(itertools.chain(*texts))
        rows = self.info.tokenize(flat, context=options.length, truncate="sentences")
        whole = self.info.tokenize(flat, context=LONGEST, truncate=True).argmax(axis=1) + 1
        if cut := int((whole > options.length).sum()):
            warnings.warn(
                f"{cut} of {len(flat)} captions have more than {options.length} tokens and end with their last "
                "sentence that fits, or within the first (config.captions.length)",
                stacklevel=2,
            )
        longest = int(rows.argmax(axis=1).max()) + 1
        ids = np.zeros((len(texts), options.per_identity, min(-(-longest // 8) * 8, options.length)), np.int32)
        there = np.arange(options.per_identity) < np.array([len(each) for each in texts])[:, None]
        ids[there] = rows[:, : ids.shape[2]]
        return ids

    @property
    def tokens(self) -> int:
        """S of the captions that are there; of a data set that is only planned, the most that there may be."""
        if self.config.captions.level == "sentence":
            return 1
        return self.config.captions.length if self.planned else self.ids.shape[2]

    @property
    def planned(self) -> bool:
        return self.info.captions is None and self.config.captions.source != "template"

    def refresh(self, variables: Variables, memory: BankMemory, features: Features, context: Context) -> BankMemory:
        """Rows and captions, from the weights that training starts from."""
        memory = super().refresh(variables, memory, features, context)
        if not isinstance(memory, CaptionMemory):
            return memory
        if self.planned:
            ids = np.zeros((self.info.num_classes, self.config.captions.per_identity, self.tokens), np.int32)
        else:
            ids = self.ids
        people, count, length = ids.shape
        last = jnp.asarray(ids.argmax(axis=2))  # the end token is the largest
        texts = self.texts(variables, jnp.asarray(ids.reshape(-1, length))).reshape(people, count, length, -1)
        if self.config.captions.level == "sentence":
            texts = jnp.take_along_axis(texts, last[..., None, None], axis=2)
        there = jnp.asarray(ids.any(axis=2))
        return memory.replace(
            captions=memory.captions.at[:people, :, : texts.shape[2]].set(texts.astype(memory.captions.dtype)),
            length=memory.length.at[:people].set(jnp.where(there, last + 1, 0)),
        )

    def loss(
        self, projected: jax.Array, similar: jax.Array, memory: BankMemory, batch: Batch
    ) -> tuple[jax.Array, BankMemory]:
        value, memory = super().loss(projected, similar, memory, batch)
        momentum = self.config.memory.momentum
        if momentum < 1:  # m ← μ·m + (1 − μ)·mean of the identity's clips in the batch
            label = jnp.where(batch.valid, batch.identity, -1)
            mean, seen = group_mean(jax.lax.stop_gradient(projected), label, len(memory.bank))
            moved = momentum * memory.bank + (1 - momentum) * mean
            memory = memory.replace(bank=jnp.where(seen[:, None], moved, memory.bank))
        return value, memory
