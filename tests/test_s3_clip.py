"""S3-CLIP: which update moves what, which frames are restored, what is learned from, and the presets."""

import dataclasses
import functools
import importlib

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import CLIPS, FRAMES, make_batch, make_method, random_variables
from messages import refuses

from jaxreid.data.extras import ExtraReader
from jaxreid.data.schema import PLATFORMS
from jaxreid.errors import UserError
from jaxreid.layers.views import in_views, of_view
from jaxreid.methods.class_banks import BankMemory
from jaxreid.methods.method import Context, Features
from jaxreid.methods.s3_clip import NAME, S3Memory
from jaxreid.optimizers import split_trained
from jaxreid.run.config_values import check_config

SIZE, CANVAS = 24, 6
SETTINGS = {
    "adapters.width": 8,
    "platform_prompts.blocks": 1,
    "sr.height": CANVAS,
    "sr.width": CANVAS,
    "pretrain.crop": (CANVAS, CANVAS),
    "cqmix.cells": (4, 2),
}
GROUND, UAV = PLATFORMS.index("ground"), PLATFORMS.index("uav")


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        family.small_super_resolution(patch)
        yield


def make(**changes):
    return make_method("s3_clip", **SETTINGS | changes)


def batch(seed=0):
    """Clips 0 to 3 are sharp but for the last frame of clip 3; 4 and 5 from the air, 6 and 7 from the ground, small and
    of middle size."""
    rows = np.full((CLIPS, FRAMES), 24.0, np.float32)
    rows[3, -1], rows[4:6], rows[6], rows[7] = 10, 12, 8, 12
    platform = np.array([GROUND, UAV, GROUND, GROUND, UAV, UAV, GROUND, GROUND])
    whole = jnp.ones((CLIPS, FRAMES), bool)
    second = jax.random.normal(jax.random.key(seed + 9), (CLIPS, FRAMES, CANVAS, CANVAS, 3))
    extras = {"native_height": jnp.asarray(rows), "second_frames": second}
    extras |= {"native_height_mask": whole, "second_frames_mask": whole}
    return make_batch(seed).replace(extras=extras, platform=jnp.asarray(platform, jnp.int32))


def context(update="", fraction=0.5, epoch=1.0):
    at = dataclasses.replace(family.progress(fraction), epoch=jnp.float32(epoch))
    return Context(jax.random.key(0), at, update)


def memory_of(method):
    return BankMemory(jax.random.normal(jax.random.key(3), method.init_memory().bank.shape))


@functools.cache
def drawn():
    method = make()
    return method, family.filled(method.init, batch())


@functools.cache
def gradient(update, **changes):
    """(epoch → (gradient in all parameters, metrics)) of the main stage's loss for an update; weights by name."""
    method, variables = make(**{f"weights.{name}": value for name, value in changes.items()}), drawn()[1]
    method.config.sr.joint = update == "joint"
    method.config.sr.warmup_epochs = 3.0
    asked = "all" if update == "all" else NAME

    def loss(params, epoch):
        at = context(asked, epoch=epoch)
        out = method.loss({**variables, "params": params}, memory_of(method), batch(), at)
        return out.total, out.metrics

    found = jax.jit(jax.grad(loss, has_aux=True))
    return lambda epoch=3.0: found(variables["params"], jnp.float32(epoch))


def moved(gradients):
    """The first names of the parameters with a gradient that is not exactly zero."""
    return {path.split("/")[0] for path, value in family.largest(gradients).items() if value}


# ------------------------------------------------------------------------------------------------------- what moves


NOTHING = {"pixel": 0.0, "temporal": 0.0}


def test_the_first_update_moves_super_resolution_alone():
    """By what the tower sees; every other gradient is exactly zero, and before the end of the warm-up all are."""
    of_update = gradient(NAME, **NOTHING)
    found, metrics = of_update()
    assert moved(found) == {NAME}
    assert {"loss_pixel", "loss_temporal", "loss_task_features"} == set(metrics) and all(map(float, metrics.values()))
    silent = [path for path, value in family.largest(found[NAME]).items() if not value]
    assert all(path.endswith("key/bias") or "over_frames" in path for path in silent)  # what starts at 0 hides the rest
    found, metrics = of_update(2.9)
    assert moved(found) == set() and float(metrics["loss_task_features"]) == 0 < float(metrics["loss_pixel"])


