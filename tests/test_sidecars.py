"""Sidecars: what is written comes back, what is not there is named, half-written ones do not exist."""

import json
import pickle

import numpy as np
import pytest
from messages import refuses

from jaxreid.data.sidecars import MissingSidecar, Sidecar, SidecarWriter, sidecar_dir, sidecar_kinds, write_sidecar
from jaxreid.errors import UserError


@pytest.fixture
def keypoints(tmp_path):
    """A sidecar of four tracklets with gaps in their frame indices, and its entries."""
    rng = np.random.default_rng(0)
    entries = {}
    for number, count in enumerate((5, 1, 12, 3)):
        index = np.sort(rng.choice(40, count, replace=False))
        values = rng.normal(size=(count, 17, 3)).astype(np.float32)
        entries[f"cam {number}/träcklet"] = (values, index, rng.random(count) < 0.6)
    write_sidecar(tmp_path, "keypoints", ((name, *entry) for name, entry in entries.items()), {"model": "none"})
    return tmp_path, entries


def test_frames_come_back_in_the_order_asked_for(keypoints):
    prepared, entries = keypoints
    sidecar = Sidecar.open(prepared, "keypoints")
    assert sidecar.tracklets == list(entries) and len(sidecar) == 4 and sidecar.meta["model"] == "none"
    assert sidecar.meta["frames"] == 21 and sidecar.meta["shape"] == [17, 3]
    rng = np.random.default_rng(1)
    for name, (values, index, mask) in entries.items():
        pick = rng.integers(0, len(index), 30)  # unordered, with repeats
        got, valid = sidecar.read(name, index[pick])
        assert got.dtype == np.float32 and valid.dtype == bool
        np.testing.assert_array_equal(valid, mask[pick])
        np.testing.assert_array_equal(got, values[pick] * mask[pick, None, None])


def test_values_are_a_plain_numpy_file_and_memory_mapped(keypoints):
    prepared, entries = keypoints
    path = sidecar_dir(prepared, "keypoints") / "values.npy"
    assert np.load(path, allow_pickle=False).shape == (21, 17, 3)
    sidecar = Sidecar.open(prepared, "keypoints")
    assert isinstance(sidecar._values, np.memmap)
    sent = pickle.dumps(sidecar)
    assert len(sent) < 500
    name, (values, index, mask) = next(iter(entries.items()))
    np.testing.assert_array_equal(pickle.loads(sent).read(name, index)[0], values * mask[:, None, None])


def test_missing_things_are_named(keypoints):
    prepared, entries = keypoints
    with refuses(MissingSidecar, prepared, "keypoints", "import-sidecar joints3d"):
        Sidecar.open(prepared, "joints3d")
    sidecar = Sidecar.open(prepared, "keypoints")
    with refuses(MissingSidecar, "'nobody'", "import-sidecar keypoints --dataset="):
        sidecar.read("nobody", [0])
    name, (_, index, _) = next(iter(entries.items()))
    absent = next(i for i in range(41) if i not in index)
    for frame in (absent, 1000, -1):
        with refuses(MissingSidecar, name, f"[{frame}]"):
            sidecar.read(name, [index[0], frame])
    assert sidecar.missing([name, "x", "y"]) == ["x", "y"] and name in sidecar and "x" not in sidecar


def test_texts(tmp_path):
    entries = [("a", "one line\nand another\u2028third"), ("b", ["first", "zweite ä"]), ("c", [])]
    write_sidecar(tmp_path, "captions", entries)
    sidecar = Sidecar.open(tmp_path, "captions")
    assert [sidecar.texts(name) for name in "abc"] == [["one line\nand another\u2028third"], ["first", "zweite ä"], []]
    with pytest.raises(MissingSidecar, match="'d'"):
        sidecar.texts("d")
    with refuses(ValueError, "texts"):
        sidecar.read("a", [0])


def test_a_failed_stream_leaves_nothing(tmp_path):
    def entries():
        yield "a", np.zeros((2, 3))
        raise RuntimeError("detector died")

    with pytest.raises(RuntimeError, match="detector died"):
        write_sidecar(tmp_path, "keypoints", entries())
    assert list((tmp_path / "sidecars").iterdir()) == [] and sidecar_kinds(tmp_path) == []


def test_replacing_needs_to_be_asked_for(tmp_path):
    write_sidecar(tmp_path, "depth", [("a", np.full((2, 1), 1.0))])
    with refuses(UserError, tmp_path, "overwrite=True"):
        write_sidecar(tmp_path, "depth", [])
    write_sidecar(tmp_path, "depth", [("b", np.full((1, 4), 2.0))], overwrite=True)
    assert Sidecar.open(tmp_path, "depth").tracklets == ["b"]
    assert [path.name for path in (tmp_path / "sidecars").iterdir()] == ["depth"]


def test_a_failed_replacement_keeps_the_old_one(tmp_path):
    write_sidecar(tmp_path, "depth", [("a", np.full((2, 1), 1.0))])
    with refuses(ValueError, "depth"):
        write_sidecar(tmp_path, "depth", [("b", np.zeros((1, 1))), ("c", np.zeros((1, 2)))], overwrite=True)
    assert Sidecar.open(tmp_path, "depth").tracklets == ["a"]


@pytest.mark.parametrize(
    ("second", "named"),
    [
        (("a", np.zeros((1, 2), np.float32)), ("'a'",)),
        (("b", np.zeros((1, 2), np.float64)), ("float64",)),
        (("b", np.zeros((1, 3), np.float32)), ("[3]",)),
        (("b", np.zeros((2, 2), np.float32), [3, 3]), ("ascend",)),
        (("b", np.zeros((2, 2), np.float32), [3]), ("frame_index", "(1,)")),
        (("b", np.zeros((2, 2), np.float32), [3, 4], [True]), ("mask", "(1,)")),
        (("b", "a caption"), ("texts", "values")),
        (("b\nc", np.zeros((1, 2), np.float32)), ("line break",)),
    ],
)
def test_entries_that_do_not_fit_are_refused(tmp_path, second, named):
    with refuses(ValueError, *named):
        write_sidecar(tmp_path, "kind", [("a", np.zeros((1, 2), np.float32)), second])


def test_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Python objects"):
        write_sidecar(tmp_path, "kind", [("a", np.array([{}], object))])


def test_files_that_disagree_are_refused(keypoints):
    prepared, _ = keypoints
    np.save(sidecar_dir(prepared, "keypoints") / "mask.npy", np.ones(20, bool))
    with refuses(ValueError, "mask.npy", 20):
        Sidecar.open(prepared, "keypoints")


def test_other_formats_are_refused(keypoints):
    prepared, _ = keypoints
    path = sidecar_dir(prepared, "keypoints") / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        Sidecar.open(prepared, "keypoints")


def test_without_entries(tmp_path):
    with SidecarWriter(tmp_path, "keypoints"):
        pass
    with pytest.raises(MissingSidecar, match="'a'"):
        Sidecar.open(tmp_path, "keypoints").read("a", [0])


def test_a_tracklet_may_have_no_frames(tmp_path):
    write_sidecar(tmp_path, "kind", [("a", np.zeros((0, 2))), ("b", np.ones((1, 2)))])
    sidecar = Sidecar.open(tmp_path, "kind")
    with refuses(MissingSidecar, "[0]"):
        sidecar.read("a", [0])
    values, mask = sidecar.read("b", [0, 0])
    np.testing.assert_array_equal(values, np.ones((2, 2)))
    assert mask.all()
