"""Builds through Apache Beam give the records of builds without it, and are taken up again where they stopped."""

import errno
import importlib.util
import json
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from builder_trees import ids, write
from mars_trees import write_tree
from messages import refuses, says
from test_detreidx_builder import SPLITS
from test_mars_builder import QUERIES, TEST, TRAIN

from jaxreid.data.build import build, main
from jaxreid.data.building import beam_build, recorder
from jaxreid.data.building.listed_builder import ListedBuilder
from jaxreid.data.prepared import read_metadata, unfinished_directory
from jaxreid.errors import DataSetError

needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed")
OPTIONS = ["runner=DirectRunner"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "FRAMES_PER_SHARD", 12)  # 3 files of train, 2 of query, 3 of gallery
    root = tmp_path / "mars"
    write_tree(root, TRAIN, TEST, QUERIES)
    return root


@pytest.fixture
def written(monkeypatch):
    """Names of the files that workers wrote; only where they are threads of this process."""
    names = []
    replace = os.replace

    def note(aside, final):
        if str(final).endswith(".records"):
            names.append(os.path.basename(final).removesuffix(".records"))
        replace(aside, final)

    monkeypatch.setattr(beam_build.os, "replace", note)
    return names


def records(path):
    builder = tfds.builder_from_directory(str(path))
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


def prepare(root, data_dir, beam=OPTIONS, name="mars", **options):
    return build(name, source=root, data_dir=data_dir, beam=beam, strict_counts=False, **options)


def assert_same(one, other):
    """The same records in the same files, and the same words about them; the encoding's order is a process's own."""
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    np.testing.assert_equal(records(one), records(other))
    for file in one.glob("*.json"):
        assert json.loads(file.read_bytes()) == json.loads((other / file.name).read_bytes())


@needs_beam
def test_the_same_files_with_beam_and_without(tree, tmp_path, written, capsys):
    alone = prepare(tree, tmp_path / "alone", beam=None)
    path = prepare(tree, tmp_path / "beam")
    assert_same(alone, path)
    assert sorted(written) == [
        "gallery-00000", "gallery-00001", "gallery-00002", "query-00000", "query-00001",
        "train-00000", "train-00001", "train-00002",
    ]  # fmt: skip
    assert not unfinished_directory(path).exists()
    assert main(["mars/standard_unchecked", "--data_dir", str(tmp_path / "beam"), "--beam"]) == 0
    assert len(written) == 8
    says(capsys.readouterr().out, "query", 6, "tracklets", 17, "frames")


@needs_beam
@pytest.mark.extended
def test_workers_in_processes_of_their_own(tree, tmp_path):
    alone = prepare(tree, tmp_path / "alone", beam=None)
    flags = "--runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=2"
    command = ["mars", "--source", str(tree), "--data_dir", str(tmp_path / "beam"), "--option", "strict_counts=False"]
    assert main([*command, f"--beam_options={flags}"]) == 0
    assert_same(alone, tmp_path / "beam" / "mars" / "standard_unchecked" / "1.0.0")


@needs_beam
def test_detreidx_with_beam_and_without(tmp_path):
    root = tmp_path / "DetReIDX"
    write(root, [f"{home}/{row[0]}/{name}" for home, rows in SPLITS.values() for row in rows for name in row[2]])
    alone = prepare(root, tmp_path / "alone", beam=None, name="detreidx")
    assert_same(alone, prepare(root, tmp_path / "beam", name="detreidx"))
    assert list(records(alone)) == list(SPLITS)


@needs_beam
def test_a_stopped_build_goes_on_with_the_files_that_lack(tree, tmp_path, monkeypatch, written, caplog):
    alone = prepare(tree, tmp_path / "alone", beam=None)
    whole = tfds.core.writer.ExampleWriter.write

    def full_disk(writer, path, examples):
        if "gallery-00001" in str(path):
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(writer, path, examples)

    monkeypatch.setattr(tfds.core.writer.ExampleWriter, "write", full_disk)
    with refuses(DataSetError, "No space left on device") as raised:
        prepare(tree, tmp_path / "beam")
    target = tmp_path / "beam" / "mars" / "standard_unchecked" / "1.0.0"
    unfinished = unfinished_directory(target)
    assert f"are kept in {unfinished}: run again" in str(raised.value) and not target.exists()
    assert [path.name for path in target.parent.glob("incomplete*")] == []
    before, spoilt = set(written), {"query-00000", "train-00000", "train-00001"}
    names = {path.stem for path in unfinished.glob("*.plan")}
    assert before - spoilt and "gallery-00001" not in before and len(names) == 8
    assert not [path for path in unfinished.iterdir() if path.suffix not in (".plan", ".json", ".records")]
    # Of a worker that was killed there may be more left.
    (unfinished / "gallery-00001.0123").write_bytes(b"half a file")
    (unfinished / "query-00000.json").unlink(missing_ok=True)
    (unfinished / "train-00000.records").write_bytes(b"cut by a crash")
    (unfinished / "train-00001.json").write_bytes(b"")
    monkeypatch.setattr(tfds.core.writer.ExampleWriter, "write", whole)
    written.clear()
    path = prepare(tree, tmp_path / "beam")
    assert path == target and set(written) == names - (before - spoilt)
    says(caplog.text, "files", "already")
    assert_same(alone, path)
    assert not unfinished.exists()


