"""DinoGRL: numbers of a restatement in PyTorch at random weights, what must be exactly zero, and what is refused."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import released_files
import torch
from messages import refuses, says
from references import dinogrl_forward as reference

from jaxreid.backbones import dinov2, frame_encoder
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.mask_branch import MaskBranch, MaskBranchConfig
from jaxreid.backbones.pretrained import load_variables
from jaxreid.backbones.resnet import ResNetConfig
from jaxreid.layers.gait_maps import CellBranch
from jaxreid.layers.pbmge import Exchange
from jaxreid.layers.silhouettes import (
    cleaned,
    diversity_loss,
    kept_maps,
    mask_sobel_loss,
    person,
    resized,
    sobel_loss,
)
from jaxreid.losses.triplet import batch_all_triplet
from jaxreid.methods.method import find_method
from jaxreid.optimizers import find_group
from jaxreid.retrieval.distances import part_euclidean_distance
from jaxreid.run.config_values import check_config
from jaxreid.run.model import open_model
from jaxreid.training.importing import import_released
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

HEADS, DINO_SIZE, BINS, GRANULARITIES = 2, (128, 64), (1, 2, 4), (2, 4)
DINO = dataclasses.replace(dinov2.SMALL["walkers_vit_tiny"], width=8, heads=HEADS)
RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=4, stems=2)
CLIPS, FRAMES = family.CLIPS, 2
SIZES = {
    "dino": 8, "depth": 4, "patch": 8, "table": 17, "width": 4, "depths": (1, 1, 1, 1), "channels": 4, "parts": 7,
    "more": 2, "part": 6, "classes": 4,
}  # fmt: skip
SMALL = {
    "backbone.name": "dinov2:small", "backbone.checkpoint": "", "resnet.name": "small", "resnet.checkpoint": "",
    "map_channels": 4, "part_width": 6, "batch.seq_len": FRAMES, "extraction_batch_size": 8, "dataset.config": "tiny",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_towers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dinov2.SMALL, "small", DINO)
        patch.setitem(frame_encoder.RESNETS, "small", RESNET)
        yield


def make_config(preset="", **changes):
    config = importlib.import_module("configs.dinogrl").get_config(preset)
    config.update_from_flattened_dict(({} if preset else SMALL) | changes)
    return config


def make_method(**changes):
    info = dataclasses.replace(family.make_info(), frame_size=(64, 32))
    return find_method("dinogrl")(make_config(**changes), info)


def make_batch(seed=0):
    """Rows 0 to 3 are the visible clips of four people, the others the infrared ones."""
    frames = jax.random.normal(jax.random.key(seed), (CLIPS, FRAMES, 64, 32, 3))
    order = np.r_[0:CLIPS:2, 1:CLIPS:2]
    batch = family.make_batch()
    rows = {name: jnp.asarray(getattr(batch, name))[order] for name in ("modality", "identity")}
    return batch.replace(frames=frames, frame_mask=jnp.ones((CLIPS, FRAMES), bool), **rows)


def largest(tree):
    """Path → largest absolute value, by first name of the path."""
    found = {}
    for path, value in family.largest(tree).items():
        first = path.split("/")[0]
        found[first] = max(found.get(first, 0.0), value)
    return found


@pytest.fixture(scope="module")
def released(tmp_path_factory, data_dir, tiny, small_towers):
    """Three small files of a release as a workdir: its model and variables, the tensors, and what import said."""
    folder, tensors, paths = tmp_path_factory.mktemp("dinogrl"), {}, []
    for seed, shapes in enumerate(released_files.dinogrl(**SIZES)):
        paths.append(folder / f"{seed}.safetensors")
        tensors |= released_files.random_file(paths[-1], shapes, seed)
    config = make_config(**{"mask.dropout": 0.0, "map_drop": 0.0})
    lines = import_released(config, paths, folder / "run", data_dir)
    model = open_model(folder / "run")
    state, frozen, *_ = restore_judged(model)
    return SimpleNamespace(
        folder=folder / "run", tensors=tensors, paths=paths, lines=lines, model=model,
        variables=jax.device_get(variables_of(state, frozen)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def step(released):
    """((loss, (metrics, statistics, memory)), gradients) of variables and a batch, compiled once."""
    loss = jax.jit(jax.value_and_grad(family.loss_of(released.model.method.stages()[-1]), has_aux=True))
    return lambda variables, batch: loss(variables["params"], variables["batch_stats"], {}, batch)


def peer(released, train=False):
    return reference.DinoGRL(released.tensors, HEADS, DINO_SIZE, RESNET.depths, BINS, GRANULARITIES, train)


def as_ours(x):
    """[N, C, h, w] → [N, h, w, C]; [B, D, P] → [B, P, D]."""
    x = x.detach().numpy()
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x.swapaxes(1, 2)


# The whole network ----------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_released_files_compute_what_the_released_code_computes(released):
    batch = make_batch()
    record = json.loads((released.folder / "imported.json").read_text())
    assert record["used"] + len(record["unused"]) == len(released.tensors) and not record["drawn"]
    kinds = {name.rpartition(".")[2] for name in record["unused"] if "bn_t" not in name}
    assert kinds == {"num_batches_tracked", "mask_token"}
    assert sum("bn_t.running" in name for name in record["unused"]) == 4  # two branches that never call it
    says(released.lines, "4 identities")

    network = released.model.method.network
    apply = jax.jit(lambda variables: network.apply(variables, batch, False))
    found = apply(released.variables)
    with torch.no_grad():
        expected = peer(released)(np.asarray(batch.frames), np.asarray(batch.modality))
    shape = found["silhouette"].shape
    assert shape == (CLIPS * FRAMES, 32, 16)
    np.testing.assert_allclose(found["shares"], expected["shares"].reshape(*shape, 2), atol=1e-5)
    np.testing.assert_allclose(found["silhouette"], expected["silhouette"], atol=1e-5)
    np.testing.assert_allclose(found["parts"], expected["parts"].reshape(*shape, -1), atol=1e-5)
    for name in ("gait", "appearance"):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], as_ours(expected[name]), atol=1e-4 * scale)
        assert found[name].shape == (CLIPS, 9, 6)
    own = jnp.concatenate([found["gait"], found["appearance"]], 1)
    other = torch.cat([expected["gait"], expected["appearance"]], 2)
    apart = np.asarray(reference.distance(other[:3], other[3:]))
    np.testing.assert_allclose(part_euclidean_distance(own[:3], own[3:]), apart, atol=1e-3 * apart.max())


@pytest.mark.parity
def test_a_training_step_is_that_of_the_restated_code(released, step):
    """Losses with their published weights, running statistics, and gradients down to the stems."""
    batch = make_batch(1)
    (total, (metrics, changed, _)), gradient = step(released.variables, batch)
    moved = largest(gradient)
    assert moved.pop("dinov2") == 0.0 and all(value > 0 for value in moved.values()), moved

    net, label = peer(released, train=True), torch.as_tensor(np.asarray(batch.identity, np.int64))
    leaves = {name: x.requires_grad_() for name, x in net.t.items() if not name.endswith(("mean", "var", "tracked"))}
    found = net(np.asarray(batch.frames), np.asarray(batch.modality))
    n, h, w = found["silhouette"].shape
    shares = found["shares"].reshape(n, h, w, 2).permute(0, 3, 1, 2)
    parts = found["parts"].reshape(n, h, w, -1).permute(0, 3, 1, 2)
    mass = parts.sum((2, 3))
    share = mass / (mass.sum(1, keepdim=True) + 1e-6)
    terms = {f"id_{name}": reference.identity(found[f"{name}_cosines"], label) for name in ("gait", "appearance")}
    terms |= {f"tri_{name}": reference.triplet(found[name], label) for name in ("gait", "appearance")}
    terms |= {
        "mse": found["mse"],
        "sob_mask": (reference.sobel(shares[:, :1]) + reference.sobel(shares[:, 1:])) / 2,
        "sob_parts": reference.sobel(parts[:, :-1]),
        "div": (np.log2(4) + (share * torch.log2(share + 1e-6)).sum(1)).mean(),
    }
    weights = {"mse": 1.0, "sob_mask": 0.02, "sob_parts": 0.01, "div": 5.0}
    expected = sum(weights.get(name, 1.0) * value for name, value in terms.items())
    for name, value in terms.items():
        assert float(metrics[f"loss_{name}"]) == pytest.approx(float(value), rel=1e-3), name
    assert float(total) == pytest.approx(float(expected), rel=1e-3)
    expected.backward()

    def close(ours, theirs):
        theirs = np.asarray(theirs.detach())
        np.testing.assert_allclose(np.asarray(ours).reshape(theirs.shape), theirs, atol=5e-3 * np.abs(theirs).max())

    branch = "dinov2.Denoising_Branch.down_sampling"
    close(gradient["part_branch"]["first"]["kernel"].T, leaves[f"{branch}.0.weight"].grad)
    close(gradient["texture_branch"]["first"]["bias"], leaves["dinov2.Appearance_Branch.down_sampling.bias"].grad)
    close(gradient["mask_branch"]["down"]["kernel"].T, leaves["dinov2.Mask_Branch.down_sampling.weight"].grad)
    close(gradient["appearance_parts"]["kernel"], leaves["FCs.fc_bin"].grad)
    close(gradient["gait_exchange"]["query_kernel"], leaves["enhance_shape_net_3.theta.weight"].grad)
    close(gradient["appearance_exchange"]["specific_kernel"], leaves["enhance_app_net_3.W2.0.weight"].grad)
    kernel = gradient["appearance_trunk"]["stem_infrared"]["conv"]["kernel"]
    close(kernel.transpose(3, 2, 0, 1), leaves["image_encoder2.resnet_conv.0.weight"].grad)
    kernel = gradient["part_stem"]["first"]["conv"]["kernel"]
    close(kernel.transpose(3, 2, 0, 1), leaves["dinov2.gait_net.pre_part.forward_block.conv1.conv.weight"].grad)

    close(changed["part_branch"]["norm_tokens"]["var"], net.t["dinov2.Denoising_Branch.bn_s.running_var"])
    close(changed["gait_exchange"]["shared"]["mean"], net.t["enhance_shape_net_3.W1.1.running_mean"])
    close(changed["gait_exchange"]["specific"]["var"], net.t["enhance_shape_net_3.W2.1.running_var"])
    close(changed["appearance_trunk"]["stem"]["norm"]["mean"], net.t["image_encoder1.resnet_conv.1.running_mean"])


def test_files_that_are_not_as_released_are_refused(released, tmp_path, data_dir):
    with refuses(ValueError, "enhance_app_net_3", "missing"):
        import_released(make_config(), released.paths[::2], tmp_path / "run", data_dir)
    with refuses(ValueError, "--config.part_width=6"):
        import_released(make_config(part_width=8), released.paths, tmp_path / "run", data_dir)
    assert not (tmp_path / "run").exists()


def test_sizes_of_the_published_networks():
    """Parameters by hand: 22,056,576 of DINOv2 but for its mask token and with a smaller table, and so on."""
    info = dataclasses.replace(family.make_info(), frame_size=(256, 128), num_classes=500)
    method = find_method("dinogrl")(make_config("hitsz_vcm"), info)
    batch = family.make_batch()
    batch = batch.replace(frames=jnp.zeros((2, 6, 256, 128, 3)), frame_mask=jnp.ones((2, 6), bool))
    batch = batch.replace(modality=batch.modality[:2], valid=batch.valid[:2])
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    assert count["mask_branch"] == 1_922
    assert (count["part_branch"], count["texture_branch"]) == (1_192_720, 24_592)
    assert count["gait_exchange"] == count["appearance_exchange"] == 2_054
    assert count["dinov2"] == 22_056_576 - 384 - (1370 - 513) * 384
    stem = 7 * 7 * 3 * 64 + 2 * 64
    assert count["gait_trunk"] == 23_508_032 - stem and count["appearance_trunk"] == 23_508_032 + stem
    for name in ("gait", "appearance"):
        assert count[f"{name}_parts"] == 31 * 2048 * 256
        assert count[f"{name}_necks"] == 35 * 256 * 500 + 2 * 35 * 256
    found, cosines = jax.eval_shape(lambda v: method.network.apply(v, batch, method="train_outputs", mutable=True,
        rngs={"dropout": jax.random.key(0), "maps": jax.random.key(0)})[0], variables)  # fmt: skip
    assert found["parts"].shape == (12, 64, 32, 16) and found["gait"].shape == (2, 35, 256)
    assert cosines["appearance"].shape == (2, 35, 500)
    embedded = jax.eval_shape(lambda v: method.embed(v, {}, batch), variables)
    assert embedded["feature"].shape == (2, 70, 256)


# Who learns from what -------------------------------------------------------------------------------------------------


def frozen_and_mask(batch, **changes):
    """Largest gradient of DINOv2 and of the mask branch, where neither of the mask's own losses counts."""
    method = make_method(lambda_mse=0.0, lambda_sob_mask=0.0, **changes)
    variables, loss = family.filled(method.init, batch, scale=1.0), family.loss_of(method.stages()[-1])

    @jax.jit
    def gradient(some):
        return jax.grad(lambda some: loss({**variables["params"], **some}, variables["batch_stats"], {}, batch)[0])(
            some
        )

    return largest(gradient({name: variables["params"][name] for name in ("dinov2", "mask_branch")}))


