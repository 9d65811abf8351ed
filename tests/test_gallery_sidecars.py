"""A folder of one's own and a method that takes key points: make-sidecars, train, embed, search, as they are typed."""

import importlib
import json
import shutil

import cv2
import numpy as np
import pytest
from messages import says
from ml_collections import ConfigDict

import jaxreid
from jaxreid.backbones import imagenet
from jaxreid.backbones.vit import ViTConfig
from jaxreid.data.build import build, find
from jaxreid.data.sidecars import Sidecar
from jaxreid.data.split import open_split
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.footage import sources
from jaxreid.retrieval import Gallery
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import claim_dataset, claim_workdir
from jaxreid.tools import embed, make_sidecars, search
from jaxreid.training import loop
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

SMALL = ViTConfig(
    width=24, depth=2, heads=4, patch=8, image_size=(32, 16), conv_bias=True, pre_norm_embeddings=False,
    activation="gelu", eps=1e-6,
)  # fmt: skip
CHANGES = {
    "backbone.name": "imagenet:small-for-folders", "backbone.checkpoint": "", "frames.height": 32, "frames.width": 16,
    "batch.seq_len": 2, "evaluation.seq_len": 2, "batch.num_identities": 2, "batch.num_instances": 2, "epochs": 1,
    "extraction_batch_size": 8, "mesh.devices": 1, "evaluate_start": False,
}  # fmt: skip
SPLITS = ("train", "query", "gallery")
NAMES = [f"{camera}/{split}{person}" for camera in ("door", "yard") for split in sorted(SPLITS) for person in range(3)]


