"""CLIP's tokenizer: golden ids, equality with transformers, the ways to its vocabulary.

The vocabulary itself is in the wheel of open_clip (`pip install --no-deps open_clip_torch`); what needs it is
skipped without. A small vocabulary made here tests the same code everywhere.
"""

import gzip
import hashlib
import html
import importlib.machinery
import importlib.util
import itertools
import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from messages import refuses
from tokenizers import pre_tokenizers

from jaxreid.backbones import tokenizer
from jaxreid.backbones.tensors import CheckpointError
from jaxreid.backbones.tokenizer import END, LETTERS, START, WORD_END, Tokenizer, clean, load_tokenizer, split_words

WORDS = (
    "photo",
    "person",
    "of",
    "a",
    "the",
    "walking",
    "striped",
    "shirt",
    "bags",
    "'s",
    "!!!",
    "ing",
    "é",
    "日本",
    "😀",
)


def small_vocabulary():
    """Merges that grow a few words from their first byte, and the ids of all tokens in CLIP's order."""
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = {}
    for word in WORDS:
        symbols = [*as_letters.pre_tokenize_str(word)[0][0]]
        symbols[-1] += WORD_END
        for first, second in zip(itertools.accumulate(symbols), symbols[1:], strict=False):
            merges[first, second] = None
    tokens = [*LETTERS, *(letter + WORD_END for letter in LETTERS), *map("".join, merges), START, END]
    return list(merges), {token: id for id, token in enumerate(tokens)}


def write_hugging_face(folder, merges, ids):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def small():
    return Tokenizer(*small_vocabulary())


@pytest.fixture(scope="module")
def clip():
    try:
        return load_tokenizer()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def without_ftfy(monkeypatch):
    """The tests see what a plain installation does, whatever is installed here."""
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer._repair.cache_clear()
    yield
    tokenizer._repair.cache_clear()


# ---------------------------------------------------------------------------------------------------------- ids

GOLDEN = {
    "A photo of a X X X X person.": [320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269],
    "A photo of a person.": [320, 1125, 539, 320, 2533, 269],
    "A infrared photo of a visible person": [320, 22867, 1125, 539, 320, 8626, 2533],
    "a pedestrian wearing a red-striped T-shirt, 2 bags & café": [
        *(320, 18256, 3309, 320, 736, 268, 22192, 339, 268, 2523, 267, 273, 6136, 261, 15304),
    ],
    "x" * 30: [32035] * 6 + [5675, 22819],
    "": [],
}


@pytest.mark.parity
def test_golden_ids(clip):
    for text, ids in GOLDEN.items():
        assert clip.encode(text) == ids
    assert clip.start == 49_406 and clip.end == 49_407
    rows = clip(list(GOLDEN))
    assert rows.shape == (len(GOLDEN), 77) and rows.dtype == np.int32
    for row, ids in zip(rows, GOLDEN.values(), strict=True):
        assert row.tolist() == [49_406, *ids, 49_407] + [0] * (75 - len(ids))
        assert row.argmax() == 1 + len(ids)


POOLS = (
    "abcdefghijklmnopqrstuvwxyz   ABCXYZ'",
    "0123456789 .,;:!?-_/\\()[]{}@#$%^*+=~`\"|'",
    "éèüßñçøåŠžİıςαΩЖщъ",
    "你好世界日本語カタカナ한국어",
    "😀🎉👩‍👧🏳️‍🌈✨❤️",
    "\t\n\r\u00a0\u2003\u200b\ufeff",
    "e\u0301a\u0308n\u0303",
    "ﬁ“”‘’—–…ＡＣ①½",
    "مرحباשלוםहिन्दीไทย",
    (" &amp; ", " &lt;", "&#39;", "&amp;amp;", "&eacute;", "&nbsp;", "&"),
    (" don't ", "I'll", "THEY'VE", "we're", "it's ", "I'M", "he'd", " x's", "'''s"),
    tuple(f" {word}" for word in WORDS),
)


