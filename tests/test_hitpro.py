"""HiTPro's own parts: schedules, keys and slots, and every switch of its config."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses

from configs import hitpro as hitpro_config
from jaxreid.backbones import clip
from jaxreid.backbones.vit import ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.split import TrackletTable
from jaxreid.dataset_info import DatasetInfo
from jaxreid.methods.hitpro import HiTPro, camera_keys
from jaxreid.methods.method import Context, Features
from jaxreid.optimizers import Progress

SMALL = ViTConfig(width=32, depth=1, heads=2, patch=16, image_size=(64, 32), projection=16)
TRACKLETS = 24


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setitem(clip.VISION_TOWERS, "small", SMALL)


def make_info():
    """Tracklets of two visible and two infrared places, one place (camera 1) seen in both modalities."""
    camera_index = np.arange(TRACKLETS, dtype=np.int32) % 3
    modality = (np.arange(TRACKLETS, dtype=np.int32) % 4) // 2
    unknown = np.full(TRACKLETS, -1, np.int32)
    table = TrackletTable(
        length=np.full(TRACKLETS, 8, np.int32),
        camera=camera_index + 10,
        camera_index=camera_index,
        modality=modality,
        platform=unknown,
        session=unknown,
        geometry=np.full((TRACKLETS, 3), np.nan, np.float32),
        recording=np.arange(TRACKLETS, dtype=np.int32) // 8,
    )
    return DatasetInfo("toy", table, np.array([10, 11, 12]), (64, 32))


def make_method(info=None, **changes):
    config = hitpro_config.get_config()
    config.backbone.name, config.backbone.checkpoint = "small", ""
    config.prototypes.pad_to_multiple_of, config.levels.scope = 4, "camera"
    config.update_from_flattened_dict(changes)
    return HiTPro(config, info or make_info())


def make_batch(method):
    rng = np.random.default_rng(0)
    rows = np.arange(8)
    table = method.info.table
    known = {name: jnp.asarray(getattr(table, name)[rows]) for name in ("camera", "camera_index", "modality")}
    unknown = jnp.full(8, -1, jnp.int32)
    return Batch(
        frames=jnp.asarray(rng.normal(size=(8, 2, 64, 32, 3)), jnp.float32),
        frame_mask=jnp.ones((8, 2), bool),
        tracklet=jnp.asarray(rows, jnp.int32),
        part=jnp.zeros(8, jnp.int32),
        geometry=jnp.zeros((8, 3)),
        valid=jnp.ones(8, bool),
        **known,
        **dict.fromkeys(("platform", "session", "identity", "pair", "clothes"), unknown),
    )


def progress(epoch):
    return Progress(step=jnp.int32(0), epoch=jnp.float32(epoch), fraction=jnp.float32(0))


def refreshed(method):
    """Variables, and a memory mined on random features."""
    batch = make_batch(method)
    variables = jax.jit(method.init)(jax.random.PRNGKey(0), batch)
    z = np.random.default_rng(1).normal(size=(2 * TRACKLETS, SMALL.width)).astype(np.float32)
    features = Features(
        arrays={"feature": jnp.asarray(z)},
        tracklet=jnp.repeat(jnp.arange(TRACKLETS), 2),
        part=jnp.tile(jnp.arange(2), TRACKLETS),
        valid=jnp.ones(2 * TRACKLETS, bool),
    )
    (stage,) = method.stages()
    refresh = jax.jit(lambda m, p: method.refresh(variables, m, features, Context(jax.random.PRNGKey(0), p)))
    return variables, refresh(method.init_memory(), progress(0)), batch, stage


def losses(method, epoch):
    variables, memory, batch, stage = refreshed(method)
    out = jax.jit(lambda p: stage.loss(variables, memory, batch, Context(jax.random.PRNGKey(0), p)))(progress(epoch))
    return float(out.total), {name: float(v) for name, v in out.metrics.items()}


def test_kappa_is_linear_over_the_epochs():
    method = make_method(kappa=(0.0, -2.0), epochs=50)
    found = [float(method.kappa(progress(epoch))) for epoch in (0, 5, 15, 49)]
    np.testing.assert_allclose(found, [0, -0.2041, -0.6122, -2], atol=1e-4)  # the figures have four digits
    # Inside an epoch nothing moves.
    assert float(method.kappa(progress(5.9))) == found[1]


def test_levels_switch_on_at_their_epochs():
    switches = {"levels.within_start_epoch": 2, "levels.cross_start_epoch": 4, "association.threshold": "none"}
    method = make_method(
        **switches, **{"levels.intra_weight": 1.0, "levels.within_weight": 0.5, "levels.cross_weight": 0.25}
    )
    for epoch, weights in ((1, (1, 0, 0)), (3, (1, 0.5, 0)), (4, (1, 0.5, 0.25))):
        total, parts = losses(method, epoch)
        assert parts["loss_within"] > 0 and parts["loss_cross"] > 0
        wanted = sum(w * parts[f"loss_{name}"] for w, name in zip(weights, ("intra", "within", "cross"), strict=True))
        assert total == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("cameras, levels", [(3, {"intra", "within"}), (1, {"intra"})])
def test_a_level_that_cannot_run_is_not_logged(cameras, levels):
    info = make_info()
    info.table.modality[:] = 0
    info.table.camera_index[:] %= cameras
    method = make_method(info=info, require_both_modalities=False)
    _, parts = losses(method, 40)
    assert set(parts) == {f"loss_{level}" for level in levels}
    _, memory, _, _ = refreshed(method)
    labels = types.SimpleNamespace(pid=np.zeros(len(info.table), int))
    found = set(method.diagnose(memory, labels))
    mined = levels - {"intra"} | {"look_alike"}
    expected = {f"{name}_{figure}" for name in mined for figure in ("precision", "coverage")} | {"concentration"}
    assert found == expected | ({"within_threshold_visible"} if "within" in levels else set())


def test_a_place_seen_in_both_modalities_has_two_unrelated_keys():
    info = make_info()
    camera, modality, names = camera_keys(info)
    pairs = set(zip(info.table.modality.tolist(), info.table.camera_index.tolist(), strict=True))
    assert len(modality) == len(names) == len(pairs) == 6
    assert modality.tolist() == [0, 0, 0, 1, 1, 1]  # visible ones first
    for row in range(TRACKLETS):
        assert modality[camera[row]] == info.table.modality[row]
        assert names[camera[row]].startswith(str(info.table.camera[row]))


def test_slots_of_both_units():
    assert make_method().slot.tolist() == list(range(TRACKLETS))
    joined = make_method(**{"prototypes.unit": "camera_track"})
    table = joined.info.table
    keys = list(zip(joined.camera.tolist(), table.recording.tolist(), strict=True))
    for one in range(TRACKLETS):
        for other in range(TRACKLETS):
            assert (joined.slot[one] == joined.slot[other]) == (keys[one] == keys[other])
    assert "recording" in " ".join(joined.notes())


def test_camera_track_needs_recordings():
    info = make_info()
    table = dataclasses.replace(info.table, recording=np.full(TRACKLETS, -1, np.int32))
    with refuses(ValueError, 24, "toy", "recording"):
        make_method(dataclasses.replace(info, table=table), **{"prototypes.unit": "camera_track"})


def test_a_new_encoder_averages_the_frames():
    attention, mean = make_method(), make_method(**{"temporal.pooling": "mean"})
    batch = make_batch(attention)
    variables = jax.jit(attention.init)(jax.random.PRNGKey(0), batch)
    plain = {"params": {k: v for k, v in variables["params"].items() if k != "temporal"}}
    plain["batch_stats"] = variables["batch_stats"]
    one = attention.embed(variables, None, batch)
    other = mean.embed(plain, None, batch)
    np.testing.assert_allclose(one["feature"], other["feature"], atol=1e-5)  # a softmax against a division


@pytest.mark.parametrize(
    "switch",
    [
        {"temporal.pooling": "mean"},
        {"prototypes.unit": "camera_track"},
        {"association.threshold": "fixed"},
        {"association.threshold": "none"},
        {"association.mutual": False},
        {"association.weights": "uniform"},
        {"association.aggregation": 0.0},
        {"association.stage1_space": "raw"},
        {"association.metric_rounds": 0},
        {"association.metric_floor": 3.0},
        {"association.stage2_space": "centred"},
        {"association.stage2_space": "aggregated"},
        {"association.stage2_space": "raw"},
        {"association.stage2_space": "softmax_code"},
        {"association.look_alikes": False},
        {"association.candidates_per_camera": 2},
        {"association.min_concentration": 0.5},
        {"levels.scope": "joint"},
    ],
    ids=lambda switch: "-".join(f"{key}={value}" for key, value in switch.items()),
)
def test_every_switch_runs_and_changes_the_loss(switch):
    # A wide threshold leaves something to every switch, but to that of the threshold.
    kappa = 0.0 if switch == {"association.threshold": "none"} else -3.0
    loose = {"kappa": (kappa, kappa), "association.delta": 2.0}
    default, _ = losses(make_method(**loose), 1)
    total, parts = losses(make_method(**loose, **switch), 1)
    assert np.isfinite(total) and all(np.isfinite(list(parts.values())))
    if switch not in ({"temporal.pooling": "mean"}, {"association.min_concentration": 0.5}):
        # A new temporal layer is the mean, and all of these slots are concentrated enough to stay.
        assert total != default


def test_unknown_unit_is_named():
    with refuses(ValueError, "prototypes.unit", "'person'", "tracklet", "camera_track"):
        make_method(**{"prototypes.unit": "person"})
