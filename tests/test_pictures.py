"""Encoded pictures become one kind of array wherever a frame comes from, and what cannot is named."""

import importlib
import logging
import struct

import numpy as np
import pytest
from picture_files import GREY, GREY_ALPHA, PALETTE, claims, encoded, png, sixteen_bit

from jaxreid.data.build import build, main
from jaxreid.data.building import beam_build
from jaxreid.data.building.images import image_fault
from jaxreid.data.dataset import open_dataset
from jaxreid.data.loose import ArrayReader, FileReader, loose_split
from jaxreid.data.pictures import PictureError, load, to_rgb, value_range
from jaxreid.data.prepared import read_metadata
from jaxreid.data.split import open_split
from jaxreid.errors import UserError
from jaxreid.report.pictures import shrunk
from jaxreid.run.workdirs import claim_workdir

RNG = np.random.default_rng(3)
GREYS = RNG.integers(0, 256, (16, 8), np.uint8)
COLOURS = RNG.integers(0, 256, (16, 8, 3), np.uint8)
OPACITY = RNG.integers(0, 256, (16, 8, 1), np.uint8)
INDICES = RNG.integers(0, 3, (16, 8), np.uint8)
TABLE = np.array([[255, 0, 0], [10, 200, 30], [0, 0, 255]], np.uint8)


def over_black(colours, opacity):
    return np.round(colours * (opacity / 255)).astype(np.uint8)


