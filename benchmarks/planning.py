"""How long, on how much memory: the ten papers' configurations on one H200, a v5e-8 and a v5p-64, by calculation.

    python -m benchmarks.planning [--measured FILE] [--overlap 0.5] [--write]

Rewrites the tables of docs/planning.md, whose text says what is calculated how; without --write it prints the page.
`--measured` takes JSON lines of benchmarks/train.py and plans with the utilisation that they found in place of an
assumed one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from benchmarks.papers import AXES, XFD, XFD_THINNED, Workload, workloads
from jaxreid.backbones.flops import vit_flops
from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.backbones.vit import ViTConfig
from jaxreid.devices import parallel
from jaxreid.files import expand
from jaxreid.training.dry_run import UTILISATION

PAGE = Path(__file__).parent.parent / "docs" / "planning.md"
GIB = 2**30
LATENCY = 1e-6  # seconds per hop of a ring, assumed
OVERLAP = 0.5  # share of the computing time behind which communication hides, assumed
USABLE = 0.9  # share of the device memory that may be filled, assumed
FRAMES_PER_CORE = 3053  # docs/scale.md: loader with threads, files of 256×128, frames per second and core
LARGE_FRAMES_PER_CORE = 858  # the same from files of 512×256
PREFETCHED = 3  # batches of bytes on a device: the one in work and `loading.prefetch` = 2 more


# ----------------------------------------------------------------------------------------------------------------
# Machines
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Machine:
    """Figures per device from the maker's sheet: FLOP/s in bfloat16, bytes, bytes/s, bytes/s of one link one way."""

    name: str
    devices: int
    hosts: int
    peak: float
    memory: float
    memory_bandwidth: float
    link: float
    source: str


