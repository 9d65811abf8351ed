"""A prepared set on a place where nothing can be written: its index lies in the user's cache, or in memory."""

import os
import shutil

import numpy as np
import pytest

from jaxreid.data import split
from jaxreid.data.split import open_split


@pytest.fixture
def read_only(tiny, tmp_path, monkeypatch):
    """`walkers/tiny` where no index can be kept; a file in the place of its folder refuses root as well."""
    directory = tmp_path / "shared"
    shutil.copytree(tiny, directory, ignore=shutil.ignore_patterns("index"))
    (directory / "index").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return directory


def no_home(path):
    raise RuntimeError("Could not determine home directory.")


def no_pass(source):
    raise AssertionError("the records are read once more")


def test_the_index_is_kept_in_the_cache_of_the_user(read_only, tiny, tmp_path, monkeypatch, caplog):
    found = open_split(read_only, "gallery")
    assert found.labels.names == open_split(tiny, "gallery").labels.names
    assert str(read_only / "index") in caplog.text
    monkeypatch.setattr(split, "_read_index", no_pass)
    again = open_split(read_only, "gallery")
    np.testing.assert_array_equal(again.record, found.record)
    assert len(list((tmp_path / "cache/jaxreid/index").glob("*/gallery.npz"))) == 1


def test_the_index_of_another_build_is_not_taken(read_only, monkeypatch):
    open_split(read_only, "gallery")
    os.utime(read_only / "dataset_info.json", ns=(1, 1))
    monkeypatch.setattr(split, "_read_index", no_pass)
    with pytest.raises(AssertionError, match="once more"):
        open_split(read_only, "gallery")


@pytest.mark.parametrize("home", [True, False])
def test_where_there_is_no_cache_either_the_index_is_in_memory(read_only, tmp_path, monkeypatch, home):
    (tmp_path / "cache").write_text("")
    if not home:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    assert len(open_split(read_only, "gallery")) > 0
