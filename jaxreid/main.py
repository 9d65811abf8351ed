"""python -m jaxreid.main --config=configs/hitpro.py[:preset] [--workdir=DIR] [--data_dir=DIR] [--config.key=value …]

`jaxreid train`, `jaxreid evaluate` and `jaxreid dry-run` are this with the mode of their name.
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from jaxreid.config import find_config, origins
from jaxreid.errors import INTERRUPTED, TRACEBACK_VARIABLE, USER_ERROR, UserError, told
from jaxreid.files import expand


def _from_environment(name: str) -> int | None:
    return int(os.environ[name]) if os.environ.get(name, "").isdigit() else None


CONFIG = config_flags.DEFINE_config_file("config", None, "File of the run's config, or the name of a packaged one.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run writes; runs/<config>-<preset>-…-seed<N> by default.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where built data sets live; $JAXREID_DATA_DIR or a cache by default.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "dry_run"],
    "train: train, evaluate, report. evaluate: score a workdir's checkpoint again. dry_run: print sizes.",
)
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Prints every value of the config, and what set it.")
COMPARE = flags.DEFINE_string("compare", None, "An earlier workdir to show beside this run in the report.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    os.environ.get("JAX_COORDINATOR_ADDRESS"),
    "Several processes train one run: HOST:PORT of process 0, the same for all; 'auto' under Slurm, Open MPI or on TPU "
    "slices. $JAX_COORDINATOR_ADDRESS by default.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", _from_environment("JAX_NUM_PROCESSES"), "Processes of the run; $JAX_NUM_PROCESSES by default."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", _from_environment("JAX_PROCESS_ID"), "Which of them this is, from 0; $JAX_PROCESS_ID by default."
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    100,
    "Seconds after which a process that is not heard of counts as dead and ends the others.",
    1,
)
OPTIONS = (WORKDIR, DATA_DIR, PRINT_CONFIG, COMPARE, COORDINATOR, NUM_PROCESSES, PROCESS_ID, HEARTBEAT_TIMEOUT)
DATA_FLAGS = (WORKDIR, DATA_DIR)
STARTED = time.perf_counter()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        _refuse(f"unknown arguments: {' '.join(argv[1:])}")
    config = CONFIG.value
    try:
        workdir = workdir_of(config)
        data_dir = expand(DATA_DIR.value) if DATA_DIR.value else None
        _run(config, workdir, data_dir)
    except KeyboardInterrupt:
        _leave("\ninterrupted; the same line again goes on from the last checkpoint", INTERRUPTED)
    except Exception as error:
        # What a user can mend is told in a sentence; a traceback is for what nobody foresaw.
        sentence = None if os.environ.get(TRACEBACK_VARIABLE) else told(error)
        if sentence is None:
            _leave(traceback.format_exc(), 1)
        _leave(f"error: {sentence}\n({TRACEBACK_VARIABLE}=1 shows where)", USER_ERROR)


def workdir_of(config: Any) -> Path:
    """The folder that the command line names, or that of the config."""
    from jaxreid.run.workdirs import default_workdir

    return expand(WORKDIR.value) if WORKDIR.value else default_workdir(config, _preset())


def _preset() -> Any:
    """The config before anything was changed on the command line."""
    flag = flags.FLAGS["config"]
    return flag.parser.parse(config_flags.get_config_filename(flag))


def print_config(config: Any) -> None:
    """A table of every value and of what set it: the base, the tower, the data set, the method, the preset, or the
    command line."""
    rows = [(key, repr(value), source) for key, value, source in origins(config, _preset())]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for key, value, source in rows:
        print(f"{key:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {source}")


def _leave(message: str, status: int) -> NoReturn:
    """Ends with an error."""
    print(message, file=sys.stderr, flush=True)
    if COORDINATOR.value:
        from jaxreid.devices import processes

        processes.leave(status)
    sys.exit(status)


def _run(config: Any, workdir: Path, data_dir: Path | None) -> None:
    import jax

    from jaxreid.devices import processes
    from jaxreid.devices.compiled import cache_compilations
    from jaxreid.run.config_values import check_config
    from jaxreid.run.model import start_run
    from jaxreid.run.workdirs import RESULTS, alone, claim_workdir, require_run
    from jaxreid.training.dry_run import dry_run

    if COORDINATOR.value:
        processes.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, HEARTBEAT_TIMEOUT.value)
        if jax.process_index():  # process 0 speaks for all
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        processes.same("command line", {"mode": MODE.value, "config": config.to_dict()})
    cache_compilations()
    check_config(config)
    if PRINT_CONFIG.value:
        print_config(config)
    if MODE.value == "dry_run":
        run = start_run(config, workdir, data_dir, dry=True)
        describe(run)
        dry_run(run)
        return
    report = workdir / "report" / "index.html"
    compare = expand(COMPARE.value) if COMPARE.value is not None else None
    with processes.together():
        if compare and not jax.process_index() and not (compare / RESULTS).exists():
            raise UserError(f"--compare={COMPARE.value}: no finished run is there ({compare / RESULTS} is missing)")
    train = MODE.value == "train"
    if not train:
        with processes.together():
            require_run(workdir)
    elif not compare and (finished := processes.of_main(lambda: report.exists() and _finished(workdir))):
        with processes.main_first():
            claim_workdir(workdir, config.to_dict())
        print(f"{workdir} holds a finished run:")
        print_results(finished)
        print(f"report: {report}")
        return
    with contextlib.ExitStack() as stack:
        with processes.main_first():
            if jax.process_index() == 0:
                stack.enter_context(alone(workdir))
            claim_workdir(workdir, config.to_dict())
        if train and processes.of_main(lambda: _finished(workdir)):
            print(f"{workdir} holds a finished run; its state is scored again for the report", flush=True)
            train = False
        _train_and_score(start_run(config, workdir, data_dir, train=train), train, compare)
    print(f"report: {report}")


def _train_and_score(run: Any, train: bool, compare: Path | None) -> None:
    from jaxreid.devices import processes
    from jaxreid.evaluation.evaluator import Evaluator
    from jaxreid.report.run_report import report_run
    from jaxreid.run.workdirs import claim_dataset
    from jaxreid.training.loop import train as run_training
    from jaxreid.training.restore import restore_judged
    from jaxreid.training.steps import variables_of

    run.phases["importing"] = time.perf_counter() - STARTED - run.phases["data set"]
    describe(run)
    with processes.main_first():
        claim_dataset(run.workdir, run.dataset, run.method.info, run.sidecars(train), train)
    evaluator = Evaluator(run)
    if train:
        state, frozen = run_training(run, evaluator)
        epoch = done = sum(stage.epochs for stage in run.method.stages())
    if not train or run.config.keep_best:
        state, frozen, epoch, done = restore_judged(run)
        whole = sum(stage.epochs for stage in run.method.stages())
        if done < whole:
            print(f"the run is not finished: what is scored is its state after epoch {epoch} of {whole}", flush=True)
    found = evaluator.final(variables_of(state, frozen), state.memory, epoch, done)
    report_run(run, found, compare)
    print_results(found.results)
    seconds = "  ".join(f"{name} {value:.1f}" for name, value in run.phases.items())
    print(f"seconds: {seconds}  all {time.perf_counter() - STARTED:.1f}")


def _finished(workdir: Path) -> dict[str, Any] | None:
    """The results of a run that went to its last epoch; those of an earlier checkpoint do not count."""
    from jaxreid.run.workdirs import read_results

    results = read_results(workdir)
    return results if results and results["epochs_done"] == results["epochs"] else None


def describe(run: Any) -> None:
    from jaxreid.data.dataset import describe as describe_split

    dataset = run.dataset
    print(f"{run.config.name} on {dataset.name} ({dataset.directory})")
    for split in dataset.splits:
        print(f"  {split.name}: {describe_split(split)}")
    protocols = ", ".join(dataset.protocols) or "the data set's own"
    place = f"{run.mesh.size} device(s), mesh {dict(run.mesh.shape)}; workdir {run.workdir}"
    print(f"  protocol {protocols}; {place}", flush=True)


def print_results(results: dict[str, Any]) -> None:
    """A table of the scores for the terminal."""
    from jaxreid.report.words import ranked_direction

    if "reason" in results:
        print(results["reason"])
    columns = ("mAP", "mINP", "rank-1", "rank-5", "rank-10", "rank-20")
    protocols = {record["protocol"] for record in results["scores"]}

    def name(record: dict[str, Any]) -> str:
        return ranked_direction(record) + (f" ({record['protocol']})" if len(protocols) > 1 else "")

    rows = [(name(record), record) for record in results["scores"]]
    rows += [(f"  {record['features']}: {name(record)}", record) for record in results["before_training"]]
    if rows:
        width = max(len(label) for label, _ in rows)
        print(f"{'%':<{width}}  " + "  ".join(f"{column:>7}" for column in columns))
        for index, (label, record) in enumerate(rows):
            if index == len(results["scores"]):
                print("before training:")
            print(f"{label:<{width}}  " + "  ".join(f"{record[column]:7.1f}" for column in columns))
    for note in results.get("notes", ()):
        print(note)


def _resolve_config_flag(argv: list[str]) -> list[str]:
    """`--config=hitpro` also finds the packaged file."""
    resolved = list(argv)
    for index, argument in enumerate(argv):
        if argument.startswith("--config="):
            resolved[index] = "--config=" + find_config(argument.removeprefix("--config="))
        elif argument == "--config" and index + 1 < len(argv):
            resolved[index + 1] = find_config(argv[index + 1])
    return resolved


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with an unknown config key or preset told in a sentence."""
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:
        words = str(error.args[0].args[0] if error.args and isinstance(error.args[0], KeyError) else error)
        _refuse("the config has no key " + words.replace("\n", ". "))
    except flags.Error as error:
        # The last line of what the config file raised says it all.
        _refuse(str(error).strip().splitlines()[-1])


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(USER_ERROR)