def test_identity_losses_never_reach_the_mask_branch():
    batch = make_batch()
    assert frozen_and_mask(batch) == {"dinov2": 0.0, "mask_branch": 0.0}
    through = frozen_and_mask(batch, mask_grad=True)
    assert through["mask_branch"] > 0 and through["dinov2"] == 0.0
    group = find_group("dinov2/block_00/mlp/up/kernel", make_method().stages()[-1].updates[0].optimizer.groups)
    assert group.lr == 0


def test_the_mask_branch_has_a_stage_of_its_own_unless_it_is_given():
    first, main = make_method().stages()
    assert (first.name, first.steps, first.pictures) == ("mask", 150, False) and first.cached
    assert make_config("hitsz_vcm").mask.warmup_steps == 500
    trained = [path for path in ("mask_branch/down/kernel", "gait_trunk/layer1_0/conv1/kernel", "dinov2/class_token")
               if find_group(path, first.updates[0].optimizer.groups).lr]  # fmt: skip
    assert trained == ["mask_branch/down/kernel"]
    assert [stage.name for stage in make_method(**{"mask.checkpoint": "there"}).stages()] == [main.name]
    assert [stage.name for stage in make_method(streams="appearance").stages()] == [main.name]
    batch, method = make_batch(), make_method(**{"mask.cache": False})
    variables = family.filled(method.init, batch)
    (total, (metrics, changed, _)), gradient = jax.jit(
        jax.value_and_grad(family.loss_of(method.stages()[0]), has_aux=True)
    )(variables["params"], variables["batch_stats"], {}, batch)
    assert {name for name, value in largest(gradient).items() if value} == {"mask_branch"}
    assert float(total) == pytest.approx(float(metrics["loss_mse"] + 0.02 * metrics["loss_sob_mask"]))
    assert (changed["gait_trunk"]["layer1_0"]["norm1"]["mean"]
            == variables["batch_stats"]["gait_trunk"]["layer1_0"]["norm1"]["mean"]).all()  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "Mask_Branch."])
