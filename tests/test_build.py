"""Building: unknown names, what is there already, killed and simultaneous builds, sets made by other code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from messages import refuses, says

from jaxreid.data import build as command
from jaxreid.data import builders
from jaxreid.data.build import build
from jaxreid.data.builders import builder_class, builder_names
from jaxreid.data.prepared import read_metadata, split_counts
from jaxreid.errors import DataSetError

TINY = "walkers/tiny"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    build(TINY, data_dir=directory)
    return directory


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


BUILD_TINY = "import sys; from jaxreid.data.build import build; print(build('walkers/tiny', data_dir=sys.argv[1]))"


def test_names():
    assert {"folder", "walkers"} <= set(builder_names())
    assert builder_class("walkers").name == "walkers" and builder_class("folder").name == "folder"
    with refuses(DataSetError, "'marz'", "folder", "walkers"):
        build("marz")


def test_unknown_configurations_and_options(tmp_path):
    with refuses(DataSetError, "'huge'", "vvi", "vvi_dev", "visible"):
        build("walkers", "huge", data_dir=tmp_path)
    with refuses(DataSetError, "'colour'"):
        build("walkers", data_dir=tmp_path, colour=1)
    with refuses(DataSetError, "source"):
        build("walkers", data_dir=tmp_path, source=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_sets_live(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXREID_DATA_DIR", str(tmp_path))
    assert command.default_data_dir() == tmp_path
    monkeypatch.delenv("JAXREID_DATA_DIR")
    assert command.default_data_dir() == Path.home() / ".cache" / "jaxreid" / "data"


def test_a_prepared_set_is_found_fast_and_without_heavy_imports(data_dir):
    code = f"""
