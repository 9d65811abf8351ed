"""Finished runs laid out as tables: which of them are one row, what is one column, which tables there are.

A row is a method or a variant of it: runs whose configs differ only in `seed` or in what does not change a result
(`IGNORED`). A column is one metric of one case, and a case is everything that decides whether two numbers compare:
the data set with its version and sizes, the protocol, the direction, and how test clips were drawn, compared and
counted. What differs in any of it is never averaged. Runs of one method that were told different things share no
table.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxreid.config import EXECUTION, among, flatten, is_config
from jaxreid.errors import UserError
from jaxreid.files import expand, read_json

# Settings that change neither training nor scores, up to rounding: speed, devices, logs, and the names of a config and
# its preset, whose values stand in the config themselves.
IGNORED = (
    "seed",
    "name",
    "preset",
    *EXECUTION,
    "extraction_batch_size",
    "log_every",
    "evaluate_every",
    "evaluate_start",
)
OF_COLUMNS = ("dataset",)  # what a column says already
LABELS = "identity labels"
REQUIRED = (
    "direction", "protocol", "clip_rule", "frames_per_clip", "distance", "reranking", "queries", "gallery"
)  # fmt: skip
METRIC = re.compile(r"mAP|mINP|rank-\d+")
NO_CONDITION = ("cmc", "checkpoint", "features")
SEPARABLE = 2.0  # standard errors
NAMED_SETTINGS = 4  # more of them do not fit a row's name
NOT_SET = "not set"
BEFORE = "before training: "


class CompareError(UserError):
    """The runs cannot be compared as asked; the message says why and what to do."""


class LeftOutError(Exception):
    """A workdir has no result to compare; the message says why."""


# --- runs ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """What was scored and how: `facts` are (name, value) pairs, and runs compare where all of them are equal."""

    facts: tuple[tuple[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        return next((value for known, value in self.facts if known == name), NOT_SET)

    @property
    def direction(self) -> str:
        return str(self["direction"]).replace("_to_", " → ").replace("_", " ")


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """A finished run. `name` was given on the command line or is empty; `method` is the name of the config, because a
    family's members share a module; `settings` is the flat config."""

    workdir: Path
    name: str
    method: str
    seed: int
    settings: dict[str, Any]
    assumptions: dict[str, str]
    scores: dict[Case, dict[str, float]]  # metric → percent
    controls: dict[str, dict[Case, dict[str, float]]]  # by the features' name
    checkpoint: str
    seconds: float | None
    device: str

    def training(self) -> dict[str, Any]:
        """The settings that decide the result, the data set aside."""
        return {key: value for key, value in self.settings.items() if not among(key, (*IGNORED, *OF_COLUMNS))}


def find_workdirs(folder: Path) -> list[Path]:
    """Workdirs in and below a folder, in the order of their names; unfinished runs are among them."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("checkpoints", "tensorboard", "report")]
        if "results.json" in files or ("config.json" in files and _is_config(Path(place) / "config.json")):
            found.append(Path(place))
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[Any]:
    """Sorts run-2 before run-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _is_config(path: Path) -> bool:
    """A run's config; other programs have files of that name, too."""
    try:
        return is_config(read_json(path, ""))
    except (OSError, UserError):
        return False


def read_run(workdir: Path, name: str = "") -> RunResult:
    """The result of a workdir.

    Raises:
      LeftOutError: it has none, or one that cannot be compared.
    """
    if not (workdir / "results.json").exists():
        raise LeftOutError("unfinished: there is no results.json yet")
    results = _read(workdir / "results.json")
    if not isinstance(results.get("scores"), list) or not {"epochs", "epochs_done"} <= set(results):
        raise LeftOutError(
            "results.json has an old format; score the run again with --mode=evaluate, or train it again"
        )
    if results["epochs_done"] != results["epochs"]:
        raise LeftOutError(f"unfinished: scored after epoch {results['epochs_done']} of {results['epochs']}")
    if results.get("reason") or not results["scores"]:
        raise LeftOutError(f"not scored: {results.get('reason') or 'results.json holds no scores'}")
    config, fingerprint = _read(workdir / "config.json"), _read(workdir / "dataset.json")
    for key in ("method", "seed"):
        if results.get(key) != config.get(key) or config.get(key) is None:
            raise LeftOutError(f"broken: {key} is {results.get(key)} in results.json, {config.get(key)} in config.json")
    if "name" not in fingerprint:
        raise LeftOutError("broken: dataset.json names no data set")
    controls: dict[str, list[Any]] = {}
    for record in results.get("before_training") or ():
        if not isinstance(record, dict) or "features" not in record:
            raise LeftOutError("broken: before_training in results.json holds a score without features")
        controls.setdefault(str(record["features"]), []).append(record)
    seconds, environment = (results.get(key) or {} for key in ("seconds", "environment"))
    return RunResult(
        workdir=workdir,
        name=name,
        method=str(config.get("name") or config["method"]),
        seed=config["seed"],
        settings={key: _frozen(value) for key, value in flatten(config)},
        assumptions={str(key): str(value) for key, value in (results.get("assumptions") or {}).items()},
        scores=_cases(results["scores"], fingerprint),
        controls={features: _cases(records, fingerprint) for features, records in controls.items()},
        checkpoint=str(results["scores"][0].get("checkpoint", "")),
        seconds=sum(seconds.values()) if seconds else None,
        device=str(environment.get("devices", "")),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, "score or train the run again")
    except FileNotFoundError:
        raise LeftOutError(f"broken: there is no {path.name}") from None
    except (OSError, UserError) as error:
        raise LeftOutError(f"broken: {error}") from None
    if not isinstance(value, dict):
        raise LeftOutError(f"broken: {path.name} does not hold names and values")
    return value