def test_a_mask_branch_of_big_gait(tmp_path, prefix):
    """The file's names as its module makes them; the norm behind the bottleneck is never called."""
    norm, linear = released_files.plain_batch_norm, released_files.linear
    shapes = norm("bn_s", 8) | norm("bn_t", 2) | linear("down_sampling", 8, 2) | linear("up_sampling", 2, 8)
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    tensors = released_files.random_file(tmp_path / "mask.safetensors", shapes)
    config = MaskBranchConfig(8)
    variables = load_variables(tmp_path / "mask.safetensors", config)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8))
    shares, rebuilt = MaskBranch(config).apply(variables, jnp.asarray(x, jnp.float32))
    t = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    z = (x - t["bn_s.running_mean"]) / np.sqrt(t["bn_s.running_var"] + 1e-5)
    z = np.exp(z @ t["down_sampling.weight"].T + t["down_sampling.bias"])
    z /= z.sum(-1, keepdims=True)
    np.testing.assert_allclose(shares, z, atol=1e-5)
    np.testing.assert_allclose(rebuilt, z @ t["up_sampling.weight"].T + t["up_sampling.bias"], atol=1e-5)
    with refuses(ValueError, "down_sampling.weight", "width 9"):
        load_variables(tmp_path / "mask.safetensors", MaskBranchConfig(9))


