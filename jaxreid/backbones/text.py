"""CLIP's text tower: token ids, or embeddings that a method has put together, to the joint space.

Parameter tree (`V` vocabulary, `D` width, `E` joint dimension):

    token_embedding [V, D]     position_embedding [77, D]     block_00, block_01, … as in `transformer`
    norm_final/{scale, bias}   projection/kernel [D, E]

A row of ids is the start token, the text, the end token (EOT), zeros. Zeros need no mask: every token sees only those
before it, and the row's feature is read at its end token. Source: openai/CLIP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.attention import causal_attend
from jaxreid.backbones.transformer import Hooks, LayerNorm, Tower, TransformerConfig
from jaxreid.backbones.word_table import ClipTokenizer, WordTokenizer, walkers_words
from jaxreid.errors import UserError

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """What a text tower is made of; the defaults are CLIP's, `text_config` names the published sizes."""

    projection: int = 512  # joint dimension
    vocabulary: int = 49_408
    context: int = 77  # longest row of ids


# By the name of the image tower that they were trained with. All have the same vocabulary and context.
TEXT_TOWERS: dict[str, TextConfig] = {
    "ViT-B/32": TextConfig(width=512, depth=12, heads=8, projection=512),
    "ViT-B/16": TextConfig(width=512, depth=12, heads=8, projection=512),
    "ViT-L/14": TextConfig(width=768, depth=12, heads=12, projection=768),
    "ViT-L/14@336": TextConfig(width=768, depth=12, heads=12, projection=768),
    # The packaged one for `walkers`, made by configs/language_image.py.
    "walkers_vit_tiny": TextConfig(
        width=128, depth=4, heads=4, projection=64, vocabulary=len(walkers_words().clip_ids)
    ),
}


def text_tokenizer(name: str, weights: str = "", counting: bool = False) -> WordTokenizer | ClipTokenizer:
    """The tokenizer of `text_config(name)`: of a small vocabulary, or CLIP's, which `weights` come with.

    No vocabulary is read before a text asks for it.

    Args:
      counting: ids may be any, as long as texts have about the right length: for shapes, without a vocabulary.
    """
    words = walkers_words()
    small = name in TEXT_TOWERS and TEXT_TOWERS[name].vocabulary == len(words.clip_ids)
    return words if small else ClipTokenizer(weights or None, counting)


def text_config(name: str, **changes: Any) -> TextConfig:
    """The text tower that belongs to a CLIP image tower of that name, with other fields where given."""
    if name not in TEXT_TOWERS:
        raise UserError(f"no CLIP text tower is called {name!r}; known: {', '.join(TEXT_TOWERS)}")
    return dataclasses.replace(TEXT_TOWERS[name], **changes)


class TextTower(Tower):
    """The tower: `__call__` from ids; from embeddings, `embed_ids` and then `encode_embeddings`.

    Prompt learning puts learned vectors in place of some rows of `embed_ids` and keeps the end token's position of
    the template. Rows may be cut after the last end token: what follows changes nothing.
    """

    config: TextConfig

    attention = staticmethod(causal_attend)

    def setup(self):
        c = self.config
        self.token_embedding = self.param("token_embedding", nn.initializers.normal(0.02), (c.vocabulary, c.width))
        self.position_embedding = self.param("position_embedding", nn.initializers.normal(0.01), (c.context, c.width))
        self.blocks = self.make_blocks()
        self.norm_final = LayerNorm(c.eps)
        init = nn.initializers.normal(c.width**-0.5)
        self.projection = nn.Dense(c.projection, use_bias=False, dtype=jnp.float32, kernel_init=init)

    def __call__(self, ids: Array, train: bool = False) -> dict[str, Any]:
        """Token ids i32[N, L] → the arrays of `encode_embeddings`; the end token is the first largest id of a row, as
        in OpenAI's tokenizer."""
        return self.encode_embeddings(self.embed_ids(ids), jnp.argmax(ids, axis=-1), train)

    def embed_ids(self, ids: Array) -> Array:
        """Token ids i32[N, L] → float32 [N, L, D], without positions."""
        return self.token_embedding[ids]

    def encode_embeddings(
        self,
        embeddings: Array,
        end: Array,
        train: bool = False,
        *,
        taps: Sequence[int] = (),
        hooks: Hooks = Hooks(),  # noqa: B008 (immutable)
    ) -> dict[str, Any]:
        """Embeddings [N, L, D] without positions and the end tokens' positions i32[N] → float32 arrays.

        `tokens` [N, L, D] after the final norm, and `projected` [N, E], the row at the end token in the joint space,
        not normalized; and "taps" as in `ViT`. Raises UserError where L is more than the context.
        """
        c = self.config
        length = embeddings.shape[1]
        if embeddings.ndim != 3 or embeddings.shape[2] != c.width or length > c.context:
            raise UserError(
                f"TextTower: embeddings of shape {embeddings.shape}; this tower takes [N, up to {c.context}, {c.width}]"
            )
        x = (embeddings + self.position_embedding[:length]).astype(c.dtype)
        x, tapped = self.tap_blocks(x, 0, c.depth, taps, train, None, hooks)
        tokens = self.norm_final(x)
        last = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
        found: dict[str, Any] = {"tokens": tokens, "projected": self.project(last)}
        return found | {"taps": tapped} if taps else found

    def project(self, tokens: Array) -> Array:
        """Tokens after the final norm f32[..., D] → in the joint space f32[..., E]."""
        return self.projection(tokens)
