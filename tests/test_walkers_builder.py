"""The walkers builder: the same bytes at every build, splits as the protocols need them, sidecars that fit."""

import dataclasses
import importlib
import itertools

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from messages import refuses

from jaxreid.data import schema
from jaxreid.data.build import build
from jaxreid.data.builders import builder_class
from jaxreid.data.prepared import read_metadata, split_counts
from jaxreid.data.sidecars import Sidecar, sidecar_kinds

_package = builder_class("walkers").__module__.rsplit(".", 1)[0]
builder = importlib.import_module(f"{_package}.walkers_dataset_builder")
world = importlib.import_module(f"{_package}.world")
caption = importlib.import_module(f"{_package}.caption")
workers = importlib.import_module(f"{_package}.workers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build("walkers/tiny", data_dir=tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def records(tiny):
    source = tfds.builder_from_directory(str(tiny))
    return {split: list(source.as_data_source(split)) for split in source.info.splits}


def test_two_builds_are_the_same_bytes(tiny, tmp_path):
    again = build("walkers/tiny", data_dir=tmp_path)
    first = {path.relative_to(tiny): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    second = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    first = {path: data for path, data in first.items() if path.parts[0] != "index"}  # made by readers
    assert first.keys() == second.keys() and any("array_record" in path.name for path in first)
    assert [path for path in first if first[path] != second[path]] == []


def test_several_processes_draw_what_one_draws(monkeypatch):
    config = world.CONFIGS["tiny"]
    specs = world.World(config).specs("train")[:7]
    alone = list(workers.draw_all(config, specs))
    monkeypatch.setattr(workers, "FEWEST_TRACKLETS", 0)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: range(3), raising=False)
    together = list(workers.draw_all(config, specs))
    assert [spec for spec, _ in together] == [spec for spec, _ in alone] == specs
    for (_, (frames, drawn)), (_, (same_frames, same)) in zip(alone, together, strict=True):
        assert frames == same_frames and len(frames) > 3 and drawn.captions == same.captions
        for name in ("keypoints", "joints3d", "silhouette"):
            np.testing.assert_array_equal(getattr(drawn, name), getattr(same, name))


def test_a_worker_that_dies_is_named(monkeypatch):
    config = world.CONFIGS["tiny"]
    specs = world.World(config).specs("train")[:4]
    broken = dataclasses.replace(specs[2], camera=99)
    monkeypatch.setattr(workers, "FEWEST_TRACKLETS", 0)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: range(2), raising=False)
    with refuses(RuntimeError, broken.tracklet_id):
        list(workers.draw_all(config, [*specs[:2], broken, specs[3]]))


def test_identities_of_train_and_test_are_disjoint(records):
    pids = {split: {record["pid"] for record in members} for split, members in records.items()}
    assert len(pids["train"]) == 6 and len(pids["query"] | pids["gallery"]) == 4
    assert not pids["train"] & (pids["query"] | pids["gallery"])
    labels = {record["pid"]: record["label"] for record in records["train"]}
    assert [labels[pid] for pid in sorted(labels)] == list(range(6))
    assert {record["label"] for split in ("query", "gallery") for record in records[split]} == {-1}


def test_infrared_queries_visible_gallery(tiny, records):
    assert read_metadata(tiny)["protocols"] == ["cross_modal_cam"]
    assert {schema.MODALITIES[record["modality"]] for record in records["query"]} == {"ir"}
    assert {schema.MODALITIES[record["modality"]] for record in records["gallery"]} == {"rgb"}
    drawn = world.World(world.CONFIGS["tiny"])
    names = {record["tracklet_id"].decode() for split in ("query", "gallery") for record in records[split]}
    assert names == {spec.tracklet_id for spec in drawn.specs("test")}
    assert {record["pid"] for record in records["query"]} <= {record["pid"] for record in records["gallery"]}