def _cases(records: Sequence[Any], fingerprint: Mapping[str, Any]) -> dict[Case, dict[str, float]]:
    """Case → metrics of a list of result records."""
    data = {"dataset": fingerprint["name"], **dict(flatten({k: v for k, v in fingerprint.items() if k != "name"}))}
    found: dict[Case, dict[str, float]] = {}
    for record in records:
        missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
        if missing:
            raise LeftOutError(f"results.json has an old format or is broken: a score without {', '.join(missing)}")
        metrics = {key: value for key, value in record.items() if METRIC.fullmatch(key)}
        for key, value in metrics.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise LeftOutError(f"broken: {key} of {record['direction']} in results.json is {value}")
        # An unknown word, switch or count may be a condition, and keeps columns apart; unknown fractions and lists are
        # taken for measurements.
        others = {
            key
            for key, value in record.items()
            if key not in (*metrics, *NO_CONDITION, *REQUIRED) and (value is None or isinstance(value, str | int))
        }
        conditions = {key: record[key] for key in (*REQUIRED, *sorted(others))}
        case = Case(tuple((key, _frozen(value)) for key, value in {**data, **conditions}.items()))
        if case in found:
            raise LeftOutError(f"broken: results.json holds {record['direction']} ({record['protocol']}) twice")
        found[case] = metrics
    return found


def _frozen(value: Any) -> Any:
    """A JSON value that can be a key."""
    if isinstance(value, dict):
        value = sorted(value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


# --- rows ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Row:
    """Runs that are averaged.

    Attributes:
      base: the method, or the name given on the command line.
      settings: what tells this row from others of the same base.
      values: case → seed → (metrics, run).
      control: whether this is a score from before training.
      label: its name in the table.
    """

    base: str
    settings: dict[str, Any]
    labels_used: str
    values: dict[Case, dict[int, tuple[dict[str, float], RunResult]]] = dataclasses.field(default_factory=dict)
    control: bool = False
    label: str = ""

    @property
    def runs(self) -> list[RunResult]:
        return list(dict.fromkeys(run for case in self.values for run in self.runs_of(case)))

    def runs_of(self, case: Case) -> list[RunResult]:
        return [run for _, run in self.values.get(case, {}).values()]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for cell in self.values.values() for seed in cell})

    def cell(self, case: Case, metric: str) -> dict[int, float]:
        """seed → value."""
        found = self.values.get(case, {})
        return {seed: metrics[metric] for seed, (metrics, _) in sorted(found.items()) if metric in metrics}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row minus the baseline, paired over common `seeds`; `error` is the standard error of the mean."""

    mean: float
    error: float | None
    seeds: tuple[int, ...]

    @property
    def separable(self) -> bool | None:
        """None where one seed says nothing about chance."""
        return None if self.error is None else abs(self.mean) >= SEPARABLE * self.error and self.mean != 0


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows whose runs were told the same; `title` says what."""

    title: str
    rows: list[Row]
    cases: list[Case]
    metrics: tuple[str, ...]
    baseline: Row | None = None

    def columns(self) -> list[tuple[Case, str]]:
        return list(itertools.product(self.cases, self.metrics))

    def compared(self) -> list[tuple[Case, str]]:
        """The columns in which the baseline stands."""
        return [(case, metric) for case, metric in self.columns() if self.baseline and case in self.baseline.values]

    def difference(self, row: Row, case: Case, metric: str) -> Difference | None:
        """To the baseline; None without a common seed."""
        if self.baseline is None or row is self.baseline:
            return None
        own, other = row.cell(case, metric), self.baseline.cell(case, metric)
        seeds = tuple(sorted(set(own) & set(other)))
        return paired_difference([own[s] for s in seeds], [other[s] for s in seeds], seeds) if seeds else None


