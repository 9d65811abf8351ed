"""Annotations, videos and loose pictures as people have them: everything left out, and every odd name, is named."""

import json
import os
import unicodedata

import cv2
import numpy as np
import pytest
from picture_files import sixteen_bit
from test_folder_builder import jpeg
from test_tracklets import WALKERS, draw_video, make

from jaxreid.data.names import printable
from jaxreid.errors import UserError
from jaxreid.footage.mot import MotError
from jaxreid.footage.mot_making import MotSettings, make_mot_tracklets
from jaxreid.footage.sources import SourceOptions, folder_source, picture_source, video_source
from jaxreid.tools import embed, mot_tracklets, search

# --- tracking annotations ------------------------------------------------------------------------------------------


def track(number, x, frames):
    return [f"{frame},{number},{x},10,20,40,1,1,1" for frame in frames]


def sequence(folder, *tracks, numbers=range(1, 21)):
    """Pictures of 60 × 80 pixels and rows of their tracks."""
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    for number in numbers:
        cv2.imwrite(str(folder / "img1" / f"{number:06d}.jpg"), np.full((60, 80, 3), 5 * number, np.uint8))
    (folder / "gt/gt.txt").write_text("\n".join(row for rows in tracks for row in rows) + "\n")
    return folder


FRAMES = range(1, 21)
GOOD = track(1, 4, FRAMES), track(2, 30, FRAMES)


@pytest.fixture
def train(tmp_path):
    return sequence(tmp_path / "train" / "a", *GOOD).parent


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [(range(20), range(1, 21)), (range(1, 21), range(20)), (range(-1, 9), range(20))],
    ids=["rows from 0, images from 1", "rows from 1, images from 0", "rows below 0"],
)
def test_frames_that_are_not_counted_as_the_images_are(tmp_path, train, rows, numbers):
    test = sequence(tmp_path / "test" / "b", track(1, 4, rows), track(2, 30, range(2, 9)), numbers=numbers)
    with pytest.raises(MotError, match=rf"{test}/gt/gt\.txt(.|\n)*not counted as the images"):
        make_mot_tracklets([train], [test.parent], tmp_path / "out")


def test_rows_and_images_from_0_are_as_those_from_1(tmp_path, train):
    test = sequence(tmp_path / "test" / "b", track(1, 4, range(20)), numbers=range(20))
    run = make_mot_tracklets([train], [test.parent], tmp_path / "out")
    assert run["counts"]["query"]["frames"] == run["counts"]["gallery"]["frames"] == 10
    names = sorted(path.name for path in (tmp_path / "out/query").rglob("*.jpg"))
    assert names == [f"{number:06d}.jpg" for number in range(10)]


def test_boxes_outside_of_the_picture_are_named(tmp_path, train, capsys):
    test = sequence(tmp_path / "test" / "b", track(7, 500, FRAMES), track(8, 30, FRAMES))
    arguments = ["--train", str(train), "--test", str(test.parent), "--out", str(tmp_path / "out")]
    assert mot_tracklets.main(arguments) == 0
    assert f"{test}/gt/gt.txt: track 7: 20 boxes" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/tracklets.json").read_text())
    assert len(record["outside_boxes"]) == 1 and record["counts"]["query"]["identities"] == 1


