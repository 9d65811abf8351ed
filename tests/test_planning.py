"""Planning: the model against figures worked out by hand, memory against a dry run, the page against the script."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from messages import refuses

from benchmarks import papers, planning
from jaxreid.devices import parallel
from jaxreid.training import dry_run
from jaxreid.training.start import abstract_train_state
from jaxreid.training.steps import groups

MACHINE = planning.Machine("four", 4, 2, peak=1e15, memory=100e9, memory_bandwidth=1e12, link=1e9, source="")


def workload(**changes):
    """400 MB of parameters in a large array and 40 of them, 4 kB, in one that stays whole."""
    large, small = jax.ShapeDtypeStruct((100, 1_000_000), jnp.float32), jax.ShapeDtypeStruct((1000,), jnp.float32)
    values = {
        **dict.fromkeys(("paper", "origin", "data", "tower"), ""),
        **{"size": (10, 10), "clips": 8, "frames": 2, "epochs": 3, "steps": 100},
        **{"trained": (large, small), "moments": (large, small, large, small), "held": ()},
        **{"work": 4e15, "work_remat": 5e15, "other_work": 0.0, "kept": 8e9, "kept_remat": 1e9, "decoded": 1600.0},
    }
    return papers.Workload(**values | changes)


def test_a_ring_by_hand():
    """8 GB over 4 devices: three turns, in each of which every device passes on 2 GB."""
    assert planning.ring(8e9, 4, link=1e9) == pytest.approx(3 * (2.0 + planning.LATENCY), rel=1e-12)
    assert planning.ring(8e9, 4, link=1e9, calls=5) == pytest.approx(3 * (2.0 + 5 * planning.LATENCY), rel=1e-12)
    assert planning.ring(8e9, 1, link=1e9) == 0


def test_communication_of_a_mesh_by_hand():
    def seconds(data, fsdp, **changes):
        return planning.communication(workload(**changes), AbstractMesh((data, fsdp), ("data", "fsdp")), 1e9)

    hop = planning.LATENCY
    # Whole everywhere: 400.004 MB all-reduced around 4 devices, there and back.
    assert seconds(4, 1) == pytest.approx(2 * 3 * (0.400004 / 4 + hop))
    # Split over 4: gathered twice and scattered once; 4 kB are all-reduced.
    small = 2 * 3 * (4e-6 / 4 + hop)
    assert seconds(1, 4) == pytest.approx(3 * 3 * (0.4 / 4 + hop) + small)
    # 2 × 2: the same over 2, and each pair of shards, 200 MB, all-reduced.
    assert seconds(2, 2) == pytest.approx(3 * (0.4 / 2 + hop) + 2 * (0.2 / 2 + hop) + small)
    # Frozen weights are gathered, and have no gradients.
    frozen = (jax.ShapeDtypeStruct((1_000_000,), jnp.float32),)
    assert seconds(1, 4, held=frozen) - seconds(1, 4) == pytest.approx(2 * 3 * (4e-3 / 4 + hop))


def test_a_step_by_hand():
    """4 PFLOP on 4 devices that reach half a PFLOP/s: 2 s. A fifth of them hides 0.4 s of 0.6 s of communication."""
    plan = planning.plan(workload(), MACHINE, planning.Utilisation(0.5, ""), overlap=0.2)
    assert plan.mesh == (4, 1) and not plan.remat and plan.hosts == 2
    assert plan.computing == pytest.approx(2.0)
    assert plan.updating == pytest.approx((2 + 4 + 1) * 0.400004e9 / 1e12)
    assert plan.exposed == pytest.approx(0.6 - 0.4, rel=1e-3)
    assert plan.seconds == plan.computing + plan.updating + plan.exposed
    assert plan.hours_per_epoch == pytest.approx(100 * plan.seconds / 3600)
    assert plan.frames_per_host == pytest.approx(16 / plan.seconds / 2)
    slow = planning.plan(workload(other_work=2e15), MACHINE, planning.Utilisation(0.5, ""), overlap=1.0)
    assert slow.exposed == 0 and slow.hours_per_epoch == pytest.approx((100 * slow.seconds + 1) / 3600)


def test_what_does_not_fit_is_recomputed_then_split_then_given_up():
    """90 of 100 GB may be filled. State: 0.4 GB four times, a quarter of it where it is split over four devices."""

    def taken(per_device, with_remat):
        return planning.plan(workload(kept=4 * per_device, kept_remat=4 * with_remat), MACHINE, planning.ASSUMED)

    plain, remat, split, both = taken(88e9, 1e9), taken(89e9, 1e9), taken(89e9, 89e9), taken(95e9, 89e9)
    assert [(each.mesh, each.remat) for each in (plain, remat)] == [((4, 1), False), ((4, 1), True)]
    assert [(each.mesh, each.remat) for each in (split, both)] == [((1, 4), False), ((1, 4), True)]
    assert remat.computing == pytest.approx(5 / 4 * plain.computing)
    assert sum(split.memory.values()) == pytest.approx(89e9 + 0.4e9, rel=1e-4)
    assert taken(95e9, 95e9) is None


def test_a_batch_uses_the_devices_that_it_divides_over():
    assert planning.plan(workload(clips=6), MACHINE, planning.ASSUMED).mesh == (2, 1)
    assert planning.plan(workload(clips=6), MACHINE, planning.ASSUMED).hosts == 1
    assert planning.plan(workload(clips=7), MACHINE, planning.ASSUMED).mesh == (1, 1)


@pytest.fixture(scope="module")
def hitpro():
    return papers.workload_of_preset(papers.PAPERS[0])


def test_a_preset_is_planned_as_itself(hitpro):
    """⌈5,460 / 16⌉ = 342 steps for HITSZ-VCM's visible tracklets; 9,751 tracklets · 2 parts · 6 frames to extract."""
    assert (hitpro.clips, hitpro.frames, hitpro.steps, hitpro.epochs) == (64, 6, 342, 50)
    assert hitpro.decoded == 64 * 6 * 342 + 117_012
    # Nearly all of it is in the blocks. Of a block all is repeated but the last product, a third of its 12·D² weights.
    repeated, forward = (2 * products * 768**2 + 4 * 129 * 768 for products in (8, 12))
    assert hitpro.work_remat / hitpro.work == pytest.approx(1 + repeated / (3 * forward), rel=0.005)


