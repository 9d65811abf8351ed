"""The worlds of poor crops, of teams, of ground and air, and of changing clothes: what is drawn, and what the records
say of it."""

import dataclasses
import importlib
import itertools

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders.walkers.camera import CAPTURE_POINTS, SHARP_RANGE
from data_builders.walkers.caption import describe, words
from data_builders.walkers.person import KINDS, walk
from data_builders.walkers.world import CONFIGS, World
from jaxreid import retrieval
from jaxreid.backbones.word_table import walkers_words
from jaxreid.data import schema
from jaxreid.data.build import build
from jaxreid.data.builders import builder_class
from jaxreid.data.prepared import read_metadata
from jaxreid.data.sidecars import Sidecar, sidecar_kinds
from jaxreid.data.split import open_split
from jaxreid.evaluation.cases import cases
from jaxreid.retrieval.protocols import resolve

_package = builder_class("walkers").__module__.rsplit(".", 1)[0]
builder = importlib.import_module(f"{_package}.walkers_dataset_builder")
NAMES = ("visible", "teams", "aerial", "clothes")


@pytest.fixture(scope="module")
def built(data_dir):
    return {name: build(f"walkers/tiny_{name}", data_dir=data_dir) for name in NAMES}


@pytest.fixture(scope="module")
def records(built):
    found = {}
    for name, directory in built.items():
        source = tfds.builder_from_directory(str(directory))
        found[name] = {split: list(source.as_data_source(split)) for split in source.info.splits}
    return found


def decode(frame):
    return cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("name", NAMES)
def test_every_sidecar_fits_every_record(name, built, records):
    assert sidecar_kinds(built[name]) == ["captions", "joints3d", "keypoints", "silhouettes"]
    sidecars = {kind: Sidecar.open(built[name], kind) for kind in sidecar_kinds(built[name])}
    for record in itertools.chain.from_iterable(records[name].values()):
        tracklet, index = record["tracklet_id"].decode(), record["frame_index"]
        points, mask = sidecars["keypoints"].read(tracklet, index)
        height, width, _ = decode(record["frames"][0]).shape
        seen = points[points[..., 2] > 0]
        assert mask.all() and (seen[:, :2] >= 0).all() and (seen[:, 0] <= width).all() and (seen[:, 1] <= height).all()
        assert sidecars["joints3d"].read(tracklet, index)[0].shape == (len(index), 17, 3)
        silhouettes = sidecars["silhouettes"].read(tracklet, index)[0]
        assert silhouettes.shape == (len(index), 64, 32) and (silhouettes.max((1, 2)) == 255).all()
        texts = sidecars["captions"].texts(tracklet)
        assert len(set(texts)) == 3 and walkers_words()(texts).shape == (3, 77)  # no word is unknown


def test_a_wording_changes_the_order_and_nothing_that_is_said():
    world = World(CONFIGS["clothes"])
    first = [world.draw(spec).captions[0].split()[0:2] for spec in world.specs("test")[:40]]
    assert {" ".join(start) for start in first} > {"a photo", "one person"}  # and "a tall", "a short", …
    for pid in (1, 2, 3):
        person = world.persons[pid]
        for infrared in (False, True):
            said = [describe(person, infrared, "a fence", wording) for wording in range(3)]
            told = [{word for word in words(person).values() if word in text} for text in said]
            assert told[0] == told[1] == told[2] and len(told[0]) > 5
            assert all(text.endswith(", in front of a fence") for text in said)


# Poor crops.


def test_crops_are_off_and_people_covered_in_some_frames():
    """How much of a body is seen, and where its middle is, beside the same passages with neither."""
    world = World(CONFIGS["visible"])
    plain = World(dataclasses.replace(CONFIGS["visible"], occlusion=0.0, misalignment=0.0))
    covered, wanted, drift = [], [], []
    for spec in world.specs("test")[::8]:
        poor, good = world.draw(spec), plain.draw(spec)
        inside = ((poor.keypoints[..., :2] >= 0) & (poor.keypoints[..., :2] < [32, 64])).all(-1)
        covered.append((poor.keypoints[..., 2] == 0)[inside].mean())
        wanted.append((good.keypoints[..., 2] == 0).mean())
        size = [np.ptp(drawn.keypoints[..., 1], axis=1) for drawn in (poor, good)]
        drift.append(np.abs(np.diff(np.log(size[0] / size[1])[[0, -1]]))[0])
        assert np.array_equal(poor.joints3d, good.joints3d)  # the walk is the same, its crop is not
    config = world.config
    assert np.mean(np.array(covered) > 0.1) == pytest.approx(0.6 * config.occlusion, abs=0.4 * config.occlusion)
    assert np.mean(covered) > 2 * np.mean(wanted)
    # Two errors of up to 0.3 · misalignment each, uniform: they differ by a third of their range on average.
    assert np.mean(drift) == pytest.approx(0.2 * config.misalignment, rel=0.3)


