"""A tracklet that stands in several test splits is embedded once."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from jaxreid.data.repeats import distinct
from jaxreid.data.split import Labels, Split, TrackletTable
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.evaluation.extract import make_extractor, tracklet_features
from jaxreid.retrieval.distances import Parts
from jaxreid.run.model import start_run
from jaxreid.training import dry_run


class Frames:
    """A reader of what a test says that there is."""

    def __init__(self, frames):
        self.frames, self.read = frames, []

    def encoded(self, row):
        self.read.append(row)
        return self.frames[row]

    joints = encoded


def split(name, names, camera, skeletons=False):
    n = len(names)
    column, unknown = np.arange(n, dtype=np.int32), np.full(n, -1, np.int32)
    table = TrackletTable(
        length=np.full(n, 2, np.int32), camera=np.array(camera, np.int32), camera_index=unknown, modality=unknown,
        platform=unknown, session=unknown, geometry=np.full((n, 3), np.nan, np.float32), recording=column,
    )  # fmt: skip
    labels = Labels(pid=column, identity=unknown, clothes=unknown, pair=unknown, names=tuple(names))
    return Split(None, name, table, labels, np.arange(n), skeletons=skeletons)  # pyright: ignore


def test_the_same_are_those_of_one_name_with_the_same_facts_and_frames():
    splits = split("a", "pqr", [1, 2, 3]), split("b", "xrqp", [1, 3, 2, 9]), split("c", "pr", [9, 3])
    frames = {"p": [b"p1", b"p2"], "q": [b"q1", b"q2"], "r": [b"r1", b"r2"], "x": [b"p1", b"p2"]}
    readers = [Frames([list(frames[name]) for name in each.labels.names]) for each in splits]
    readers[1].frames[2][1] = b"another"  # q of b has another frame; p of b is of another camera
    found = distinct(splits, readers)  # pyright: ignore
    assert [numbers.tolist() for numbers, _ in found] == [[0, 1, 2], [3, 2, 4, 5], [6, 2]]
    assert [rows.tolist() for _, rows in found] == [[0, 1, 2], [0, 2, 3], [0]]
    assert 0 not in readers[1].read  # no other tracklet has its name


@pytest.mark.parametrize("changed", [False, True])
def test_skeletons_are_compared_by_their_joints(changed):
    splits = split("a", "p", [1], True), split("b", "p", [1], True)
    joints = np.ones((2, 17, 3)), np.ones(2, bool)
    readers = Frames([joints]), Frames([(joints[0] + changed, joints[1])])
    assert [numbers.tolist() for numbers, _ in distinct(splits, readers)] == [[0], [int(changed)]]  # pyright: ignore


def test_frames_may_be_cut_from_a_tracklet_at_other_places():
    whole = split("a", "p", [1])
    thinned = dataclasses.replace(split("b", "p", [1]), frame_numbers=np.array([0, 2], np.int32))
    readers = Frames([[b"1", b"2"]]), Frames([[b"1", b"2"]])
    assert [rows.tolist() for _, rows in distinct([whole, thinned], readers)] == [[0], [0]]  # pyright: ignore


def test_features_are_those_of_every_split_by_itself(tmp_path, data_dir, monkeypatch, capsys):
    """On the smallest world with three tests, the tracklets from the air being in three splits and those from the
    ground in two."""
    config = importlib.import_module("configs.baseline").get_config()
    config.update_from_flattened_dict({"dataset.config": "tiny_aerial", "mesh.devices": 1})
    run = start_run(config, tmp_path, data_dir)
    seen = []

    def colours(variables, memory, batch):
        jax.debug.callback(lambda valid: seen.append(int(valid.sum())), batch.valid)
        return {
            "feature": batch.frames.mean((1, 2, 3)),
            "parts": Parts(batch.frames.mean((2, 3)), batch.frame_mask * 1.0),
        }

    extractor, evaluator = make_extractor(run, "colours_step", colours), Evaluator(run)
    found = evaluator.features({}, {}, extractor)
    jax.effects_barrier()
    clips, splits = sum(seen), run.dataset.test_splits
    names = {name for split in splits for name in split.labels.names}
    assert len(names) == sum(len(rows) for _, rows in run.distinct) < sum(map(len, splits))
    options, seen[:] = run.method.evaluation(), []
    assert [*found] == [split.name for split in splits]
    for split in splits:
        alone = tracklet_features(extractor, {}, {}, split, options, run.loading.for_tests(), run.reader(split))
        jax.tree.map(np.testing.assert_array_equal, found[split.name], alone)
    jax.effects_barrier()
    assert clips < sum(seen)

    monkeypatch.setattr(dry_run, "_compiled", lambda *_: 0.0)
    dry_run._evaluation(run)  # a forecast counts what was embedded above
    assert f"evaluation: {clips:,} clips" in capsys.readouterr().out
