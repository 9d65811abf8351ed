"""Galleries whose names hold what other readers take for line ends, and galleries whose files are damaged."""

import json

import numpy as np
import pytest

from jaxreid.errors import UserError
from jaxreid.retrieval import Gallery, add_to_gallery, build_index, search_index

NAMES = ["Zoë", "one\u2028two", "\u0085next", "\x1c\x0b\x0c", "a\rb", "門", "caf\udce9"]  # the last is no UTF-8


def make(directory, names=NAMES):
    rows = np.random.default_rng(0).normal(size=(len(names), 4))
    known = [{"source": name, "time": None, "camera": name, "tracklet": name} for name in names]
    return add_to_gallery(directory, rows, known, [name.encode(errors="surrogateescape") for name in names])


@pytest.mark.parametrize("ascii", [True, False])
def test_every_name_is_read_as_it_was_written(tmp_path, ascii):
    names = NAMES if ascii else NAMES[:-1]
    make(tmp_path, names)
    if not ascii:  # as galleries were once written
        path = tmp_path / "000000.jsonl"
        lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    found = Gallery(tmp_path)
    for column in found.columns.values():
        assert column == names
    for row, name in enumerate(names):
        assert found.metadata(row) == {"source": name, "time": None, "camera": name, "tracklet": name}
        assert found.picture(row) == name.encode(errors="surrogateescape")


def read_all(directory):
    found = Gallery(directory)
    return found[0 : len(found)], found.columns, [found.metadata(row) for row in range(len(found))], found.picture(6)


@pytest.mark.parametrize("name", ["gallery.json", "000000.npy", "000000.jsonl", "000000.pictures"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other", "gone"])
def test_damaged_files_are_named_with_the_remedy(tmp_path, name, damage):
    make(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif not (damage == "other" and name == "000000.pictures"):  # any bytes are a picture
        path.write_bytes({"empty": b"", "cut": content[:-2], "other": b"[]\n" * 7}[damage])
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name) as caught:
        read_all(tmp_path)
    assert "copy" in str(caught.value) or damage == "gone"


def test_a_damaged_line_is_named(tmp_path):
    make(tmp_path)
    path = tmp_path / "000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"time": null', b'"time": nu', 1))
    for read in (lambda found: found.columns, lambda found: found.metadata(0)):
        with pytest.raises(UserError, match=r"000000\.jsonl is damaged .*copy"):
            read(Gallery(tmp_path))
    assert Gallery(tmp_path).metadata(1)["tracklet"] == NAMES[1]


def test_indices_that_cannot_be_used_are_named(tmp_path):
    pytest.importorskip("faiss")
    found = make(tmp_path / "one", [str(i) for i in range(50)])
    queries = np.eye(4)
    for options in ({"codes": 0}, {"codes": 4, "lists": 0}, {"codes": 4, "training": 0}):
        with pytest.raises(UserError, match=f"{list(options)[-1]}=0"):
            build_index(found, **options)
    path = build_index(found, codes=4)
    for options in ({"k": 0}, {"probes": 0}, {"candidates": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            search_index(queries, found, **options)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no index"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"index\.faiss is damaged.*delete"):
            search_index(queries, found)
    add_to_gallery(tmp_path / "wide", np.eye(8), [{"source": "", "time": None, "camera": ""}] * 8)
    (tmp_path / "wide" / "index.faiss").write_bytes(whole)
    with pytest.raises(UserError, match=r"index\.faiss .*4 wide.*8"):
        search_index(np.eye(8), Gallery(tmp_path / "wide"))
