"""What people have in folders of their own: odd names, tables of other tools, links and masks. Nothing is lost."""

import os
import unicodedata

import pytest
import tensorflow_datasets as tfds
from picture_files import claims
from test_folder_builder import jpeg, write_table

from jaxreid.data.build import build
from jaxreid.data.building import contents
from jaxreid.data.names import known, nfc, printable
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError


@pytest.fixture
def people(tmp_path):
    """Cameras a and b with tracklets t0 to t2 of four frames."""
    root = tmp_path / "people"
    for number, name in enumerate(f"{c}/t{t}/{f:04d}.jpg" for c in "ab" for t in range(3) for f in range(4)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(number))
    return root


def prepared(root, tmp_path, **options):
    path = build("folder", source=root, data_dir=tmp_path / "data", **options)
    builder = tfds.builder_from_directory(str(path))
    return path, {name: list(builder.as_data_source(name)) for name in builder.info.splits}


def refusal(root, tmp_path, **options):
    with pytest.raises(DataSetError) as raised:
        build("folder", source=root, data_dir=tmp_path / "data", **options)
    return str(raised.value)


def rows(identities, cameras="ab"):
    """Of t0 in train, t1 and t2 in query (a) and gallery (b)."""
    return [
        (camera, f"t{t}", identities[t], "rgb", "train" if t == 0 else "gallery" if number else "query")
        for number, camera in enumerate(cameras)
        for t in range(3)
    ]


# --- identities ----------------------------------------------------------------------------------------------------


def test_identities_that_no_record_holds_are_ranked(people, tmp_path):
    write_table(people, rows(["20231105003", "20231105001", "20231105002"]))
    path, splits = prepared(people, tmp_path)
    assert read_metadata(path)["identity_names"] == {str(n): f"2023110500{n}" for n in (1, 2, 3)}
    assert [record["pid"] for name in ("train", "query") for record in splits[name]] == [3, 3, 1, 2]


@pytest.mark.parametrize("unknown", ["nan", "NaN", "None", "-1", "-1.0", " ", "NONE"])
def test_identities_that_tables_do_not_know(people, tmp_path, unknown):
    write_table(people, rows(["5", unknown, unknown]))
    path, splits = prepared(people, tmp_path)
    assert {record["pid"] for name in ("query", "gallery") for record in splits[name]} == {-1}
    assert read_metadata(path)["protocols"] == ["none"] and read_metadata(path)["train_pids"] == [5]


def test_other_cells_that_tables_do_not_know(people, tmp_path):
    columns = ["camera", "tracklet", "identity", "modality", "split", "recording", "start_time"]
    write_table(people, [(c, f"t{t}", "nan", "NaN", "nan", "nan", "nan") for c in "ab" for t in range(3)], columns)
    _, splits = prepared(people, tmp_path)
    assert {(record["recording"], record["modality"]) for record in splits["train"]} == {(b"", 0)} and len(splits) == 3


def test_identities_of_folders_that_no_record_holds_are_named(tmp_path):
    name = "20231105001"
    for split in ("train", "query", "gallery"):
        folder = tmp_path / "raw" / split / name / f"{name}_c1_s1_t0001"
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(jpeg(0))
    with pytest.raises(DataSetError, match=rf"train/{name}: .* 2147483647"):
        build("sports_vreid", source=tmp_path / "raw", data_dir=tmp_path)


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_match_in_any_unicode_form(people, tmp_path, on_disk):
    composed = "T\u00fcr"
    (people / "a").rename(people / unicodedata.normalize(on_disk, composed))
    other = {"NFC": "NFD", "NFD": "NFC"}[on_disk]
    people_named = [unicodedata.normalize(form, "J\u00f6rg") for form in ("NFC", "NFD", "NFC")]
    write_table(people, rows(people_named, [unicodedata.normalize(other, composed), "b"]))
    path, splits = prepared(people, tmp_path)
    assert read_metadata(path)["identity_names"] == {"1": "J\u00f6rg"}
    assert {record["cam_name"].decode() for record in splits["query"]} == {composed}
    assert splits["query"][0]["tracklet_id"].decode() == f"{composed}/t1" and len(splits["query"][0]["frames"]) == 4


def test_two_folders_of_one_name_are_named(people, tmp_path):
    for form in ("NFC", "NFD"):
        folder = people / unicodedata.normalize(form, "T\u00fcr") / "t0"
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(jpeg(1))
    assert "two Unicode forms" in refusal(people, tmp_path)


def test_a_frame_whose_name_is_not_utf8_is_named_and_left_out(people, tmp_path, caplog):
    folder = os.fsencode(people / "a" / "t0")
    os.rename(folder + b"/0000.jpg", folder + b"/\xe91.jpg")
    path, splits = prepared(people, tmp_path)
    assert [fault["path"] for fault in read_metadata(path)["excluded_frames"]] == [r"a/t0/\xe91.jpg"]
    assert r"a/t0/\xe91.jpg" in caplog.text and len(splits["train"][0]["frames"]) == 3


