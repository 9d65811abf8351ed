"""Metrics of a run: JSON lines for programs, TensorBoard for eyes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from jaxreid.errors import UserError, writing
from jaxreid.files import write_text
from jaxreid.run.workdirs import BOARD, METRICS

WHERE = ("kind", "stage", "epoch", "run_epoch", "step")


class MetricWriter:
    """Appends rows to `metrics.jsonl` and scalars to `tensorboard/`.

    Every row has kind, stage, epoch (in the stage), run_epoch (in the whole run) and step (in the whole run).

    Args:
      workdir: the run's directory.
      resume_epoch: rows of this run_epoch and later are dropped first: a resumed run writes them again.
      active: whether this process writes (one of many hosts does).
    """

    def __init__(self, workdir: Path, resume_epoch: int = 0, active: bool = True) -> None:
        self._path = Path(workdir) / METRICS
        self._file, self._board = None, None
        if not active:
            return
        kept = [row for row in read_metrics(workdir) if row["run_epoch"] < resume_epoch]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file, self._board = self._path.open("a", encoding="utf-8"), Board(Path(workdir) / BOARD)
        with writing(self._path):
            for row in kept:
                self._board.add(row)

    def write(self, kind: str, values: dict[str, Any], *, stage: str, epoch: int, run_epoch: int, step: int) -> None:
        if self._file is None or self._board is None:
            return
        # JSON knows no NaN; a value that does not exist is null.
        clean = {name: (float(v) if math.isfinite(float(v)) else None) for name, v in values.items()}
        row = {"kind": kind, "stage": stage, "epoch": epoch, "run_epoch": run_epoch, "step": step, **clean}
        with writing(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._board.add(row)

    def close(self) -> None:
        if self._file is not None and self._board is not None:
            with writing(self._path):
                self._file.close()
                self._board.close()


class Board:
    """A folder of TensorBoard's that shows what is added from now on and nothing from before.

    TensorBoard can forget from a step on. That would be too much or too little where a run goes on: the last row
    before its checkpoint and the first that it writes again have the same step. So it forgets all of it, and is given
    the kept rows again. Written in this thread: in tensorboardX's own a full disk stops the run for good.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        protos: Any = event_pb2
        folder.mkdir(exist_ok=True)
        self._writer, self._event, self._scalar = EventsWriter(str(folder / "events")), protos.Event, scalar
        begin = protos.SessionLog(status=protos.SessionLog.START)
        self._writer.write_event(self._event(wall_time=time.time(), step=0, session_log=begin))

    def add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in WHERE and value is not None:
                summary = self._scalar(f"{row['kind']}/{name}", value)
                self._writer.write_event(self._event(wall_time=time.time(), step=row["step"], summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows written so far; a last line cut off by a crash is not taken for a row.

    Raises:
      UserError: another line is no row.
    """
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # behind the last line break: nothing, or what was cut off
                break
            raise UserError(f"{path}, line {number} is damaged ({error}): put a copy back, or delete it") from error
    return rows