def test_more_people_change_nobody_in_the_test_split():
    world, many = World(CONFIGS["teams"]), World(CONFIGS["teams_many"])
    assert many.specs("test") == world.specs("test")
    spec = world.specs("test")[3]
    assert np.array_equal(many.draw(spec).frames, world.draw(spec).frames)
    train = {spec.pid for spec in many.specs("train")}
    assert len(train) == 96 + 480 and not train & set(world.pids("test"))
    assert [s for s in many.specs("train") if s.pid <= 96] == world.specs("train")


# Teams.


def test_team_mates_share_their_clothes_and_differ_in_what_captions_name():
    world = World(CONFIGS["teams"])
    teams = [[world.persons[pid] for pid in range(first, first + 8)] for first in range(1, 161, 8)]
    kits = []
    for team in teams:
        worn = {
            (o.upper, o.pattern, o.lower, o.bag, o.colours[:3], o.reflectances[:3])
            for o in (player.outfit for player in team)
        }
        assert len(worn) == 1
        kits.append(worn.pop())
        # Captions tell most of them apart.
        assert len({describe(player) for player in team}) > 5
        for name in ("hair", "sleeve", "hat"):
            assert len({getattr(player.outfit, name) for player in team}) > 1
    assert len(set(kits)) == 20
    assert {kit[2:4] for kit in kits} == {("shorts", "none")}
    heights = [player.body.height for team in teams for player in team]
    assert np.ptp(heights) < 0.31 * (1.95 - 1.50)  # bodies are alike
    # No team has players in both training and test: 96 and 64 are multiples of 8.
    assert world.pids("test")[0] == 97


def test_players_run():
    world, pedestrians = World(CONFIGS["teams"]), World(CONFIGS["visible"])
    phase = np.linspace(0, 2 * np.pi, 40)

    def highest_ankle(person):
        return walk(person, phase)[:, [21, 22], 2].max() / person.body.height

    runs = [highest_ankle(world.persons[pid]) for pid in range(1, 30)]
    walks = [highest_ankle(pedestrians.persons[pid]) for pid in range(1, 30)]
    assert min(runs) > np.median(walks) and np.median(runs) > 1.4 * np.median(walks)
    assert "running with" in describe(world.persons[1]) and "walking with" in describe(pedestrians.persons[1])


def test_teams_are_scored_like_market(built, records):
    assert read_metadata(built["teams"])["protocols"] == ["market"]
    record = records["teams"]["train"][0]
    assert (record["session"], record["clothes_id"], record["outfit"]) == (-1, -1, b"")
    assert (record["point_id"], record["case_mask"], schema.PLATFORMS[record["platform"]]) == (-1, 0, "ground")


def nearest_rate(world, feature, other_outfit=False):
    """How often the nearest test tracklet before another camera is the same person, and the rate of chance."""
    specs = world.specs("test")
    rows = np.stack([feature(world.draw(spec).frames) for spec in specs]).astype(float)
    pid, camera, outfit = (np.array([getattr(s, key) for s in specs]) for key in ("pid", "camera", "outfit"))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    allowed = camera[:, None] != camera
    if other_outfit:
        allowed &= (pid[:, None] != pid) | (outfit[:, None] != outfit)
    same = (pid[:, None] == pid) & allowed
    asked = same.any(1)
    nearest = np.where(allowed, rows @ rows.T, -np.inf).argmax(1)
    return (pid[nearest] == pid)[asked].mean(), (same.sum(1) / allowed.sum(1))[asked].mean(), asked.sum()


def histogram(frames):
    inner = frames[:, :, 8:24].astype(int) // 32
    return np.bincount(((inner[..., 0] * 8 + inner[..., 1]) * 8 + inner[..., 2]).ravel(), minlength=512)


@pytest.mark.parametrize("name, other_outfit", [("teams", False), ("clothes", True)])
def test_colours_do_not_tell_who_it_is(name, other_outfit):
    short = {"train_identities": 0, "test_identities": 32, "frames": (2, 2), "tracklets_per_camera": (1, 1)}
    world = World(dataclasses.replace(CONFIGS[name], **short))
    rate, chance, count = nearest_rate(world, histogram, other_outfit)
    assert abs(rate - chance) < 4 * np.sqrt(chance / count)


# Ground and air.


