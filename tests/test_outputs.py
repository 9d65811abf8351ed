"""Features of more than one vector: pooled over clips, compared by their distance, several in one evaluation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses
from ml_collections import ConfigDict

from jaxreid import retrieval
from jaxreid.devices.parallel import make_mesh
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.evaluation.pooling import TrackletPool
from jaxreid.methods.baseline import Baseline
from jaxreid.methods.method import Features
from jaxreid.report.words import ranked_direction
from jaxreid.retrieval import Parts
from jaxreid.run.model import start_run

# ------------------------------------------------------------------------------------------- pooling


def clips(name, found, tracklet):
    tracklet = jnp.asarray(tracklet, jnp.int32)
    return Features({name: found}, tracklet, jnp.zeros_like(tracklet), tracklet >= 0)


def pooled(found, tracklet, batch=4, **rule):
    """Pooled over batches of a few clips."""
    wanted = np.unique([row for row in tracklet if row >= 0])
    pool = TrackletPool(wanted, [f"t{row}" for row in wanted], **rule)
    for start in range(0, len(tracklet), batch):
        some = jax.tree.map(lambda x: jnp.asarray(x[start : start + batch]), found)  # noqa: B023
        pool.add(clips("x", some, tracklet[start : start + batch]))
    return pool.finish()["x"]


TRACKLET = np.array([5, 2, 5, 5, 9, 2, -1, 9, 2, 5, 5, -1])


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_pooling_is_the_mean_over_clips_of_every_part(shape):
    """As brute force in float64; what fills a batch counts nowhere."""
    x = np.random.default_rng(0).normal(size=(12, *shape)).astype(np.float32)
    x[TRACKLET < 0] = np.nan

    def unit(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    each = [x[row == TRACKLET].astype(np.float64) for row in (2, 5, 9)]
    for expected, rule in (
        ([unit(unit(v).mean(0)) for v in each], {"pool": "after"}),
        ([unit(v.mean(0)) for v in each], {"pool": "before"}),
        ([v.mean(0) for v in each], {"pool": "before", "normalize": False}),
    ):
        np.testing.assert_allclose(pooled(x, TRACKLET, **rule), np.stack(expected), atol=1e-6)


def test_parts_are_pooled_as_far_as_they_are_visible():
    """By hand: part 0 is seen in one clip only and is that clip's; part 1 in a quarter and three quarters."""
    features = np.array([[[2.0, 0], [4, 0]], [[0, 6.0], [0, 8]], [[1, 1], [1, 1]]], np.float32)
    visibility = np.array([[1.0, 0.25], [0, 0.75], [0, 0]], np.float32)
    found = pooled(Parts(features, visibility), np.array([0, 0, 1]), pool="before", normalize=False)
    np.testing.assert_allclose(found.features, [[[2, 0], [1, 6]], [[0, 0], [0, 0]]], atol=1e-6)
    np.testing.assert_allclose(found.visibility, [[0.5, 0.5], [0, 0]], atol=1e-6)
    unit = pooled(Parts(features, visibility), np.array([0, 0, 1]), pool="after")
    np.testing.assert_allclose(unit.features[0], [[1, 0], np.array([1, 3]) / np.sqrt(10)], atol=1e-6)


def test_other_pytrees_are_averaged_as_they_are():
    found = {"gate": np.array([[0.2], [0.4], [1.0]], np.float32), "expert": np.ones((3, 2, 2), np.float32)}
    mean = pooled(found, np.array([0, 0, 1]))
    np.testing.assert_allclose(mean["gate"], [[0.3], [1.0]], atol=1e-6)
    assert mean["expert"].shape == (2, 2, 2)


# ------------------------------------------------------------------------------------------- distances


def parts_euclidean(query, gallery, seen_query, seen_gallery):
    """Part by part, pair by pair."""
    found = np.full((len(query), len(gallery)), np.inf)
    for q in range(len(query)):
        for g in range(len(gallery)):
            weight = seen_query[q].astype(float) * seen_gallery[g]
            length = [np.linalg.norm(a - b) for a, b in zip(query[q].astype(float), gallery[g], strict=True)]
            if weight.sum():
                found[q, g] = weight @ length / weight.sum()
    return found


@pytest.mark.parametrize("devices", [1, 4])
def test_mean_over_parts_of_euclidean_distances(devices):
    rng = np.random.default_rng(1)
    query, gallery = (rng.normal(size=(n, 5, 3)).astype(np.float32) for n in (9, 70))
    seen = [(rng.random((n, 5)) * (rng.random((n, 5)) < 0.5)).astype(np.float32) for n in (9, 70)]
    whole = parts_euclidean(query, gallery, np.ones((9, 5)), np.ones((70, 5)))
    some = parts_euclidean(query, gallery, *seen)
    assert np.isinf(some).any()
    mesh = make_mesh(devices=devices)
    sides = {"plain": (query, gallery, whole), "seen": (Parts(query, seen[0]), Parts(gallery, seen[1]), some)}
    for one, other, expected in sides.values():
        blocks = retrieval.metrics.distances_lib.distance_blocks(one, other, "parts_euclidean", 2, mesh, pad=True)
        found = np.concatenate([np.asarray(block)[: len(rows), :70] for rows, block in blocks])
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    # One flattened vector is another distance.
    flat = retrieval.euclidean_distance(query.reshape(9, -1), gallery.reshape(70, -1))
    assert (np.argsort(flat, axis=1) != np.argsort(whole, axis=1)).any()


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "parts", "parts_euclidean", "own"])
def test_a_gallery_in_pieces_is_the_whole_gallery(distance, monkeypatch):
    rng = np.random.default_rng(2)
    shape = (4, 6) if distance.startswith("parts") else (24,)
    query, gallery = (rng.normal(size=(n, *shape)).astype(np.float32) for n in (7, 200))
    using = retrieval.OwnDistance(lambda q, g: jnp.abs(q[:, None] - g).sum(-1)) if distance == "own" else distance
    lib = retrieval.metrics.distances_lib

    def found(mesh=None):
        blocks = lib.distance_blocks(query, gallery, using, 4, mesh, pad=True)
        return np.concatenate([np.asarray(block)[: len(rows)] for rows, block in blocks])

    whole = found()
    monkeypatch.setattr(lib, "CHUNK_BYTES", 64 * 24 * 4)
    assert len(list(lib._chunks(gallery, None, True))) == 4 and whole.shape == (7, 256)
    np.testing.assert_allclose(found(), whole, atol=1e-5)
    np.testing.assert_allclose(found(make_mesh(devices=4)), whole, atol=1e-5)
    if distance == "own":
        np.testing.assert_allclose(whole[:, :200], np.abs(query[:, None] - gallery).sum(-1), rtol=1e-5)


