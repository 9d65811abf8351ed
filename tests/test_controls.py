"""Free controls: what masking leaves of a frame, and centring of test features."""

import types

import numpy as np

from jaxreid.evaluation import controls
from jaxreid.evaluation.controls import TOWER, centred_controls, free_controls, without_margins
from jaxreid.methods.method import Evaluation
from jaxreid.retrieval.distances import check_features


def test_a_frame_of_one_colour_becomes_nothing():
    frames = np.full((2, 3, 16, 8, 3), [0.5, -1.0, 2.0], np.float32)
    np.testing.assert_allclose(without_margins(frames), 0.0, atol=1e-6)


def test_the_place_goes_and_the_person_stays():
    """A white person in two places: afterwards the middle is bright in both, and the corners are empty."""
    person = np.zeros((64, 32, 1), bool)
    person[12:52, 11:21] = True
    dark, bright = (np.where(person, 2.0, place) * np.ones(3, np.float32) for place in (-1.0, 1.5))
    dark, bright = np.asarray(without_margins(np.stack([dark, bright]).astype(np.float32)))
    corner = np.abs(dark[[0, 0, -1, -1], [0, -1, 0, -1]]).max()
    assert corner < 0.01
    # By the formula: weight sigmoid((1 − r)/0.15) of the middle's distance from the place's colour.
    y, x = (np.arange(64) + 0.5) / 32 - 1, (np.arange(32) + 0.5) / 16 - 1
    inside = 1 / (1 + np.exp(-(1 - np.hypot(y[:, None], x / 0.7)) / 0.15))
    share = ((1 - inside) * person[..., 0]).sum() / (1 - inside).sum()  # of the person in what counts as margin
    for found, place in ((dark, -1.0), (bright, 1.5)):
        colour = place + share * (2.0 - place)
        np.testing.assert_allclose(found[32, 16], inside[32, 16] * (2.0 - colour), atol=1e-5)


def split(name, modality, camera):
    return types.SimpleNamespace(
        name=name, table=types.SimpleNamespace(modality=np.array(modality), camera=np.array(camera))
    )


def test_centring_takes_means_over_query_and_gallery_together():
    splits = [split("query", [0, 0, 1], [3, 4, 5]), split("gallery", [0, 1, 1], [3, 5, 6])]
    features = {"query": np.array([[1.0], [4.0], [10.0]]), "gallery": np.array([[5.0], [20.0], [7.0]])}
    modality, camera = centred_controls(features, splits, "trained", normalize=False)
    assert (modality.name, camera.name) == ("trained, centred per modality", "trained, centred per camera")
    visible, infrared = (1 + 4 + 5) / 3, (10 + 20 + 7) / 3
    np.testing.assert_allclose(modality.features["query"][:, 0], [1 - visible, 4 - visible, 10 - infrared])
    np.testing.assert_allclose(modality.features["gallery"][:, 0], [5 - visible, 20 - infrared, 7 - infrared])
    # A tracklet that is its camera's only one would become zero, and stays.
    np.testing.assert_allclose(camera.features["query"][:, 0], [-2, 4, -5])
    np.testing.assert_allclose(camera.features["gallery"][:, 0], [2, 5, 7])
    assert features["query"][0, 0] == 1.0


def test_what_is_no_vector_is_not_centred():
    splits = [split("test", [0, 0], [1, 1])]
    assert not list(centred_controls({"test": {"parts": np.ones((2, 3, 1))}}, splits, "trained", normalize=True))


def test_every_control_can_be_scored_where_outputs_are_parts(monkeypatch):
    """Parts are compared by their own distance, and what the tower gives, with and without margins, as vectors."""
    monkeypatch.setattr(controls, "_masking", lambda run, options: "masked")
    splits = [split("test", [0, 0, 1, 1], [1, 2, 3, 4])]
    rng = np.random.default_rng(0)
    parts, tower, masked = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 3, 5), (4, 6), (4, 6)))
    method = types.SimpleNamespace(sees_pictures=True, stages=lambda: [types.SimpleNamespace(calibrate=False)])
    run = types.SimpleNamespace(method=method, dataset=types.SimpleNamespace(test_splits=splits))
    options = Evaluation("all", 4, outputs=("feature",), distance="parts_euclidean", normalize=False)

    def features_by(extractor):
        return {"test": {TOWER: masked} if extractor else {"feature": parts, TOWER: tower}}

    found = {
        control.name: (control.features["test"], control.distance or options.distance)
        for control in free_controls(run, options, features_by, across=True)
    }
    assert {name: (x.ndim, distance) for name, (x, distance) in found.items()} == {
        "untouched tower": (2, "cosine"),
        "untouched tower, margins masked": (2, "cosine"),
        "untrained feature": (3, "parts_euclidean"),
        "untrained, centred per modality": (3, "parts_euclidean"),
        "untrained, centred per camera": (3, "parts_euclidean"),
        "margins masked, centred per modality": (2, "cosine"),
        "margins masked, centred per camera": (2, "cosine"),
    }
    for features, distance in found.values():
        check_features(features, features, distance)  # raises where it is another's
