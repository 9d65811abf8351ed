"""The console command: every subcommand helps, names itself and writes its flags in one way; errors end with 2."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from messages import says

from jaxreid import cli
from jaxreid.config import config_module
from jaxreid.data.builders import builder_names

ROOT = Path(__file__).parent.parent
SUBCOMMANDS = [*([name] for name in (*cli.RUNS, *cli.COMMANDS)), ["xfd", "evaluate"], ["xfd", "score"]]


def typed(*arguments, cwd=ROOT):
    """A line of the console script's entry, in a process of its own."""
    line = [sys.executable, "-m", "jaxreid.cli", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def help_of(words, capsys):
    try:
        status = cli.main([*words, "--help"])
    except SystemExit as leaving:  # as argparse does
        status = leaving.code
    assert status == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", SUBCOMMANDS, ids=" ".join)
def test_help_names_the_subcommand_and_flags_have_no_hyphen(words, capsys):
    text = help_of(words, capsys)
    assert text.startswith(f"usage: jaxreid {' '.join(words)} ")
    flags = set(re.findall(r"--[\w.-]+", text))
    assert "--help" in text or "--config" in flags
    assert [flag for flag in flags if "-" in flag.removeprefix("--")] == []


def test_the_list_of_subcommands_is_complete_and_quick():
    code = "import sys, jaxreid.cli; jaxreid.cli.main(['--help']); print({'jax', 'numpy', 'absl'} & {*sys.modules})"
    *lines, loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert loaded == "set()"
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names == [*cli.RUNS, *cli.COMMANDS]


def test_an_unknown_subcommand_lists_those_there_are(capsys):
    assert cli.main(["trian", "--config=hitpro"]) == 2
    first, *_, table = capsys.readouterr().err.split("\n\n")
    says(first, "error: ", "'trian'")
    assert [line.split()[0] for line in table.splitlines()] == [*cli.RUNS, *cli.COMMANDS]


def test_train_lists_configs_presets_and_data_sets(capsys):
    assert cli.main(["train", "--list"]) == 0
    configs, data = capsys.readouterr().out.split("data sets")
    files = sorted((ROOT / "configs").glob("*.py"))
    assert re.findall(r"^  (\w+): ", configs, re.MULTILINE) == [path.stem for path in files]
    entries = re.split(r"^  \w+: .*\n", configs, flags=re.MULTILINE)[1:]
    assert [tuple(re.split(r",\s+", text.strip())) for text in entries] == [
        tuple(config_module(path).PRESETS) for path in files
    ]
    assert re.split(r",\s+", data.split(":\n")[1].strip()) == builder_names()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["train"], ["--config"]),
        (["train", "--config=hitpro", "--config.epocs=3"], ["epocs"]),
        (["train", "--config=hitpro", "more"], ["unknown arguments", "more"]),
        (["dry-run", "--config=nothing"], ["--config=nothing", "hitpro"]),
        (["evaluate", "--config=baseline", "--workdir=nowhere"], ["nowhere"]),
        (["build", "nothing"], ["'nothing'", "walkers"]),
        (["build", "folder", "--source", "nowhere"], ["nowhere"]),
    ],
    ids=" ".join,
)
def test_what_a_user_can_mend_ends_with_2_and_a_sentence(line, words, tmp_path):
    found = typed(*line, f"--data_dir={tmp_path / 'data'}", cwd=tmp_path)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    says(found.stderr, "error: ", *words)


def test_a_line_builds_a_data_set_and_others_use_it(tmp_path):
    found = typed("build", "walkers/tiny", "--data_dir", tmp_path / "data")
    assert found.returncode == 0, found.stderr
    prepared = Path(found.stdout.splitlines()[-1])
    assert (prepared / "dataset_info.json").exists() and prepared.is_relative_to(tmp_path / "data")

    shown = typed("show", "walkers/tiny", "--data_dir", tmp_path / "data", "--out", tmp_path / "page.html")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == f"{tmp_path / 'page.html'}\n" and (tmp_path / "page.html").exists()

    line = "dry-run", "--config=hitpro", "--config.dataset.config=tiny", f"--workdir={tmp_path / 'run'}"
    sizes = typed(*line, "--data_dir", tmp_path / "data")
    assert sizes.returncode == 0, sizes.stderr
    assert "parameters:" in sizes.stdout and not (tmp_path / "run").exists()
