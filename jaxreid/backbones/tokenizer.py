"""CLIP's tokenizer: texts to rows of ids for `text.TextTower`.

    text ── clean ──▶ words ── UTF-8 bytes as letters ──▶ merged pairs ──▶ ids:  [start] ids [end] 0 0 …

A lower-case byte-level BPE of 49,408 tokens: 256 bytes, the same at the end of a word, 48,894 merges, start and end.
The vocabulary is not part of this package; `load_tokenizer` finds it. Source: openai/CLIP.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib.util
import itertools
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import regex

from jaxreid.backbones import hub
from jaxreid.backbones.tensors import CheckpointError, read_json
from jaxreid.errors import MissingFileError, UserError

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

# OpenAI's file, and the part of it that CLIP uses.
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
VOCABULARY_URL = "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49_152 - 256 - 2

WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


@functools.cache
def byte_letters() -> dict[int, str]:
    """A visible character for every byte: itself in Latin-1 where it is one, others from U+0100 on, in that order."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@functools.cache
def _repair() -> Callable[[str], str]:
    try:
        import ftfy  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return functools.partial(unicodedata.normalize, "NFC")
    return ftfy.fix_text


def clean(text: str) -> str:
    """Repaired, HTML entities resolved, white space collapsed, lower case.

    OpenAI's code repairs text with ftfy, and so does this where ftfy is installed. Without, it only composes accents
    (NFC), which is the same for ASCII and for most other text; not for typographic quotes, ligatures, full-width
    letters and wrongly decoded text.
    """
    return regex.sub(r"\s+", " ", html.unescape(html.unescape(_repair()(text)))).strip().lower()


class Tokenizer:
    """Texts to ids, from merges in their order and the ids of all tokens."""

    def __init__(self, merges: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> None:
        letters = byte_letters().values()
        needed = [START, END, *letters, *(letter + WORD_END for letter in letters), *map("".join, merges)]
        absent = [token for token in needed if token not in ids]
        if absent:
            raise CheckpointError(
                f"{len(absent)} tokens have no id ({', '.join(absent[:5])}): merges and ids do not belong together"
            )
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._ids = dict(ids)
        self._words: dict[str, list[int]] = {START: [ids[START]], END: [ids[END]]}
        self.start, self.end = ids[START], ids[END]

    def __call__(self, texts: str | Sequence[str], *, context: int = 77, truncate: bool = False) -> np.ndarray:
        """Rows of ids, i32[N, context]: start, the text, end, zeros.

        The end is the largest id of a row, which is where `TextTower` looks for it. Raises UserError on a text that
        is longer than a row, unless `truncate` is set: then it ends with the end token at the last place.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.zeros((len(texts), context), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > context:
                if not truncate:
                    raise UserError(
                        f"a text of {len(ids)} tokens with its start and end, where {context} fit: {text[:60]!r}…; "
                        "shorten it, or pass truncate=True"
                    )
                ids = [*ids[: context - 1], self.end]
            row[: len(ids)] = ids
        return rows

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        return [id for word in WORDS.findall(clean(text)) for id in self._encode_word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The cleaned text of some ids, words apart; start, end and what follows the end are left out."""
        tokens = {id: token for token, id in self._ids.items()}
        inner = itertools.takewhile(lambda id: id != self.end, (int(id) for id in ids))
        letters = "".join(tokens[id] for id in inner if id != self.start)
        byte_of = {letter: byte for byte, letter in byte_letters().items()}
        words = letters.removesuffix(WORD_END).split(WORD_END)
        return " ".join(bytes(byte_of[c] for c in word).decode("utf-8", "replace") for word in words)

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._words:
            letters = [byte_letters()[byte] for byte in word.encode()]
            self._words[word] = [self._ids[token] for token in self._merge([*letters[:-1], letters[-1] + WORD_END])]
        return self._words[word]

    def _merge(self, tokens: list[str]) -> list[str]:
        """Joins the pair that comes first in the merges, everywhere in the word, until none is left."""
        while pairs := [pair for pair in itertools.pairwise(tokens) if pair in self._ranks]:
            best = min(pairs, key=self._ranks.__getitem__)
            joined: list[str] = []
            position = 0
            while position < len(tokens):
                if tuple(tokens[position : position + 2]) == best:
                    joined.append("".join(best))
                    position += 2
                else:
                    joined.append(tokens[position])
                    position += 1
            tokens = joined
        return tokens


# ------------------------------------------------------------------------------------------------- where it is


def load_tokenizer(source: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer with the vocabulary that belongs to a checkpoint, or with CLIP's own.

    `source` is a name or path of `jaxreid.backbones.hub` (the same as for the weights), a folder, or OpenAI's
    vocabulary file. In the folder, or beside the file, are looked for: vocab.json with merges.txt (Hugging Face), then
    bpe_simple_vocab_16e6.txt.gz. Without either, that file in `hub.weights_folder()` or of an installed open_clip or
    clip is taken; neither is imported. Raises FileNotFoundError that says where to get it, or CheckpointError on a file
    that is not CLIP's.
    """
    if source is not None:
        with hub.located(source) as path:
            folder = path if path.is_dir() else path.parent
            if path.name.endswith(".txt.gz"):
                return _from_openai(path)
            if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
                return _from_hugging_face(folder)
            if (folder / VOCABULARY_FILE).exists():
                return _from_openai(folder / VOCABULARY_FILE)
    if (hub.weights_folder() / VOCABULARY_FILE).exists():
        return _from_openai(hub.weights_folder() / VOCABULARY_FILE)
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / VOCABULARY_FILE).exists():
                return _from_openai(Path(folder) / VOCABULARY_FILE)
    searched = "" if source is None else f" beside {source} (vocab.json and merges.txt, or {VOCABULARY_FILE})"
    raise MissingFileError(
        f"no vocabulary of CLIP{searched}, and open_clip is not installed. Install that without what it needs itself "
        f"(pip install --no-deps open_clip_torch), or fetch {VOCABULARY_URL} to {hub.weights_folder()}"
    )


def _from_openai(file: Path) -> Tokenizer:
    hub.check_sha256(file, VOCABULARY_SHA256, VOCABULARY_URL)
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [_pair(line, file) for line in lines[1 : 1 + MERGES]]
    letters = list(byte_letters().values())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges), START, END]
    return Tokenizer(merges, {token: id for id, token in enumerate(tokens)})


def _from_hugging_face(folder: Path) -> Tokenizer:
    file = folder / "merges.txt"
    lines = file.read_text(encoding="utf-8").split("\n")
    merges = [_pair(line, file) for line in lines if line.strip() and not line.startswith("#version")]
    return Tokenizer(merges, read_json(folder / "vocab.json"))


def _pair(line: str, file: Path) -> tuple[str, str]:
    first, *rest = line.split()
    if len(rest) != 1:
        raise CheckpointError(f"{file} has the line {line!r} where a merge, two tokens, is expected")
    return first, rest[0]
