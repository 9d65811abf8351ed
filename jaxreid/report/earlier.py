"""An earlier run beside this one: where the two may be compared, and what was set differently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxreid.config import flatten
from jaxreid.errors import UserError
from jaxreid.files import read_json
from jaxreid.report.page import EarlierRun, Record
from jaxreid.report.words import ranked_direction
from jaxreid.run.workdirs import differences
from jaxreid.training.metric_writer import read_metrics

SAME = {  # what must be equal before two scores can be subtracted
    "clip_sampling": "clip sampling",
    "seq_len": "frames per clip",
    "distance": "distance",
    "reranking": "re-ranking",
    "rescoring": "re-scoring",
    "queries": "queries",
    "unmatched": "queries without a match",
    "gallery": "gallery tracklets",
}


def read_earlier(
    workdir: Path, results: Mapping[str, Any], config: Mapping[str, Any], data: Mapping[str, Any]
) -> EarlierRun:
    """Reads the workdir of an earlier run and sets it beside this run; what cannot be read is said, not raised.

    Args:
      workdir: of the earlier run.
      results: what `results.json` of this run holds.
      config: this run's resolved config.
      data: this run's data set (`Dataset.fingerprint`).
    """
    workdir, name = Path(workdir), Path(workdir).name or str(workdir)
    try:
        before = _read(workdir / "results.json")
        old_config = _read(workdir / "config.json")
        old_data = _read(workdir / "dataset.json") if (workdir / "dataset.json").exists() else {}
        scores = before.get("scores")
        if not isinstance(scores, list) or not all(isinstance(r, dict) and "direction" in r for r in scores):
            raise UserError(
                f"{workdir / 'results.json'} is of an older format, without a list of scores; write it again by "
                f"running that run's line with --mode=evaluate"
            )
        metrics = read_metrics(workdir)
    except UserError as error:
        return EarlierRun(name, problem=str(error))

    assumptions = list(differences(before.get("assumptions", {}), results["assumptions"]))
    common = [f"training was told something else ({'; '.join(assumptions)})"] if assumptions else []
    data_set = list(differences(old_data, json.loads(json.dumps(dict(data)))))
    common += [f"the data set differs ({'; '.join(data_set)})"] if data_set else []
    beside = {}
    for record in results["scores"]:
        key = (ranked_direction(record), record["protocol"])
        alike = [r for r in scores if (r["direction"], r.get("protocol")) == (record["direction"], record["protocol"])]
        other = next((r for r in alike if ranked_direction(r) == key[0]), alike[0] if alike else None)
        beside[key] = (other, tuple(common + reasons_apart(other, record)))
    return EarlierRun(
        name,
        records=beside,
        settings=tuple(changed_settings(old_config, config)),
        metrics=tuple(metrics),
        checkpoint=f"epoch {before.get('epochs_done', '?')} of {before.get('epochs', '?')}",
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: there is no file, or it holds something else.
    """
    try:
        found = read_json(path, "compare with another run")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: is it the workdir of a run that was scored?") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def reasons_apart(other: Record | None, record: Record) -> list[str]:
    """Why the earlier record cannot be subtracted from this one; empty where it can."""
    if other is None:
        return [f"the earlier run has no score of {record['direction']} under {record['protocol']}"]
    reasons = []
    for key, words in SAME.items():
        if other.get(key) != record.get(key):
            was = other.get(key, "not recorded")
            reasons.append(f"{words} {was} → {record.get(key)}")
    return reasons


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[tuple[str, Any, Any]]:
    """(dotted name, earlier value, this run's value) of every setting that differs; None where it is not set."""
    old, new = dict(flatten(before)), dict(flatten(json.loads(json.dumps(now))))
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