@pytest.fixture(scope="module")
def people(tmp_path_factory, tiny):
    """Drawn people as pictures: three persons before two cameras, a tracklet of each for every split."""
    folder = tmp_path_factory.mktemp("footage") / "people"
    split = open_split(tiny, "gallery")
    reader, lines = split.reader(cache=False), ["camera,tracklet,identity,modality,split"]
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for frame in range(2):
            picture = reader.decode(number % len(split), frame)[:: -1 if number >= len(split) else 1]
            cv2.imwrite(str(folder / name / f"{frame}.png"), picture[..., ::-1])
        camera, tracklet = name.split("/")
        lines.append(f"{camera},{tracklet},p{name[-1]},rgb,{tracklet[:-1]}")
    (folder / "tracklets.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(people):
    """(workdir of a trained KeyRe-ID, its features of the test splits as evaluation computes them)."""
    assert make_sidecars.main([str(people), "--backend=stripes", f"--data_dir={people.parent / 'data'}"]) == 0
    config = importlib.import_module("configs.keyre_id").get_config("folder")
    config.update_from_flattened_dict(CHANGES | {"dataset.path": str(people)})
    workdir = people.parent / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(imagenet.TOWERS, "small-for-folders", SMALL)
        claim_workdir(workdir, config.to_dict())
        run = start_run(ConfigDict(json.loads((workdir / "config.json").read_text())), workdir, people.parent / "data")
        claim_dataset(workdir, run.dataset, run.method.info)
        loop.train(run, Evaluator(run))
        state, frozen, *_ = restore_judged(run)
        found = Evaluator(run).features(variables_of(state, frozen), state.memory)
        yield (
            workdir,
            {
                name: found[split.name]["feature"][row]
                for split in run.dataset.test_splits
                for row, name in enumerate(split.labels.names)
            },
        )


def run_embed(source, people, run, gallery, *more):
    line = [str(source), f"--checkpoint={run[0]}", f"--gallery={gallery}", f"--data_dir={people.parent / 'data'}"]
    return embed.main([*line, *more])


@pytest.fixture(scope="module")
def gallery(people, run):
    directory = people.parent / "people.gallery"
    assert run_embed(people, people, run, directory) == 0
    return directory


def rows(gallery):
    found = Gallery(gallery)
    return {found.metadata(row)["tracklet"]: found[row : row + 1][0] for row in range(len(found))}


def test_a_folder_has_the_key_points_that_were_made_of_it(people, run, gallery):
    """And its cameras, where the run was trained on it: features are those of the evaluation."""
    found, (workdir, expected) = rows(gallery), run
    assert sorted(found) == sorted(NAMES) and len(expected) == 12
    for name, feature in expected.items():
        np.testing.assert_allclose(found[name], feature, atol=1e-4)
    # Both play a part in them.
    name = "yard/query1"
    frames = [cv2.imread(str(file))[..., ::-1] for file in sorted((people / name).iterdir())]
    directory = build("folder", source=people, data_dir=people.parent / "data")
    points, _ = Sidecar.open(directory, "keypoints").read(name, [0, 1])
    embedder = jaxreid.load(workdir)
    for camera, values, same in ((2, points, True), (1, points, False), (None, points, False), (2, 0 * points, False)):
        feature = embedder.embed(frames, camera=camera, extras={"keypoints": values})
        assert np.allclose(feature, found[name], atol=1e-4) == same


def test_splits_of_a_folder_and_of_the_set_built_of_it(people, run, tmp_path, capsys):
    directory = find("folder", source=people, data_dir=people.parent / "data")
    for source, name in ((people, str(people)), (directory, f"folder/{directory.parent.name}:query")):
        assert run_embed(source, people, run, tmp_path / name.replace("/", "-"), "--split=query") == 0
        found = Gallery(tmp_path / name.replace("/", "-"))
        assert {found.metadata(row)["source"] for row in range(len(found))} == {name}
        features = rows(found.directory)
        assert sorted(features) == [name for name in NAMES if "query" in name]
        for tracklet, feature in features.items():
            np.testing.assert_allclose(feature, run[1][tracklet], atol=1e-4)
    assert run_embed("folder", people, run, tmp_path / "none") == 2
    says(capsys.readouterr().err, "folder", "directory")
    assert run_embed(people, people, run, tmp_path / "none", "--split=val") == 2
    says(capsys.readouterr().err, people, "'val'")


def test_a_folder_of_tracklets_is_a_query(people, gallery, run, tmp_path, capsys):
    line = [f"--gallery={gallery}", f"--data_dir={people.parent / 'data'}", f"--out={tmp_path / 'page.html'}"]
    assert search.main([*line, "--query=door/query0", "--exclude_camera=own"]) == 0
    found = capsys.readouterr().out
    assert "yard/" in found and "door/train" not in found
    assert search.main([*line, f"--query={people / 'yard/query1'}", "--top=1"]) == 0
    assert capsys.readouterr().out.split("\n\n")[0].split()[-1] == "yard/query1"
    assert search.main([*line, f"--query={people}", "--top=1"]) == 0
    found = capsys.readouterr().out.split("\n\n")[: len(NAMES)]
    assert [(table.split()[0], table.split()[-1]) for table in found] == [(name, name) for name in NAMES]


def test_another_folder_has_other_cameras(people, run, tmp_path):
    """Of the same names: a network's rows of cameras are those of its own places."""
    other = tmp_path / "people"
    shutil.copytree(people, other)
    shutil.rmtree(other / "door/train0")
    table = (other / "tracklets.csv").read_text()
    (other / "tracklets.csv").write_text("".join(x for x in table.splitlines(True) if "door,train0," not in x))
    assert make_sidecars.main([str(other), "--backend=stripes", f"--data_dir={tmp_path}"]) == 0
    info = jaxreid.load(run[0]).info
    for folder, data_dir, index in ((people, people.parent / "data", [0] * 9 + [1] * 9), (other, tmp_path, [-1] * 17)):
        options = sources.SourceOptions(data_dir=data_dir, info=info, sidecars=("keypoints",))
        assert sources.folder_source(folder, options).split.table.camera_index.tolist() == index


def test_what_to_do_about_frames_without_key_points(people, run, gallery, tmp_path, capsys, monkeypatch):
    other, video, data = tmp_path / "my people", tmp_path / "hall.mp4", people.parent / "data"
    shutil.copytree(people, other, copy_function=shutil.copy)  # without times: it was never built
    picture = shutil.copy(people / "door/query0/0.png", tmp_path)
    video.write_bytes(b"frames")
    command = "jaxreid make-sidecars '{}' --kind=keypoints --backend=…"

    def refused(source, *parts):
        assert run_embed(source, people, run, tmp_path / "gallery") == 2
        says(capsys.readouterr().err, "keypoints", source, *parts)

    refused(other, command.format(other), f"--data_dir={data}")
    shutil.copytree(people / "door/query0", tmp_path / "query0")
    for loose in (picture, tmp_path / "query0"):
        refused(loose, "FOLDER/<camera>/<tracklet>/", "docs/sidecars.md", "extras=")
    for query in (picture, video):  # nobody is looked for in it
        line = [f"--gallery={gallery}", f"--query={query}", f"--out={tmp_path / 'page.html'}"]
        assert search.main(line) == 2
        says(capsys.readouterr().err, "keypoints", query, "FOLDER/<camera>/<tracklet>/")
    # The tracklets of a video stay in the gallery; what makes their key points is named, and then the same line works.
    monkeypatch.setattr(sources, "make_tracklets", lambda videos, out, modality: shutil.copytree(people, out))
    assert run_embed(video, people, run, tmp_path / "gallery") == 2
    (crops,) = (tmp_path / "gallery" / "crops").iterdir()
    says(capsys.readouterr().err, "keypoints", f"make-sidecars {crops} --kind=keypoints", f"--data_dir={data}")
    assert make_sidecars.main([str(crops), "--backend=stripes", f"--data_dir={data}"]) == 0
    assert run_embed(video, people, run, tmp_path / "gallery") == 0
    assert len(Gallery(tmp_path / "gallery")) == len(NAMES)