def paired_difference(own: Sequence[float], other: Sequence[float], seeds: tuple[int, ...]) -> Difference:
    """Mean of own − other with its standard error, s / √n with the sample deviation s of the differences."""
    found = [a - b for a, b in zip(own, other, strict=True)]
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return Difference(statistics.fmean(found), error, seeds)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All tables, with the workdirs that were `left_out` (path, why) and sentences to read first."""

    tables: list[Table]
    left_out: list[tuple[Path, str]]
    notes: list[str]


def compare(
    arguments: Sequence[str | Path],
    metrics: Sequence[str] = ("mAP", "rank-1"),
    by: Sequence[str] = (),
    baseline: str = "",
    controls: bool = False,
    prepare: Callable[[list[RunResult]], list[RunResult]] | None = None,
) -> Comparison:
    """Reads runs and lays them out.

    Args:
      arguments: workdirs or folders that contain workdirs, or NAME=PATH to call them so.
      metrics: keys of the score records.
      by: config keys that make the rows, besides the method; every setting where empty.
      baseline: name of the row that others are compared with.
      controls: whether the scores from before training are rows, too.
      prepare: what to do with the runs that were read, such as `folds.mean_over_folds`.

    Raises:
      CompareError: nothing is left to compare, or it cannot be laid out as asked.
    """
    runs, left_out = read_runs(arguments)
    if not runs:
        listing = "".join(f"\n  {path}: {why}" for path, why in left_out)
        raise CompareError(f"there is no finished, scored run in {', '.join(map(str, arguments))}{listing}")
    if prepare:
        runs = prepare(runs)
    known = {metric for run in runs for record in run.scores.values() for metric in record}
    _check_known(metrics, known, "metric")
    keys = {key for run in runs for key in run.settings}
    prefixes = {key[:end] for key in keys for end in range(len(key)) if key[end] == "."}
    _check_known(by, keys | prefixes, "config key")
    told = _told(runs)
    tables, notes, copies = [], [], {}
    sets = assumption_sets(list(told.values()))
    for assumptions in sets:
        chosen = [run for run in runs if _fits(told[run], assumptions)]
        rows = _rows(chosen, tuple(by), copies)
        name_rows(rows)
        reference = _baseline(rows, baseline)
        if reference:
            name_rows(rows, reference)
        if controls:
            rows = _controls(rows) + rows
        if baseline and reference is None:
            reference = next(
                (row for row in rows if row.control and baseline in (row.label, row.base.removeprefix(BEFORE))), None
            )
        cases = list(dict.fromkeys(case for row in rows for case in row.values))
        order = list(dict.fromkeys(case["dataset"] for case in cases))
        cases.sort(key=lambda case: order.index(case["dataset"]))
        title = ", ".join(f"{name}: {value}" for name, value in assumptions.items())
        tables.append(Table(title, rows, cases, tuple(metrics), reference))
    if baseline and not any(table.baseline for table in tables):
        names = dict.fromkeys(row.label for table in tables for row in table.rows)
        raise CompareError(f"--baseline {baseline!r} is the name of no row; rows: {'; '.join(names)}")
    if len(tables) > 1:
        titles = "; ".join(table.title for table in tables)
        notes.append(
            f"Runs that were told different things in training stand in tables of their own ({titles}); runs of "
            "methods to which the distinction does not apply stand in each."
        )
        notes += [
            f"The row {baseline} is not in the table “{table.title}”, which therefore shows no differences."
            for table in tables
            if baseline and not table.baseline
        ]
    notes += [f"{copy.workdir} holds the same results as {run.workdir}: counted once." for copy, run in copies.items()]
    return Comparison(tables, left_out, notes)


def read_runs(arguments: Sequence[str | Path]) -> tuple[list[RunResult], list[tuple[Path, str]]]:
    """Every run once, in the order of the arguments, and what was left out: (workdir, why).

    Raises:
      CompareError: a path does not exist, or one run has two names.
    """
    runs: dict[Path, RunResult] = {}
    left_out: dict[Path, tuple[Path, str]] = {}
    for argument in arguments:
        name, path = "", expand(argument)
        if not path.exists() and "=" in str(argument):
            name, _, rest = str(argument).partition("=")
            path = expand(rest)
        if not path.exists() or (name and "/" in name):
            raise CompareError(f"{argument}: there is no such folder")
        workdirs = find_workdirs(path if path.is_dir() else path.parent)
        if not workdirs:
            left_out.setdefault(path.resolve(), (path, "no run in it"))
        for workdir in workdirs:
            real = workdir.resolve()
            if real in runs:
                known = runs[real]
                if name and known.name and name != known.name:
                    raise CompareError(f"{workdir} is given two names: {known.name} and {name}")
                runs[real] = dataclasses.replace(known, name=known.name or name)
                continue
            try:
                runs[real] = read_run(workdir, name)
            except LeftOutError as error:
                left_out.setdefault(real, (workdir, str(error)))
    return list(runs.values()), list(left_out.values())


def _check_known(wanted: Iterable[str], known: set[str], kind: str) -> None:
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.4) or sorted(known)[:8]
            raise CompareError(f"no run has the {kind} {name!r}; near it: {', '.join(sorted(near))}")


# What training was told.


def _told(runs: Sequence[RunResult]) -> dict[RunResult, dict[str, str]]:
    """Assumptions by which runs are told apart. Whether labels were used divides the runs of one method only: a
    supervised bound may stand beside an unsupervised method, and its row says so."""
    methods: dict[str, list[RunResult]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    told = {}
    for method, members in methods.items():
        names = dict.fromkeys(name for run in members for name in run.assumptions)
        values = {name: [run.assumptions.get(name, "not stated") for run in members] for name in names}
        for place, run in enumerate(members):
            told[run] = {
                f"{LABELS} of {method}" if name == LABELS else name: values[name][place]
                for name in names
                if name != LABELS or len(set(values[name])) > 1
            }
    return {run: told[run] for run in runs}


def _fits(told: Mapping[str, str], assumptions: Mapping[str, str]) -> bool:
    return all(assumptions[name] == value for name, value in told.items())


def assumption_sets(told: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The tables that are needed: sets of assumptions, each with the most runs that agree with it.

    A run that does not know an assumption agrees with every value of it.
    """
    values: dict[str, list[str]] = {}
    for one in told:
        for name, value in one.items():
            values.setdefault(name, [])
            values[name] += [value] if value not in values[name] else []
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    members = [frozenset(i for i, one in enumerate(told) if _fits(one, combination)) for combination in combinations]
    return [
        combination
        for place, combination in enumerate(combinations)
        if not any(members[place] < other for other in members) and members[place] not in members[:place]
    ]


