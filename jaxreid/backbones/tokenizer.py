"""CLIP's tokenizer: texts to rows of ids for `text.TextTower`.

    text ── clean, words ──▶ UTF-8 bytes as letters ── `tokenizers` ──▶ merged pairs ──▶ ids:  [start] ids [end] 0 0 …

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
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers

from jaxreid.backbones import hub
from jaxreid.backbones.tensors import CheckpointError, read_json
from jaxreid.errors import MissingFileError, UserError

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

# OpenAI's file, and the part of it that CLIP uses.
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
VOCABULARY_URL = "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49_152 - 256 - 2

# A visible character for every byte, in the order of CLIP's ids.
LETTERS = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))
_AS_LETTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_WORDS = pre_tokenizers.Split(
    Regex(r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
    "removed",
    invert=True,
)
_SPACES = re.compile(r"[^\S\x1c-\x1f]+")  # Unicode's; Python takes four separators of data for spaces too


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
    return _SPACES.sub(" ", html.unescape(html.unescape(_repair()(text)))).strip().lower()


def split_words(text: str) -> list[str]:
    """The words of a text, cleaned: runs of letters, single digits, runs of other signs, the ends of contractions."""
    return [word for word, _ in _WORDS.pre_tokenize_str(clean(text))]


Truncate = bool | Literal["sentences"]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def id_rows(
    texts: str | Sequence[str],
    encode: Callable[[str], list[int]],
    start: int,
    end: int,
    context: int,
    truncate: Truncate = False,
) -> np.ndarray:
    """Rows of ids, i32[N, context]: start, the text, end, zeros.

    Args:
      encode: the ids of a text.
      truncate: what becomes of a text that is longer than a row: False, it is refused; True, it ends with the end token
        at the last place; "sentences", it ends with its last sentence that fits, if there is one.

    Raises:
      UserError: a text is longer than a row, and `truncate` is False.
    """
    texts, room = [texts] if isinstance(texts, str) else texts, context - 2
    rows = np.zeros((len(texts), context), np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = encode(text)
        if len(ids) > room and not truncate:
            raise UserError(
                f"a text of {len(ids) + 2} tokens with its start and end, where {context} fit: {text[:60]!r}…; "
                "shorten it, or pass truncate=True"
            )
        if len(ids) > room and truncate == "sentences":
            ids = _whole_sentences(text, encode, room) or ids
        row[: min(len(ids), room) + 2] = start, *ids[:room], end
    return rows


def _whole_sentences(text: str, encode: Callable[[str], list[int]], room: int) -> list[int]:
    """The ids of as many of a text's first sentences as fit."""
    found: list[int] = []
    for stop in _SENTENCE_END.finditer(text):
        ids = encode(text[: stop.start()])
        if len(ids) > room:
            break
        found = ids
    return found