def varied_texts(count):
    draw = random.Random(0)
    return [
        "".join(
            draw.choice(pool)
            for pool in (draw.choice(POOLS) for _ in range(draw.randint(1, 6)))
            for _ in range(draw.randint(1, 12))
        )
        for _ in range(count)
    ]


def assert_equal_to_transformers(ours, folder):
    """transformers resolves no HTML entities, so it gets the text without; a capital sigma at the end of a word, which
    it does not write ς, is not among the letters here."""
    import transformers

    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    texts = varied_texts(1000)
    resolved = [html.unescape(html.unescape(text)).strip() for text in texts]
    expected = theirs(resolved, add_special_tokens=False).input_ids
    assert [ours.encode(text) for text in texts] == expected
    assert max(map(len, expected)) > 77 and len({id for ids in expected for id in ids}) > 250
    cut = theirs(resolved, padding="max_length", truncation=True, max_length=77, return_tensors="np").input_ids
    # It fills rows with the end token, which changes nothing: the first end is read.
    ends = np.maximum.accumulate(cut == ours.end, axis=1)
    rows = ours(texts, truncate=True)
    np.testing.assert_array_equal(np.where(ends, 0, cut), np.where(rows == ours.end, 0, rows))
    np.testing.assert_array_equal(rows.argmax(1), ends.argmax(1))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_a_small_vocabulary_equals_transformers(small, tmp_path):
    assert_equal_to_transformers(small, write_hugging_face(tmp_path / "folder", *small_vocabulary()))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_clips_vocabulary_equals_transformers(clip, tmp_path):
    clip._pairs.save(str(tmp_path))
    assert_equal_to_transformers(clip, tmp_path)
    again, texts = load_tokenizer(tmp_path), varied_texts(1000)
    assert (again.start, again.end) == (clip.start, clip.end)
    assert [again.encode(text) for text in texts] == [clip.encode(text) for text in texts]


def test_rows_and_what_does_not_fit(small):
    a, of = small.encode("a")[0], small.encode("of")[0]
    assert small("a of a").tolist() == [[small.start, a, of, a, small.end] + [0] * 72]
    assert small(["a", "of"], context=3).tolist() == [[small.start, a, small.end], [small.start, of, small.end]]
    assert small([]).shape == (0, 77)
    fits = " ".join(["a"] * 75)
    assert small(fits)[0, -1] == small.end and small(fits, truncate=True)[0].tolist() == small(fits)[0].tolist()
    with refuses(ValueError, 78, 77, "a a", "truncate="):
        small(["a", fits + " of"])
    cut = small(fits + " of", truncate=True)[0]
    assert cut.tolist() == [small.start] + [a] * 75 + [small.end]


def test_words_bytes_and_merges(small):
    tokens = {id: token for token, id in small_vocabulary()[1].items()}

    def pieces(text):
        return [tokens[id] for id in small.encode(text)]

    assert pieces("Photo  OF\tpersons") == ["photo</w>", "of</w>", "perso", "n", "s</w>"]
    assert pieces("photo's 12") == ["photo</w>", "'s</w>", "1</w>", "2</w>"]
    assert pieces("zq") == ["z", "q</w>"]
    assert pieces("é") == pieces("e\u0301") == ["Ã©</w>"]
    assert pieces(START + "a" + END.upper()) == [START, "a</w>", END]
    assert START not in pieces(f"!!{START}")  # signs before it take its first two
    assert pieces("a\x1c b") == ["a</w>", "Ĝ</w>", "b</w>"]  # no space in Unicode
    assert small.decode(small("Photo of   é, 日本 zq!")[0]) == "photo of é , 日本 zq !"
    assert pickle.loads(pickle.dumps(small)).encode("photo") == small.encode("photo")


def test_cleaning():
    assert clean(" A\u00a0&amp;amp;  B&nbsp;&lt;C&gt;\n ") == "a & b <c>"
    assert clean("cafe\u0301") == "café"
    assert clean("\ufb01") == "\ufb01"  # what ftfy would take apart
    assert split_words("A person's 2nd T-SHIRT, they've…") == [
        *("a", "person", "'s", "2", "nd", "t", "-", "shirt", ",", "they", "'ve", "…"),
    ]


