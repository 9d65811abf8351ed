"""A small text tower's vocabulary: the few words it knows, with CLIP's own ids.

A tower that is trained on a few sentences needs no table of 49,408 tokens. Its rows are those of CLIP's ids that occur
in its words, in ascending order, so that the end of text is the largest row as it is the largest id in CLIP:

    text ── words ──▶ CLIP ids (the shipped table) ──▶ rows of the small `token_embedding`
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence

import numpy as np

from jaxreid.backbones.tokenizer import Tokenizer, Truncate, id_rows, load_tokenizer, split_words
from jaxreid.errors import UserError

PADDING, START, END = 0, 49_406, 49_407  # CLIP's ids


class WordTokenizer:
    """Texts of known words to rows of a small token table; called as `Tokenizer` is.

    Attributes:
      clip_ids: i32[V], the CLIP id of every row.
      start, end: rows of the start and end of a text.
    """

    def __init__(self, words: Mapping[str, Sequence[int]]) -> None:
        """`words`: word → its CLIP ids, as `Tokenizer.encode` gives them."""
        self.words = dict(words)
        self.clip_ids = np.unique([PADDING, START, END, *(id for ids in words.values() for id in ids)]).astype(np.int32)
        self._row = {int(id): row for row, id in enumerate(self.clip_ids)}
        self.start, self.end = self._row[START], self._row[END]

    @classmethod
    def of_texts(cls, texts: Sequence[str], tokenizer: Tokenizer) -> WordTokenizer:
        """The table of all words of some texts."""
        words = sorted({word for text in texts for word in split_words(text)})
        return cls({word: tokenizer.encode(word) for word in words})

    def encode(self, text: str) -> list[int]:
        """The rows of a text, without start and end.

        Raises:
          UserError: it has a word that the tower was not trained with.
        """
        words = split_words(text)
        unknown = sorted({word for word in words if word not in self.words})
        if unknown:
            raise UserError(
                f"the words {', '.join(unknown)} are not among the {len(self.words)} that this text tower knows "
                f"({text[:60]!r}); a tower with CLIP's whole vocabulary takes any text"
            )
        return [self._row[id] for word in words for id in self.words[word]]

    def __call__(self, texts: str | Sequence[str], *, context: int = 77, truncate: Truncate = False) -> np.ndarray:
        """Rows of the token table, i32[N, context]: start, the text, end, zeros; `truncate` as in `id_rows`.

        Raises:
          UserError: a text is longer than `context` and is not to be cut, or has an unknown word.
        """
        return id_rows(texts, self.encode, self.start, self.end, context, truncate)


class ClipTokenizer:
    """Texts to rows of CLIP's own ids; called as `Tokenizer` is.

    Words that the package knows need no vocabulary, and the sentences of all presets have no others; for a text with
    another word the vocabulary of `source` is loaded (`load_tokenizer`), or, where only the length counts, any word is
    put in its place.
    """

    def __init__(self, source: str | None = None, counting: bool = False) -> None:
        self.source, self.counting = source, counting
        self.words = walkers_words()

    def __call__(self, texts: str | Sequence[str], *, context: int = 77, truncate: Truncate = False) -> np.ndarray:
        """Rows of ids, i32[N, context]: start, the text, end, zeros; `truncate` as in `id_rows`.

        Raises:
          UserError: a text is longer than `context` and is not to be cut.
          MissingFileError: it has a word that is not known, and the vocabulary is not on this machine.
        """
        texts = [texts] if isinstance(texts, str) else texts
        words = [split_words(text) for text in texts]
        if self.counting:
            texts = [" ".join(word if word in self.words.words else "person" for word in row) for row in words]
        elif not all(word in self.words.words for row in words for word in row):
            return self._vocabulary(texts, context=context, truncate=truncate)
        return self.words.clip_ids[self.words(texts, context=context, truncate=truncate)]

    @functools.cached_property
    def _vocabulary(self) -> Tokenizer:
        return load_tokenizer(self.source)


@functools.cache
def walkers_words() -> WordTokenizer:
    """The words of the captions of `walkers`, and of the prompts that methods learn."""
    resource = importlib.resources.files("jaxreid.backbones") / "weights" / "walkers_words.json"
    return WordTokenizer(json.loads(resource.read_text(encoding="utf-8")))