class Tokenizer:
    """Texts to ids, from merges in their order and the ids of all tokens."""

    def __init__(self, merges: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> None:
        needed = [START, END, *LETTERS, *(letter + WORD_END for letter in LETTERS), *map("".join, merges)]
        absent = [token for token in needed if token not in ids]
        if absent:
            raise CheckpointError(
                f"{len(absent)} tokens have no id ({', '.join(absent[:5])}): merges and ids do not belong together"
            )
        self._pairs = models.BPE(dict(ids), list(merges), end_of_word_suffix=WORD_END)
        self.start, self.end = ids[START], ids[END]

    def __call__(self, texts: str | Sequence[str], *, context: int = 77, truncate: Truncate = False) -> np.ndarray:
        """Rows of ids, i32[N, context]: start, the text, end, zeros; `truncate` as in `id_rows`.

        The end is the largest id of a row, which is where `TextTower` looks for it. Raises UserError on a text that
        is longer than a row, unless `truncate` is set.
        """
        return id_rows(texts, self.encode, self.start, self.end, context, truncate)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        return [id for word in split_words(text) for id in self._encode_word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The cleaned text of some ids, words apart; start, end and what follows the end are left out."""
        inner = itertools.takewhile(lambda id: id != self.end, map(int, ids))
        tokens = [self._pairs.id_to_token(id) for id in inner if id != self.start]
        letters = "".join(tokens)  # pyright: ignore[reportCallIssue, reportArgumentType] (None: no id of this one)
        whole = letters.removesuffix(WORD_END).split(WORD_END)
        return " ".join(decoders.ByteLevel().decode([word]) for word in whole)

    def _encode_word(self, word: str) -> list[int]:
        if word in (START, END):
            return [self.start if word == START else self.end]
        ((letters, _),) = _AS_LETTERS.pre_tokenize_str(word)
        return [token.id for token in self._pairs.tokenize(letters)]


# ------------------------------------------------------------------------------------------------- where it is


def load_tokenizer(source: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer with the vocabulary that belongs to a checkpoint, or with CLIP's own.

    `source` is a name or path of `jaxreid.backbones.hub` (the same as for the weights), a folder, or OpenAI's
    vocabulary file. In the folder, or beside the file, are looked for: vocab.json with merges.txt, then tokenizer.json
    (Hugging Face), then bpe_simple_vocab_16e6.txt.gz. Without any, that file in `hub.weights_folder()` or of an
    installed open_clip or clip is taken; neither is imported. Raises FileNotFoundError that says where to get it, or
    CheckpointError on a file that is not CLIP's.
    """
    if source is not None:
        with hub.located(source) as path:
            folder = path if path.is_dir() else path.parent
            if path.name.endswith(".txt.gz"):
                return _from_openai(path)
            if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
                return _from_hugging_face(folder)
            if (folder / "tokenizer.json").exists():
                return _from_tokenizer_json(folder / "tokenizer.json")
            if (folder / VOCABULARY_FILE).exists():
                return _from_openai(folder / VOCABULARY_FILE)
    if (hub.weights_folder() / VOCABULARY_FILE).exists():
        return _from_openai(hub.weights_folder() / VOCABULARY_FILE)
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / VOCABULARY_FILE).exists():
                return _from_openai(Path(folder) / VOCABULARY_FILE)
    beside = f" beside {source} (vocab.json and merges.txt, tokenizer.json, or {VOCABULARY_FILE})"
    searched = "" if source is None else beside
    raise MissingFileError(
        f"no vocabulary of CLIP{searched}, and open_clip is not installed. Install that without what it needs itself "
        f"(pip install --no-deps open_clip_torch), or fetch {VOCABULARY_URL} to {hub.weights_folder()}"
    )


def _from_openai(file: Path) -> Tokenizer:
    hub.check_sha256(file, VOCABULARY_SHA256, VOCABULARY_URL)
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [_pair(line, file) for line in lines[1 : 1 + MERGES]]
    tokens = [*LETTERS, *(letter + WORD_END for letter in LETTERS), *map("".join, merges), START, END]
    return Tokenizer(merges, {token: id for id, token in enumerate(tokens)})


def _from_hugging_face(folder: Path) -> Tokenizer:
    file = folder / "merges.txt"
    lines = file.read_text(encoding="utf-8").split("\n")
    merges = [_pair(line, file) for line in lines if line.strip() and not line.startswith("#version")]
    return Tokenizer(merges, read_json(folder / "vocab.json"))


def _from_tokenizer_json(file: Path) -> Tokenizer:
    model = read_json(file).get("model", {})
    merges = [_pair(" ".join(merge) if isinstance(merge, list) else merge, file) for merge in model.get("merges", [])]
    return Tokenizer(merges, model.get("vocab", {}))


def _pair(line: str, file: Path) -> tuple[str, str]:
    first, *rest = line.split()
    if len(rest) != 1:
        raise CheckpointError(f"{file} has the line {line!r} where a merge, two tokens, is expected")
    return first, rest[0]