# Rows from runs.


def _rows(runs: Sequence[RunResult], by: tuple[str, ...], copies: dict[RunResult, RunResult]) -> list[Row]:
    """Rows of one table, those of one method together. `copies` collects runs that repeat another's results."""
    methods: dict[str, set[str]] = {}
    for run in runs:
        methods.setdefault(run.name, set()).add(run.method)
    rows: dict[Any, Row] = {}
    for run in runs:
        base = run.name or run.method
        if run.name and len(methods[run.name]) > 1:
            base = f"{run.name} ({run.method})"
        settings = {k: v for k, v in run.settings.items() if among(k, by)} if by else run.training()
        row = rows.setdefault(
            (base, run.method, frozenset(settings.items())),
            Row(base, settings, run.assumptions.get(LABELS, "not stated")),
        )
        repeated = []
        for case, metrics in run.scores.items():
            cell = row.values.setdefault(case, {})
            if cell:
                _check_same_config(next(iter(cell.values()))[1], run, row)
            if run.seed in cell:
                known, other = cell[run.seed]
                _check_same_result(other, known, run, metrics, case)
                repeated.append(other)
            else:
                cell[run.seed] = (metrics, run)
        if len(repeated) == len(run.scores):
            copies[run] = repeated[0]
    order = list(dict.fromkeys(row.base for row in rows.values()))
    return sorted(rows.values(), key=lambda row: order.index(row.base))


def _check_same_config(one: RunResult, other: RunResult, row: Row) -> None:
    changes = dict(_changes(one.training(), other.training()))
    if changes:
        listing = "; ".join(
            f"{key}: {setting_text(old)} → {setting_text(new)}" for key, (old, new) in list(changes.items())[:5]
        )
        raise CompareError(
            f"{one.workdir} and {other.workdir} would be averaged as {row.base!r}, but not only their seeds differ "
            f"({listing}): add {next(iter(changes))} to --by, or give them names (NAME=WORKDIR)"
        )


