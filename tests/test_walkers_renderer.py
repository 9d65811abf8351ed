"""The renderer of `walkers`: exact annotations, and no way to tell who walks but body, clothes and gait."""

import dataclasses

import cv2
import numpy as np
import pytest
from messages import refuses

from data_builders.walkers.caption import ATTRIBUTES, attribute_codes, describe, words
from data_builders.walkers.figure import MATERIAL
from data_builders.walkers.person import COLOURS, JOINT, Wardrobe, draw_person, walk
from data_builders.walkers.render import COCO, HUMAN36M
from data_builders.walkers.world import CONFIGS, World

SMALL = dataclasses.replace(CONFIGS["vvi"], name="small", train_identities=30, test_identities=10, frames=(3, 5))


@pytest.fixture(scope="module")
def world():
    return World(SMALL)


def test_a_tracklet_is_a_function_of_seed_and_spec(world):
    spec = world.specs("test")[7]
    first, second = world.draw(spec), World(SMALL).draw(spec)
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name
    other = World(dataclasses.replace(SMALL, seed=1))
    assert other.persons[1] != world.persons[1]
    assert other.cameras[0] != world.cameras[0]


def test_shapes_and_types(world):
    spec = world.specs("train")[0]
    drawn = world.draw(spec)
    count = spec.frames
    assert drawn.frames.shape == (count, 64, 32, 3) and drawn.frames.dtype == np.uint8
    assert drawn.keypoints.shape == (count, 17, 3) and drawn.keypoints.dtype == np.float32
    assert drawn.joints3d.shape == (count, 17, 3) and drawn.joints3d.dtype == np.float32
    assert drawn.silhouette.shape == (count, 64, 32) and drawn.silhouette.dtype == np.uint8
    assert drawn.materials.shape == (count, 128, 64) and drawn.materials.max() <= MATERIAL["occluder"]


def test_specs_are_disjoint_and_recordings_are_cut_into_consecutive_pieces(world):
    train, test = world.specs("train"), world.specs("test")
    assert {spec.pid for spec in train}.isdisjoint(spec.pid for spec in test)
    ids = [spec.tracklet_id for spec in train + test]
    assert ids == sorted(set(ids))
    seen = {(spec.pid, spec.camera) for spec in train}
    possible = SMALL.train_identities * 6
    assert abs(len(seen) - SMALL.presence * possible) < 4 * np.sqrt(possible * 0.9 * 0.1)
    recordings = {}
    for spec in train + test:
        recordings.setdefault(spec.recording, []).append(spec)
    assert len(recordings) > len({(spec.pid, spec.camera) for spec in train + test})  # some pass twice
    for pieces in recordings.values():
        assert len({(p.pid, p.camera, p.recording_seed) for p in pieces}) == 1
        ends = np.cumsum([p.frames for p in pieces])
        assert [p.first_frame for p in pieces] == [0, *ends[:-1]]
        assert {p.recorded for p in pieces} == {ends[-1]}
    with pytest.raises(ValueError, match="splits"):
        world.specs("query")


def test_the_background_does_not_depend_on_the_person(world):
    for spec in world.specs("train")[::17]:
        camera = world.cameras[spec.camera - 1]
        a, b = world.draw(spec), world.draw(spec, world.persons[spec.pid % SMALL.train_identities + 1])
        assert not np.array_equal(a.frames, b.frames)
        # Optics smear a body over its edge; nothing else of it may reach the background.
        reach = int(np.ceil(4 * camera.blur)) + 1
        kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
        for one, other, mask_a, mask_b in zip(a.frames, b.frames, a.silhouette, b.silhouette, strict=True):
            body = cv2.dilate(((mask_a > 0) | (mask_b > 0)).astype(np.uint8), kernel) > 0
            assert (~body).sum() > 100
            assert np.array_equal(one[~body], other[~body])


def nearest_neighbour_hits(specs, probe):
    """Rate at which the nearest tracklet of another recording of the same camera is the same person; its chance."""
    pid = np.array([spec.pid for spec in specs])
    camera = np.array([spec.camera for spec in specs])
    recording = np.array([spec.recording for spec in specs])
    probe = probe - probe.mean(0)
    norm = (probe**2).sum(1)
    distance = norm[:, None] + norm - 2 * probe @ probe.T
    allowed = (camera[:, None] == camera) & (recording[:, None] != recording)
    distance[~allowed] = np.inf
    same = (pid[:, None] == pid) & allowed
    scored = same.any(1)
    chance = (same.sum(1) / allowed.sum(1))[scored].mean()
    hits = (pid[distance.argmin(1)] == pid)[scored]
    return hits.mean(), chance, np.sqrt(chance / len(hits))


def test_passages_do_not_tell_who_walks():
    """Scene crop, direction, gain, occluder, noise and length, seen by a nearest-neighbour probe: with one reference
    person walking every passage it must not find the one who was planned; with the persons themselves it does."""
    world = World(dataclasses.replace(SMALL, tracklets_per_camera=(2, 3), second_passage=1.0))
    specs = world.specs("train")
    reference = world.persons[max(world.persons)]
    passages = np.stack([world.draw(spec, reference).frames.mean((0, 3)).ravel() for spec in specs])
    lengths = np.array([[spec.frames] for spec in specs], float)
    for probe in (passages, lengths):
        hits, chance, deviation = nearest_neighbour_hits(specs, probe)
        assert abs(hits - chance) < 4 * deviation
    persons = np.stack([world.draw(spec).frames.mean((0, 3)).ravel() for spec in specs])
    hits, chance, deviation = nearest_neighbour_hits(specs, persons)
    assert hits > chance + 8 * deviation


