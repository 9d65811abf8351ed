"""The tables of docs/datasets.md say what the code does: a data set's row is made anew from its miniature, a protocol's
from the tests that hold it."""

import inspect
import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import test_metrics
import test_protocols
from mars_trees import write_tree
from test_ag_vpreid_builder import tree as ag_vpreid  # noqa: F401
from test_bupt_campus_builder import tree as bupt_campus  # noqa: F401
from test_captioned_builders import tree as captioned  # noqa: F401
from test_ccvid_builder import tree as ccvid  # noqa: F401
from test_detreidx_builder import tree as detreidx  # noqa: F401
from test_folder_builder import GOOD_ROWS, write_table
from test_folder_builder import tree as pictures  # noqa: F401
from test_hitsz_vcm_builder import tree as hitsz_vcm  # noqa: F401
from test_ls_vid_builder import tree as ls_vid  # noqa: F401
from test_mars_builder import G2A_TEST, G2A_TRAIN
from test_mars_builder import tree as mars  # noqa: F401
from test_mevid_builder import tree as mevid  # noqa: F401
from test_skeleton_builders import FOLDERS, FRAMES, PEOPLE, biwi, ks20, write_sequence  # noqa: F401
from test_two_camera_builders import ilids, prid  # noqa: F401

from jaxreid.data import schema
from jaxreid.data.build import build
from jaxreid.data.builders import builder_names
from jaxreid.data.prepared import read_metadata
from jaxreid.retrieval.protocols import PROTOCOLS

DOCUMENT = Path(__file__).parents[1] / "docs" / "datasets.md"
SETS = "| data set | splits | records also say | counts checked | protocols |"
GOLD = "| protocol | gold checks |"
# What the records of every set say, beside what the schema requires.
EVERYWHERE = {"cam_name", "camid", "frame_index", "frame_names", "label", "num_frames_source", "source"}
FIXTURES = {
    "ilids_vid": "ilids", "prid2011": "prid", "sports_vreid": "captioned", "dance_vreid": "captioned",
}  # fmt: skip
UNPUBLISHED = ("folder", "sports_vreid", "dance_vreid")  # of these there are no counts that a miniature could miss
WALKERS = {"walkers": "tiny", "walkers/aerial": "tiny_aerial", "walkers/clothes": "tiny_clothes"}
NAMES = [*WALKERS, *(name for name in builder_names() if name != "walkers")]
SCORED = [key for key, protocol in PROTOCOLS.items() if protocol.scored]
CODES = {"modality": schema.MODALITIES, "platform": schema.PLATFORMS}


def is_said(feature, value):
    """Whether a record knows a feature."""
    if feature in CODES:
        value = CODES[feature][value]
    value = value.decode() if isinstance(value, bytes) else np.asarray(value)
    unknown = np.asarray(schema.SENTINELS[feature])
    if isinstance(value, str) or value.shape != unknown.shape:
        return str(value) != str(unknown)
    return not np.array_equal(value, unknown, equal_nan=unknown.dtype.kind == "f")


def gold_checks(protocol):
    """Names of the tests that compare scores of a protocol with numbers worked out beforehand."""
    tests = {**vars(test_metrics), **vars(test_protocols)}
    return [
        name.removeprefix("test_").removesuffix("_gold")
        for name, test in tests.items()
        if name.startswith("test_") and name.endswith("_gold") and f'"{protocol}"' in inspect.getsource(test)
    ]


def row(name, path):
    """The line of a data set in the table, from what was built of its miniature."""
    builder, facts = tfds.builder_from_directory(str(path)), read_metadata(path)
    splits = {split: list(builder.as_data_source(split)) for split in builder.info.splits}
    records = [record for members in splits.values() for record in members]
    said = {feature for feature in schema.SENTINELS for record in records if is_said(feature, record[feature])}
    assert said >= EVERYWHERE, EVERYWHERE - said
    cells = (
        f"`{name}`",
        ", ".join(splits),
        ", ".join(sorted(said - EVERYWHERE)) or "—",
        "yes" if facts.get("differences") else "—",  # those of a miniature; sets that none were published of have none
        ", ".join(f"`{protocol}`" for protocol in facts["protocols"]),
    )
    return f"| {' | '.join(cells)} |"


def written_rows(header):
    """The lines of a table by the first word in back quotes."""
    lines = iter(DOCUMENT.read_text().splitlines())
    assert header in lines and set(next(lines)) == set("|-")
    return {line.split("`")[1]: line for line in itertools.takewhile(lambda line: line.startswith("|"), lines)}


@pytest.fixture
def g2a_vreid(tmp_path):
    write_tree(tmp_path / "g2a", G2A_TRAIN, G2A_TEST, [1, 3, 5])
    return tmp_path / "g2a"


@pytest.fixture
def ias_lab(tmp_path):
    for split, folder in FOLDERS["ias_lab"].items():
        for person in PEOPLE:
            write_sequence(tmp_path / "raw", f"{folder}/{person}", FRAMES[split])
    return tmp_path / "raw"


@pytest.fixture
def folder(pictures):  # noqa: F811
    write_table(pictures, GOOD_ROWS)
    return pictures


@pytest.mark.parametrize("name", NAMES)
def test_the_row_of_a_data_set(name, tmp_path, data_dir, request):
    if name in WALKERS:
        path = build("walkers", WALKERS[name], data_dir=data_dir)
    else:
        options = {} if name in UNPUBLISHED else {"strict_counts": False}
        source = request.getfixturevalue(FIXTURES.get(name, name))
        path = build(name, source=source, data_dir=tmp_path / "data", **options)
    expected = row(name, path)
    assert written_rows(SETS).get(name) == expected, f"{DOCUMENT} should have the line\n{expected}"


@pytest.mark.parametrize("protocol", SCORED)
def test_the_row_of_a_protocol(protocol):
    found = gold_checks(protocol)
    expected = f"| `{protocol}` | {', '.join(found)} |"
    assert found and written_rows(GOLD).get(protocol) == expected, f"{DOCUMENT} should have the line\n{expected}"


def test_the_tables_have_no_other_rows():
    assert (list(written_rows(SETS)), list(written_rows(GOLD))) == (NAMES, SCORED)