def _check_same_result(
    one: RunResult, known: Mapping[str, float], other: RunResult, metrics: Mapping[str, float], case: Case
) -> None:
    different = [key for key in metrics if metrics[key] != known.get(key)]
    if not different:
        return
    key = different[0]
    text = (
        f"{one.workdir} and {other.workdir} have the same config and seed {one.seed}, but different results "
        f"({case.direction} {key} {known.get(key)} and {metrics[key]})"
    )
    changes = [k for k, _ in _changes(one.settings, other.settings)]
    if changes:
        text += f"; they differ in {', '.join(changes)}, which should not change a result"
    raise CompareError(f"{text}. Leave one out, or give them names (NAME=WORKDIR) to see them as two rows")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in sorted(set(old) | set(new)):
        pair = old.get(key, NOT_SET), new.get(key, NOT_SET)
        if pair[0] != pair[1]:
            yield key, pair


def name_rows(rows: Sequence[Row], reference: Row | None = None) -> None:
    """Names rows by their base and the settings in which those of one base differ.

    A setting is named where it differs from the most common value among them (or from the reference row's); where no
    value is the most common, all are named.
    """
    for base in dict.fromkeys(row.base for row in rows):
        group = [row for row in rows if row.base == base]
        named: dict[int, list[str]] = {id(row): [] for row in group}
        for key in dict.fromkeys(key for row in group for key in row.settings):
            values = [row.settings.get(key, NOT_SET) for row in group]
            usual = usual_value(values)
            if reference is not None and reference in group:
                usual = (reference.settings.get(key, NOT_SET),)
            for row, value in zip(group, values, strict=True):
                if len(set(values)) > 1 and (value,) != usual:
                    named[id(row)].append(f"{key}={setting_text(value)}")
        taken: Counter[str] = Counter()
        for row in group:
            words = named[id(row)]
            if len(words) > NAMED_SETTINGS:
                words = [*words[: NAMED_SETTINGS - 1], f"and {len(words) - NAMED_SETTINGS + 1} more"]
            label = " ".join([base, *words])
            taken[label] += 1
            row.label = label if taken[label] == 1 else f"{label} [{taken[label]}]"


def usual_value(values: Sequence[Any]) -> tuple[Any, ...]:
    """The most common value as (value,), or () where two are equally common."""
    counts = Counter(values).most_common(2)
    return () if len(counts) > 1 and counts[0][1] == counts[1][1] else (counts[0][0],)


def setting_text(value: Any) -> str:
    """A setting as it is written on a command line."""
    if isinstance(value, tuple):
        return f"({', '.join(map(setting_text, value))})"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else "''"


def _baseline(rows: Sequence[Row], name: str) -> Row | None:
    """The row of a name: its label, or its base where that is one row's only."""
    found = [row for row in rows if row.label == name] or [row for row in rows if row.base == name]
    if len(found) > 1:
        listing = "; ".join(row.label for row in found)
        raise CompareError(f"--baseline {name!r} may be any of these rows; give the full name: {listing}")
    return found[0] if found else None


def _controls(rows: Sequence[Row]) -> list[Row]:
    """Scores from before training: one row for all rows that started from the same features.

    They count as the same where they agree, to 0.01 percent, on every case and seed that they share, and share one.
    """
    found: list[tuple[str, Row, list[str]]] = []
    for row in rows:
        for features in dict.fromkeys(features for run in row.runs for features in run.controls):
            own = Row(f"{BEFORE}{features}", {}, "not trained", control=True)
            for run in row.runs:
                for case, metrics in run.controls.get(features, {}).items():
                    own.values.setdefault(case, {})[run.seed] = (metrics, run)
            for known, control, starts in found:
                if known == features and _agree(control, own):
                    for case, cell in own.values.items():
                        control.values[case] = {**cell, **control.values.get(case, {})}
                    starts.append(row.label)
                    break
            else:
                found.append((features, own, [row.label]))
    counts = Counter(features for features, _, _ in found)
    for features, control, starts in found:
        control.label = control.base
        if counts[features] > 1:
            shown = starts if len(starts) < 3 else [starts[0], f"{len(starts) - 1} more"]
            control.label += f" (of {' and '.join(shown)})"
    order = list(dict.fromkeys(features for features, _, _ in found))
    return [control for features, control, _ in sorted(found, key=lambda one: order.index(one[0]))]


def _agree(one: Row, other: Row) -> bool:
    shared = [
        (metrics, other.values[case][seed][0])
        for case, cell in one.values.items()
        for seed, (metrics, _) in cell.items()
        if seed in other.values.get(case, {})
    ]
    return bool(shared) and all(
        abs(a[key] - b[key]) < 0.01 for a, b in shared for key in a.keys() & b.keys() if METRIC.fullmatch(key)
    )