@pytest.mark.extended
def test_four_people_in_two_modalities_are_learned_by_heart():
    """All of them are found across modalities after 60 steps, part by part."""
    batch, method = make_batch(), make_method(**{"map_drop": 0.0})
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    params, stats = variables["params"], variables["batch_stats"]
    loss = family.loss_of(method.stages()[-1])
    learner = optax.adam(3e-3)

    @jax.jit
    def step(params, stats, moments):
        gradient, (_, stats, _) = jax.grad(loss, has_aux=True)(params, stats, {}, batch)
        changes, moments = learner.update(gradient, moments)
        return optax.apply_updates(params, changes), stats, moments

    moments = learner.init(params)
    for _ in range(60):
        params, stats, moments = step(params, stats, moments)
    features = np.asarray(jax.jit(method.embed)({"params": params, "batch_stats": stats}, {}, batch)["feature"])
    visible, infrared = features[: CLIPS // 2], features[CLIPS // 2 :]
    for query, gallery in ((visible, infrared), (infrared, visible)):
        assert np.asarray(part_euclidean_distance(query, gallery)).argmin(1).tolist() == [0, 1, 2, 3]


# Silhouettes ----------------------------------------------------------------------------------------------------------


def shares_of(first):
    return jnp.stack([first, 1 - first], axis=-1)


def test_the_person_is_whoever_does_not_fill_the_bands():
    """5 + 5 rows of 64: 160 of 320 cells of a channel are still the person's, 161 are the background."""
    inside = np.zeros((1, 64, 32), np.float32)
    inside[:, 20:50, 10:22] = 0.9
    for turned in (inside, 1 - inside):
        np.testing.assert_allclose(person(shares_of(jnp.asarray(turned))), inside, atol=1e-6)
    edge = np.zeros((1, 64, 32), np.float32)
    edge[:, :5] = 1
    assert (np.asarray(person(shares_of(jnp.asarray(edge)))) == edge).all()  # 160
    edge[:, 60, 0] = 1
    assert (np.asarray(person(shares_of(jnp.asarray(edge)))) == 1 - edge).all()
    edge[:, 60, 0], edge[:, 58, 0] = 0, 1  # the sixth row from below is none of the band
    assert (np.asarray(person(shares_of(jnp.asarray(edge)))) == edge).all()


def test_cleaning_is_dilation_and_erosion_by_hand():
    """3 × 3 and 5 × 5 cells of 64 rows, pixel by pixel; what is beyond the border neither fills nor empties."""
    rng = np.random.default_rng(0)
    share = rng.random((2, 64, 32)).astype(np.float32) * (rng.random((2, 64, 32)) > 0.3)

    def around(x, radius, of):
        found = np.zeros_like(x)
        for n, i, j in np.ndindex(*x.shape):
            found[n, i, j] = of(x[n, max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1])
        return found

    for rows, grow, shrink in ((64, 1, 2), (32, 1, 1)):
        x = share[:, :rows]
        dilated = around((x > 0.5).astype(np.float32), grow, np.max)
        eroded = around(dilated, shrink, np.min)
        expected = np.where(dilated != eroded, x, 0) + eroded
        np.testing.assert_array_equal(cleaned(jnp.asarray(x)), expected)


@pytest.mark.parity
def test_how_rough_maps_are():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 8, 6, 4)).astype(np.float32)
    mask = jnp.ones(3, bool)
    theirs = torch.as_tensor(maps).permute(0, 3, 1, 2)
    assert float(sobel_loss(jnp.asarray(maps), mask)) == pytest.approx(float(reference.sobel(theirs)), rel=1e-5)
    shares = shares_of(jnp.asarray(maps[..., 0]))
    reread = torch.as_tensor(np.array(shares)).view(3, 48, 2).reshape(3, 2, 8, 6)  # cells and channels as they lie
    found = float(mask_sobel_loss(shares, mask, "legacy"))
    assert found == pytest.approx(float(reference.sobel(reread)), rel=1e-5)
    some = jnp.array([True, False, False])
    assert float(sobel_loss(jnp.asarray(maps), some)) == pytest.approx(float(reference.sobel(theirs[:1])), rel=1e-5)
    # Of both shares together nothing but the border is left, whatever they are.
    slope = jax.grad(lambda x: sobel_loss(shares_of(x), mask))(jnp.asarray(maps[..., 0]))
    assert float(jnp.abs(slope).max()) < 1e-7
    slope = jax.grad(lambda x: mask_sobel_loss(shares_of(x), mask, "channels"))(jnp.asarray(maps[..., 0]))
    assert float(jnp.abs(slope).max()) > 1e-4
    # Two channels of 0.25: 4 · 0.5 at each of the inner 16 cells of the border, 3 · 0.5 both ways at its corners.
    flat = sobel_loss(jnp.full((1, 6, 6, 2), 0.25), jnp.ones(1, bool))
    assert float(flat) == pytest.approx((16 * 4 * 0.5 + 4 * 2 * 3 * 0.5) / (36 * 2))