def test_parts_without_visibility_are_checked_as_well():
    x = np.ones((3, 2, 4), np.float32)
    broken = x.copy()
    broken[1, 1] = np.nan
    rows = retrieval.Rows(identity=np.arange(3), camera=np.arange(3))
    other = dataclasses.replace(rows, camera=rows.camera + 1)
    for distance in ("parts", "parts_euclidean"):
        with refuses(UserError, "1 of 3 gallery", "part 1 of row 1"):
            retrieval.score(x, broken, rows, other, "market", distance)
        with refuses(UserError, distance, "[N, P, D]"):
            retrieval.score(x[:, 0], x, rows, other, "market", distance)
    with refuses(UserError, "zero"):
        retrieval.score(x, x * 0, rows, other, "market", "parts")


# ------------------------------------------------------------------------------------------- an evaluation


class Several(Baseline):
    """Four outputs of pixels alone."""

    def embed(self, variables, memory, batch):
        del variables, memory
        x = batch.frames.astype(jnp.float32).mean(axis=(1, 3))  # [B, H, 3]
        rows = x.reshape(len(x), 4, -1)
        visibility = jax.nn.sigmoid(9 * rows.mean(-1))
        return {
            "feature": x.reshape(len(x), -1),
            "rows": rows,
            "seen": Parts(rows, visibility),
            "pair": {"first": rows[:, 0], "scale": 1 + visibility},
        }

    def distance(self, queries, gallery):
        apart = jnp.abs(queries["first"][:, None] - gallery["first"]).sum(-1)
        return apart * queries["scale"][:, :1] * gallery["scale"][:, 0]


@pytest.fixture(scope="module")
def several(workdir, data_dir):
    """(outputs, distance, …) → an evaluator of `Several` on the test splits of a small data set, which never trains."""
    config = json.loads((workdir / "config.json").read_text())

    def make(**rule):
        settings = ConfigDict(config)
        settings.evaluation.update(rule)
        run = start_run(settings, workdir, data_dir)
        return Evaluator(dataclasses.replace(run, method=Several(run.config, run.method.info)))

    return make


def test_several_outputs_are_scored_in_one_run(several):
    rule = {"pool": "before", "normalize": False, "distance": "parts_euclidean", "outputs": ("rows", "seen")}
    evaluator = several(**rule)
    scored = {}
    features = evaluator.features({}, {})
    case = evaluator.cases[0]
    for output in rule["outputs"]:
        [(record, scores), *_] = evaluator._score(
            {split: arrays[output] for split, arrays in features.items()}, "now", output=output
        )
        scored[output] = scores
        assert (record["output"], record["distance"]) == (output, "parts_euclidean")
        assert ranked_direction(record) == f"{case.direction}, {output}"
    assert not np.array_equal(scored["rows"].average_precision, scored["seen"].average_precision)
    query, gallery = (side.of({k: v["rows"] for k, v in features.items()}) for side in (case.query, case.gallery))
    distance = parts_euclidean(query, gallery, np.ones(query.shape[:2]), np.ones(gallery.shape[:2]))
    expected = retrieval.score_distances(distance, case.query.columns(), case.gallery.columns(), case.protocol)
    np.testing.assert_allclose(scored["rows"].average_precision, expected.average_precision, atol=1e-6)


def test_a_distance_of_the_methods_own(several):
    evaluator = several(distance="own", outputs=("pair",))
    features = {split: arrays["pair"] for split, arrays in evaluator.features({}, {}).items()}
    [(record, scores), *_] = evaluator._score(features, "now")
    assert (record["output"], record["distance"]) == ("pair", "own")
    case = evaluator.cases[0]
    query, gallery = (side.of(features) for side in (case.query, case.gallery))
    apart = np.abs(query["first"][:, None].astype(float) - gallery["first"]).sum(-1)
    apart *= query["scale"][:, :1] * gallery["scale"][:, 0]
    expected = retrieval.score_distances(apart, case.query.columns(), case.gallery.columns(), case.protocol)
    np.testing.assert_allclose(scores.average_precision, expected.average_precision, atol=1e-6)


def test_an_output_that_the_method_does_not_give_is_named(several):
    with refuses(UserError, "config.evaluation.outputs", "nothing", "feature, rows, seen, pair"):
        several(outputs=("feature", "nothing")).features({}, {})