@needs_beam
def test_files_of_other_lists_are_not_kept(tree, tmp_path, monkeypatch, written):
    with monkeypatch.context() as patched:
        patched.setattr(beam_build, "_move", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tree, tmp_path / "beam")
    assert len(written) == 8
    written.clear()
    write_tree(tree, TRAIN, TEST, [*QUERIES[:-1], 17])  # the last query is another
    path = prepare(tree, tmp_path / "beam")
    assert len(written) == 8  # each record names the lists that it is of
    assert ids(records(path)["query"])[-1] == "0006C6T0002"


@needs_beam
def test_damaged_frames_are_counted_over_all_workers_and_looked_at_again(tree, tmp_path, written):
    cut = [tree / "bbox_train" / row.files[0] for row in (TRAIN[0], TRAIN[11])]
    for path in cut:
        path.write_bytes(path.read_bytes()[:-20])
    missing = tree / "bbox_test" / TEST[16].files[1]
    missing.unlink()
    with refuses(DataSetError, "3 of 80", "3.8%"):
        prepare(tree, tmp_path / "beam", max_excluded=0.03)
    written.clear()
    path = prepare(tree, tmp_path / "beam")
    assert sorted(written) == ["train-00000", "train-00002"]  # the files with faults; they might have been repaired
    alone = prepare(tree, tmp_path / "alone", beam=None)
    assert_same(alone, path)
    assert [entry["path"] for entry in read_metadata(path)["excluded_frames"]] == [
        "bbox_test/0006/0006C6T0002F002.jpg",
        "bbox_train/0001/0001C1T0001F001.jpg",
        "bbox_train/1499/1499C6T0002F001.jpg",
    ]


@needs_beam
def test_a_tracklet_without_a_whole_frame(tree, tmp_path, monkeypatch, caplog):
    for file in TEST[2].files:
        (tree / "bbox_test" / file).write_bytes(b"")
    monkeypatch.setattr(ListedBuilder, "_refuse_differences", lambda *_: None)
    with refuses(DataSetError, "0000C1T0001"):
        build("mars", source=tree, data_dir=tmp_path / "strict", beam=OPTIONS)
    path = prepare(tree, tmp_path / "beam")
    assert "0000C1T0001" not in ids(records(path)["gallery"]) and len(records(path)["gallery"]) == 10
    says(caplog.text, "tracklet", "0000C1T0001", "frame")


@needs_beam
def test_a_build_without_beam_clears_what_a_stopped_one_left(tree, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(beam_build, "_move", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tree, tmp_path / "data")
    path = prepare(tree, tmp_path / "data", beam=None)
    assert not unfinished_directory(path).exists()


def test_what_beam_cannot_build(tmp_path):
    with refuses(DataSetError, "walkers", "Beam"):
        build("walkers", "tiny", data_dir=tmp_path / "data", beam=[])


def test_without_apache_beam_the_error_says_how_to_install_it(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(DataSetError, match=r"pip install 'jaxreid\[beam\]'"):
        prepare(tree, tmp_path / "data")


def test_a_shard_is_written_without_beam_as_a_worker_does(tree, tmp_path):
    """The worker's part needs no Beam: a plan in, a file and its report out."""
    alone = prepare(tree, tmp_path / "alone", beam=None)
    calls = []

    def run(name, shards, options):
        calls.append((name, len(shards), options))
        for shard in shards:
            beam_build.write_shard(str(shard.stem))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(beam_build, "_run", run)
        patched.setattr(beam_build, "pipeline_options", lambda builder, flags: tuple(flags))
        path = prepare(tree, tmp_path / "beam", beam=["runner=x"])
    assert calls == [("mars", 8, ("runner=x",))]
    assert_same(alone, path)
