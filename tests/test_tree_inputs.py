"""Recorded sets and files beside them: what cannot be used, or is not known, is named in every tree and table."""

import json
import os
import unicodedata

import pytest
from builder_trees import error, picture, prepare, write
from test_detreidx_builder import tree as detreidx  # noqa: F401
from test_detreidx_builder import write_answers
from test_skeleton_builders import biwi  # noqa: F401

from jaxreid.data import schema
from jaxreid.data.building.listed import Tracklet, identity_remarks
from jaxreid.data.building.tree import Tree
from jaxreid.data.prepared import read_metadata
from jaxreid.data.sidecar_files import FrameFiles, read_captions
from jaxreid.errors import UserError

FRAMES = [f"train/0001/0001_c{camera}_s1_t0001/{frame}.jpg" for camera in (1, 2) for frame in range(20)]


@pytest.fixture
def sports(tmp_path):
    """Two training tracklets of twenty frames, a query and its match."""
    root = tmp_path / "raw"
    write(root, [*FRAMES, "query/0002/0002_c1_s1_t0001/1.jpg", "gallery/0002/0002_c2_s1_t0001/1.jpg"])
    return root


def refusal(root, tmp_path):
    return error("sports_vreid", root, tmp_path, "own")


# --- folders of frames ----------------------------------------------------------------------------------------------


def test_links_to_nothing_and_folders_in_place_of_frames_are_counted(sports, tmp_path, caplog):
    (sports / FRAMES[0]).unlink()
    (sports / FRAMES[0]).symlink_to("/nowhere")
    (sports / "train/0009").symlink_to("/nowhere")
    path, splits = prepare("sports_vreid", sports, tmp_path, "own")
    assert [fault["path"] for fault in read_metadata(path)["excluded_frames"]] == ["train/0009", FRAMES[0]]
    assert len(splits["train"][0]["frames"]) == 19
    (sports / FRAMES[1]).unlink()
    (sports / FRAMES[1]).mkdir()
    (sports / "train/0001/0001_c3_s1_t0001").symlink_to("/nowhere")
    message = refusal(sports, tmp_path / "again")
    assert all(f"{sports}/{name}" in message for name in (*FRAMES[:2], "train/0009", "train/0001/0001_c3_s1_t0001"))


def test_masks_and_pictures_in_wrong_places_are_named(sports, tmp_path):
    (sports / FRAMES[0]).with_suffix(".png").write_bytes(picture(0))
    (sports / "query/floor plan.jpg").write_bytes(picture(0))
    message = refusal(sports, tmp_path)
    assert "0.jpg and 0.png" in message and f"{sports}/query: " in message and "floor plan.jpg" in message


def test_other_files_and_folders_are_named(sports, tmp_path, caplog):
    (sports / "train/Thumbs.db").write_text("x")
    (sports / FRAMES[0]).with_name("masks").mkdir()
    prepare("sports_vreid", sports, tmp_path, "own")
    assert "2 files or folders are not images" in caplog.text and "Thumbs.db" in caplog.text


def test_a_folder_whose_name_is_not_utf8_is_named(sports, tmp_path):
    os.rename(sports / "train/0001", os.fsencode(sports) + b"/train/\xe9")
    tree = Tree("x", sports)
    assert list(tree.tracklets("train")) == []
    assert tree.errors == [rf"{sports}/train/\xe9: has a name that is not UTF-8"]


def test_numbers_that_no_record_holds_are_named():
    with pytest.raises(UserError, match=r"t1: session 3000000000 .* 2147483647"):
        schema.record(frames=[], tracklet_id="t1", pid=1, role="train", session=3 * 10**9)
    assert schema.record(frames=[], tracklet_id="t1", pid=schema.LARGEST_NUMBER, role="train")["pid"] > 2 * 10**9


def test_people_who_are_not_known_are_no_people_of_two_splits():
    splits = {name: [Tracklet(name, -1, 1, "c", "rgb", ("1.jpg",))] for name in ("train", "query", "gallery")}
    assert identity_remarks(splits) == []


# --- skeletons ------------------------------------------------------------------------------------------------------


def test_folders_of_skeletons_that_would_be_lost_are_named(biwi, tmp_path):  # noqa: F811
    walking = biwi / "Testing/Walking"
    (walking / "011").symlink_to("/nowhere")
    (walking / "1_skel.txt").write_text("")
    os.rename(biwi / "Testing/Still/010", os.fsencode(biwi) + b"/Testing/Still/\xe910")
    message = error("biwi", biwi, tmp_path)
    assert f"{walking}/011: is a link to nothing" in message
    assert f"{walking}: 1_skel.txt" in message and rf"{biwi}/Testing/Still/\xe910" in message


def test_a_folder_of_skeletons_may_be_a_link(biwi, tmp_path):  # noqa: F811
    (biwi / "Training/010").rename(tmp_path / "elsewhere")
    (biwi / "Training/010").symlink_to(tmp_path / "elsewhere")
    _, splits = prepare("biwi", biwi, tmp_path, clip_frames=0)
    assert splits["train"][2]["tracklet_id"] == b"Training/010"


# --- tables and files beside a set ----------------------------------------------------------------------------------


def test_answers_that_are_not_known(detreidx, tmp_path):  # noqa: F811
    rows = [("query", "0024_1000", "nan"), ("query", "0024_5453", "None"), ("query", "0025_7", 301)]
    rows += [("gallery", "0024_9", 301), ("gallery", "0025_8", "-1")]
    write_answers(detreidx, [(1, split, tracklet, pid, "NaN") for split, tracklet, pid in rows])
    _, splits = prepare("detreidx", detreidx, tmp_path, config="case1_unchecked")
    assert [record["pid"] for name in ("query", "gallery") for record in splits[name]] == [-1, -1, 301, 301, -1]


def test_captions_in_another_unicode_form_and_of_nobody_known(tmp_path):
    composed = "T\u00fcr/t0"
    lines = [
        {"tracklet": unicodedata.normalize("NFD", composed), "pid": float("nan"), "caption": "one"},
        {"tracklet": "b/t0", "pid": -1, "caption": "two"},
        {"pid": -1, "caption": "of everybody whom nobody knows"},
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    tracklets = [(composed, -1), ("b/t0", 5), ("c/t0", -1)]
    assert read_captions(path, "folder", tracklets).texts == {composed: ["one"], "b/t0": ["two"]}
    path.write_text(json.dumps(lines[2]) + "\n")
    with pytest.raises(UserError, match="line 1: names neither a tracklet nor a pid"):
        read_captions(path, "folder", tracklets)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("home", ["", "poses/"])
def test_files_of_frames_are_found_in_any_unicode_form(tmp_path, form, home):
    name = "T\u00fcr/t0/\u00e9"
    path = tmp_path / unicodedata.normalize(form, f"{home}{name}.pose")
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    for asked in ("NFC", "NFD"):
        found = FrameFiles(tmp_path, ".pose").path(unicodedata.normalize(asked, f"{name}.jpg"))
        assert found is not None and found.samefile(path)