def test_a_split_with_nobody_inside_of_the_picture_is_refused(tmp_path, train):
    test = sequence(tmp_path / "test" / "b", track(7, 500, FRAMES))
    with pytest.raises(MotError, match=r"gallery, query(.|\n)*track 7: 20 boxes"):
        make_mot_tracklets([train], [test.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["000004.png", "4.jpg"])
def test_two_images_of_one_frame_are_named(tmp_path, train, name):
    (train / "a/img1" / name).write_bytes(jpeg(0))
    with pytest.raises(MotError, match=rf"{train}/a(.|\n)*{name}"):
        make_mot_tracklets([train], [train], tmp_path / "out")


def test_sixteen_bit_and_lost_images_count_as_damaged(tmp_path, train):
    test = sequence(tmp_path / "test" / "b", *GOOD)
    (test / "img1/000003.jpg").rename(test / "img1/000003.png")
    (test / "img1/000003.png").write_bytes(sixteen_bit(shape=(60, 80)))
    (test / "img1/000004.jpg").unlink()
    (test / "img1/000004.jpg").symlink_to("/nowhere")
    (test / "img1/000005.jpg").unlink()
    (test / "img1/000005.jpg").mkdir()
    run = make_mot_tracklets([train], [test.parent], tmp_path / "out", MotSettings(), max_excluded=0.1)
    assert [line.partition(": ")[0] for line in run["excluded_images"]] == [
        str(test / "img1" / name) for name in ("000003.png", "000004.jpg", "000005.jpg")
    ]
    assert "16 bits" in run["excluded_images"][0]


def test_numbers_of_annotations_that_are_not_finite_are_named(tmp_path, train):
    test = sequence(tmp_path / "test" / "b", *GOOD, ["nan,1,1,1,1,1", "3,inf,1,1,1,1"])
    with pytest.raises(MotError, match=r"row 41 (.|\n)*row 42 "):
        make_mot_tracklets([train], [test.parent], tmp_path / "out")


def test_a_sequence_whose_name_is_not_utf8_is_cut(tmp_path, train):
    sequence(tmp_path / "test" / "b", *GOOD)
    os.rename(tmp_path / "test" / "b", os.fsencode(tmp_path / "test") + b"/\xe9")
    run = make_mot_tracklets([train], [tmp_path / "test"], tmp_path / "out")
    assert run["sequences"][1]["folder"].endswith(r"/\xe9") and run["counts"]["query"]["frames"] == 20


# --- videos ----------------------------------------------------------------------------------------------------------


def test_a_video_whose_name_is_not_utf8_is_read(tmp_path):
    video = draw_video(tmp_path / "door.avi", WALKERS, frames=20)
    os.rename(video, os.fsencode(tmp_path) + b"/t\xfcr.avi")
    run = make([os.fsdecode(os.fsencode(tmp_path) + b"/t\xfcr.avi")], tmp_path / "out")
    assert run["videos"][0]["video"].endswith(r"t\xfcr.avi") and list(run["videos"][0]["cameras"]) == ["t_r"]
    printable(json.dumps(run)).encode()


def test_the_crops_of_such_a_video_are_a_source(tmp_path, monkeypatch):
    video = os.fsdecode(os.fsencode(tmp_path) + b"/t\xfcr.avi")
    os.rename(draw_video(tmp_path / "door.avi", WALKERS, frames=20), video)
    monkeypatch.setattr("jaxreid.footage.sources.make_tracklets", lambda videos, out, **_: make(videos, out))
    source = video_source(type(tmp_path)(video), tmp_path / "crops")
    assert source.name == rf"{tmp_path}/t\xfcr.avi" and source.cameras[0] == "t_r"
    assert [path.name.encode().isascii() for path in (tmp_path / "crops").iterdir()] == [True]


def test_cameras_are_named_in_composed_form(tmp_path):
    decomposed = unicodedata.normalize("NFD", "T\u00fcr")
    video = draw_video(tmp_path / f"{decomposed}.avi", WALKERS, frames=20)
    run = make([video], tmp_path / "out", modality={decomposed: "ir"})
    assert list(run["videos"][0]["cameras"]) == ["T\u00fcr"] and run["videos"][0]["modality"] == "ir"
    assert run["notes"] == []


# --- folders and pictures that belong to no data set ------------------------------------------------------------------


@pytest.fixture
def people(tmp_path):
    for name in ("a/t0/1.jpg", "a/t0/2.jpg", "b/t0/1.jpg"):
        (tmp_path / "people" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "people" / name).write_bytes(jpeg(len(name)))
    return tmp_path / "people"


def test_times_of_a_table_in_another_unicode_form(people):
    (people / "a").rename(people / unicodedata.normalize("NFD", "\u00e4"))
    head = "camera,tracklet,identity,modality,split,start_time"
    (people / "tracklets.csv").write_text(f"{head}\n\u00e4,t0,,ir,,7.5\nb,t0,,rgb,,nan\n", encoding="utf-8")
    source = folder_source(people)
    assert [source.metadata(row)["time"] for row in range(2)] == [None, 7.5]
    assert source.cameras == ("b", "\u00e4") and len(list(source.reader.decode_each(1, range(2)))) == 2


def test_what_a_folder_of_tracklets_cannot_give_is_named(people, caplog):
    (people / "a/t0/note.txt").write_text("x")
    folder_source(people)
    assert f"{people}/a/t0" in caplog.text and "note.txt" in caplog.text
    (people / "a/t0/3.jpg").symlink_to("/nowhere")
    os.rename(people / "b/t0/1.jpg", os.fsencode(people) + b"/b/t0/\xe9.jpg")
    (people / "b/t0/2.jpg").write_bytes(jpeg(2))
    with pytest.raises(UserError) as raised:
        folder_source(people)
    assert "2 frames" in str(raised.value) and f"{people}/a/t0/3.jpg" in str(raised.value)
    assert rf"{people}/b/t0/\xe9.jpg" in str(raised.value)


def test_what_a_folder_of_frames_cannot_give_is_named(people, caplog):
    folder = people / "a/t0"
    (folder / "note.txt").write_text("x")
    assert picture_source(folder).split.table.length.tolist() == [2] and "note.txt" in caplog.text
    (folder / "3.jpg").symlink_to("/nowhere")
    with pytest.raises(UserError, match=f"{folder}/3.jpg"):
        picture_source(folder)
    (folder / "3.jpg").unlink()
    (folder / "2.png").write_bytes(jpeg(3))
    with pytest.raises(UserError, match=f"{folder}: 2.jpg and 2.png"):
        picture_source(folder)


def test_a_picture_whose_name_is_not_utf8(people):
    path = os.fsdecode(os.fsencode(people) + b"/\xe9.jpg")
    os.rename(people / "b/t0/1.jpg", path)
    source = picture_source(type(people)(path))
    assert source.split.labels.names == (r"\xe9.jpg",) and source.metadata(0)["source"] == rf"{people}/\xe9.jpg"
    assert source.reader.decode(0, 0).shape[2] == 3


@pytest.mark.parametrize("make_source", [folder_source, picture_source])
def test_sixteen_bit_pictures_are_refused_where_that_is_asked_for(people, make_source):
    path = people / "a/t0" / "3.png"
    path.write_bytes(sixteen_bit())
    where = people if make_source is folder_source else path.parent
    source = make_source(where, SourceOptions(sixteen_bit="refuse"))
    with pytest.raises(UserError, match=f"{path}.*sixteen_bit=refuse"):
        source.pictures(0, 3)


def test_the_commands_refuse_sixteen_bit_pictures(people, workdir, tmp_path, capsys):
    path = people / "a/t0" / "3.png"
    path.write_bytes(sixteen_bit(shape=(64, 32)))
    line = ["--checkpoint", str(workdir), "--gallery", str(tmp_path / "gallery")]
    assert embed.main([str(people), *line, "--batch=8", "--sixteen_bit=refuse"]) == 2
    assert str(path) in capsys.readouterr().err
    assert embed.main([str(people), *line, "--batch=8"]) == 0
    query = ["--query", str(path), "--out", str(tmp_path / "page.html")]
    assert search.main([*line, *query, "--sixteen_bit=refuse"]) == 2
    assert str(path) in capsys.readouterr().err
    assert search.main([*line, *query]) == 0 and "a/t0" in capsys.readouterr().out