def test_the_second_update_moves_all_but_super_resolution():
    found, metrics = gradient("all")()
    names = moved(found)
    assert NAME not in names and {"necks_last", "necks_projected", "image_tower", "platform_prompts"} <= names
    assert "loss_triplet" in metrics and "loss_pixel" not in metrics


def test_losses_of_identity_reach_super_resolution_if_asked():
    found, metrics = gradient("joint", **NOTHING, task_features=0.0)()
    assert moved(found) == {NAME} and float(metrics["loss_joint"]) > 0


def test_optimizers_have_a_part_each():
    method, variables = drawn()
    first, *middle, main = method.stages()
    assert [stage.name for stage in method.stages()] == [NAME, "prompts", "main"]
    assert [update.name for update in main.updates] == [NAME, "all"]  # the second sees what the first has changed
    assert [update.name for update in make(**{"sr.stale": True}).stages()[-1].updates] == ["all", NAME]
    own = {path for path in family.paths(variables["params"]) if path.startswith(NAME)}
    for update in (first.updates[0], main.updates[0]):
        assert set(family.paths(split_trained(variables["params"], update.optimizer)[0])) == own
    vsla = make_method("vsla_clip", **{"adapters.width": 8, "platform_prompts.blocks": 1})
    same = random_variables(vsla)["params"]
    wanted = set(family.paths(split_trained(same, vsla.stages()[-1].updates[0].optimizer)[0]))
    assert set(family.paths(split_trained(variables["params"], main.updates[1].optimizer)[0])) == wanted
    for stage in middle:
        assert not own & set(family.paths(split_trained(variables["params"], stage.updates[0].optimizer)[0]))
    assert (first.steps, first.extraction.every) == (150, 0)
    bare = make(**{"pretrain.steps": 0}).stages()
    assert [stage.name for stage in bare] == ["prompts", "main"] and bare[-1].extraction is not None


# --------------------------------------------------------------------------------------------- what is learned from


def test_perfect_pictures_have_no_loss():
    method, variables = drawn()
    b = batch()
    rest = method.parted(variables)[1]
    difference = jax.jit(lambda frames: method.task_difference(rest, b, method.sharp(b), frames))
    assert float(difference(method.unit(b.frames))) < 1e-5 < 1e-2 < float(difference(method.unit(b.frames) + 0.1))


def test_frames_that_are_not_sharp_do_not_count():
    """Of pre-training: garbage in them changes nothing, and they do not make the mean smaller."""
    method, variables = drawn()
    b = batch()
    sharp = np.array([[1, 1, 1]] * 3 + [[1, 1, 0]] + [[0, 0, 0]] * 4, bool)
    np.testing.assert_array_equal(method.sharp(b), sharp)

    @jax.jit
    def look(b):
        low = method.low(b, jax.random.split(context().rng, 3)[0])
        found = method.restored(variables["params"][NAME], low, b.frame_mask)
        return low, found - method.unit(b.frames), method.pretraining_loss(variables, None, b, context()).total

    low, apart, loss = look(b)
    assert float(loss) == pytest.approx(np.abs(np.asarray(apart)).mean((2, 3, 4))[sharp].mean(), rel=1e-4)
    # A small frame's own canvas is what the network gets; a sharp frame's is made of the frame.
    np.testing.assert_allclose(low[~sharp], method.unit(b.extras["second_frames"])[~sharp], atol=1e-6)
    other = look(b.replace(extras={**b.extras, "second_frames": b.extras["second_frames"] + 1.0}))[0]
    np.testing.assert_array_equal(low[sharp], other[sharp])
    assert float(look(b.replace(extras={**b.extras, "native_height": 0 * b.extras["native_height"]}))[2]) == 0


