"""Re-scoring against brute force in NumPy: which pairs, their scores and the order; stores on disk, kills, devices."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from messages import refuses, says
from pair_method import WEIGHTS, Pairs, final, make_evaluator
from result_files import V2I, make_run, score
from test_processes import free_port

from jaxreid import retrieval
from jaxreid.devices.parallel import make_mesh
from jaxreid.errors import UserError
from jaxreid.evaluation import pairs as pairs_lib
from jaxreid.evaluation.pair_examination import ANOTHER, OTHER_CLOTHES, SAME, SAME_CLOTHES, groups
from jaxreid.evaluation.pairs import PairScorer, pair_plan
from jaxreid.methods.method import Evaluation
from jaxreid.report.comparison.columns import fact_text, scores_by_setup, setup_names
from jaxreid.report.comparison.settings import NOT_SET
from jaxreid.report.comparison.tables import compare
from jaxreid.report.words import ranked_direction
from jaxreid.retrieval import blocks as blocks_lib
from jaxreid.retrieval.blocks import DONE, HEADER, BlockStore, remove
from jaxreid.training.dry_run import _rescoring as rescoring_work

ROOT = Path(__file__).parent.parent


# ------------------------------------------------------------------------------------------------------ clips


def test_one_clip_spread_evenly_over_a_tracklet():
    """By hand: 10 frames in 4 are ⌊10 i / 4⌋; of no more than 4 frames the clip of the evaluation itself."""
    length = np.array([10, 3, 4, 1])
    for rule, frames, mask in (
        ("packed", [[0, 2, 5, 7], [0, 1, 2], [0, 1, 2, 3], [0]], [4, 3, 4, 1]),
        ("recombine", [[0, 2, 5, 7], [0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 0, 0]], [4, 4, 4, 4]),
        ("chunk_first", [[0, 2, 5, 7], [0, 1, 2, 2], [0, 1, 2, 3], [0, 0, 0, 0]], [4, 4, 4, 4]),
    ):
        plan = pair_plan(Evaluation(rule, 4), length)
        assert plan.tracklet.tolist() == [0, 1, 2, 3]
        assert plan.mask.sum(axis=1).tolist() == mask
        assert [row[seen].tolist() for row, seen in zip(plan.frames, plan.mask, strict=True)] == frames
    assert len(pair_plan(Evaluation("recombine", 4), length[:0])) == 0


# ------------------------------------------------------------------------------------------------------ on disk


def made(folder, made_of="a", blocks=3):
    shapes = {"half": ((5, 2), jnp.bfloat16), "seen": ((5,), bool), "single": ((5, 1, 3), np.float32)}
    return BlockStore(folder, made_of, {name: jax.ShapeDtypeStruct(*x) for name, x in shapes.items()}, blocks)


def rows_of(start, stop):
    half = np.arange(2 * start, 2 * stop).reshape(-1, 2).astype(ml_dtypes.bfloat16)
    single = np.random.default_rng(start).normal(size=(stop - start, 1, 3)).astype(np.float32)
    return {"half": half, "seen": np.arange(start, stop) % 2 == 0, "single": single}


def test_a_block_is_marked_after_all_its_rows_are_on_the_disk(tmp_path, monkeypatch):
    store, written, synced, sync = made(tmp_path / "s"), [], [], os.fsync
    write = blocks_lib._write
    monkeypatch.setattr(blocks_lib, "_write", lambda path, *rows: written.append(path.name) or write(path, *rows))
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(len(written)) or sync(file))
    store.put(0, 0, rows_of(0, 2))
    assert written == [*(f"rows-{name}.npy" for name in rows_of(0, 2)), DONE] and synced == [1, 2, 3, 4]


def test_a_store_keeps_blocks_in_any_type(tmp_path):
    store = made(tmp_path / "s")
    assert store.missing() == [0, 1, 2] and len(store) == 5 and store.nbytes == 5 * (4 + 1 + 12)
    store.put(1, 2, rows_of(2, 4))
    store.put(2, 4, rows_of(4, 5))
    again = made(tmp_path / "s")
    assert again.missing() == [0]
    found = again.take(np.array([4, 2, 3, 2]))
    expected = {name: np.concatenate([rows_of(2, 4)[name], rows_of(4, 5)[name]])[[2, 0, 1, 0]] for name in found}
    for name, rows in expected.items():
        assert found[name].dtype == rows.dtype
        np.testing.assert_array_equal(found[name], rows)
    with np.load(tmp_path / "s" / "rows-half.npy", mmap_mode="r")._mmap as file:  # mapped, not read
        assert file.size() < 1000
    remove(tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("change", ["made_of", "blocks", "header", "begun"])
def test_a_store_of_something_else_is_never_used(tmp_path, change):
    made(tmp_path / "s").put(0, 0, rows_of(0, 2))
    if change == "header":  # another type of an array
        header = json.loads((tmp_path / "s" / HEADER).read_text())
        header["arrays"]["half"]["dtype"] = "float16"
        (tmp_path / "s" / HEADER).write_text(json.dumps(header))
    if change == "begun":  # the process died before all files were there
        (tmp_path / "s" / HEADER).unlink()
        (tmp_path / "s" / DONE).write_bytes(b"")
    other = {"made_of": {"made_of": "b"}, "blocks": {"blocks": 4}}.get(change, {})
    store = made(tmp_path / "s", **other)
    assert store.missing() == list(range(store.blocks)) and not store.take(np.arange(5))["single"].any()


# ------------------------------------------------------------------------------------------------------ devices


class InMemory:
    def __init__(self, arrays):
        self.arrays, self.taken = arrays, 0

    def __len__(self):
        return len(self.arrays["x"])

    def take(self, rows):
        self.taken += len(set(rows.tolist()))
        return {name: x[rows] for name, x in self.arrays.items()}


class Cross:
    def pair_score(self, variables, memory, queries, gallery):
        return variables * (queries["x"] * gallery["x"][:, ::-1]).sum(axis=1) + queries["y"]


@pytest.mark.parametrize(("devices", "room"), [(1, 0), (8, 0), (8, 1 << 30)])
def test_pairs_are_scored_with_as_much_room_as_there_is(devices, room, monkeypatch):
    """With no room but for a block tracklets come and go; with enough, each goes to the devices once."""
    monkeypatch.setattr(pairs_lib, "ROOM", room)
    monkeypatch.setattr(pairs_lib, "TOGETHER", 100)  # bytes, three tracklets
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 7)).astype(np.float32), rng.normal(size=60).astype(np.float32)
    rows = InMemory({"x": x, "y": y})
    scorer = PairScorer(Cross(), make_mesh(devices=devices), 8, rows)
    assert scorer.capacity == (60 if room else 16)
    rows.taken = 0
    for size in (8, 8, 5, 8, 1, 8, 8, 8, 8, 8, 8, 8):
        query, gallery = rng.integers(0, 60, (2, size))
        found = np.asarray(scorer(jnp.float32(2), {}, query, gallery))[:size]
        np.testing.assert_allclose(found, 2 * (x[query] * x[gallery, ::-1]).sum(1) + y[query], rtol=2e-6, atol=2e-6)
    assert (rows.taken <= 60) == bool(room)
    assert (scorer.step.count, scorer.store.count) == (1, 1)


# ------------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def world(tmp_path_factory, data_dir, tiny):
    """Two protocols of two directions, the four nearest re-scored: (evaluator, what it found)."""
    evaluator = make_evaluator(tmp_path_factory.mktemp("pairs"), data_dir)
    return SimpleNamespace(evaluator=evaluator, found=final(evaluator))


def pixels_of(run, split, row):
    """(frames of the clip f64[T, H, W, 3], normalized as the network sees them)."""
    clip, length = run.method.evaluation().seq_len, int(split.table.length[row])
    wanted = range(length) if length <= clip else [i * length // clip for i in range(clip)]
    frames = np.stack(list(run.reader(split).decode_each(row, wanted))).astype(np.float64)
    assert frames.shape[1:3] == (run.config.frames.height, run.config.frames.width)
    return (frames / 255 - np.array(run.config.frames.mean)) / np.array(run.config.frames.std)


def pair_scores(run, query, gallery):
    """The score of every pair of two sides f64[Q, G], from the pictures."""

    def features(side):
        clips = [pixels_of(run, side.split, row) for row in side.rows]
        x = np.stack([clip.mean(axis=(0, 1)) for clip in clips])
        tone = x.mean(axis=1).astype(ml_dtypes.bfloat16).astype(np.float64)
        return x, tone, np.array([len(clip) for clip in clips])

    (x, tone, _), (other, other_tone, long) = features(query), features(gallery)
    moved = x[:, None] - np.roll(other, 1, axis=1)[None] + 0.25
    return -np.abs(moved).mean(axis=(2, 3)) + 0.1 * tone @ other_tone.T + 0.01 * long


def ranking(single, pair, size, mix):
    """Place of every gallery row: the nearest by cosine in the order of the mix, then the rest by cosine."""
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in single]
    cosine = unit[0] @ unit[1].T
    place = np.empty(cosine.shape, np.float32)
    for row, near in enumerate(np.argsort(-cosine, axis=1, kind="stable")):
        score = mix * pair[row] + (1 - mix) * cosine[row]
        order = [*sorted(near[:size], key=lambda g: (-score[g], g)), *near[size:]]
        place[row, order] = np.arange(len(order))
    return place


def assert_as_by_hand(evaluator, found, size, mix):
    plain = len(evaluator.cases)
    records = found.results["scores"]
    assert len(records) == 2 * plain and len(evaluator.cases) == 4
    for number, (case, record) in enumerate(zip(evaluator.cases, records[plain:], strict=True)):
        single = case.query.of(found.features), case.gallery.of(found.features)
        pair = pair_scores(evaluator.run, case.query, case.gallery)
        place = ranking(single, pair, size, mix)
        expected = retrieval.score_distances(place, case.query.columns(), case.gallery.columns(), case.protocol)
        assert (record["direction"], record["protocol"]) == (case.direction, case.protocol.key)
        np.testing.assert_allclose([record["mAP"], record["rank-1"]], [expected.mAP, expected.rank[1]], atol=1e-4)
        distances, scores = (kept[number] for kept in found.strips)
        near = np.argsort(distances, axis=1, kind="stable")[:, : scores.shape[1]]
        np.testing.assert_array_equal(near, np.argsort(place, axis=1)[:, : scores.shape[1]])
    return records


def test_the_nearest_are_ordered_by_pairs(world):
    evaluator, found = world.evaluator, world.found
    records = assert_as_by_hand(evaluator, found, 4, 0.5)
    assert [record["mAP"] for record in records[:4]] != [record["mAP"] for record in records[4:]]
    assert not any("rescoring" in record for record in records[:4])
    assert {record["rescoring"] for record in records[4:]} == {"4 nearest, mix 0.5"}
    facts, sizes = found.results["rescoring"], [len(case.query.rows) for case in evaluator.cases[:2]]
    # The second protocol ranks the same sides: no pair is scored twice.
    assert facts["pairs"] == facts["scored"] == 4 * sum(sizes) and facts["found"] == 0
    assert facts["blocks"] == -(-facts["pairs"] // 8) and facts["bytes"] % facts["tracklets"] == 0
    counts = {name: step.count for name, step in evaluator.run.compiled.items()}
    steps = "embed_step", "pair_features_step", "pair_score_step", "pair_rows_step", "examine_pairs_step"
    assert counts == dict.fromkeys(steps, 1)
    folder = evaluator.run.workdir / "pairs"
    assert not (folder / "features").exists() and np.load(folder / "scores" / DONE).all()
    assert "re-scoring" in found.results["seconds"]
    assert sum("4 nearest, mix 0.5" in note for note in found.results["notes"]) == 1


def test_what_is_examined_in_pairs(world):
    """Frames of both sides, and who they are, by hand; `walkers/tiny` does not know clothes."""
    case, clip = world.evaluator.cases[0], world.evaluator.options.seq_len
    drawn, records = groups(case), world.found.results["examined_pairs"]
    assert [(record["name"], record["pairs"]) for record in records] == [
        (name, group) for name in ("frames", "tone") for group in (SAME, ANOTHER)
    ]
    long = [np.minimum(side.split.table.length[side.rows], clip) for side in (case.query, case.gallery)]
    pid = [side.split.labels.pid[side.rows] for side in (case.query, case.gallery)]
    matches = sum(int((pid[1] == one).sum()) for one in pid[0])  # of two modalities, so of two cameras
    for record in records[:2]:
        query, gallery = drawn[record["pairs"]].T
        assert ((pid[0][query] == pid[1][gallery]) == (record["pairs"] == SAME)).all()
        assert record["count"] == len(set(zip(query, gallery, strict=True)))
        np.testing.assert_allclose(record["mean"], (100 * long[0][query] + long[1][gallery]).mean(), rtol=1e-6)
        assert record["interval"][0] <= record["mean"] <= record["interval"][1]
    others = len(pid[0]) * len(pid[1]) - matches
    assert [record["count"] for record in records[:2]] == [min(matches, 128), min(others, 128)]


def test_pairs_by_clothes_are_of_two_cameras():
    def side(pid, camera, clothes):
        rows = {name: np.array(x) for name, x in (("identity", pid), ("camera", camera), ("clothes", clothes))}
        return SimpleNamespace(columns=lambda: SimpleNamespace(**rows))

    gallery = side([0, 0, 0, 0, 1, -1], [0, 1, 1, 1, 1, 1], [5, 5, 6, -1, 7, -1])
    found = groups(SimpleNamespace(query=side([0, 1], [0, 0], [5, 8]), gallery=gallery))
    assert {name: pairs.tolist() for name, pairs in found.items()} == {
        SAME_CLOTHES: [[0, 1]],
        OTHER_CLOTHES: [[0, 2], [1, 4]],
        ANOTHER: [[0, 4], [0, 5], [1, 1], [1, 2], [1, 3], [1, 5]],
    }


def test_single_results_are_those_without_re_scoring(world, data_dir, tmp_path):
    plain = make_evaluator(tmp_path, data_dir, **{"evaluation.rescore_size": 0}).final(WEIGHTS, {}, 1).results
    assert plain["scores"] == world.found.results["scores"][:4] and "rescoring" not in plain


@pytest.mark.parametrize(("size", "mix"), [("gallery", 1.0), (1000, 0.3)])
def test_the_whole_gallery_may_be_re_scored(world, data_dir, tmp_path, size, mix):
    whole = max(len(case.gallery.rows) for case in world.evaluator.cases)
    size = whole if size == "gallery" else size
    changes = {"evaluation.rescore_size": size, "evaluation.rescore_mix": mix}
    evaluator = make_evaluator(tmp_path, data_dir, **changes)
    found = final(evaluator)
    assert_as_by_hand(evaluator, found, size, mix)
    both = sum(len(case.query.rows) * len(case.gallery.rows) for case in evaluator.cases[:2])
    assert found.results["rescoring"]["pairs"] == both


def test_eight_devices_score_as_one(world, data_dir, tmp_path):
    """To a millionth, and in the same order."""
    found = final(make_evaluator(tmp_path, data_dir, **{"mesh.devices": 8}))
    for one, many in zip(*(each.strips[1] for each in (world.found, found)), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-6)
    for one, many in zip(*(each.strips[0] for each in (world.found, found)), strict=True):
        np.testing.assert_array_equal(np.argsort(many, kind="stable"), np.argsort(one, kind="stable"))


@pytest.mark.extended
def test_two_processes_score_as_one(world, data_dir, tmp_path):
    """To a millionth; both know all scores, and one of them has written the store."""
    line = [sys.executable, Path(__file__).with_name("pair_method.py"), "never", tmp_path, data_dir]
    environment, port = {**os.environ, "PYTHONPATH": str(ROOT)}, str(free_port())
    pair = [subprocess.Popen([*line, str(index), port], cwd=ROOT, env=environment) for index in range(2)]
    assert [process.wait(timeout=300) for process in pair] == [0, 0]
    for index in range(2):
        with np.load(tmp_path / f"scores.{index}.npz") as found:
            for name, expected in zip(found.files, world.found.strips[1], strict=True):
                np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)
    assert np.load(tmp_path / "pairs" / "scores" / DONE).all()


def test_scores_are_found_again_and_never_those_of_something_else(world, data_dir):
    """Another mix asks for the same pairs; other weights, clips or blocks make all of them anew."""
    workdir, total = world.evaluator.run.workdir, world.found.results["rescoring"]["pairs"]

    def facts(variables=WEIGHTS, **changes):
        return final(make_evaluator(workdir, data_dir, **changes), variables).results["rescoring"]

    assert facts(**{"evaluation.rescore_mix": 1.0})["found"] == total
    assert facts({"shift": np.float32(0.2500001)})["found"] == 0
    assert facts({"shift": np.float32(0.2500001)})["found"] == total
    assert facts(**{"evaluation.rescore_block": 16})["found"] == 0
    assert facts(**{"evaluation.seq_len": 5, "evaluation.rescore_block": 16})["found"] == 0


# ------------------------------------------------------------------------------------------------------ killed


def run_killed(workdir, data_dir, moment):
    """(pairs that were there before, exit status) of a process that re-scores, and dies at a moment."""
    line = [sys.executable, Path(__file__).with_name("pair_method.py"), moment, workdir, data_dir]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    found = re.search(r"([\d,]+) pairs scored before", done.stdout)
    assert found, done.stderr
    return int(found[1].replace(",", "")), done.returncode


def test_a_killed_re_scoring_goes_on_behind_what_is_there(world, data_dir, tmp_path):
    """By SIGKILL after a third of the pairs and again, with scores written that are not marked, after two thirds."""
    facts = world.found.results["rescoring"]
    third, more = facts["blocks"] // 3, 2 * facts["blocks"] // 3
    moment = f"call jaxreid.evaluation.rescoring:Rescorer._check {third + 1}"
    assert run_killed(tmp_path, data_dir, moment) == (0, -signal.SIGKILL)
    moment = f"call jaxreid.retrieval.blocks:BlockStore.mark {more - third + 1}"
    assert run_killed(tmp_path, data_dir, moment) == (8 * third, -signal.SIGKILL)
    again = final(make_evaluator(tmp_path, data_dir))
    assert again.results["rescoring"] == facts | {"found": 8 * more, "scored": facts["pairs"] - 8 * more}
    assert again.results["scores"] == world.found.results["scores"]
    for found, expected in zip(again.strips, world.found.strips, strict=True):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_extraction_that_broke_off_goes_on_behind_what_is_there(world, data_dir, tmp_path, monkeypatch):
    mark, marked = BlockStore.mark, []

    def third_fails(store, block):
        if len(marked) == 2:
            raise KeyboardInterrupt
        marked.append((store.folder.name, block))
        mark(store, block)

    changes = {"extraction_batch_size": 4}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockStore, "mark", third_fails)
        final(make_evaluator(tmp_path, data_dir, **changes))
    assert marked == [("features", 0), ("features", 1)]
    monkeypatch.setattr(BlockStore, "mark", lambda store, block: marked.append((store.folder.name, block)))
    found = final(make_evaluator(tmp_path, data_dir, **changes))
    blocks = [block for name, block in marked if name == "features"]
    assert blocks == list(range(len(blocks))) and len(blocks) > 3
    for one, other in zip(found.strips[1], world.found.strips[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ mistakes


def test_what_cannot_be_re_scored_is_named_before_anything_is_opened(data_dir, tmp_path):
    with refuses(UserError, "config.evaluation.rescore_size=4", "Baseline", "pair"):
        make_evaluator(tmp_path, data_dir, method="baseline")
    with refuses(UserError, "config.evaluation.rescore_size=4", "'cosine'", "'euclidean'"):
        make_evaluator(tmp_path, data_dir, **{"evaluation.distance": "euclidean"})
    with refuses(UserError, "config.evaluation.rescore_block", 3, 8):
        make_evaluator(tmp_path, data_dir, **{"evaluation.rescore_block": 3, "mesh.devices": 8})


def test_scores_that_are_not_finite_or_not_one_for_each_pair_are_named(data_dir, tmp_path, monkeypatch):
    evaluator = make_evaluator(tmp_path, data_dir)
    names = {name for split in evaluator.run.dataset.test_splits for name in split.labels.names}
    score = Pairs.pair_score
    monkeypatch.setattr(Pairs, "pair_score", lambda *a: score(*a).at[2].set(jnp.nan))
    with pytest.raises(UserError, match="not finite") as error:
        final(evaluator)
    assert sum(f" {name} " in f"{error.value} " for name in names) == 2
    monkeypatch.setattr(Pairs, "pair_score", lambda *a: score(*a)[:, None])
    with refuses(UserError, "Pairs.pair_score", "(8, 1)", "8 pairs"):
        final(make_evaluator(tmp_path, data_dir))


# ------------------------------------------------------------------------------------------------------ shown


def test_records_are_told_apart(world):
    records = world.found.results["scores"]
    one, again = records[0], records[4]
    assert ranked_direction(again) == f"{ranked_direction(one)}, re-scored with the 4 nearest, mix 0.5"
    setups = list(scores_by_setup(records, {"name": "walkers"}))
    assert len(setups) == 8
    assert fact_text("rescoring", setups[0]["rescoring"]) == "no re-scoring"
    assert fact_text("rescoring", setups[4]["rescoring"]) == "re-scored with the 4 nearest, mix 0.5"


def test_tables_of_several_runs_have_a_column_for_each(tmp_path):
    """Of a run from before there was re-scoring as well."""
    tag = {"rescoring": "50 nearest, mix 0.5"}
    make_run(tmp_path / "runs/a", 30.0, scores=[score(V2I, 30.0), score(V2I, 34.0, **tag)])
    make_run(tmp_path / "runs/b", 31.0, 2)
    (table,) = compare([tmp_path / "runs"]).tables
    names = setup_names(table.setups)
    by_tag = {setup["rescoring"]: setup for setup in names if setup["direction"] == V2I}
    plain, again = by_tag[NOT_SET], by_tag[tag["rescoring"]]
    assert "no re-scoring" in names[plain] and "re-scored with the 50 nearest, mix 0.5" in names[again]
    (row,) = table.rows
    assert row.cell(plain, "mAP") == {1: 30.0, 2: 31.0} and row.cell(again, "mAP") == {1: 34.0}


def test_a_dry_run_says_what_re_scoring_takes(world, capsys):
    """Of all queries with the four nearest of the whole gallery."""
    run = world.evaluator.run
    work = rescoring_work(run, WEIGHTS, {})
    query, gallery = run.dataset.query, run.dataset.gallery
    says(capsys.readouterr().out, "re-scoring", f"{4 * len(query)} pairs", f"{len(query) + len(gallery)} tracklets")
    assert work > 0