import sys, time
start = time.perf_counter()
{BUILD_TINY.removeprefix("import sys; ")}
print(time.perf_counter() - start)
print([m for m in ("tensorflow_datasets", "jax", "cv2", "numpy", "tensorflow") if m in sys.modules])
"""
    process = python(code, data_dir)
    output, errors = process.communicate()
    path, seconds, heavy = output.splitlines()
    assert (path, heavy) == (str(data_dir / "walkers" / "tiny" / "1.0.0"), "[]"), errors
    assert float(seconds) < 0.5


def test_building_needs_neither_jax_nor_tensorflow(tmp_path):
    process = python(BUILD_TINY + "; print([m for m in ('jax', 'tensorflow') if m in sys.modules])", tmp_path)
    output, errors = process.communicate()
    assert output.splitlines()[-1] == "[]", errors


def test_command_line(data_dir, capsys):
    assert command.main([TINY, "--data_dir", str(data_dir)]) == 0
    output = capsys.readouterr().out.splitlines()
    counts = split_counts(data_dir / "walkers" / "tiny" / "1.0.0")
    assert [line.split()[:2] for line in output[:-1]] == [[f"{name}:", str(n)] for name, n in counts.items()]
    assert output[-1] == str(data_dir / "walkers" / "tiny" / "1.0.0")
    assert command.main(["marz"]) == 2
    says(capsys.readouterr().err, "'marz'", "walkers")


def test_command_line_options(data_dir, capsys):
    assert command.option("max_excluded=0.1") == ("max_excluded", 0.1)
    assert command.option("rule=a=b") == ("rule", "a=b")
    assert command.main([TINY, "--data_dir", str(data_dir), "--option", "colour=1"]) == 2
    says(capsys.readouterr().err, "options", "'colour'")
    with pytest.raises(SystemExit):
        command.main([TINY, "--option", "colour"])
    says(capsys.readouterr().err, "expected", "NAME=VALUE", "'colour'")


def test_another_package_of_the_same_name_is_noticed(tmp_path):
    """Only where the builders stand beside the package, as in a checkout."""
    if builders._builders()[0] != "data_builders":
        pytest.skip("builders are inside the package")
    (tmp_path / "data_builders" / "walkers").mkdir(parents=True)
    for folder in ("data_builders", "data_builders/walkers"):
        (tmp_path / folder / "__init__.py").touch()
    process = python("import sys; sys.path.insert(0, sys.argv[1]); " + BUILD_TINY, tmp_path, cwd=tmp_path)
    _, errors = process.communicate()
    says(errors, "another", "'data_builders'", "sys.path")


def test_command_line_names_errors_of_builders(tmp_path):
    """Run as a module: the exceptions of builders are those that the command catches."""
    process = subprocess.run(
        [sys.executable, "-m", "jaxreid.data.build", "folder", "--source", str(tmp_path / "no")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    says(process.stderr, "folder", tmp_path / "no")


def test_another_file_format_is_refused(tmp_path):
    path = build(TINY, data_dir=tmp_path)
    for file in path.rglob("*array_record*"):
        file.rename(file.with_name(file.name.replace("array_record", "tfrecord")))
    description = path / "dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    with refuses(DataSetError, "tfrecord", "--file_format=array_record"):
        build(TINY, data_dir=tmp_path)


def test_missing_shards_are_named(tmp_path):
    path = build(TINY, data_dir=tmp_path)
    shard = path / "walkers-query.array_record-00000-of-00001"
    content = shard.read_bytes()
    for damage in (shard.unlink, shard.touch):
        damage()
        with refuses(DataSetError, "walkers-query.array_record-00000", "delete"):
            build(TINY, data_dir=tmp_path)
    shard.write_bytes(content)
    assert build(TINY, data_dir=tmp_path) == path
    (path / "dataset_info.json").unlink()
    with refuses(DataSetError, "dataset_info.json"):
        build(TINY, data_dir=tmp_path)


def test_a_set_that_other_code_drew_is_drawn_anew(tmp_path, caplog):
    path = build(TINY, data_dir=tmp_path)
    facts = read_metadata(path)
    (path / "metadata.json").write_text(json.dumps({**facts, "fingerprint": "older"}))
    (path / "stale").touch()
    assert build(TINY, data_dir=tmp_path) == path
    assert read_metadata(path)["fingerprint"] == facts["fingerprint"] and not (path / "stale").exists()
    says(caplog.text, "anew")


def test_simultaneous_builds_make_one_set(tmp_path):
    processes = [python(BUILD_TINY, tmp_path) for _ in range(3)]
    results = [process.communicate() for process in processes]
    path = tmp_path / "walkers" / "tiny" / "1.0.0"
    assert [output.strip() for output, _ in results] == [str(path)] * 3, results
    assert sum(f"building {path} (once)" in errors for _, errors in results) == 1
    assert [entry.name for entry in path.parent.iterdir() if entry.is_dir()] == ["1.0.0"]


def test_a_killed_build_is_not_taken_for_a_set(tmp_path):
    """Stopped dead in the middle of the first split; the next build clears up and succeeds."""
    code = "import os, data_builders.walkers.world as w\n" + BUILD_TINY.replace(
        "print",
        "draw = w.World.draw; w.World.draw = lambda *a: (os.write(1, b'drawing\\n'), input(), draw(*a)); print",
    )
    process = python(code, tmp_path, stdin=subprocess.PIPE, cwd=builders._builders()[1].parent)
    assert process.stdout.readline() == "drawing\n"
    home = tmp_path / "walkers" / "tiny"
    assert not (home / "1.0.0").exists()
    (leftover,) = (entry for entry in home.iterdir() if entry.is_dir())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert leftover.exists()
    path = build(TINY, data_dir=tmp_path)
    assert [entry for entry in home.iterdir() if entry.is_dir()] == [path]
    assert sum(split_counts(path).values()) > 0


def test_waiting_for_another_process_is_said(tmp_path, caplog):
    fcntl = pytest.importorskip("fcntl")
    home = tmp_path / "walkers" / "tiny"
    home.mkdir(parents=True)
    holder = python(
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True);"
        "time.sleep(1)",
        home / ".1.0.0.lock",
    )
    assert fcntl and holder.stdout.readline() == "held\n"
    start = time.monotonic()
    build(TINY, data_dir=tmp_path)
    holder.communicate()
    assert time.monotonic() - start > 0.5
    says(caplog.text, "another process")


def test_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with refuses(DataSetError, "--data_dir", "$JAXREID_DATA_DIR"):
        build(TINY, data_dir=tmp_path / "file")


def test_a_file_system_without_locks(tmp_path, caplog, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", unsupported)
    home = tmp_path / "walkers" / "tiny"
    (home / "incomplete.OTHERS_1.0.0").mkdir(parents=True)
    assert build(TINY, data_dir=tmp_path) == home / "1.0.0"
    assert (home / "incomplete.OTHERS_1.0.0").exists()
    says(caplog.text, home, "locked")


def test_a_wheel_s_layout(tmp_path):
    """An installed copy has the builders inside the package and no repository around it."""
    source = Path(command.__file__).parents[1]
    ignore = shutil.ignore_patterns("__pycache__", "weights", "data_builders")
    shutil.copytree(source, tmp_path / "jaxreid", ignore=ignore)
    shutil.copytree(builders._builders()[1], tmp_path / "jaxreid" / "data_builders", ignore=ignore)
    code = BUILD_TINY + "; print([m for m in sys.modules if m.startswith('data_builders')])"
    code += "; print(sys.modules['jaxreid.data_builders.walkers.world'].__file__)"
    process = python(code, tmp_path / "data", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    output, errors = process.communicate()
    assert output.splitlines() == [
        str(tmp_path / "data" / "walkers" / "tiny" / "1.0.0"),
        "[]",
        str(tmp_path / "jaxreid" / "data_builders" / "walkers" / "world.py"),
    ], errors


def test_builder_folders_stand_alone(tmp_path):
    """As the `tfds` command line opens them: the folder's parent on the path, no configuration of ours."""
    tracklet = tmp_path / "pictures" / "a" / "t1"
    tracklet.mkdir(parents=True)
    (tracklet / "1.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import tensorflow_datasets as tfds
import folder.folder_dataset_builder as folder
import walkers.walkers_dataset_builder as walkers
source = tfds.download.DownloadConfig(manual_dir=sys.argv[3])
for builder in (walkers.Builder(data_dir=sys.argv[2], config="tiny"), folder.Builder(data_dir=sys.argv[2])):
    builder.download_and_prepare(file_format="array_record", download_config=source)
    print(builder.name, builder.info.splits["train"].num_examples)
"""
    process = python(code, builders._builders()[1], tmp_path / "data", tmp_path / "pictures", cwd=tmp_path)
    output, errors = process.communicate()
    train = split_counts(tmp_path / "data" / "walkers" / "tiny" / "1.0.0")["train"]
    assert [line for line in output.splitlines() if line[:3] in ("wal", "fol")] == [f"walkers {train}", "folder 1"], (
        errors
    )


PLAIN_BUILDER = '''
import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    """Numbers from a file."""

    VERSION = tfds.core.Version("2.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Write numbers.txt."

    def _info(self):
        features = tfds.features.FeaturesDict({"number": np.int32})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir / "numbers.txt")}

    def _generate_examples(self, path):
        for key, line in enumerate(path.read_text().split()):
            yield key, {"number": int(line)}
'''


def test_an_ordinary_builder_reads_source_as_its_manual_directory(tmp_path, monkeypatch):
    package = tmp_path / "other_builders"
    (package / "numbers").mkdir(parents=True)
    (package / "numbers" / "numbers_dataset_builder.py").write_text(PLAIN_BUILDER)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "numbers.txt").write_text("4 5 6")
    monkeypatch.setattr(builders, "_builders", lambda: ("other_builders", package))
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = build("numbers", data_dir=tmp_path / "data", source=tmp_path / "raw")
    assert path == tmp_path / "data" / "numbers" / "2.1.0" and split_counts(path) == {"train": 3}
    with refuses(DataSetError, "options"):
        build("numbers", data_dir=tmp_path / "data", source=tmp_path / "raw", max_frames=3)