MACHINES = (
    Machine(
        *("1 H200", 1, 1, 989e12, 141e9, 4.8e12, 450e9),
        "nvidia.com, H200 data sheet (SXM): 1,979 TFLOP/s with sparsity, half of it dense; 141 GB; 4.8 TB/s; NVLink "
        "900 GB/s both ways",
    ),
    Machine(
        *("v5e-8", 8, 1, 197e12, 16e9, 819e9, 50e9),
        "cloud.google.com/tpu/docs/v5e: 197 TFLOP/s; 16 GB; 819 GB/s; 400 GB/s both ways over 4 ports; 8 chips are one "
        "host",
    ),
    Machine(
        *("v5p-64", 32, 8, 459e12, 95 * GIB, 2765e9, 100e9),
        "cloud.google.com/tpu/docs/v5p: 459 TFLOP/s; 95 GiB; 2,765 GB/s; 1,200 GB/s both ways over 6 links of a 3-D "
        "torus; 64 counts TensorCores: 2×4×4 = 32 chips, 8 hosts",
    ),
)
# Peaks of what jax calls the devices that a measured line may come from.
SHEET_PEAKS = {"H200": 989e12, "H100": 989e12, "TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12}


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """Share of a sheet's peak that a step's model FLOP/s reach, and where that is from."""

    share: float
    source: str


ASSUMED = Utilisation(UTILISATION, "assumed, not measured")


def measured_utilisation(lines: list[str]) -> Utilisation:
    """The lowest utilisation that jaxreid reached in JSON lines of benchmarks/train.py, over the sheet's peak.

    `mfu` of a line is relative to `peak_tflops`, what a matrix product reached there.

    Raises:
      ValueError: no line is jaxreid's, or one is of a device whose sheet is not known (a CPU, say).
    """
    found = []
    for row in map(json.loads, filter(str.strip, lines)):
        if row.get("contender") != "jaxreid":
            continue
        peak = next((peak for kind, peak in SHEET_PEAKS.items() if kind in row["device"]), None)
        if peak is None:
            raise ValueError(f"--measured: device {row['device']!r} is none of {', '.join(SHEET_PEAKS)}")
        words = f"measured: {row['tower']}, {row['batch']}, {row['precision']} on {row['device']}"
        found.append(Utilisation(row["mfu"] * row["peak_tflops"] * 1e12 / peak, words + ", taken over for the others"))
    if not found:
        raise ValueError("--measured: no line has contender 'jaxreid'; see benchmarks/train.py --out")
    return min(found, key=lambda each: each.share)


# ----------------------------------------------------------------------------------------------------------------
# The model
# ----------------------------------------------------------------------------------------------------------------


def ring(size: float, devices: int, link: float, calls: int = 1) -> float:
    """Seconds of an all-gather or reduce-scatter of `size` bytes in all, in `calls` pieces, around a ring."""
    return (devices - 1) * (calls * LATENCY + size / devices / link) if size else 0.0


def communication(workload: Workload, mesh: AbstractMesh, link: float) -> float:
    """Seconds that a step's gradients and split parameters travel."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    split, arrays, whole = _split_bytes(workload.trained, mesh)
    frozen, frozen_arrays, _ = _split_bytes(workload.held, mesh)
    gathers = 2 * ring(split + frozen, fsdp, link, arrays + frozen_arrays)  # forward and backward pass
    scatter = ring(split, fsdp, link, arrays)
    shards = 2 * ring(split / fsdp, data, link)
    return gathers + scatter + shards + 2 * ring(whole, data * fsdp, link)


def _split_bytes(tree: Any, mesh: AbstractMesh) -> tuple[float, int, float]:
    """(bytes of the arrays that are split over fsdp, their number, bytes of the others)."""
    leaves = jax.tree.leaves(_placed(tree, mesh))
    sizes = [(_bytes(leaf), leaf.sharding.is_fully_replicated) for leaf in leaves]
    split = [size for size, whole in sizes if not whole]
    return sum(split), len(split), sum(size for size, whole in sizes if whole)


def _placed(tree: Any, mesh: Any) -> Any:
    return parallel.with_shardings(tree, parallel.state_sharding(tree, mesh))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory(workload: Workload, mesh: Any, remat: bool) -> dict[str, float]:
    """Bytes on a device, by what they hold; not what is gathered for a moment, nor the compiler's work space."""
    parts = {name: _placed(getattr(workload, name), mesh) for name in ("trained", "moments", "held")}
    placed = {name: float(parallel.bytes_per_device(tree)) for name, tree in parts.items()}
    pixels = workload.clips * workload.frames * math.prod(workload.size) * 3 / mesh.size
    return placed | {
        "gradients": placed["trained"],
        "activations": (workload.kept_remat if remat else workload.kept) / mesh.size,
        "frames": (PREFETCHED + 2) * pixels,  # bytes, and those in work in bfloat16
    }


@dataclasses.dataclass(frozen=True)
class Plan:
    """A workload on a machine; seconds are per step, `exposed` those of communication that nothing hides."""

    mesh: tuple[int, int]
    hosts: int
    remat: bool
    memory: dict[str, float]
    computing: float
    updating: float
    travelling: float
    exposed: float
    seconds: float
    hours_per_epoch: float
    frames_per_host: float  # per second, while steps run


def plan(workload: Workload, machine: Machine, utilisation: Utilisation, overlap: float = OVERLAP) -> Plan | None:
    """The first that fits of: every parameter everywhere, with remat; split over all devices, with remat.

    The batch has to divide over the devices: what is left over of the machine stays idle. None where nothing fits.
    """
    used = math.gcd(workload.clips, machine.devices)
    for fsdp in sorted({1, used}):
        mesh = AbstractMesh((used // fsdp, fsdp), AXES)
        for remat in (False, True):
            held = memory(workload, mesh, remat)
            if sum(held.values()) <= USABLE * machine.memory:
                return _timed(workload, machine, utilisation, overlap, mesh, remat, held)
    return None


def _timed(
    workload: Workload,
    machine: Machine,
    utilisation: Utilisation,
    overlap: float,
    mesh: AbstractMesh,
    remat: bool,
    held: dict[str, float],
) -> Plan:
    rate = utilisation.share * machine.peak * mesh.size
    computing = (workload.work_remat if remat else workload.work) / rate
    # Parameters and moments are read and written, gradients read.
    updating = (2 * held["trained"] + 2 * held["moments"] + held["gradients"]) / machine.memory_bandwidth
    travelling = communication(workload, mesh, machine.link)
    exposed = max(0.0, travelling - overlap * computing)
    seconds = computing + updating + exposed
    hosts = -(-mesh.size * machine.hosts // machine.devices)
    return Plan(
        mesh=(mesh.shape["data"], mesh.shape["fsdp"]),
        hosts=hosts,
        remat=remat,
        memory=held,
        computing=computing,
        updating=updating,
        travelling=travelling,
        exposed=exposed,
        seconds=seconds,
        hours_per_epoch=(workload.steps * seconds + workload.other_work / rate) / 3600,
        frames_per_host=workload.clips * workload.frames / seconds / hosts,
    )


# ----------------------------------------------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------------------------------------------


def tables(utilisation: Utilisation = ASSUMED, overlap: float = OVERLAP) -> dict[str, str]:
    """The tables of the page, by the name that stands in its comments."""
    found = workloads()
    many = [machine for machine in MACHINES if machine.devices > 1]
    large = [each for each in found if each.paper in ("HiTPro", "CLIP-XFD", "KeyRe-ID")]
    towers = (("ViT-B/16", (256, 128)), ("ViT-L/14", (252, 126)))
    return {
        "assumptions": _assumptions(utilisation, overlap),
        "machines": _markdown(
            ("machine", "devices", "hosts", "bf16 peak", "memory", "its bandwidth", "a link, one way", "source"),
            map(_machine_row, MACHINES),
        ),
        "configurations": _markdown(
            (
                *("paper", "from", "data", "tower, size", "clips × frames", "epochs × steps", "frames per epoch"),
                *("TFLOP per step", "parameters trained / frozen"),
            ),
            map(_configuration_row, found),
        ),
        "open": "\n".join(f"* {each.paper}: {each.unknown}." for each in found if each.unknown),
        "plans": "\n\n".join(_plans(found, machine, utilisation, overlap) for machine in MACHINES),
        "splitting": _markdown(
            (
                *("machine", "paper", "state, GiB: whole / split", "communication, ms: whole / split"),
                "step, ms: whole / split",
            ),
            [_splitting_row(each, machine, utilisation, overlap) for machine in many for each in large],
        ),
        "passes": _markdown(
            (
                *("machine", "tower", "GFLOP per frame", "hours", "frames/s per host", "cores"),
                *("hours with 16 cores per host", f"hours for {XFD_THINNED:,} frames"),
            ),
            [_pass_row(machine, tower, size, utilisation) for machine in MACHINES for tower, size in towers],
        ),
    }


def fill_in(page: str, tables: dict[str, str]) -> str:
    """The page with its tables renewed: what stands between `<!-- name -->` and `<!-- /name -->`.

    Raises:
      ValueError: the page has no place for a table.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        page, places = re.subn(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, text=begin + table + "\n" + end: text, page, flags=re.S
        )
        if places != 1:
            raise ValueError(f"{PAGE} has {places} places between {begin.strip()} and {end}, not one")
    return page


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _assumptions(utilisation: Utilisation, overlap: float) -> str:
    rows = (
        ("utilisation: model FLOP/s over the sheet's bf16 peak", f"{utilisation.share:.2f}", utilisation.source),
        ("share of computing that hides communication", overlap, "assumed"),
        ("latency of a hop", f"{1e6 * LATENCY:.0f} µs", "assumed"),
        ("share of a device's memory that may be filled", USABLE, "assumed"),
        ("batches of bytes on a device", PREFETCHED, "the one in work, and `loading.prefetch`"),
        ("frames per second and core, files of 256×128", f"{FRAMES_PER_CORE:,}", "measured, docs/scale.md"),
        ("the same, files of 512×256", LARGE_FRAMES_PER_CORE, "measured, docs/scale.md"),
    )
    return _markdown(("", "value", "from"), rows)


def _machine_row(machine: Machine) -> tuple[Any, ...]:
    return (
        machine.name,
        machine.devices,
        machine.hosts,
        f"{machine.peak / 1e12:.0f} TFLOP/s",
        f"{machine.memory / GIB:.0f} GiB",
        f"{machine.memory_bandwidth / 1e9:,.0f} GB/s",
        f"{machine.link / 1e9:.0f} GB/s",
        machine.source,
    )


def _configuration_row(each: Workload) -> tuple[Any, ...]:
    def millions(tree: Any) -> str:
        return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.0f}"

    return (
        each.paper,
        each.origin,
        each.data,
        f"{each.tower}, {each.size[0]}×{each.size[1]}",
        f"{each.clips} × {each.frames}",
        f"{each.epochs} × {each.steps:,}",
        f"{each.decoded:,.0f}",
        f"{each.work / 1e12:.1f}",
        f"{millions(each.trained)} / {millions(each.held)} M",
    )


def _plans(found: tuple[Workload, ...], machine: Machine, utilisation: Utilisation, overlap: float) -> str:
    columns = (
        *("paper", "devices", "data × fsdp", "remat", "ms per step", "computing", "exposed"),
        *("GiB", "state", "activations", "frames/s per host", "cores", "h per epoch", "h in all"),
    )
    rows = []
    for each in found:
        planned = plan(each, machine, utilisation, overlap)
        if planned is None:
            rows.append((each.paper, "does not fit", *[""] * (len(columns) - 2)))
            continue
        rows.append(
            (
                each.paper,
                f"{math.prod(planned.mesh)} of {machine.devices}",
                f"{planned.mesh[0]} × {planned.mesh[1]}",
                "yes" if planned.remat else "no",
                f"{1e3 * planned.seconds:.0f}",
                f"{1e3 * planned.computing:.0f}",
                f"{1e3 * planned.exposed:.0f}",
                f"{sum(planned.memory.values()) / GIB:.1f}",
                f"{_state(planned) / GIB:.1f}",
                f"{planned.memory['activations'] / GIB:.1f}",
                f"{planned.frames_per_host:,.0f}",
                f"{planned.frames_per_host / FRAMES_PER_CORE:.1f}",
                f"{planned.hours_per_epoch:.2g}",
                f"{planned.hours_per_epoch * each.epochs:.1f}",
            )
        )
    title = f"**{machine.name}**, utilisation {utilisation.share:.2f} ({utilisation.source}):"
    return title + "\n\n" + _markdown(columns, rows)


def _splitting_row(each: Workload, machine: Machine, utilisation: Utilisation, overlap: float) -> tuple[Any, ...]:
    used = math.gcd(each.clips, machine.devices)
    plans = []
    for fsdp in (1, used):
        mesh = AbstractMesh((used // fsdp, fsdp), AXES)
        remat = sum(memory(each, mesh, False).values()) > USABLE * machine.memory
        held = memory(each, mesh, remat)
        plans.append(_timed(each, machine, utilisation, overlap, mesh, remat, held))
    return (
        machine.name,
        each.paper,
        " / ".join(f"{_state(planned) / GIB:.1f}" for planned in plans),
        " / ".join(f"{1e3 * planned.travelling:.0f}" for planned in plans),
        " / ".join(f"{1e3 * planned.seconds:.0f}" for planned in plans),
    )


def _state(planned: Plan) -> float:
    return sum(planned.memory[name] for name in ("trained", "moments", "held", "gradients"))


def _pass_row(machine: Machine, tower: str, size: tuple[int, int], utilisation: Utilisation) -> tuple[Any, ...]:
    config = encoder_config(tower, size, "bfloat16")
    assert isinstance(config, ViTConfig)
    work, frames = vit_flops(config, class_token_only=True), XFD["frames"]["rgb"]
    rate = utilisation.share * machine.peak * machine.devices / work  # frames per second
    per_host = rate / machine.hosts
    fed = min(rate, 16 * FRAMES_PER_CORE * machine.hosts)
    return (
        machine.name,
        f"{tower}, {size[0]}×{size[1]}",
        f"{work / 1e9:.0f}",
        f"{frames / rate / 3600:.2g}",
        f"{per_host:,.0f}",
        f"{per_host / FRAMES_PER_CORE:.1f}",
        f"{frames / fed / 3600:.2g}",
        f"{XFD_THINNED / rate / 3600:.2g}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=expand, help="JSON lines of benchmarks/train.py")
    parser.add_argument("--overlap", type=float, default=OVERLAP, help="of computing, hides communication")
    parser.add_argument("--write", action="store_true", help=f"rewrite {PAGE.name} in place of printing it")
    options = parser.parse_args()
    utilisation = ASSUMED
    if options.measured:
        utilisation = measured_utilisation(options.measured.read_text(encoding="utf-8").splitlines())
    page = fill_in(PAGE.read_text(encoding="utf-8"), tables(utilisation, options.overlap))
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
