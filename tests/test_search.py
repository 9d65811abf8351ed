"""Galleries on disk and search in them, against NumPy; FAISS where it is installed."""

import json
import multiprocessing
import sys

import jax
import k_reciprocal_reference as reference
import numpy as np
import pytest
from messages import refuses

from jaxreid.errors import UserError
from jaxreid.retrieval import Gallery, add_to_gallery, build_index, search_gallery, search_index


def rows(seed, count, dim=16):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def known(count, source="walk.mp4", start=0):
    return [{"source": source, "time": 0.5 * i, "camera": i % 3, "row": start + i} for i in range(count)]


def brute(queries, gallery, k):
    similarity = reference.unit_rows(queries) @ reference.unit_rows(gallery).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, axis=1)


@pytest.fixture
def gallery(tmp_path):
    features = rows(0, 230)
    add_to_gallery(tmp_path, features[:100], known(100))
    add_to_gallery(tmp_path, features[100:101], known(1, start=100))
    return add_to_gallery(tmp_path, features[101:], known(129, start=101)), features


def test_what_was_added_is_there(gallery):
    found, features = gallery
    again = Gallery(found.directory)
    assert len(again) == 230 and again.width == 16
    unit = reference.unit_rows(features)
    for start, stop in ((0, 230), (0, 100), (99, 102), (100, 101), (150, 230), (40, 40), (200, 999)):
        np.testing.assert_allclose(again[start:stop], unit[start:stop], atol=1e-6)
    chosen = np.array([229, 0, 100, 99, 100])
    np.testing.assert_allclose(again.take(chosen), unit[chosen], atol=1e-6)
    assert isinstance(again[10:20], np.memmap)
    for row in (0, 99, 100, 101, 229):
        assert again.metadata(row)["row"] == row
    assert again.metadata(3) == {"source": "walk.mp4", "time": 1.5, "camera": 0, "row": 3}
    assert again.columns["source"] == ["walk.mp4"] * 230 and again.columns["tracklet"] == [None] * 230
    assert again.columns["camera"] == [again.metadata(row)["camera"] for row in range(230)]
    left = {path.name for path in found.directory.iterdir()}
    assert left == {".lock", "gallery.json"} | {f"00000{i}.{e}" for i in range(3) for e in ("npy", "jsonl")}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("chunk", [None, 50, 64])
def test_search_equals_brute_force(gallery, devices, chunk):
    found, features = gallery
    queries = rows(1, 13)
    index, similarity = brute(queries, features, 20)
    result = search_gallery(queries, found, 20, chunk=chunk, devices=jax.devices()[:devices])
    np.testing.assert_array_equal(result.index, index)
    np.testing.assert_allclose(result.similarity, similarity, atol=1e-5)
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("devices", [1, 8])
def test_only_allowed_rows_are_found(gallery, devices):
    found, features = gallery
    allowed = np.random.default_rng(3).random(230) < 0.2
    rows_left = np.flatnonzero(allowed)
    index, similarity = brute(rows(1, 13), features[allowed], 20)
    result = search_gallery(rows(1, 13), found, 20, chunk=50, devices=jax.devices()[:devices], allowed=allowed)
    np.testing.assert_array_equal(result.index, rows_left[index])
    np.testing.assert_allclose(result.similarity, similarity, atol=1e-5)
    nothing = search_gallery(rows(1, 2), found, 3, allowed=np.zeros(230, bool))
    assert np.all(nothing.index == -1) and np.all(np.isneginf(nothing.similarity))
    with refuses(ValueError, "allowed", "(229,)", 230):
        search_gallery(rows(1, 2), found, 3, allowed=allowed[1:])


def test_pictures_and_the_model_stay_with_the_rows(tmp_path):
    one, other = {"digest": "aa", "workdir": "runs/one"}, {"digest": "bb", "workdir": "runs/other"}
    pictures = [b"first", b"", b"the third"]
    add_to_gallery(tmp_path, rows(0, 3), known(3), pictures, model=one)
    add_to_gallery(tmp_path, rows(1, 2), known(2), model=one | {"workdir": "moved"})
    found = add_to_gallery(tmp_path, rows(2, 1), known(1), [b"last"])
    assert [found.picture(row) for row in range(6)] == [*pictures, None, None, b"last"]
    assert found.metadata(2) == {"source": "walk.mp4", "time": 1.0, "camera": 2, "row": 2}
    assert found.model == one
    with refuses(ValueError, "another model", "aa", "runs/one", "bb", "runs/other"):
        add_to_gallery(tmp_path, rows(3, 1), known(1), model=other)
    with refuses(ValueError, 3, 2, "pictures"):
        add_to_gallery(tmp_path, rows(0, 3), known(3), pictures[:2], model=one)
    assert len(Gallery(tmp_path)) == 6
    nameless = tmp_path / "nameless"
    add_to_gallery(nameless, rows(0, 3), known(3))
    with refuses(ValueError, "model"):
        add_to_gallery(nameless, rows(0, 3), known(3), model=one)


