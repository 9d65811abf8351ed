"""Prompts: learned tokens that the image tower's first blocks attend to, one set per camera or platform; and learned
words of the text tower, one set per identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.text import TextConfig, TextTower
from jaxreid.backbones.tokenizer import split_words
from jaxreid.devices.parallel import constrain
from jaxreid.errors import UserError
from jaxreid.shapes import AnyArray, Array, Float, Int


class DeepPrompts(nn.Module):
    """A table [blocks, conditions, length, width], normal of deviation 0.02 cut at two of them.

    These are VSLA-CLIP's platform prompts, with the camera or platform as condition.
    """

    blocks: int
    conditions: int
    length: int
    width: int

    @nn.compact
    def __call__(
        self, condition: Int[AnyArray, " rows"]
    ) -> Float[Array, "{self.blocks} rows {self.length} {self.width}"]:
        """Rows of the table → `Hooks.prompts`; a negative row takes the mean of all."""
        shape = (self.blocks, self.conditions, self.length, self.width)
        table = self.param("table", nn.initializers.truncated_normal(0.02), shape)
        known = (condition >= 0)[None, :, None, None]
        return jnp.where(known, table[:, condition], table.mean(axis=1, keepdims=True))


# Where a clip was taken from: column of `Batch.geometry`, largest value (m, m, degrees), and into how many equal bins.
GEOMETRY = {"altitude": (0, 120.0, 18), "distance": (1, 120.0, 18), "angle": (2, 90.0, 3)}


class GeometryPrompts(nn.Module):
    """What altitude, distance and angle add to the prompts of a platform: a table [blocks, 1 + bins, length, width] for
    each of `names`, which start at 0. Row 0 is of what is not known, as on the ground."""

    names: tuple[str, ...]
    blocks: int
    length: int
    width: int

    @nn.compact
    def __call__(
        self, geometry: Float[AnyArray, "rows 3"]
    ) -> Float[Array, "{self.blocks} rows {self.length} {self.width}"]:
        """`Batch.geometry` → the sum of the tables' rows; a bin includes its upper end, the last all above it."""
        total = jnp.zeros((self.blocks, len(geometry), self.length, self.width))
        for name in self.names:
            column, most, bins = GEOMETRY[name]
            table = self.param(name, nn.initializers.zeros, (self.blocks, 1 + bins, self.length, self.width))
            value = geometry[:, column]
            place = jnp.clip(jnp.ceil(jnp.nan_to_num(value) * bins / most), 1, bins).astype(jnp.int32)
            total = total + table[:, jnp.where(jnp.isnan(value), 0, place)]
        return total


def template_faults(text: str, count: int) -> list[str]:
    """A sentence where the learned words of a template, written X, are not `count` in a row."""
    places = [place for place, word in enumerate(split_words(text)) if word == "x"]
    if places and places == list(range(places[0], places[0] + count)):
        return []
    return [f"config.prompt.template={text!r} needs {count} X in a row: prompt.n_ctx and prompt.shared_ctx say so"]


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A sentence with places for learned words: `before` + `own` + `after` of them, from position `start` on.

    Those of `own` are learned for each identity, the others once for all. `ids` end with the end token, at which the
    text tower's feature is read: with its causal mask, nothing after it changes anything.
    """

    ids: tuple[int, ...]
    start: int
    own: int
    before: int = 0
    after: int = 0

    @classmethod
    def of_text(
        cls,
        text: str,
        tokenizer: Callable[..., np.ndarray],
        own: int,
        shared: Sequence[int] = (0, 0),
        context: int | None = None,
    ) -> PromptTemplate:
        """The template of a text whose learned words are written X.

        Args:
          tokenizer: text → i32[1, L], the start token, the text, the end token, zeros.
          own: words learned for each identity.
          shared: words before and after them that all identities share.
          context: length to fill up to with zeros; None cuts after the end token.

        Raises:
          UserError: the text has not that many X in a row.
        """
        ids = tokenizer(text)[0].tolist()
        end = ids.index(max(ids))
        if faults := template_faults(text, own + sum(shared)):
            raise UserError(*faults)
        start = ids.index(tokenizer("X")[0][1])
        ids = ids[: end + 1] + [0] * ((context or 0) - end - 1)
        return cls(tuple(ids), start, own, *shared)

    @property
    def end(self) -> int:
        """Position of the end token."""
        return int(np.argmax(self.ids))


class PromptedText(nn.Module):
    """The text tower on sentences with learned words (CLIP-ReID's prompt learner); a class bank is its output.

    Attributes:
      tower: configuration of the text tower.
      template: the sentence.
      num_classes: C, training identities.
    """

    tower: TextConfig
    template: PromptTemplate
    num_classes: int

    def setup(self):
        width, template, init = self.tower.width, self.template, nn.initializers.normal(0.02)
        self.text_tower = TextTower(self.tower, name="tower")
        self.own = self.param("own", init, (self.num_classes, template.own, width))
        self.shared_before = self.param("before", init, (template.before, width)) if template.before else None
        self.shared_after = self.param("after", init, (template.after, width)) if template.after else None

    def __call__(self, identity: Int[AnyArray, " rows"]) -> Float[Array, "rows dim"]:
        """Identities → their sentences in the joint space, not normalized."""
        template, rows = self.template, identity.shape[0]
        words = self.text_tower.embed_ids(jnp.asarray([template.ids]))[0]
        stop = template.start + template.before + template.own + template.after
        parts = [words[: template.start], self.shared_before, self.own[identity], self.shared_after, words[stop:]]
        parts = [jnp.broadcast_to(x, (rows, *x.shape[-2:])) for x in parts if x is not None]
        sentence = jnp.concatenate(parts, axis=1)
        end = jnp.full(rows, template.end, jnp.int32)
        return self.text_tower.encode_embeddings(sentence, end)["projected"]

    def bank(self, multiple: int = 1) -> Float[Array, "{self.num_classes} dim"]:
        """The sentences of all identities; the work is split over devices by identity.

        Args:
          multiple: the tower sees C rounded up to a multiple of it, which the number of devices must divide.
        """
        count = -(-self.num_classes // multiple) * multiple
        identity = constrain(jnp.minimum(jnp.arange(count), self.num_classes - 1), "rows")
        return constrain(self(identity), "replicated")[: self.num_classes]
