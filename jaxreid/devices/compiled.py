"""Functions that are compiled once: what runs in a loop must never stop to compile again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxreid.errors import UserError
from jaxreid.files import cache_folder


class Compiled:
    """A jitted function that compiles at its first call and refuses arguments of any other shape or placement.

    Attributes:
      seconds: what tracing and compiling took.
      count: compilations so far, 0 or 1.
    """

    def __init__(self, function: Any, **options: Any) -> None:
        self._jitted = jax.jit(function, **options)
        shardings = jax.tree.leaves(options.get("out_shardings"))
        self._mesh = shardings[0].mesh if shardings else None  # what `parallel.constrain` refers to
        self._executable: Any = None
        self.name = function.__name__
        self.seconds, self.count = 0.0, 0

    def compile(self, *arguments: Any) -> Any:
        """Compiles for these arguments (arrays or their shapes) and returns XLA's compiled object."""
        start = time.perf_counter()
        with jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext():
            self._executable = self._jitted.lower(*arguments).compile()
        self.seconds = time.perf_counter() - start
        self.count += 1
        return self._executable

    def result_shapes(self, *arguments: Any) -> Any:
        """Shapes and types of what the function returns for these arguments (arrays or shapes)."""
        return self._jitted.eval_shape(*arguments)

    def __call__(self, *arguments: Any) -> Any:
        executable = self._executable or self.compile(*arguments)
        return executable(*arguments)


def compile_together(jobs: Sequence[tuple[Compiled, tuple[Any, ...]]]) -> None:
    """Compiles steps for their arguments (arrays or shapes), side by side; XLA needs Python's lock only to trace."""
    with concurrent.futures.ThreadPoolExecutor(max(len(jobs), 1)) as pool:
        for done in [pool.submit(step.compile, *arguments) for step, arguments in jobs]:
            done.result()


def cache_compilations() -> None:
    """Compiled steps are kept on disk, so that the second run starts at once; not where no home directory is known."""
    try:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_folder() / "jaxreid" / "compiled")
    except UserError:
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # dozens of small ones are seconds too
