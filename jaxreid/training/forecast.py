"""How long a stage will take, from the time of its first steps."""

from __future__ import annotations

import time
from typing import Any

import jax

from jaxreid.methods.method import Stage
from jaxreid.run.model import Run


class Forecast:
    """How long a stage will take, in a line that `after` returns once."""

    SKIPPED, STEPS = 2, 10  # steps that are not measured (the pipeline fills up), steps that are

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run, self.stage = run, stage
        self.preparing = -self._prepared()  # seconds of extraction and refresh until the first step
        self.start, self.told = 0.0, False

    def _prepared(self) -> float:
        return self.run.phases["extraction"] + self.run.phases["refresh"]

    def after(self, step: int, steps: int, epoch: int, result: Any) -> str | None:
        """Called after every step; waits for two results of the first epoch, for none afterwards."""
        first, last = min(self.SKIPPED, steps) - 1, min(self.SKIPPED + self.STEPS, steps) - 1
        if self.told or step not in (first, last):
            return None
        jax.block_until_ready(result)
        if step == first < last:
            self.start = time.perf_counter()
            return None
        self.told = True
        stage, epochs = self.stage, self.stage.epochs - epoch
        line = f"stage {stage.name!r}: {epochs} epochs × {steps} steps to go"
        if first == last:  # too few to be measured
            return line
        each, preparing = (time.perf_counter() - self.start) / (last - first), self.preparing + self._prepared()
        passes = -(-epochs // stage.extraction.every) if stage.extraction and stage.extraction.every else 1
        seconds = epochs * steps * each + passes * preparing
        return f"{line}, about {_duration(seconds)}: {each:.2f} s per step, {passes} × {preparing:.1f} s of extraction"


def _duration(seconds: float) -> str:
    return next(
        (f"{seconds / unit:.1f} {name}" for unit, name in ((3600, "h"), (60, "min")) if seconds >= unit),
        f"{seconds:.0f} s",
    )