def test_ftfy_is_used_where_it_is_installed(monkeypatch):
    fake = type(sys)("ftfy")
    fake.fix_text = lambda text: text.replace("ﬁ", "fi")
    monkeypatch.setitem(sys.modules, "ftfy", fake)
    tokenizer._repair.cache_clear()
    assert clean("ﬁt") == "fit"


# -------------------------------------------------------------------------------------------------- vocabularies


@pytest.fixture
def openai_file(tmp_path, monkeypatch):
    """A file as OpenAI's, of the small vocabulary, that passes for it."""
    merges, _ = small_vocabulary()
    lines = ["version", *map(" ".join, merges), "never used"]
    content = gzip.compress("\n".join(lines).encode())
    path = tmp_path / "models" / tokenizer.VOCABULARY_FILE
    path.parent.mkdir()
    path.write_bytes(content)
    monkeypatch.setattr(tokenizer, "VOCABULARY_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(tokenizer, "MERGES", len(merges))
    return path


@pytest.fixture
def packages(monkeypatch):
    """Which packages are installed: name → folder."""
    installed = {}

    def find_spec(name):
        if name not in installed:
            return None
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations.append(str(installed[name]))
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return installed


def test_where_the_vocabulary_is_looked_for(small, openai_file, packages, tmp_path):
    folder = openai_file.parent
    (folder / "ViT-B-16.pt").touch()
    expected = small.encode("a photo of a person")
    for source in (openai_file, folder, folder / "ViT-B-16.pt"):
        assert load_tokenizer(source).encode("a photo of a person") == expected
    hugging_face = write_hugging_face(tmp_path / "hugging_face", *small_vocabulary())
    (hugging_face / "model.safetensors").touch()
    alone = tmp_path / "alone"
    alone.mkdir()
    merges, ids = small_vocabulary()
    pairs = {"merges": [*map(list, merges[:9]), *map(" ".join, merges[9:])]}  # in both forms that the library writes
    (alone / "tokenizer.json").write_text(json.dumps({"model": {"vocab": ids, **pairs}}), encoding="utf-8")
    for source in (hugging_face, hugging_face / "model.safetensors", alone):
        assert load_tokenizer(source).encode("a photo of a person") == expected
    for source in (None, tmp_path):
        with refuses(FileNotFoundError, "pip install --no-deps open_clip_torch", "https://"):
            load_tokenizer(source)
    with refuses(FileNotFoundError, tmp_path, "vocab.json", "merges.txt"):
        load_tokenizer(tmp_path)
    packages["open_clip"] = folder
    for source in (None, tmp_path):
        assert load_tokenizer(source).encode("a photo of a person") == expected


def test_vocabularies_that_are_not_clips_are_named(openai_file, tmp_path):
    openai_file.write_bytes(openai_file.read_bytes() + b"x")
    with refuses(CheckpointError, openai_file, "SHA-256", "https://"):
        load_tokenizer(openai_file)
    merges, ids = small_vocabulary()
    absent = {token: id for token, id in ids.items() if token != "photo</w>"}
    with refuses(CheckpointError, 1, "photo</w>"):
        load_tokenizer(write_hugging_face(tmp_path / "folder", merges, absent))
    (tmp_path / "folder" / "merges.txt").write_text("a b c\n")
    with refuses(CheckpointError, "merges.txt", "'a b c'"):
        load_tokenizer(tmp_path / "folder")
    (tmp_path / "folder" / "vocab.json").write_text("[]")
    (tmp_path / "folder" / "merges.txt").write_text("a b\n")
    with refuses(CheckpointError, "vocab.json", "list"):
        load_tokenizer(tmp_path / "folder")


def test_neither_jax_nor_open_clip_is_imported():
    code = (
        "import sys; from jaxreid.backbones.tokenizer import load_tokenizer\n"
        "try: load_tokenizer()\n"
        "except FileNotFoundError: pass\n"
        "print({'jax', 'open_clip', 'torch', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