def test_keypoints_lie_on_the_body(world):
    on, count = 0, 0
    for spec in world.specs("test")[::5]:
        drawn = world.draw(spec)
        x, y, confidence = np.moveaxis(drawn.keypoints, -1, 0)
        t, _ = np.nonzero(confidence == 1)
        column, row = np.floor(x[confidence == 1]).astype(int), np.floor(y[confidence == 1]).astype(int)
        on += (drawn.silhouette[t, row, column] > 0).sum()
        count += len(t)
    assert on / count > 0.98


def test_keypoints_behind_an_occluder_or_outside_have_no_confidence(world):
    found = False
    for spec in world.specs("train"):
        drawn = world.draw(spec)
        inside = (drawn.keypoints[..., :2] >= 0).all(-1) & (drawn.keypoints[..., :2] < [32, 64]).all(-1)
        assert (drawn.keypoints[..., 2][~inside] == 0).all()
        x, y = np.clip(drawn.keypoints[..., :2] * 2, 0, [63, 127]).astype(int).transpose(2, 0, 1)
        covered = drawn.materials[np.arange(len(x))[:, None], y, x] == MATERIAL["occluder"]
        assert (drawn.keypoints[..., 2][covered & inside] == 0).all()
        found |= covered.any()
    assert found


def test_a_pinhole_camera_maps_the_joints_to_the_keypoints(world):
    """x/z and y/z of the 3-D joints and the pixels differ by one scale and one shift per frame."""
    shared = [(COCO.index(name), HUMAN36M.index(name)) for name in COCO if name in HUMAN36M]
    two, three = (list(column) for column in zip(*shared, strict=True))
    assert len(shared) == 13
    for spec in world.specs("test")[:12:3]:
        drawn = world.draw(spec)
        for pixels, joints in zip(drawn.keypoints[:, two, :2], drawn.joints3d[:, three], strict=True):
            assert (joints[:, 2] > 2).all()
            flat = joints[:, :2].astype(float) / joints[:, 2:]
            flat, pixels = flat - flat.mean(0), pixels - pixels.mean(0)
            scale = (flat * pixels).sum() / (flat**2).sum()
            assert scale > 0
            np.testing.assert_allclose(scale * flat, pixels, atol=2e-3)


def test_a_walk_is_periodic_rigid_and_on_the_ground():
    person = draw_person(1, np.random.default_rng(3), Wardrobe())
    phase = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    joints = walk(person, phase)
    np.testing.assert_allclose(joints, walk(person, phase + 2 * np.pi), atol=1e-5)
    ankles = joints[:, [JOINT["left_ankle"], JOINT["right_ankle"]], 2]
    np.testing.assert_allclose(ankles.min(1), 0.04 * person.body.height, atol=1e-5)
    for side in ("left", "right"):
        for start, end in (("hip", "knee"), ("knee", "ankle")):
            bone = joints[:, JOINT[f"{side}_{end}"]] - joints[:, JOINT[f"{side}_{start}"]]
            assert np.ptp(np.linalg.norm(bone, axis=-1)) < 1e-5
    # Half a cycle later the legs have changed places.
    left, right = joints[:, JOINT["left_knee"], 0], joints[:, JOINT["right_knee"], 0]
    np.testing.assert_allclose(left, np.roll(right, 12), atol=1e-5)
    assert joints[:, JOINT["head_top"], 2].max() == pytest.approx(person.body.height, rel=0.06)


def test_infrared_is_grey_with_bright_skin_and_visible_is_not(world):
    for spec in world.specs("test")[:30]:
        frames = world.draw(spec).frames.astype(int)
        grey = (frames[..., 0] == frames[..., 1]).all() and (frames[..., 1] == frames[..., 2]).all()
        assert grey == (spec.modality == "ir")
    spec = next(s for s in world.specs("test") if s.modality == "ir")
    drawn = world.draw(spec)
    materials = drawn.materials[:, ::2, ::2]
    value = {name: drawn.frames[materials == MATERIAL[name]].mean() for name in ("background", "skin", "upper_a")}
    assert value["background"] < value["upper_a"] < value["skin"]


def test_colour_and_reflectance_are_independent_and_patterns_contrast():
    rng = np.random.default_rng(0)
    wardrobe = Wardrobe(("red", "blue"), (0.3, 0.7), ("red", "blue"), (0.3, 0.7))
    outfits = [draw_person(i, rng, wardrobe).outfit for i in range(1500)]
    colour = np.array([[name == "red" for name in outfit.colours] for outfit in outfits], float)
    reflectance = np.array([outfit.reflectances for outfit in outfits]) == 0.3
    assert (colour[:, 0] != colour[:, 1]).all() and (reflectance[:, 0] != reflectance[:, 1]).all()
    correlation = np.corrcoef(colour.T, reflectance.T)[:6, 6:]
    assert np.abs(correlation).max() < 4 / np.sqrt(len(outfits))


def test_captions_name_the_attributes_and_infrared_names_no_colour(world):
    for pid in (1, 5, 9):
        person = world.persons[pid]
        visible, infrared = describe(person), describe(person, infrared=True, place="a fence")
        word = words(person)
        assert all(word[name] in visible for name in ("height", "build", "hair", "pattern", "lower", "upper"))
        assert word["upper_a_colour"] in visible and word["shoes_colour"] in visible
        assert not set(COLOURS) & set(infrared.replace(",", "").split())
        assert infrared.endswith("in front of a fence")
        codes = attribute_codes(person)
        assert [list(ATTRIBUTES.values())[i][code] for i, code in enumerate(codes)] == list(word.values())


def test_a_palette_of_one_is_refused():
    with refuses(ValueError, "colours"):
        World(dataclasses.replace(SMALL, wardrobe=Wardrobe(colours=("red",))))
