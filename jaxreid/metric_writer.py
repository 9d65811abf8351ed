"""Metrics of a run: JSON lines for programs, TensorBoard for eyes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricWriter:
    """Appends rows to `metrics.jsonl` and scalars to `tensorboard/`.

    Every row has kind, stage, epoch (in the stage), run_epoch (in the whole run) and step (in the whole run).

    Args:
      workdir: the run's directory.
      resume_epoch: rows of this run_epoch and later are dropped first: a resumed run writes them again.
      active: whether this process writes (one of many hosts does).
    """

    def __init__(self, workdir: Path, resume_epoch: int = 0, resume_step: int = 0, active: bool = True) -> None:
        self._path = Path(workdir) / "metrics.jsonl"
        self._file, self._board = None, None
        if not active:
            return
        kept = [row for row in read_metrics(workdir) if row["run_epoch"] < resume_epoch]
        aside = self._path.with_suffix(".jsonl.part")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(aside, self._path)
        self._file = self._path.open("a", encoding="utf-8")
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=resume_step or None)

    def write(self, kind: str, values: dict[str, Any], *, stage: str, epoch: int, run_epoch: int, step: int) -> None:
        if self._file is None or self._board is None:
            return
        # JSON knows no NaN; a value that does not exist is null.
        clean = {name: (float(v) if math.isfinite(float(v)) else None) for name, v in values.items()}
        where = {"kind": kind, "stage": stage, "epoch": epoch, "run_epoch": run_epoch, "step": step}
        self._file.write(json.dumps({**where, **clean}) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if value is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows written so far; a last line cut off by a crash is not taken for a row."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