@pytest.mark.parametrize("where", ["camera", "tracklet", "source"])
def test_a_folder_whose_name_is_not_utf8_is_named(people, tmp_path, where):
    old = {"camera": people / "a", "tracklet": people / "a" / "t0", "source": people}[where]
    new = os.fsencode(old.parent) + b"/\xe9"
    os.rename(old, new)
    source = people if where != "source" else os.fsdecode(new)
    assert f"{old.parent}/\\xe9" in refusal(source, tmp_path)


def test_cells_and_names():
    assert [known(cell) for cell in (None, " nan ", "Nancy", "-10", "none", "u\u0308")] == [
        "",
        "",
        "Nancy",
        "-10",
        "",
        "\u00fc",
    ]
    assert nfc("u\u0308") == "\u00fc" and printable(os.fsdecode(b"\xe9\xc3\xa9")) == "\\xe9\u00e9"


# --- what is no frame ----------------------------------------------------------------------------------------------


def test_links_to_nothing_are_counted_and_named(people, tmp_path, caplog):
    (people / "a/t0/0009.jpg").symlink_to("/nowhere/a.jpg")
    path, _ = prepared(people, tmp_path)
    assert "a/t0/0009.jpg" in caplog.text and len(read_metadata(path)["excluded_frames"]) == 1
    (people / "b/t9").symlink_to("/nowhere/t9")
    (people / "c").symlink_to("/nowhere/c")
    message = refusal(people, tmp_path)
    assert "3 of 27 frames" in message and all(f"{people}/{name}" in message for name in ("a/t0/0009.jpg", "b/t9", "c"))
    assert len(read_metadata(prepared(people, tmp_path, max_excluded=0.2)[0])["excluded_frames"]) == 3


def test_a_link_to_itself_is_one_to_nothing(people, tmp_path, caplog):
    (people / "a/t0/0009.jpg").symlink_to(people / "a/t0/0009.jpg")
    assert len(prepared(people, tmp_path)[1]["train"][0]["frames"]) == 4
    assert "a/t0/0009.jpg" in caplog.text


def test_a_link_to_a_folder_or_a_frame_is_one(people, tmp_path):
    (people / "b/t9").symlink_to(people / "a/t0")
    (people / "b/t0/0009.jpg").symlink_to(people / "a/t0/0000.jpg")
    _, splits = prepared(people, tmp_path)
    assert [len(record["frames"]) for record in splits["train"]] == [4, 4, 4, 5, 4, 4, 4]


def test_folders_in_the_place_of_frames_are_named(people, tmp_path, caplog):
    (people / "a/t0/0009.jpg").mkdir()
    (people / "a/t1/masks").mkdir()
    path, _ = prepared(people, tmp_path)
    assert [fault["path"] for fault in read_metadata(path)["excluded_frames"]] == ["a/t0/0009.jpg"]
    assert f"{people}/a/t1" in caplog.text and "masks" in caplog.text


def test_a_tracklet_without_a_frame_that_can_be_used_is_named_with_what_it_has(people, tmp_path):
    (people / "a/t9").mkdir()
    (people / "a/t9/1.jpg").symlink_to("/nowhere/1.jpg")
    message = refusal(people, tmp_path)
    assert f"{people}/a/t9" in message and "1.jpg is a link" in message


@pytest.mark.parametrize("mask", ["0000.png", "0000.JPG"])
def test_a_mask_beside_its_frame_is_named(people, tmp_path, mask):
    (people / "a/t0" / mask).write_bytes(jpeg(7))
    message = refusal(people, tmp_path)
    assert f"{people}/a/t0" in message and mask in message and "0000.jpg" in message


def test_pictures_beside_the_cameras_are_named(people, tmp_path):
    (people / "floor plan.png").write_bytes(jpeg(7))
    assert "floor plan.png" in refusal(people, tmp_path)


def test_a_header_of_another_size_is_as_any_damage(people, tmp_path):
    (people / "a/t0/0000.jpg").write_bytes(claims(jpeg(0), 65500, 65500))
    path, splits = prepared(people, tmp_path)
    (fault,) = read_metadata(path)["excluded_frames"]
    assert fault["path"] == "a/t0/0000.jpg" and "65500" in fault["fault"] and len(splits["train"][0]["frames"]) == 3


def test_every_tree_of_frames_is_read_in_the_same_way(tmp_path):
    """`folder` and the recorded sets share how a directory is listed."""
    for name in ("2.jpg", "10.jpg", "10.png", "note.txt", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to("/nowhere")
    found = contents.list_frames(tmp_path)
    assert found.images == ["2.jpg", "10.jpg", "10.png"] and found.twins == ["10.jpg and 10.png"]
    assert found.others == ["note.txt"] and found.faults == [("gone.jpg", "is a link to nothing")]
    with pytest.raises(DataSetError, match=str(tmp_path / "no")):
        contents.scan(tmp_path / "no")