def test_capture_points_are_those_of_the_data_set():
    """DetReIDX's numbers of its points, and the slant range of the two farthest."""
    assert CAPTURE_POINTS[0] == (5.8, 10, 30) and CAPTURE_POINTS[4] == (40, 80, 30)
    assert CAPTURE_POINTS[11] == (90, 120, 60) and CAPTURE_POINTS[17] == (120, 0, 90)
    cameras = {(c.session, c.point): c for c in World(CONFIGS["aerial"]).cameras}
    assert len(cameras) == 1 + 2 * 18  # both ground cameras are (0, 0)
    assert cameras[1, 6].range == pytest.approx(134.164, abs=1e-3) and cameras[2, 12].range == 150
    assert all(cameras[2, point].elevation == np.pi / 2 for point in range(13, 19))
    assert np.degrees(cameras[2, 1].elevation) == pytest.approx(25.9, abs=0.1)  # of a person's middle: 4.85 m over 10


def test_what_is_farther_has_fewer_pixels_and_what_is_above_is_seen_from_above(records):
    world = World(CONFIGS["tiny_aerial"])
    rows = {}
    for record in records["aerial"]["train"]:
        height, width, _ = decode(record["frames"][0]).shape
        rows.setdefault(int(record["point_id"]), set()).add((height, width))
    assert rows[-1] == {(64, 32)}
    for point, sizes in rows.items():
        if point > 0:
            reach = np.hypot(*CAPTURE_POINTS[point - 1][:2])
            height = max(16, round(64 * min(1, SHARP_RANGE / reach)))
            assert sizes == {(height, round(height / 2))}, point
    # From straight above a person is hardly taller than wide.
    extent = {}
    for spec in world.specs("train"):
        camera = world.cameras[spec.camera - 1]
        joints = world.draw(spec).joints3d
        height, width = (np.ptp(joints[..., axis], axis=1).mean() for axis in (1, 0))
        extent.setdefault(camera.point and CAPTURE_POINTS[camera.point - 1][2], []).append(height / width)
    assert np.mean(extent[0]) > 1.8 and np.mean(extent[90]) < 0.7 * np.mean(extent[0])


def test_keypoints_from_the_air_lie_on_the_body():
    world = World(CONFIGS["tiny_aerial"])
    on = count = 0
    for spec in world.specs("test"):
        if not world.cameras[spec.camera - 1].aerial:
            continue
        drawn = world.draw(spec)
        grid = np.array([32 / drawn.frames.shape[2], 64 / drawn.frames.shape[1]])
        t, k = np.nonzero(drawn.keypoints[..., 2] == 1)
        x, y = np.floor(drawn.keypoints[t, k, :2] * grid).astype(int).T
        on += (drawn.silhouette[t, y, x] > 0).sum()
        count += len(t)
    assert count > 500 and on / count > 0.98


def test_records_from_the_air_know_where_they_were_taken(built, records):
    world = World(CONFIGS["tiny_aerial"])
    specs = {spec.tracklet_id: spec for split in ("train", "test") for spec in world.specs(split)}
    facts = read_metadata(built["aerial"])
    assert facts["protocols"] == ["xfd", "xfd_train"]
    assert facts["cameras"] == [
        {"number": 0, "name": "ground", "modality": "rgb"},
        {"number": 1, "name": "uav1", "modality": "rgb"},
        {"number": 2, "name": "uav2", "modality": "rgb"},
    ]
    for split, record in ((s, r) for s, members in records["aerial"].items() for r in members):
        spec = specs[record["tracklet_id"].decode()]
        camera = world.cameras[spec.camera - 1]
        assert schema.ROLES[record["role"]] == split.split("_")[0]
        assert (record["session"], record["outfit"].decode()) == (spec.session, f"o{spec.session - 1}")
        geometry = [record[name] for name in ("altitude", "distance", "angle", "slant_range")]
        if camera.aerial:
            assert schema.PLATFORMS[record["platform"]] == "uav" and record["camid"] == camera.session
            altitude, distance, angle = CAPTURE_POINTS[record["point_id"] - 1]
            assert geometry == pytest.approx([altitude, distance, angle, np.hypot(altitude, distance)])
        else:
            assert schema.PLATFORMS[record["platform"]] == "ground" and record["camid"] == 0
            assert record["point_id"] == -1 and np.isnan(geometry).all()
            assert record["session"] == 1