def test_search_of_an_array_and_approximately(gallery):
    """On a CPU the approximate search is exact."""
    found, features = gallery
    queries = rows(2, 5)
    unit = reference.unit_rows(features).astype(np.float32)
    expected = search_gallery(queries, found, 7)
    np.testing.assert_array_equal(search_gallery(queries, unit, 7).index, expected.index)
    np.testing.assert_array_equal(
        search_gallery(queries, unit, 7, approximate=True).index, expected.index
    )  # exact on a CPU


@pytest.mark.parametrize("devices", [1, 8])
def test_equal_rows_keep_the_order_of_the_gallery(devices):
    unit = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)[np.random.default_rng(0).permutation(40)]
    found = search_gallery(np.eye(4), unit, 10, chunk=16, devices=jax.devices()[:devices])
    np.testing.assert_array_equal(found.index, [np.flatnonzero(unit[:, i]) for i in range(4)])


def test_fewer_rows_than_asked_for(tmp_path):
    found = search_gallery(rows(1, 2), add_to_gallery(tmp_path, rows(0, 3), known(3)), 5)
    assert np.all(found.index[:, 3:] == -1) and np.all(np.isneginf(found.similarity[:, 3:]))
    assert np.all(np.sort(found.index[:, :3]) == [0, 1, 2])


def test_bad_input_is_named(tmp_path, gallery):
    found, _ = gallery
    broken = rows(0, 4)
    broken[2, 3] = np.nan
    for function in (lambda: search_gallery(broken, found), lambda: add_to_gallery(found.directory, broken, known(4))):
        with refuses(ValueError, "row 2"):
            function()
    with refuses(ValueError, 1):
        add_to_gallery(found.directory, np.zeros((1, 16)), known(1))
    with refuses(ValueError, "queries", 8, 16):
        search_gallery(rows(0, 2, dim=8), found)
    with refuses(ValueError, "features", 8, 16):
        add_to_gallery(found.directory, rows(0, 2, dim=8), known(2))
    with refuses(ValueError, "2 queries", "0 gallery"):
        search_gallery(rows(0, 2), np.zeros((0, 16), np.float32))
    with refuses(ValueError, "k", 1):
        search_gallery(rows(0, 2), found, 0)
    with refuses(ValueError, 2, 3, "metadata"):
        add_to_gallery(found.directory, rows(0, 2), known(3))
    with refuses(ValueError, "row 0", "camera", "time"):
        add_to_gallery(found.directory, rows(0, 1), [{"source": "a"}])
    with refuses(FileNotFoundError, "gallery"):
        Gallery(tmp_path / "elsewhere")
    assert len(Gallery(found.directory)) == 230  # none of it was added


def test_what_is_not_whole_is_never_read(gallery, monkeypatch):
    found, _ = gallery

    def killed(*_):
        raise KeyboardInterrupt

    # Killed while the last part, or the list of parts, is written.
    for name in ("save", "dumps"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if name == "save":
                patch.setattr(np, "save", lambda file, _: (file.write(b"half"), killed()))
            else:
                patch.setattr("os.replace", killed)
            add_to_gallery(found.directory, rows(5, 10), known(10))
        assert len(Gallery(found.directory)) == 230
    after = add_to_gallery(found.directory, rows(5, 10), known(10, start=230))
    np.testing.assert_allclose(after[230:240], reference.unit_rows(rows(5, 10)), atol=1e-6)
    assert after.metadata(239)["row"] == 239
    # A gallery that was opened before does not change.
    assert len(found) == 230


def test_damaged_files_are_named(gallery):
    found, _ = gallery
    path = found.directory / "000001.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with refuses(ValueError, "000001.npy", "copy"):
        Gallery(found.directory)
    np.save(path, rows(0, 7))
    with refuses(ValueError, "000001.npy", "(7, 16)", "gallery.json", "(1, 16)"):
        Gallery(found.directory)
    path.write_bytes(whole)
    (found.directory / "000002.jsonl").write_text("{}\n")
    with refuses(ValueError, "000002.jsonl", 1, 129):
        Gallery(found.directory).metadata(0)
    manifest = json.loads((found.directory / "gallery.json").read_text())
    (found.directory / "gallery.json").write_text(json.dumps(manifest | {"format": 9}))
    with refuses(ValueError, "format 9", 1):
        Gallery(found.directory)


def _add_repeatedly(directory, seed):
    for number in range(5):
        add_to_gallery(directory, rows(seed * 10 + number, 3), known(3, source=f"{seed}-{number}"))


def test_two_writers_and_a_reader(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_repeatedly, args=(tmp_path, seed)) for seed in (1, 2)]
    add_to_gallery(tmp_path, rows(0, 3), known(3))
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        now = Gallery(tmp_path)
        assert len(now) >= seen and len(now) % 3 == 0
        now.metadata(len(now) - 1)
        seen = len(now)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    after = Gallery(tmp_path)
    assert len(after) == 33
    sources = {after.metadata(row)["source"] for row in range(0, 33, 3)}
    assert sources == {"walk.mp4"} | {f"{seed}-{number}" for seed in (1, 2) for number in range(5)}