def test_how_evenly_parts_are_used():
    even = jnp.full((2, 4, 3, 16), 1 / 16)
    one = jnp.zeros((2, 4, 3, 16)).at[..., 3].set(1.0)
    mask = jnp.ones(2, bool)
    assert float(diversity_loss(even, mask)) == pytest.approx(0.0, abs=1e-3)
    assert float(diversity_loss(one, mask)) == pytest.approx(4.0, abs=1e-3)
    assert float(diversity_loss(jnp.concatenate([even[:1], one[:1]]), mask)) == pytest.approx(2.0, abs=1e-3)
    assert float(diversity_loss(one * 0, mask)) == pytest.approx(4.0)


def test_clips_that_lose_a_map():
    valid = jnp.arange(32) < 20
    kept = np.stack([kept_maps(jax.random.key(i), valid, 0.2) for i in range(40)])
    lost = ~kept
    assert (lost.sum((1, 2)) == 6).all() and not lost.all(-1).any() and not lost[:, 20:].any()
    assert 0.3 < lost[..., 0].sum() / lost.sum() < 0.7 and lost.any(-1).any(0)[:20].all()
    assert kept_maps(jax.random.key(0), valid, 0.0).all()


def test_a_map_of_cells_is_the_same_the_short_way():
    """First products of the tokens against those of the cells; batch norm of gathered cells; a frame without any."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(3, 4, 2, 8)), jnp.float32)
    active = jnp.asarray(rng.random((3, 8, 4)) > 0.5).at[1].set(False)
    for kind in ("parts", "texture"):
        short, plain = (CellBranch(kind, 4, fast=fast) for fast in (True, False))
        variables = family.filled(lambda key, short=short: short.init(key, tokens, active, True))
        found, expected = (
            each.apply(variables, tokens, active, True, mutable=["batch_stats"]) for each in (short, plain)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
        assert not found[0][1].any() and (np.asarray(found[0][..., 0] > 0) == np.asarray(active)).all()
        gathered = np.asarray(resized(tokens, (8, 4)), np.float64)[np.asarray(active)]
        statistics = found[1]["batch_stats"]["norm_tokens"]
        before = variables["batch_stats"]["norm_tokens"]
        np.testing.assert_allclose(statistics["mean"], 0.9 * before["mean"] + 0.1 * gathered.mean(0), atol=1e-6)
        np.testing.assert_allclose(statistics["var"], 0.9 * before["var"] + 0.1 * gathered.var(0, ddof=1), atol=1e-5)
        nothing = short.apply(variables, tokens, active & False, True, mutable=["batch_stats"])
        assert not nothing[0].any()
        jax.tree.map(np.testing.assert_array_equal, nothing[1]["batch_stats"], variables["batch_stats"])
    one = MaskedBatchNorm(use_scale=False, use_bias=False)
    x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    normed, _ = one.apply({}, x, None, use_running_average=False, mutable=["batch_stats"])
    mapped, _ = one.apply({}, x, None, use_running_average=False, instead=x[:2], mutable=["batch_stats"])
    np.testing.assert_allclose(mapped, normed[:2], atol=1e-6)


def test_a_frame_in_which_nobody_is_seen_gives_numbers(released, step):
    """All cells of a clip are background, so that no cell is active: nothing but zeros goes into the trunk."""
    batch, params = make_batch(), dict(released.variables["params"])
    down = {"kernel": 0 * params["mask_branch"]["down"]["kernel"], "bias": np.array([-9.0, 9.0], np.float32)}
    params["mask_branch"] = {**params["mask_branch"], "down": down}
    variables, method = {**released.variables, "params": params}, released.model.method
    (total, (_, stats, _)), gradient = step(variables, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((total, stats, gradient)))
    looked = jax.jit(method.silhouettes)(variables, {}, batch)
    assert not looked["silhouette"].any() and not looked["parts"].any()
    assert looked["parts"].shape == (CLIPS, FRAMES, 32, 16, 4)


# PBMGE, losses, distances ---------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_an_exchange_is_that_of_lifted_numbers():
    """Four scalars in place of products of vectors; running statistics move strip by strip; new, it adds nothing."""
    rng = np.random.default_rng(0)
    own, other = (jnp.asarray(rng.normal(size=(5, 7, 6)), jnp.float32) for _ in range(2))
    module, valid = Exchange(BINS, GRANULARITIES), jnp.ones(5, bool)
    start = module.init(jax.random.key(0), own, other, valid, False)
    np.testing.assert_array_equal(module.apply(start, own, other, valid, False), np.repeat(own[:, :1], 2, 1))
    assert sum(x.size for x in jax.tree.leaves(start["params"])) == 8 * 6 + 6
    shapes = released_files.dinogrl(**SIZES)[1]
    tensors = released_files.random_tensors(shapes)
    net = reference.DinoGRL(tensors, HEADS, DINO_SIZE, RESNET.depths, BINS, GRANULARITIES, train=True)
    names = {"theta": "query", "phi": "context", "g.0": "value", "W1.0": "shared", "W2.0": "specific"}
    names |= {"W1.1": "shared_norm", "W2.1": "specific_norm"}
    key = "enhance_shape_net_3"
    params = {}
    for theirs, ours in names.items():
        params[f"{ours}_{'scale' if 'norm' in ours else 'kernel'}"] = tensors[f"{key}.{theirs}.weight"].reshape(-1)
        params[f"{ours}_bias"] = tensors[f"{key}.{theirs}.bias"]
    stats = {
        ours: {leaf: tensors[f"{key}.{theirs}.1.running_{leaf}"] for leaf in ("mean", "var")}
        for theirs, ours in (("W1", "shared"), ("W2", "specific"))
    }
    found, changed = module.apply(
        {"params": params, "batch_stats": stats}, own, other, valid, True, mutable=["batch_stats"]
    )
    with torch.no_grad():
        gait, _ = net.enriched(*(torch.as_tensor(np.array(x)).double().transpose(1, 2) for x in (own, other)))
    np.testing.assert_allclose(found, as_ours(gait)[:, 7:], atol=1e-4)
    for name in ("mean", "var"):
        expected = net.t[f"{key}.W1.1.running_{name}"]
        np.testing.assert_allclose(changed["batch_stats"]["shared"][name], expected, rtol=1e-4)


@pytest.mark.parity
def test_triplets_of_all_clips():
    rng = np.random.default_rng(0)
    parts, label = rng.normal(size=(6, 3, 4)).astype(np.float32), np.repeat(np.arange(3), 2)
    order, valid = rng.permutation(6), jnp.ones(6, bool)
    for scale in (1.0, 0.05):
        expected = float(reference.triplet(torch.as_tensor(scale * parts).transpose(1, 2), torch.as_tensor(label)))
        found = batch_all_triplet(jnp.asarray(scale * parts[order]), jnp.asarray(label[order]), valid)
        assert float(found) == pytest.approx(expected, rel=1e-4)
    same = jnp.ones((6, 3, 4))
    assert float(batch_all_triplet(same, jnp.asarray(label), valid)) == pytest.approx(0.2)
    assert float(batch_all_triplet(same, jnp.asarray(label), valid & False)) == 0
    far = jnp.asarray(100.0 * label[:, None, None] + 0 * parts)
    assert float(batch_all_triplet(far, jnp.asarray(label), valid)) == 0
    slope = jax.grad(lambda x: batch_all_triplet(x, jnp.asarray(label), valid))(same)
    assert np.isfinite(slope).all() and not slope.any()
    more = jnp.concatenate([jnp.asarray(parts), 1e3 * jnp.ones((1, 3, 4))])
    found = batch_all_triplet(more, jnp.append(jnp.asarray(label), 0), jnp.append(valid, False))
    assert float(found) == pytest.approx(float(batch_all_triplet(jnp.asarray(parts), jnp.asarray(label), valid)))


def test_parts_stay_parts():
    """Parts that change places within a tracklet change its distances, and these are no distance of long vectors."""
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 5, 6)).astype(np.float32) for n in (2, 3))
    expected = np.array([[np.mean([np.linalg.norm(q[p] - g[p]) for p in range(5)]) for g in gallery] for q in query])
    np.testing.assert_allclose(part_euclidean_distance(query, gallery), expected, atol=1e-5)
    assert np.abs(part_euclidean_distance(query[:, ::-1], gallery) - expected).max() > 0.05
    long = np.linalg.norm(query.reshape(2, 1, -1) - gallery.reshape(1, 3, -1), axis=-1) / np.sqrt(5)
    assert np.abs(long - expected).max() > 0.01


# Switches -------------------------------------------------------------------------------------------------------------

SWITCHES = {
    "streams": ("appearance", {"dinov2", "mask_branch", "part_branch", "texture_branch", "part_stem", "texture_stem",
                               "fusion", "gait_trunk", "gait_parts", "gait_necks", "gait_exchange",
                               "appearance_exchange"}),
    "gait_input": ("silhouette", {"part_branch", "texture_branch"}),
    "pbmge.granularities": ((), {"gait_exchange", "appearance_exchange"}),
    "pbmge.direction": ("gait", {"appearance_exchange"}),
}  # fmt: skip


def test_what_a_switch_takes_away():
    batch = make_batch()

    def modules(**changes):
        method = make_method(**changes)
        return method, jax.eval_shape(method.init, jax.random.key(0), batch)

    _, whole = modules()
    for key, (value, gone) in SWITCHES.items():
        _, variables = modules(**{key: value})
        assert whole["params"].keys() - variables["params"].keys() == gone, key
    method, variables = modules(**{"pbmge.direction": "gait"})
    found = jax.eval_shape(lambda v: method.embed(v, {}, batch), variables)
    assert [found[name].shape[1] for name in ("appearance", "gait", "feature")] == [7, 9, 16]
    method = make_method(streams="gait")
    assert method.evaluation().outputs == ("feature", "gait")


def test_values_that_do_not_fit():
    with refuses(ValueError, "config.backbone.name", "DINOv2"):
        check_config(make_config(**{"backbone.name": "walkers_vit_tiny"}))
    with refuses(ValueError, "config.pyramid", "[4]"):
        check_config(make_config(pyramid=(1, 2)))
    with refuses(ValueError, "config.evaluation.distance", "parts_euclidean"):
        check_config(make_config(**{"evaluation.distance": "cosine"}))
    with refuses(ValueError, "config.pyramid", "appearance", "4 rows"):
        make_method(pyramid=(1, 2, 4, 8))
    with refuses(ValueError, "multiples of 8"):
        make_method(dino_size=(100, 64))
    one = family.make_info()
    one = dataclasses.replace(one, table=dataclasses.replace(one.table, modality=one.table.modality * 0))
    with refuses(ValueError, "visible and infrared"):
        find_method("dinogrl")(make_config(), one)


def test_how_silhouettes_are_scored(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    benchmark = importlib.import_module("benchmarks.dinogrl")
    true = np.zeros((2, 8, 4), bool)
    true[:, 2:6, 1:3] = True
    half = true.copy()
    half[1, :, 2] = False
    assert benchmark.overlap(half, true).tolist() == [1.0, 0.5]
    assert benchmark.overlap(true[0], half).tolist() == [1.0, 0.5]
    for name, mask in benchmark.same_for_everybody(true).items():
        assert (mask == true[0]).all(), name
    coverage = np.zeros((1, 16, 8), np.uint8)
    coverage[:, :2, :2], coverage[:, 2:4, 0] = 255, 255  # a whole cell, and one that is half covered
    cells = benchmark.on_cells(coverage, (8, 4))
    assert np.argwhere(cells).tolist() == [[0, 0, 0]]