def test_mixed_frames():
    """All cells restored: the restored frame; none: the plain one. A clip's cells are its frames' or, if asked, each
    frame has its own."""
    method, b = make(), batch()
    cells = np.asarray(method.mix(jax.random.key(0), b))
    assert cells.shape == (CLIPS, 1, SIZE, SIZE, 1) and 0.3 < cells.mean() < 0.7
    tiles = cells.reshape(CLIPS, 4, SIZE // 4, 2, SIZE // 2)
    assert (tiles == tiles[:, :, :1, :, :1]).all()
    each = np.asarray(make(**{"cqmix.per": "frame"}).mix(jax.random.key(0), b))
    assert each.shape[1] == FRAMES and (each[:, 0] != each[:, 1]).any()

    @jax.jit
    def views(cells):
        method.mix = lambda rng, batch: cells
        return method.views(drawn()[1], b, jax.random.key(0))

    found = views(cells)
    np.testing.assert_array_equal(found["plain"], b.frames)
    np.testing.assert_array_equal(found["mixed"], np.where(cells, found["restored"], found["plain"]))
    np.testing.assert_array_equal(views(np.ones_like(cells))["mixed"], found["restored"])
    np.testing.assert_array_equal(views(np.zeros_like(cells))["mixed"], found["plain"])


def test_the_loss_is_the_weighted_sum_of_its_views():
    """A third of VSLA-CLIP's loss of each, whose batch norms see all of them together."""
    method, variables = drawn()
    b, memory = batch(), memory_of(method)
    views = [b.frames, 0.5 * b.frames]
    together = in_views(b, views)
    np.testing.assert_array_equal(together.identity, np.repeat(np.asarray(b.identity), 2))
    for number, frames in enumerate(views):
        np.testing.assert_array_equal(of_view(together.frames, number, 2), frames)

    @jax.jit
    def look():
        same = {"one": (0.25, b.frames), "other": (0.75, b.frames)}
        losses, _ = method.view_losses(variables, memory, b, context("all"), same)
        out = super(type(method), method).loss(variables, memory, b, context("all"))
        return {name: value for name, (_, value) in losses.items()}, out.metrics

    losses, metrics = look()
    for name, value in losses.items():
        assert float(value) == pytest.approx(float(metrics[f"loss_{name}"]), rel=1e-4)


def counted(method, found):
    """Memory behind the look through a split with so many sharp frames in each tracklet."""
    first = method.stages()[0]
    memory = method.begin_stage(method.init_memory(), first)
    count = len(found)
    rows = Features(
        {"sharp": jnp.asarray(found, jnp.float32)},
        jnp.arange(count),
        jnp.zeros(count, jnp.int32),
        jnp.ones(count, bool),
    )
    return memory, first.extraction.refresh({}, memory, rows, context())


def test_high_resolution_pairs_are_counted_once():
    method = make(**{"sr.fewest_frames": 13})
    b = batch()
    np.testing.assert_array_equal(method.look({}, None, b)["sharp"], [3, 3, 3, 2, 0, 0, 0, 0])
    fresh, memory = counted(method, [3, 0, 8, 2, 0, 0, 0, 0])
    assert method.sampling_labels(fresh).tolist() == list(range(8))  # before they are counted
    assert method.sampling_labels(memory).tolist() == [0, -1, 2, 3, -1, -1, -1, -1]
    figures = method.diagnose(memory, None)
    assert figures == {"high_resolution_frames_count": 13.0, "high_resolution_tracklets_count": 3.0}
    with refuses(UserError, "12 training frames have 18 rows or more", "config.sr.fewest_frames=13", "bypass_height"):
        method.sampling_labels(counted(method, [2, 0, 8, 2, 0, 0, 0, 0])[1])
    *_, main = method.stages()
    later = method.begin_stage(memory, main)
    assert type(later) is BankMemory and method.sampling_labels(later) is None
    # Without pre-training they are counted before the main stage, whose batches have all tracklets.
    bare = make(**{"pretrain.steps": 0, "sr.fewest_frames": 13})
    memory = bare.begin_stage(bare.init_memory(), bare.stages()[-1])
    assert isinstance(memory, S3Memory) and bare.sampling_labels(memory) is None
    assert bare.stages()[0].extraction is None
    with refuses(UserError, "0 training frames"):
        bare.sampling_labels(
            memory.replace(sharp=0 * memory.sharp + 0 * (memory.sharp == -1)).replace(sharp=jnp.zeros(8, jnp.int32))
        )


def test_the_canvas_is_of_the_stored_picture():
    """A pattern of single pixels is in the frame, not in the canvas: nothing behind it can bring it back."""
    wanted = make().extras("test")
    reader = ExtraReader.__new__(ExtraReader)
    reader.wanted = dict(wanted)
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(60, 190, (CANVAS, CANVAS, 3)), 8, 0), 8, 1).astype(np.uint8)
    pattern = (20 * (-1) ** (np.arange(48)[:, None] + np.arange(48))[..., None]).astype(np.int16)
    found = []
    for picture in (smooth, (smooth + pattern).astype(np.uint8)):
        arrays = {name: extra.empty(1) for name, extra in wanted.items()}
        reader.of_picture(arrays, 0, picture, picture)
        assert arrays["native_height"][0] == 48
        found.append(arrays["second_frames"])
    np.testing.assert_allclose(found[0].astype(int), found[1], atol=1)


