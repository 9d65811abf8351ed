"""Processes of one run: how they meet, and how they decide together whether to go on.

Each reads for itself (configs, data sets, weights, checkpoints), so each can fail by itself; the others would then wait
for it in the next computation. So whatever reads is followed by an exchange of what went wrong, before any device has
to wait. It goes through the service that the processes met at: no device takes part, and it may take hours.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from jaxreid.devices.parallel import flatten_paths
from jaxreid.errors import UserError, told

# Process 0 may build a data set meanwhile. Nobody waits that long for a dead process: its missing heartbeat ends all.
WAIT = 7 * 24 * 3600 * 1000  # ms
LEAVING = 5000  # ms
_rounds = itertools.count()  # exchanges so far: the same number on every process


def start(coordinator: str, count: int | None, index: int | None, timeout: int) -> None:
    """Joins this process to a run of several; before anything else is asked of jax.

    Args:
      coordinator: HOST:PORT of process 0; "auto" where jax finds out everything itself (Slurm, Open MPI, TPU slices).
      count, index: processes of the run, and which this one is.
      timeout: seconds after which a process that is not heard of counts as dead, which ends the others.

    Raises:
      UserError: values are missing or do not fit, or the others were not met.
    """
    if coordinator != "auto" and (count is None or index is None or not 0 <= index < count):
        raise UserError(
            f"--coordinator={coordinator} needs --num_processes and --process_id in 0…num_processes − 1, not "
            f"{count} and {index}"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            count,
            index,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except RuntimeError as error:
        raise UserError(f"process {index} of {count} did not meet the others at {coordinator}: {error}") from error


def leave(status: int) -> NoReturn:
    """Ends this process at once, because the others wait for it or it for them; process 0, at which they met, as the
    last one: without it nobody else can say why."""
    state = _state()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the others may be gone already, or not leave yet
        if state.client and state.process_id:
            state.client.key_value_set(f"jaxreid/left/{state.process_id}", "")
        elif state.client:
            for index in range(1, state.num_processes):
                state.client.blocking_key_value_get(f"jaxreid/left/{index}", LEAVING)
    os._exit(status)


def _state() -> Any:
    from jax._src import distributed  # there is no public way to it

    return distributed.global_state


def gather(value: Any) -> list[Any]:
    """What every process gives, by process; JSON. All have to call it, so it is also where they wait for each other."""
    count = jax.process_count()
    if count == 1:
        return [value]
    client, prefix = _state().client, f"jaxreid/{next(_rounds)}"
    client.key_value_set(f"{prefix}/{jax.process_index()}", json.dumps(value))
    return [json.loads(client.blocking_key_value_get(f"{prefix}/{index}", WAIT)) for index in range(count)]


def agree(error: Exception | None = None, kind: type[UserError] = UserError) -> None:
    """Goes on where no process was given an error, and raises on all of them otherwise.

    Args:
      error: what went wrong on this process.
      kind: the class of what is raised, if all that went wrong is of it; UserError otherwise.

    Raises:
      UserError: the same on every process; the message names those that failed. Where this is the only process, and for
        what no user can mend, the error itself.
      RuntimeError: another process failed by what no user can mend.
    """
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return
    mine = error and {"told": told(error), "kind": isinstance(error, kind), "name": f"{type(error).__name__}: {error}"}
    failed = {index: found for index, found in enumerate(gather(mine)) if found}
    if not failed:
        return
    if error is not None and told(error) is None:
        raise error
    by_message: dict[str, list[str]] = {}
    for index, found in failed.items():
        by_message.setdefault(found["told"] or found["name"], []).append(str(index))
    message = "\n".join(
        f"process {', '.join(indices)} of {jax.process_count()}: {text}" for text, indices in by_message.items()
    )
    if any(found["told"] is None for found in failed.values()):
        raise RuntimeError(message)
    raise (kind if all(found["kind"] for found in failed.values()) else UserError)(message) from error


@contextlib.contextmanager
def together(kind: type[UserError] = UserError) -> Iterator[None]:
    """What every process has to get through before any goes on; raises as `agree`. Nothing inside waits for others."""
    try:
        yield
    except Exception as error:
        agree(error, kind)
    else:
        agree(kind=kind)


@contextlib.contextmanager
def main_first(kind: type[UserError] = UserError) -> Iterator[None]:
    """As `together`, with process 0 through before the others begin: it writes what they will find."""
    if jax.process_index() > 0:
        agree(kind=kind)
    with together(kind):
        yield
    if jax.process_index() == 0:
        agree(kind=kind)


def of_main(find: Callable[[], Any]) -> Any:
    """What `find` (JSON) gives process 0: for what all have to decide alike, though each may see other files."""
    with together():
        found = find() if jax.process_index() == 0 else None
    return gather(found)[0]


def same(what: str, value: Any) -> None:
    """Makes sure that every process has the same `value`, a nested dict of JSON.

    Raises:
      UserError: one of them has another; the message names it and the keys.
    """
    if jax.process_count() == 1:
        return
    first, *others = (dict(flatten_paths(found)) for found in gather(value))
    for index, other in enumerate(others, 1):
        changes = [
            f"{key}: {first.get(key)} → {other.get(key)}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if changes:
            raise UserError(
                f"process {index} of {jax.process_count()} has another {what} than process 0:\n  "
                + "\n  ".join(changes)
                + "\nall processes have to see the same files and be started with the same line"
            )