PALETTE_OPACITY = np.array([255, 128, 0], np.uint8)  # of the three colours
KINDS = {
    "colour": (encoded(COLOURS[..., ::-1]), COLOURS),
    "grey": (encoded(GREYS), np.repeat(GREYS[..., None], 3, 2)),
    "palette": (png(INDICES, PALETTE, PLTE=TABLE.tobytes()), TABLE[INDICES]),
    "alpha": (encoded(np.concatenate([COLOURS[..., ::-1], OPACITY], 2)), over_black(COLOURS, OPACITY)),
    "grey with alpha": (
        png(np.concatenate([GREYS[..., None], OPACITY], 2), GREY_ALPHA),
        over_black(np.repeat(GREYS[..., None], 3, 2), OPACITY),
    ),
    "palette with alpha": (
        png(INDICES, PALETTE, PLTE=TABLE.tobytes(), tRNS=PALETTE_OPACITY.tobytes()),
        over_black(TABLE[INDICES], PALETTE_OPACITY[INDICES][..., None]),
    ),
    "TIFF with alpha": (
        encoded(np.concatenate([COLOURS[..., ::-1], OPACITY], 2), ".tiff"),
        over_black(COLOURS, OPACITY),
    ),
    "TIFF": (encoded(COLOURS[..., ::-1], ".tiff"), COLOURS),
    "BMP": (encoded(COLOURS[..., ::-1], ".bmp"), COLOURS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_is_rgb(kind):
    data, expected = KINDS[kind]
    np.testing.assert_array_equal(to_rgb(load(data)), expected)


def test_percentiles_of_a_tracklet_are_over_all_its_frames():
    frames = [np.full((10, 10, 3), value, np.uint16) for value in (100, 700)]
    frames[0][0, 0], frames[1][0, 0] = 0, 60000  # half a percent each
    assert value_range(map(load, map(encoded, frames))) == (100, 700)
    transparent = np.concatenate([frames[1], np.zeros((10, 10, 1), np.uint16)], 2)
    assert value_range([*frames, transparent]) == (100, 700)


def test_sixteen_bits_become_eight_between_the_percentiles():
    stored = load(encoded(np.array([[0, 1000, 2000, 3000, 60000]], np.uint16)))
    assert to_rgb(stored, (1000, 3000))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_rgb(stored, (1000, 1000))[0, :, 0].tolist() == [0, 0, 255, 255, 255]
    opaque = load(encoded(np.array([[[9, 9, 9, 2**16 - 1], [9, 9, 9, 0]]], np.uint16)))
    assert to_rgb(opaque, (0, 9))[0].tolist() == [[255] * 3, [0] * 3]


JPEG = encoded(COLOURS, ".jpg")
DAMAGED = {
    "empty": b"",
    "no picture": b"GIF89a",
    "over-large JPEG": claims(JPEG, 65500, 65500),
    "over-large PNG": png(np.zeros((1, 1)), GREY).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 2**20, 2**20), 1
    ),
    "JPEG without rows": claims(JPEG, 0, 8),
    "PNG without rows": png(np.zeros((0, 8)), GREY),
    "header cut": JPEG[:30],
    "32 bits": encoded(np.zeros((4, 4), np.float32), ".tiff"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_usable_picture_is_named_at_every_place_that_decodes(kind, tmp_path):
    data, path = DAMAGED[kind], tmp_path / "7.jpg"
    path.write_bytes(data)
    with pytest.raises(PictureError):
        load(data)
    assert image_fault(data)
    with pytest.raises(UserError, match=str(path)):
        FileReader([[path]]).decode(0, 0)
    with pytest.raises(UserError, match="picture of the report"):
        shrunk(data)


def test_over_large_pictures_say_their_size():
    assert "65500 × 65500" in image_fault(claims(JPEG, 65500, 65500))


def test_frames_in_memory_without_rows_are_named():
    reader = ArrayReader([[np.zeros((4, 2, 3), np.uint8), np.zeros((0, 2, 3), np.uint8)]])
    assert reader.decode(0, 0).shape == (4, 2, 3)
    with pytest.raises(UserError, match=r"frame 1 of tracklet 0 .*\(0, 2, 3\)"):
        reader.decode(0, 1)


# --- a data set and loose files of 16-bit pictures --------------------------------------------------------------------


@pytest.fixture(scope="module")
def thermal(tmp_path_factory):
    """A folder of two tracklets: one of two 16-bit frames and one of 8 bits, one of transparent pictures."""
    root = tmp_path_factory.mktemp("thermal") / "people"
    files = {
        "c/warm/1.png": sixteen_bit(2900, 3000, seed=1),
        "c/warm/2.png": sixteen_bit(3000, 3100, seed=2),
        "c/warm/3.png": KINDS["grey"][0],
        "c/plain/1.png": KINDS["alpha"][0],
        "c/plain/2.png": KINDS["palette with alpha"][0],
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def built(thermal, tmp_path_factory):
    return build("folder", source=thermal, data_dir=tmp_path_factory.mktemp("data"))


def test_a_built_set_and_loose_files_give_the_same_frames(thermal, built, caplog):
    split = open_split(built, "train")
    records, files = split.reader(cache=False), {"c/plain": "12", "c/warm": "123"}
    loose = FileReader([[thermal / name / f"{n}.png" for n in files[name]] for name in split.labels.names])
    for row, length in enumerate(split.table.length):
        for one, other in zip(
            records.decode_each(row, range(length)), loose.decode_each(row, range(length)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    warm = list(records.decode_each(split.labels.names.index("c/warm"), range(3)))
    assert warm[0].min() == 0 and warm[1].max() == 255 and len(np.unique(warm[0])) > 30
    assert warm[0].max() < warm[1].max() and warm[1].min() > 100, "one range for all frames of a tracklet"
    np.testing.assert_array_equal(warm[2], KINDS["grey"][1])
    told = [record.message for record in caplog.records if "16 bits" in record.message]
    assert len(told) == 1 and f"{thermal}/c/warm/1.png" in told[0]


def test_sixteen_bits_are_said_once_with_the_range(thermal, tmp_path, caplog):
    path = build("folder", source=thermal, data_dir=tmp_path)
    (told,) = [record.message for record in caplog.records if "16 bits" in record.message]
    assert "2 frames of 1 tracklets" in told and f"{thermal}/c/warm/1.png" in told
    assert read_metadata(path)["warnings"][-1] == told
    facts = read_metadata(path)["sixteen_bit"]
    assert (facts["tracklets"], facts["frames"]) == (1, 2) and 2900 <= facts["low"] < 2910 < 3090 < facts[
        "high"
    ] <= 3100


@pytest.mark.parametrize("beam", [None, []])
def test_listed_sets_hold_eight_bits_as_well(tmp_path, caplog, monkeypatch, beam):
    monkeypatch.setattr(beam_build, "pipeline_options", lambda builder, flags: object())
    monkeypatch.setattr(
        beam_build, "_run", lambda name, shards, options: [beam_build.write_shard(str(shard.stem)) for shard in shards]
    )
    data = sixteen_bit(500, 600, seed=4)
    for split, person in (("train", "0001"), ("query", "0002"), ("gallery", "0002")):
        folder = tmp_path / "raw" / split / person / f"{person}_c{len(split) - 4}_s1_t0001"
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(data)
    path = build("sports_vreid", source=tmp_path / "raw", data_dir=tmp_path, beam=beam)
    frame = open_split(path, "query").reader(cache=False).decode(0, 0)
    np.testing.assert_array_equal(frame, to_rgb(load(data)))
    assert read_metadata(path)["sixteen_bit"]["frames"] == 3
    assert caplog.text.count("16 bits") == 1
    with pytest.raises(UserError, match=r"train/0001/0001_c1_s1_t0001/1\.png has 16 bits"):
        build("sports_vreid", source=tmp_path / "raw", data_dir=tmp_path / "other", beam=beam, sixteen_bit="refuse")


def test_records_of_an_earlier_version_are_scaled_when_they_are_read(thermal, built, monkeypatch):
    """They hold the 16-bit pictures themselves."""
    split = open_split(built, "train")
    row = split.labels.names.index("c/warm")
    reader = split.reader(cache=False)
    expected = list(reader.decode_each(row, range(3)))
    raw = [(thermal / f"c/warm/{n}.png").read_bytes() for n in (1, 2, 3)]
    monkeypatch.setattr(reader, "encoded", lambda row: raw)
    np.testing.assert_array_equal(list(reader.decode_each(row, range(3))), expected)


def test_sixteen_bits_are_refused_where_that_is_asked_for(thermal, built, tmp_path, capsys):
    line = ["folder", "--source", str(thermal), "--sixteen_bit=refuse", "--data_dir"]
    for data_dir in (tmp_path, built.parents[2]):  # to be built, and built already
        assert main([*line, str(data_dir)]) == 2
        message = capsys.readouterr().err
        assert f"{thermal}/c/warm/1.png" in message and "sixteen_bit=refuse" in message
    assert not list(tmp_path.rglob("*.array_record*"))
    with pytest.raises(UserError, match="sixteen_bit=refuse"):
        FileReader([[thermal / "c/warm/1.png"]], "refuse").decode(0, 0)
    with pytest.raises(UserError, match="scale, refuse"):
        build("folder", source=thermal, data_dir=tmp_path, sixteen_bit="dither")


def test_a_run_refuses_sixteen_bits_and_goes_on_without_the_key(thermal, tmp_path):
    config = importlib.import_module("configs.hitpro").get_config("folder")
    config.dataset.path, config.dataset.sixteen_bit = str(thermal), "refuse"
    with pytest.raises(UserError, match=f"{thermal}/c/warm/1.png"):
        open_dataset(config.dataset, tmp_path / "data")
    saved = config.to_dict()
    del saved["dataset"]["sixteen_bit"]
    claim_workdir(tmp_path / "run", saved)
    claim_workdir(tmp_path / "run", config.to_dict())


def test_the_remark_is_made_once_for_a_source(thermal, caplog):
    reader = FileReader([[thermal / "c/warm/1.png"], [thermal / "c/warm/2.png"]])
    split = loose_split([1, 1])
    with caplog.at_level(logging.WARNING):
        for row in range(len(split)):
            reader.decode(row, 0)
    assert len([record for record in caplog.records if "16 bits" in record.message]) == 1