def test_cases_of_ground_and_air(records):
    """Case 1 looks from the air for people on the ground, case 2 the other way, case 3 among the aerial tracklets."""
    members = {split: {r["tracklet_id"] for r in found} for split, found in records["aerial"].items()}
    platform = {
        r["tracklet_id"]: schema.PLATFORMS[r["platform"]] for found in records["aerial"].values() for r in found
    }
    wanted = {
        "query_case1": {"uav"}, "gallery_case1": {"ground"}, "query_case2": {"ground"}, "gallery_case2": {"uav"},
        "query_case3": {"uav"}, "gallery_case3": {"uav"},
    }  # fmt: skip
    assert set(members) == {"train", *wanted}
    for split, platforms in wanted.items():
        assert {platform[name] for name in members[split]} == platforms
    assert members["query_case1"] == members["gallery_case2"] == members["gallery_case3"] > members["query_case3"]
    assert members["query_case2"] <= members["gallery_case1"]
    masks = {r["tracklet_id"]: r["case_mask"] for split in wanted for r in records["aerial"][split]}
    for name, mask in masks.items():
        taking_part = [n for n in (1, 2, 3) if name in members[f"query_case{n}"] | members[f"gallery_case{n}"]]
        assert mask == sum(1 << (n - 1) for n in taking_part)
    assert {r["case_mask"] for r in records["aerial"]["train"]} == {0}


# Changing clothes.


def test_everyone_changes_clothes_from_session_to_session(built, records):
    assert read_metadata(built["clothes"])["protocols"] == ["market", "clothes_cc", "clothes_sc"]
    world = World(CONFIGS["tiny_clothes"])
    specs = {spec.tracklet_id: spec for split in ("train", "test") for spec in world.specs(split)}
    for family in (("train",), ("query", "gallery")):
        found = [record for split in family for record in records["clothes"][split]]
        assert {(r["session"], r["outfit"]) for r in found} == {(1, b"o0"), (2, b"o1")}
        worn = {(r["pid"], r["outfit"], r["clothes_id"]) for r in found}
        assert sorted(number for _, _, number in worn) == list(range(len(worn)))
        assert [number for *_, number in sorted(worn)] == list(range(len(worn)))
        attributes = read_metadata(built["clothes"])["attribute_names"]
        for record in found:
            person = world.person(specs[record["tracklet_id"].decode()])
            hair = read_metadata(built["clothes"])["attribute_values"]["hair"][
                record["attributes"][attributes.index("hair")]
            ]
            assert hair == person.outfit.hair == world.persons[record["pid"]].outfit.hair
    first, second = world.persons[1], world.person(next(s for s in world.specs("train") if (s.pid, s.outfit) == (1, 1)))
    assert first.body == second.body and first.gait == second.gait and first.outfit != second.outfit


def test_other_clothes_are_of_the_same_kind_as_often_as_people_have_habits():
    world = World(dataclasses.replace(CONFIGS["clothes"], train_identities=300, presence=1.0))
    outfits = {(spec.pid, spec.outfit): world.person(spec).outfit for spec in world.specs("train")}

    def same(shift):  # how often the kinds of a person's first outfit are those of the next person's second
        pairs = [(outfits[pid, 0], outfits[(pid + shift - 1) % 300 + 1, 1]) for pid in range(1, 301)]
        return np.mean([getattr(first, kind) == getattr(second, kind) for first, second in pairs for kind in KINDS])

    # 1500 draws: three standard deviations are 0.04.
    assert same(0) == pytest.approx(world.config.habit + (1 - world.config.habit) * same(1), abs=0.05)
    assert np.mean([outfits[pid, 0].colours == outfits[pid, 1].colours for pid in range(1, 301)]) < 0.02


def test_clothes_protocols_have_matches_of_both_kinds(built):
    query, gallery = (open_split(built["clothes"], name) for name in ("query", "gallery"))
    assert len(np.unique(query.labels.clothes)) > len(np.unique(query.labels.pid))
    found = {}
    for key in ("market", "clothes_sc", "clothes_cc"):
        (case,) = cases(resolve(key), query, gallery)
        case.check()
        columns = case.protocol.columns
        found[key] = case.protocol.masks(
            case.query.columns().columns(columns), case.gallery.columns().columns(columns)
        )[0]
    assert not np.any(found["clothes_sc"] & found["clothes_cc"])
    np.testing.assert_array_equal(found["clothes_sc"] | found["clothes_cc"], found["market"])
    assert all(np.any(positive) for positive in found.values())


def test_random_features_score_near_chance(built):
    """Expected average precision of a random ranking of few matches among n lies a little above their share."""
    query, gallery = (open_split(built["clothes"], name) for name in ("query", "gallery"))
    (case,) = cases(resolve("market"), query, gallery)
    rng = np.random.default_rng(0)
    mean = np.mean([
        retrieval.score_distances(
            rng.random((len(query), len(gallery)), np.float32), case.query.columns(), case.gallery.columns(), "market"
        ).rank[1]
        for _ in range(20)
    ])  # fmt: skip
    columns = case.protocol.columns
    positive, junk = case.protocol.masks(case.query.columns().columns(columns), case.gallery.columns().columns(columns))
    asked = positive.any(1)
    chance = (positive.sum(1) / (~junk).sum(1))[asked].mean()
    assert mean / 100 == pytest.approx(chance, abs=4 * np.sqrt(chance / (20 * asked.sum())))