# ------------------------------------------------------------------------------------------------- what is restored


def test_frames_from_the_air_and_small_ones_are_restored():
    """Of a frame that is not, the network sees the same bits as without super-resolution."""
    method, variables = drawn()
    b = batch()
    chosen = np.zeros((CLIPS, FRAMES), bool)
    chosen[4:7] = True  # but clip 1, from the air and sharp; the small frame of clip 3 has 10 rows: not below 9
    np.testing.assert_array_equal(method.chosen(b), chosen)
    below = np.asarray(make(**{"sr.below_height": 0.5}).chosen(b))
    assert below[3].tolist() == [False, False, True] and not below[7].any()  # 12 rows are not below 12
    unknown = b.replace(extras={**b.extras, "native_height_mask": ~b.extras["native_height_mask"]})
    assert not np.asarray(method.chosen(unknown)).any()

    pictures = jax.jit(method.pictures)(variables, b)
    np.testing.assert_array_equal(pictures["sr_off"], b.frames)
    np.testing.assert_array_equal(np.asarray(pictures["feature"])[~chosen], np.asarray(b.frames)[~chosen])
    np.testing.assert_array_equal(np.asarray(pictures["feature"])[chosen], np.asarray(pictures["sr_all"])[chosen])
    values = np.asarray(method.unit(pictures["sr_all"]))
    assert values.min() > -1e-5 and values.max() < 1 + 1e-5

    found = jax.jit(lambda b: method.embed(variables, None, b))(b)
    assert set(found) == {"tower", "feature", "sr_off", "sr_all"}
    plain = [row for row in range(CLIPS) if row not in (4, 5, 6)]
    for row in range(CLIPS):
        assert np.array_equal(found["feature"][row], found["sr_off"][row]) == (row in plain)
    vsla = make_method("vsla_clip", **{"adapters.width": 8, "platform_prompts.blocks": 1, "neck_feat": "before"})
    vsla.config.neck_feat = method.config.neck_feat
    without = jax.jit(lambda b: vsla.embed(variables, None, b))(b)
    np.testing.assert_allclose(found["sr_off"], without["feature"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["tower"], without["tower"], rtol=1e-4, atol=1e-5)
    alone = jax.jit(lambda b: vsla.embed(variables, None, b))(b.replace(frames=pictures["feature"]))["feature"]
    np.testing.assert_allclose(found["feature"], alone, rtol=1e-4, atol=1e-5)
    fewer = make(**{"evaluation.outputs": ("feature",)})
    assert set(jax.eval_shape(lambda b: fewer.embed(variables, None, b), b)) == {"tower", "feature", "sr_off"}


def test_a_clip_is_restored_in_part_where_some_of_its_frames_are_small():
    """As where its frames are all that is looked at; so are the clips beside it."""
    variables, b, small = drawn()[1], batch(), {"sr.below_height": 0.5}
    found, alone = (
        jax.jit(functools.partial(method.embed, variables, None))(b)
        for method in (make(**small), make(**small, **{"evaluation.outputs": ("feature",)}))
    )
    np.testing.assert_allclose(found["feature"], alone["feature"], rtol=1e-4, atol=1e-5)
    assert np.abs(found["feature"] - found["sr_off"])[3].max() > 0.01
    assert np.abs(found["feature"] - found["sr_all"])[3].max() > 0.01


def test_what_is_examined():
    """Sharp frames alone, against bicubic ones of the same small frames."""
    method, variables = drawn()
    b = batch()
    found = jax.jit(lambda b: method.examine(variables, None, b))(b)
    assert found.valid.tolist() == [True] * 4 + [False] * 4
    assert set(found.figures) == {
        f"{m} {w}" for m in ("PSNR", "SSIM", "cosine") for w in ("bicubic", "restored", "gained")
    }
    np.testing.assert_allclose(
        found.figures["PSNR gained"], found.figures["PSNR restored"] - found.figures["PSNR bicubic"], atol=1e-4
    )
    assert found.captions == ("low resolution", "bicubic", "restored", "high resolution")
    assert {x.shape for x in found.pictures} == {(CLIPS, SIZE, SIZE, 3)}
    low, *_, high = map(np.asarray, found.pictures)
    np.testing.assert_allclose(high[0], method.unit(b.frames)[0, 0], atol=1e-6)
    np.testing.assert_array_equal(low[:, ::4, ::4], low[:, 3::4, 3::4])


# ------------------------------------------------------------------------------------------------------- configs


def config(preset="", **changes):
    found = importlib.import_module("configs.s3_clip").get_config(preset)
    found.update_from_flattened_dict(changes)
    return found


@pytest.mark.parametrize("preset", ["detreidx", "g2a_vreid", "ag_vpreid"])
def test_presets(preset):
    c = config(preset)
    check_config(c)
    assert (c.sr.name, c.sr.temporal, c.sr.height, c.sr.width) == ("swinir_light", "band", 64, 32)
    assert (c.frames.height, c.frames.width, c.backbone.name) == (256, 128, "ViT-B/16")
    assert (c.batch.num_identities * c.batch.num_instances, c.batch.seq_len, c.epochs) == (16, 8, 60)
    assert (c.sr.bypass_height, c.sr.below_height, c.sr.fewest_frames) == (0.75, 0.375, 200)
    assert (c.sr.lr, c.sr.min_lr, c.sr.warmup_epochs, c.sr.stale, c.sr.joint) == (1e-4, 1e-6, 5, False, False)
    first = c.pretrain
    assert (first.steps, first.lr, first.min_lr, tuple(first.crop)) == (100_000, 2e-4, 1e-6, (32, 16))
    assert first.clips * first.seq_len == 64
    w = c.weights
    assert (w.pixel, w.task_features, w.temporal) == (1, 1, 0.1)
    assert sum(c.views.values()) == pytest.approx(1) and (tuple(c.cqmix.cells), c.cqmix.per) == ((8, 4), "clip")
    assert (tuple(c.degradation.blur), c.degradation.rows[0] * 64, c.degradation.noise) == ((0.2, 2.0), 12, 0.02)
    assert tuple(c.evaluation.outputs) == ("feature", "sr_off", "sr_all") and c.evaluation.reranking == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sr.height": 20}, ("config.sr.height, width=(20, 8)", "(64, 32)")),
        ({"sr.width": 16}, ("the same in both directions",)),
        ({"pretrain.crop": (32, 8)}, ("config.pretrain.crop=(32, 8)", "(16, 8)")),
        ({"cqmix.cells": (7, 4)}, ("config.cqmix.cells=(7, 4)",)),
        ({"views.restored": 0.0, "views.plain": 0.0, "views.mixed": 0.0}, ("config.views",)),
        ({"sr.below_height": 0.8}, ("config.sr.below_height",)),
        ({"evaluation.outputs": ("feature", "sr_some")}, ("sr_some", "sr_all")),
        ({"sr.min_lr": 1.0}, ("config.sr.min_lr=1.0",)),
        ({"sr.checkpoint": "swinir.pth"}, ("config.sr.residual must be False",)),
        ({"sr.name": "swinir_huge"}, ("config.sr.name", "swinir_light")),
    ],
)
def test_values_that_mean_nothing_have_their_sentence(changes, words):
    with refuses(UserError, *words):
        check_config(config(**changes))