def help_text(program: str, what: str, options: Sequence[Any] = OPTIONS) -> str:
    """What a line of `program`, which does `what`, may say."""
    rows = {
        "--config=NAME[:PRESET]": "A packaged config, or the file of one of your own. `jaxreid train --list` names the "
        "packaged ones with their presets; the first preset is taken where none is named.",
        "--config.KEY=VALUE": "Any value of the config, e.g. --config.epochs=20 --config.dataset.path=/data/MARS. The "
        "keys stand in configs/NAME.py and, with every value of a run, in the config.json of its workdir.",
        **{f"--{option.name}": flags.FLAGS[option.name].help for option in options},
    }
    width = max(map(len, rows)) + 4
    lines = [f"usage: {program} --config=NAME[:PRESET] [--config.KEY=VALUE …] [--workdir=DIR] [--data_dir=DIR] …"]
    lines += ["", *textwrap.wrap(f"{what[0].upper()}{what[1:]}.", 100), ""]
    for row, text in rows.items():
        first, *more = textwrap.wrap(text, 100 - width)
        lines += [f"  {row:<{width - 2}}{first}", *(" " * width + line for line in more)]
    return "\n".join(lines)


def read_flags(argv: Sequence[str]) -> list[str]:
    """Reads a command line of another program that takes a config; returns its arguments that are no flags."""
    sys.argv = list(argv)  # where the flag of a config looks for the keys that are set
    flags.mark_flag_as_required("config")
    flags.FLAGS.set_gnu_getopt(True)  # flags may stand behind other arguments
    return _parse_flags(_resolve_config_flag(sys.argv))[1:]


def run_main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line, `sys.argv` where none is given, and exits with its status."""
    if argv is not None:
        sys.argv = list(argv)  # where the flag of a config looks for the keys that are set
    logging.set_verbosity(logging.WARNING)
    flags.mark_flag_as_required("config")
    try:
        argv = _resolve_config_flag(sys.argv)
    except UserError as error:
        _refuse(str(error))
    app.run(main, argv=argv, flags_parser=_parse_flags)


if __name__ == "__main__":
    run_main()