def test_records_say_what_was_drawn(tiny, records):
    drawn = world.World(world.CONFIGS["tiny"])
    specs = {spec.tracklet_id: spec for split in ("train", "test") for spec in drawn.specs(split)}
    facts = read_metadata(tiny)
    cameras = {camera["number"]: camera for camera in facts["cameras"]}
    seen = list(itertools.chain.from_iterable(records.values()))
    assert len(seen) == len(specs) == sum(split_counts(tiny).values())
    for split, record in ((split, record) for split, members in records.items() for record in members):
        spec = specs[record["tracklet_id"].decode()]
        assert (record["pid"], record["camid"], record["recording"].decode()) == (spec.pid, spec.camera, spec.recording)
        assert schema.MODALITIES[record["modality"]] == spec.modality == cameras[spec.camera]["modality"]
        assert record["cam_name"].decode() == cameras[spec.camera]["name"] and schema.ROLES[record["role"]] == split
        assert len(record["frames"]) == spec.frames == record["num_frames_source"]
        codes = record["attributes"][: len(facts["attribute_names"])]
        person = caption.words(drawn.persons[spec.pid])
        for name, code in zip(facts["attribute_names"], codes, strict=True):
            if name.endswith("_colour") and spec.modality == "ir":
                assert code == schema.ATTRIBUTE_UNKNOWN
            else:
                assert facts["attribute_values"][name][code] == person[name]
        assert set(record["attributes"][len(codes) :].tolist()) == {schema.ATTRIBUTE_NOT_PROVIDED}


def test_frames_decode_to_what_was_drawn(records):
    drawn = world.World(world.CONFIGS["tiny"])
    specs = {spec.tracklet_id: spec for spec in drawn.specs("train")}
    for record in records["train"][::9]:
        frames = drawn.draw(specs[record["tracklet_id"].decode()]).frames
        for encoded, frame in zip(record["frames"], frames, strict=True):
            decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
            assert decoded.shape == (64, 32, 3)
            # Chroma is stored at half the resolution: compare brightness, then colour on average.
            grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float) for image in (decoded, frame)]
            assert np.abs(grey[0] - grey[1]).mean() < 5
            np.testing.assert_allclose(decoded.mean((0, 1)), frame.mean((0, 1)), atol=2)


def test_sidecars_cover_every_frame(tiny, records):
    assert sidecar_kinds(tiny) == ["captions", "joints3d", "keypoints", "silhouettes"]
    drawn = world.World(world.CONFIGS["tiny"])
    specs = {spec.tracklet_id: spec for split in ("train", "test") for spec in drawn.specs(split)}
    sidecars = {kind: Sidecar.open(tiny, kind) for kind in sidecar_kinds(tiny)}
    assert {sidecar.meta["tracklets"] for sidecar in sidecars.values()} == {len(specs)}
    for record in itertools.chain.from_iterable(records.values()):
        name = record["tracklet_id"].decode()
        truth = drawn.draw(specs[name])
        expected = {"keypoints": truth.keypoints, "joints3d": truth.joints3d, "silhouettes": truth.silhouette}
        for kind, values in expected.items():
            got, mask = sidecars[kind].read(name, record["frame_index"])
            np.testing.assert_array_equal(got, values)
            assert mask.all()
        assert sidecars["captions"].texts(name) == list(truth.captions)


def test_visible_only_worlds_are_scored_like_market():
    config = builder.WalkersConfig(name="visible", world=world.CONFIGS["visible"])
    assert config.protocol == "market"
    specs = world.World(config.world).specs("test")
    query, gallery = builder.query_and_gallery(specs, config.protocol)
    assert sorted(s.tracklet_id for s in query + gallery) == sorted(s.tracklet_id for s in specs)
    chosen = [(spec.pid, spec.camera) for spec in query]
    assert len(set(chosen)) == len(chosen) > 64
    cameras = {pid: {spec.camera for spec in specs if spec.pid == pid} for pid in {spec.pid for spec in specs}}
    for spec in query:
        others = [other for other in gallery if other.pid == spec.pid and other.camera != spec.camera]
        assert bool(others) == (len(cameras[spec.pid]) > 1), spec.tracklet_id


def test_a_world_of_each_size_is_offered():
    configs = builder.Builder.builder_configs
    assert list(configs) == list(world.CONFIGS)
    assert [name for name, config in configs.items() if "silhouettes" not in config.sidecars] == [
        "vvi_dev",
        "captioned",
    ]
    # What settings are chosen on shows nobody whom another set shows.
    for name in ("visible", "teams", "aerial", "clothes", "vvi"):
        chosen_on = [c.world.seed for key, c in configs.items() if key in (f"{name}_dev", f"{name}_dev2")]
        others = [c.world.seed for key, c in configs.items() if "dev" not in key]
        assert chosen_on and not set(chosen_on) & set(others)
    assert builder.Builder.make_config(None, None).name == "vvi"
    assert len(caption.ATTRIBUTES) <= schema.NUM_ATTRIBUTES
