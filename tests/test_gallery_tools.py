"""`jaxreid embed` and `jaxreid search` on a finished run, as they are typed."""

import html.parser
import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from messages import says

import jaxreid
from jaxreid.data.split import open_split
from jaxreid.footage import sources
from jaxreid.report.search_page import clock
from jaxreid.retrieval import Gallery, add_to_gallery
from jaxreid.tools import embed, search


@pytest.fixture(scope="module")
def people(tmp_path_factory, tiny):
    """Tracklets of `walkers/tiny` as pictures in folders: two cameras, three tracklets each, and their table."""
    folder = tmp_path_factory.mktemp("footage") / "people"
    split = open_split(tiny, "gallery")
    reader = split.reader(cache=False)
    lines = ["camera,tracklet,identity,modality,split,start_time,end_time"]
    for number, row in enumerate(np.linspace(0, len(split) - 1, 6).astype(int)):
        camera, name = ("door", "yard")[number % 2], f"t{number:02d}"
        place = folder / camera / name
        place.mkdir(parents=True)
        for frame, data in enumerate(reader.encoded(int(row))[: 2 + number % 3]):
            (place / f"{frame + 9}.png").write_bytes(
                cv2.imencode(".png", cv2.imdecode(np.frombuffer(data, np.uint8), 1))[1]
            )
        lines.append(f"{camera},{name},,rgb,,{61.25 * number},{61.25 * number + 2}")
    (folder / "tracklets.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def gallery(workdir, people, tmp_path_factory):
    directory = tmp_path_factory.mktemp("galleries") / "people.gallery"
    assert run_embed(people, workdir, directory) == 0
    return directory


def run_embed(source, workdir, gallery, *more):
    return embed.main([str(source), "--checkpoint", str(workdir), "--gallery", str(gallery), "--batch", "8", *more])


def run_search(gallery, query, out, *more):
    return search.main(["--gallery", str(gallery), "--query", str(query), "--out", str(out), *more])


def rows_of(printed):
    """The printed tables as lists of cells, one table per query."""
    tables = []
    for line in printed.splitlines():
        cells = re.split(r"  +", line)
        if cells[0] == "rank":
            tables.append([])
        elif cells[0].isdigit():
            tables[-1].append(cells)
    return tables


def test_a_folder_becomes_rows(gallery, people, workdir):
    found = Gallery(gallery)
    assert len(found) == 6
    names = [
        f"{camera}/t{number:02d}"
        for camera in ("door", "yard")
        for number in range(6)
        if (number % 2) == (camera == "yard")
    ]
    embedder = jaxreid.load(workdir, batch_size=8)
    assert found.model == embedder.identity
    for row, name in enumerate(names):
        number = int(name[-2:])
        files = sorted((people / name).iterdir(), key=lambda file: int(file.stem))  # 9.png before 10.png
        frames = [cv2.imread(str(file))[..., ::-1] for file in files]
        assert found.metadata(row) == {
            "source": str(people), "time": 61.25 * number, "camera": name[:4], "modality": "rgb", "tracklet": name,
            "frames": 2 + number % 3,
        }  # fmt: skip
        np.testing.assert_allclose(found[row : row + 1][0], embedder.embed([frames])[0], atol=1e-5)
        picture = cv2.imdecode(np.frombuffer(found.picture(row), np.uint8), 1)
        middle = frames[len(frames) // 2]
        assert max(picture.shape) == min(128, max(middle.shape)) and len(found.picture(row)) < 8000
        shrunk = cv2.resize(middle, picture.shape[1::-1], interpolation=cv2.INTER_AREA)[..., ::-1]
        assert np.abs(picture.astype(int) - shrunk).mean() < 6  # JPEG


def test_the_same_line_again_adds_nothing(gallery, people, workdir, tmp_path, capsys, monkeypatch):
    """Nor does a line that was interrupted and typed again add anything twice."""
    directory = tmp_path / "again"
    monkeypatch.setattr(embed, "TRACKLETS_AT_ONCE", 2)
    whole = add_to_gallery

    def third_is_interrupted(directory, *arguments):
        if (directory / "gallery.json").exists() and len(Gallery(directory)) == 4:
            raise KeyboardInterrupt
        return whole(directory, *arguments)

    monkeypatch.setattr(embed, "add_to_gallery", third_is_interrupted)
    assert run_embed(people, workdir, directory) == 130
    assert len(Gallery(directory)) == 4
    monkeypatch.setattr(embed, "add_to_gallery", whole)
    assert run_embed(people, workdir, directory) == 0
    says(capsys.readouterr().out, 2, "tracklets", 4)
    assert run_embed(people, workdir, directory) == 0
    says(capsys.readouterr().out, "0 tracklets", 6)
    one, other = Gallery(gallery), Gallery(directory)
    assert [one.metadata(row) for row in range(6)] == [other.metadata(row) for row in range(6)]
    np.testing.assert_allclose(one[0:6], other[0:6], atol=1e-5)


def test_two_lines_at_once_add_nothing_twice(people, workdir, tmp_path, capsys, monkeypatch):
    directory, whole, seen = tmp_path / "twice", add_to_gallery, []

    def meanwhile(*arguments):
        monkeypatch.setattr(embed, "add_to_gallery", whole)
        seen.append(run_embed(people, workdir, directory))
        return whole(*arguments)

    monkeypatch.setattr(embed, "add_to_gallery", meanwhile)
    assert run_embed(people, workdir, directory) == 0
    assert seen == [2]
    says(capsys.readouterr().err, f"process {os.getpid()}", people, directory)
    assert len(Gallery(directory)) == 6


def test_what_does_not_belong_is_refused(gallery, people, workdir, data_dir, tmp_path, capsys):
    changed = shutil.copytree(people, tmp_path / "people")
    directory = shutil.copytree(gallery, tmp_path / "gallery")
    for line in directory.glob("*.jsonl"):
        line.write_text(line.read_text().replace(str(people), str(changed)))
    (changed / "door" / "t02" / "9.png").unlink()
    assert run_embed(changed, workdir, directory) == 2
    says(capsys.readouterr().err, "1 tracklets", "door/t02")
    manifest = json.loads((directory / "gallery.json").read_text())
    manifest["model"] |= {"digest": "0" * 64, "workdir": "runs/elsewhere"}
    (directory / "gallery.json").write_text(json.dumps(manifest))
    for line in (lambda: run_embed(people, workdir, directory), lambda: run_search(
        directory, people / "door" / "t00", tmp_path / "page.html", "--checkpoint", str(workdir)
    )):  # fmt: skip
        assert line() == 2
        error = capsys.readouterr().err
        assert "another model" in error and "runs/elsewhere" in error
    assert len(Gallery(directory)) == 6
    assert run_embed("nowhere", workdir, directory) == 2
    says(capsys.readouterr().err, "nowhere")
    broken = tmp_path / "broken" / "door" / "t1"
    broken.mkdir(parents=True)
    (broken / "1.jpg").write_bytes(b"no picture")
    assert run_embed(tmp_path / "broken", workdir, tmp_path / "new") == 2
    says(capsys.readouterr().err, "door/t1/1.jpg", "decoded")
    assert not (tmp_path / "new" / "gallery.json").exists()


def test_a_data_set_becomes_rows_as_evaluation_sees_it(workdir, data_dir, tiny, tmp_path, capsys):
    assert run_embed("walkers/tiny", workdir, tmp_path / "g", "--split", "query", "--data_dir", str(data_dir)) == 0
    found, split = Gallery(tmp_path / "g"), open_split(tiny, "query")
    known = [found.metadata(row) for row in range(len(found))]
    assert [row["tracklet"] for row in known] == list(split.labels.names)
    assert {row["source"] for row in known} == {"walkers/tiny:query"} and {row["time"] for row in known} == {None}
    assert {row["modality"] for row in known} == {"ir"}
    expected = jaxreid.load(workdir, batch_size=8).embed_split(split)
    np.testing.assert_allclose(found[0 : len(found)], expected, atol=1e-5)


def test_search_ranks_by_cosine(gallery, people, tmp_path, capsys):
    found = Gallery(gallery)
    names = [found.metadata(row)["tracklet"] for row in range(6)]
    cosine = found[0:6] @ found[0:6].T
    # A tracklet of the gallery, which does not find itself.
    assert run_search(gallery, "yard/t03", tmp_path / "page.html", "--top", "4") == 0
    query = names.index("yard/t03")
    order = [row for row in np.argsort(-cosine[query], kind="stable") if row != query][:4]
    (table,) = rows_of(capsys.readouterr().out)
    assert [row[-1] for row in table] == [names[row] for row in order]
    assert [row[1] for row in table] == [f"{cosine[query, row]:.3f}" for row in order]
    assert table[0][2:5] == [str(people), clock(found.metadata(order[0])["time"]), names[order[0]][:4]]
    # Its folder finds it, and only the other camera's without its own.
    assert run_search(gallery, people / "yard" / "t03", tmp_path / "page.html") == 0
    (table,) = rows_of(capsys.readouterr().out)
    assert len(table) == 6 and table[0][1] == "1.000" and table[0][-1] == "yard/t03"
    assert run_search(gallery, "yard/t03", tmp_path / "page.html", "--exclude_camera", "own") == 0
    (table,) = rows_of(capsys.readouterr().out)
    assert sorted(row[-1] for row in table) == ["door/t00", "door/t02", "door/t04"]
    # A folder of tracklets is many queries; a picture is one.
    assert run_search(gallery, people, tmp_path / "page.html", "--top", "1", "--exclude_camera", "door") == 0
    assert [table[0][4] for table in rows_of(capsys.readouterr().out)] == ["yard"] * 6
    assert run_search(gallery, people / "door" / "t00" / "9.png", tmp_path / "page.html") == 0
    assert len(rows_of(capsys.readouterr().out)[0]) == 6
    for query, more, error in (
        ("yard/t99", (), "no tracklet of the gallery"),
        ("yard/t03", ("--exclude_camera", "roof"), "no tracklet of the gallery is of camera 'roof'; it has door, yard"),
        ("yard/t03", ("--top", "0"), "k must be at least 1"),
    ):
        assert run_search(gallery, query, tmp_path / "none.html", *more) == 2
        assert error in capsys.readouterr().err
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_pictures_are_known_by_their_content(gallery, people, workdir, tmp_path, capsys, suffix):
    """As a query and as a source, also under the name of another format; a folder of them is one tracklet."""
    picture = cv2.imread(str(people / "door" / "t00" / "9.png"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in (f"a{suffix}", f"b{suffix}"):
        (folder / name).write_bytes(cv2.imencode(suffix, picture)[1].tobytes())
    renamed = shutil.copy(folder / f"a{suffix}", tmp_path / "renamed.jpg")
    for query in (folder / f"a{suffix}", folder, renamed):
        assert run_search(gallery, query, tmp_path / "page.html") == 0
        (table,) = rows_of(capsys.readouterr().out)
        assert len(table) == 6
    assert run_embed(folder, workdir, tmp_path / "new") == 0 and len(Gallery(tmp_path / "new")) == 1
    (camera := tmp_path / "cameras" / "door" / "t1").mkdir(parents=True)
    shutil.copy(folder / f"a{suffix}", camera)
    assert run_embed(tmp_path / "cameras", workdir, tmp_path / "new") == 0 and len(Gallery(tmp_path / "new")) == 2


def test_what_is_neither_a_picture_nor_a_video_is_told_what_is_accepted(gallery, workdir, tmp_path, capsys):
    for name, content in (("notes.txt", b"somebody\n" * 40), ("cut.png", b"\x00" * 64), ("door.mp4", b"\x00" * 64)):
        (tmp_path / name).write_bytes(content)
        for line in (
            lambda path: run_search(gallery, path, tmp_path / "page.html"),
            lambda path: run_embed(path, workdir, tmp_path / "new"),
        ):
            assert line(tmp_path / name) == 2
            error = capsys.readouterr().err
            assert str(tmp_path / name) in error
            says(error, "JPEG", "PNG", "WebP", "BMP", "TIFF", "folder", "video")


def test_own_camera_of_a_query_without_one_is_explained(gallery, people, tmp_path, capsys):
    picture = people / "door" / "t00" / "9.png"
    assert run_search(gallery, picture, tmp_path / "page.html", "--exclude_camera", "own") == 2
    says(capsys.readouterr().err, "--exclude_camera own", "9.png", "door", "yard")


def test_search_through_an_index(gallery, tmp_path, capsys):
    pytest.importorskip("faiss")
    tables = []
    for more in ((), ("--index", "--candidates", "6")):
        assert (
            run_search(shutil.copytree(gallery, tmp_path / f"g{len(more)}"), "door/t02", tmp_path / "p.html", *more)
            == 0
        )
        tables += rows_of(capsys.readouterr().out)
    assert tables[0] == tables[1]


def test_the_page_shows_what_was_found(gallery, tmp_path, capsys):
    assert run_search(gallery, "yard/t03", tmp_path / "page.html", "--top", "3") == 0
    (table,) = rows_of(capsys.readouterr().out)
    text = (tmp_path / "page.html").read_text()
    images, ranks = [], []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            known = dict(attributes)
            if tag == "img":
                images.append(known["src"][:22])
                ranks.append(known["alt"])
            assert not {"src", "href"} & set(known) or known.get("src", known.get("href"))[0] in "d#"  # all is inside

    Reader().feed(text)
    assert ranks == ["Query yard/t03, picture 1 of 1", *(f"Rank {row[0]}: {row[-1]}" for row in table)]
    assert set(images) == {"data:image/jpeg;base64"}
    for row in table:
        assert f"<td>{row[1]}</td>" in text and f">{row[1]}</span>" in text
    assert "Among 6 tracklets" in text


def test_two_tracklets_of_one_name_are_told_apart(gallery, tmp_path, capsys):
    directory = shutil.copytree(gallery, tmp_path / "gallery")
    known = Gallery(directory).metadata(0) | {"source": "elsewhere"}
    add_to_gallery(directory, Gallery(directory)[1:2], [known])
    assert run_search(directory, known["tracklet"], tmp_path / "page.html") == 2
    says(capsys.readouterr().err, 2, "tracklets", "gallery", "door/t00")
    assert run_search(directory, f"elsewhere/{known['tracklet']}", tmp_path / "page.html", "--top", "1") == 0
    assert rows_of(capsys.readouterr().out)[0][0][-1] == Gallery(directory).metadata(1)["tracklet"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0, "0:00.0"), (75.24, "1:15.2"), (59.97, "1:00.0"), (3723.4, "1:02:03.4")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_a_video_is_detected_once(monkeypatch, tmp_path, people):
    """Tracklets of a video are made in a folder of the gallery and used again as long as the file is the same."""
    video, made, infrared = tmp_path / "hall.mp4", [], sources.SourceOptions(modality="ir")
    video.write_bytes(b"frames")

    def make(videos, out, modality):
        made.append((videos, modality))
        shutil.copytree(people, out)

    monkeypatch.setattr(sources, "make_tracklets", make)
    one, again = (sources.video_source(video, tmp_path / "crops", infrared) for _ in range(2))
    assert made == [([video], "ir")]
    assert one.name == again.name == str(video) and one.metadata(5) == again.metadata(5)
    assert (one.metadata(0)["source"], one.metadata(0)["camera"]) == (str(video), "door")
    video.write_bytes(b"other frames")
    sources.video_source(video, tmp_path / "crops", infrared)
    assert len(made) == 2
