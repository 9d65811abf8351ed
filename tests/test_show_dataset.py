"""The page of a data set: what it shows of whom, and what it says."""

import html.parser
import re
import types

import cv2
import numpy as np
import pytest
from messages import says
from test_mars_builder import tree as mars  # noqa: F401

from jaxreid.data.build import build
from jaxreid.data.prepared import split_counts
from jaxreid.data.split import open_split
from jaxreid.report import dataset_page
from jaxreid.report.pictures import skeleton
from jaxreid.tools import show_dataset as tool


class Outline(html.parser.HTMLParser):
    """Tags that are open at the end, pictures, and the texts of headings."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        elif tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h4"):
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def aerial(data_dir):
    return build("walkers/tiny_aerial", data_dir=data_dir)


def test_the_page_shows_every_split_and_needs_nothing_beside_it(aerial):
    text = dataset_page.render(aerial, "walkers/tiny_aerial", persons=2, tracklets=3)
    outline = Outline(text)
    assert outline.open == [] and outline.headings[0] == "walkers/tiny_aerial"
    assert {*split_counts(aerial), "Data", "Facts"} <= set(outline.headings)
    # Two persons a split, each at most three tracklets of four frames.
    people = [heading for heading in outline.headings if heading.startswith("person ")]
    assert len(people) == 2 * 7 and people[:2] == ["person 1", "person 6"]
    assert len(outline.pictures) <= 2 * 7 * 3 * 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in outline.pictures)
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and "<script" not in text
    for words in ("Camera 0 ground", "Camera 1 uav1", "Tracklet length, query_case3", "uav, ", "session 2",
                  "captions, joints3d, keypoints, silhouettes", "aerial_to_ground"):  # fmt: skip
        assert words in text, words


def test_persons_and_tracklets_are_spread(aerial):
    split = open_split(aerial, "train")
    found = dataset_page.sample(split, {0: "ground"}, persons=3, tracklets=4)
    assert (found.name, found.known) == ("train", 6)
    assert [person.title for person in found.persons] == ["person 1", "person 3", "person 6"]
    for person in found.persons:
        assert all(1 <= len(tracklet.pictures) <= 4 for tracklet in person.tracklets) and len(person.tracklets) <= 4


def test_kinds_come_before_repetitions():
    """Cameras 1, 1, 1, 2, 3: three rows show three cameras, four one of them twice; two the first and the last."""
    table = types.SimpleNamespace(
        camera=np.array([9, 1, 1, 1, 2, 3]), modality=np.zeros(6, int), session=np.full(6, -1)
    )
    clothes, rows = np.full(6, -1), np.arange(1, 6)
    assert dataset_page.spread(table, clothes, rows, 3) == [1, 4, 5]
    assert dataset_page.spread(table, clothes, rows, 4) == [1, 2, 4, 5]
    assert dataset_page.spread(table, clothes, rows, 9) == [1, 2, 3, 4, 5]
    assert dataset_page.spread(table, clothes, rows, 2) == [1, 5]


def test_a_skeleton_is_drawn_upright():
    joints = np.array([[0, 1.7, 0], [0, 0, 0], [0.4, 0.9, 0]])
    picture = cv2.imdecode(np.frombuffer(skeleton(joints), np.uint8), cv2.IMREAD_COLOR)
    dark = np.argwhere(picture.min(-1) < 200)
    assert picture.shape == (96, 96, 3)
    assert dark[:, 0].min() < 15 and dark[:, 0].max() > 80 and dark[:, 1].min() < dark[:, 1].max()


def test_remarks_of_the_builder_come_first():
    lines = dataset_page._problems(
        {"warnings": ["3 ids are in both"], "differences": [], "excluded_frames": {"a.jpg": "cut"}}
    )
    assert lines == ["3 ids are in both", "frames that were left out: a.jpg: cut"]


def test_the_command_line(tmp_path, data_dir, aerial, capsys):
    out = tmp_path / "deep" / "page.html"
    assert tool.main(["walkers/tiny_aerial", "--data_dir", str(data_dir), "--out", str(out), "--persons", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(out) and out.read_text().startswith("<!doctype html>")
    assert tool.main(["walkers/nothing", "--data_dir", str(data_dir)]) == 2
    says(capsys.readouterr().err, "'nothing'")


def test_the_page_is_named_after_what_was_built(mars, tmp_path, capsys, monkeypatch):  # noqa: F811
    """A set that is not the published one must not take the published one's page."""
    monkeypatch.chdir(tmp_path)
    unchecked = ["--option", "strict_counts=False"]
    assert tool.main(["mars", "--source", str(mars), "--data_dir", str(tmp_path / "data"), *unchecked]) == 0
    assert capsys.readouterr().out.strip() == "runs/datasets/mars-standard_unchecked.html"
    assert "<h1>mars/standard_unchecked</h1>" in (tmp_path / "runs/datasets/mars-standard_unchecked.html").read_text()
    assert tool.main(["mars", "--data_dir", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.endswith(f"Prepared in {tmp_path / 'data' / 'mars'}: standard_unchecked\n")