def test_faiss_index(tmp_path):
    pytest.importorskip("faiss")
    features, _ = reference.people(np.random.default_rng(0), 3000, per_person=20, dim=16, spread=0.3)
    gallery = add_to_gallery(tmp_path, features, known(3000))
    queries = features[::100]
    exact = search_gallery(queries, gallery, 10)
    with refuses(FileNotFoundError, "build_index"):
        search_index(queries, gallery)
    build_index(gallery, lists=8, codes=8)
    every = search_index(queries, gallery, 10, probes=8, candidates=300)  # all cells, all rows: exact
    np.testing.assert_array_equal(every.index, exact.index)
    np.testing.assert_allclose(every.similarity, exact.similarity, atol=1e-5)
    some = np.arange(len(gallery)) % 3 == 0
    every = search_index(queries, gallery, 10, probes=8, candidates=300, allowed=some)
    np.testing.assert_array_equal(every.index, search_gallery(queries, gallery, 10, allowed=some).index)
    few = search_index(queries, gallery, 10, probes=2)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(few.index, exact.index, strict=True)])
    assert 0.5 < recall <= 1
    # What was added later is found as well.
    gallery = add_to_gallery(tmp_path, queries[:1], known(1))
    assert set(search_index(queries[:1], gallery, 2, probes=2).index[0]) == {0, 3000}
    with refuses(ValueError, "codes", 5, 16):
        build_index(gallery, codes=5)


def test_without_faiss_the_extra_is_named(gallery, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxreid\[search\]'"):
        build_index(gallery[0])


@pytest.mark.parametrize(("distance", "shape"), [("euclidean", (6,)), ("parts", (3, 4)), ("parts_euclidean", (3, 4))])
def test_a_gallery_of_another_distance(tmp_path, distance, shape):
    """Rows stay as they are where a distance needs their length; found as by brute force."""
    rng = np.random.default_rng(7)
    features, queries = (scale * rng.normal(size=(n, *shape)).astype(np.float32) for n, scale in ((50, 3.0), (4, 2.0)))
    add_to_gallery(tmp_path, features[:30], known(30), distance=distance)
    gallery = add_to_gallery(tmp_path, features[30:], known(20, start=30), distance=distance)
    again = Gallery(tmp_path)
    assert (again.distance, again.shape) == (distance, shape)
    if distance == "euclidean":
        expected = np.linalg.norm(queries[:, None].astype(float) - features, axis=-1)
    elif distance == "parts":
        unit = [reference.unit_rows(x.reshape(-1, 4)).reshape(x.shape) for x in (queries, features)]
        expected = 1 - np.einsum("qpd,gpd->qg", *unit) / 3
    else:
        expected = np.linalg.norm(queries[:, None].astype(float) - features, axis=-1).mean(-1)
    order = np.argsort(expected, axis=1, kind="stable")[:, :9]
    for given in (gallery, features):
        found = search_gallery(queries, given, 9, chunk=16, devices=jax.devices()[:2], distance=distance)
        np.testing.assert_array_equal(found.index, order)
        np.testing.assert_allclose(-found.similarity, np.take_along_axis(expected, order, axis=1), atol=1e-5)
    own = gallery[3:4]  # a query that is a row of the gallery comes as it is stored
    assert search_gallery(own, gallery, 1).index[0, 0] == 3
    with refuses(UserError, "compared by", distance):
        add_to_gallery(tmp_path, features.reshape(50, -1), known(50))
    with refuses(UserError, "cosine alone"):
        build_index(gallery)