def test_memory_is_that_of_a_dry_run(hitpro, monkeypatch, capsys):
    """The lines that `--mode=dry_run` prints for eight devices, four of which share the state; nothing is compiled."""
    run, stage = papers.preset_run("hitpro:hitsz_vcm", {})
    run.mesh = parallel.make_mesh(fsdp=4)
    monkeypatch.setattr(dry_run, "_compiled", lambda *_: 0.0)
    dry_run._stage(run, 0, stage)
    printed = capsys.readouterr().out
    mib = {name: float(size) for name, size in re.findall(r"^  (\w+) +([\d.]+) MiB per device", printed, re.M)}
    held = planning.memory(hitpro, run.mesh, remat=False)
    assert held["trained"] / 2**20 == pytest.approx(mib["parameters"], abs=0.01)
    assert held["moments"] / 2**20 == pytest.approx(mib["moments"] + mib["average"], abs=0.01)
    assert held["held"] / 2**20 == pytest.approx(mib["frozen"] + mib["memory"] + mib["statistics"], abs=0.02)
    kept = float(re.search(r"kept for the backward pass: at most ([\d.]+) GiB per device", printed)[1])
    assert held["activations"] / 2**30 == pytest.approx(kept, abs=0.01)
    whole = parallel.make_mesh(fsdp=1)
    state, frozen = abstract_train_state(run, stage)
    placed = parallel.with_shardings(state, parallel.state_sharding(state, whole))
    parts = groups(placed, frozen)
    assert planning.memory(hitpro, whole, remat=False)["trained"] == parallel.bytes_per_device(parts["parameters"])


def test_the_page_says_what_is_planned(hitpro):
    """Of one paper; the whole page is compared below."""
    text = planning.PAGE.read_text()
    for machine in planning.MACHINES:
        row = next(
            line
            for line in planning._plans((hitpro,), machine, planning.ASSUMED, planning.OVERLAP).splitlines()
            if line.startswith("| HiTPro")
        )
        assert row in text
    scale = (planning.PAGE.parent / "scale.md").read_text()
    assert f"| {planning.FRAMES_PER_CORE:,} |" in scale and f"| {planning.LARGE_FRAMES_PER_CORE} |" in scale


@pytest.mark.extended
def test_the_page_is_what_the_script_writes():
    text = planning.PAGE.read_text()
    assert planning.fill_in(text, planning.tables()) == text


def line(**changes):
    row = {"contender": "jaxreid", "device": "gpu NVIDIA H200", "tower": "ViT-B/16", "batch": "8x4x8"}
    return json.dumps(row | {"precision": "bfloat16", "mfu": 0.5, "peak_tflops": 494.5} | changes)


def test_a_measured_utilisation_is_over_the_sheets_peak():
    """Half of a matrix product that reaches half of 989 TFLOP/s; the lowest of several lines."""
    found = planning.measured_utilisation([line(), line(contender="torch", mfu=0.1), line(mfu=0.6)])
    assert found.share == pytest.approx(0.25) and "ViT-B/16, 8x4x8, bfloat16 on gpu NVIDIA H200" in found.source
    with refuses(ValueError, "'cpu cpu'"):
        planning.measured_utilisation([line(device="cpu cpu")])
    with refuses(ValueError, "contender", "'jaxreid'"):
        planning.measured_utilisation([line(contender="torch")])


def test_a_page_without_a_place_is_an_error():
    with refuses(ValueError, 0, "<!-- plans -->"):
        planning.fill_in("<!-- plans -->\n", {"plans": ""})
