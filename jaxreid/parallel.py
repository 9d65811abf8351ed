"""Devices as one mesh: where arrays live, and how a method asks for a placement without knowing the devices."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreid.data.batch import Batch
from jaxreid.errors import UserError

AXES = ("data", "fsdp")
SPLIT_ABOVE = 2**18  # elements; smaller arrays are cheaper to copy than to gather

jax.tree_util.register_dataclass(Batch, [f.name for f in dataclasses.fields(Batch)], [])


def start_processes(coordinator: str, count: int | None, index: int | None, timeout: int) -> None:
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


def barrier(name: str) -> None:
    """Waits until every process of the run has come here; nothing where there is one."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """What process 0 has to have done before the others do the same: writing what they will find."""
    if jax.process_index() > 0:
        barrier(name)
    yield
    if jax.process_index() == 0:
        barrier(name)


def make_mesh(fsdp: int = 1, devices: int = 0) -> Mesh:
    """A (data, fsdp) mesh over the first `devices` devices (0 = all).

    Raises:
      UserError: there are fewer devices, a process would be left without any, or their number is not a multiple of
        `fsdp`; the message names the sizes that fit.
    """
    found = jax.devices()
    if devices > len(found):
        raise UserError(f"mesh.devices={devices}, but there are {len(found)}")
    found = found[: devices or None]
    count = len(found)
    if len({device.process_index for device in found}) < jax.process_count():
        raise UserError(f"mesh.devices={devices} leaves some of the {jax.process_count()} processes without a device")
    if fsdp < 1 or count % fsdp:
        fit = [size for size in range(1, count + 1) if count % size == 0]
        raise UserError(f"mesh.fsdp={fsdp} does not divide {count} devices; sizes that fit: {fit}")
    # Mesh() rather than make_mesh(): its axes are Auto, on which sharding constraints are hints that XLA completes.
    return Mesh(np.array(found).reshape(count // fsdp, fsdp), AXES)


def rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over every device."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def constrain(x: Any, placement: str) -> Any:
    """Inside jit: asks that every array of `x` is split over rows ("rows") or whole everywhere ("replicated").

    Does nothing where no mesh is set, so that methods run unchanged outside of a training run.
    """
    if placement not in ("rows", "replicated"):
        raise UserError(f"placement {placement!r} is neither 'rows' nor 'replicated'")
    if jax.sharding.get_abstract_mesh().empty:
        return x
    spec = P(AXES) if placement == "rows" else P()
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), x)


def constrain_columns(x: Any, table: Any) -> Any:
    """Inside jit: asks that x [..., K] is split over its columns as the state splits the rows of `table` [K, D].

    Products with a large table then stay where its rows are: what travels are sums, never the table. Does nothing where
    the table is whole everywhere, or no mesh is set.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or _split_axis(table.shape, mesh.shape["fsdp"]) != 0:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * (x.ndim - 1), "fsdp"))


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Shardings for a state tree of arrays or shapes: large arrays split over `fsdp`, along their longest axis that
    divides; everything else on every device."""

    def sharding(leaf: Any) -> NamedSharding:
        axis = _split_axis(leaf.shape, mesh.shape["fsdp"])
        return NamedSharding(mesh, P() if axis is None else P(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding, tree)


def _split_axis(shape: tuple[int, ...], size: int) -> int | None:
    if size == 1 or np.prod(shape) < SPLIT_ABOVE:
        return None
    axes = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    return max(axes, key=lambda axis: shape[axis], default=None)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes, types and placement of a tree of arrays or shapes, as compiling and restoring take them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def to_global(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch → global arrays split over rows."""
    sharding = rows(mesh)
    if jax.process_count() == 1:  # all arrays in one call: one by one they take ten times as long
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def place(tree: Any, shardings: Any) -> Any:
    """Host or device arrays → global arrays with the given shardings (every process holds the same values)."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Global arrays → NumPy on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of placed arrays or shapes."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def placement(groups: Mapping[str, Any]) -> Iterator[str]:
    """A line for each group of placed arrays or shapes: bytes per device and over all, and how many are split."""
    for name, tree in groups.items():
        leaves = jax.tree.leaves(tree)
        if leaves:
            whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
            split = sum(not leaf.sharding.is_fully_replicated for leaf in leaves)
            yield (
                f"  {name:<10} {bytes_per_device(tree) / 2**20:9.2f} MiB per device of {whole / 2**20:9.2f}; "
                f"{len(leaves)} arrays, {split} of them split over fsdp"
            )


def flatten_paths(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """("encoder/block_00/…", leaf) of a nested dict."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield "/".join(str(getattr(key, "key", key)) for key in path), leaf
