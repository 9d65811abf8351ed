"""DinoGRL: numbers of a restatement in PyTorch at random weights, what must be exactly zero, and what is refused."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import released_files
from messages import refuses, says

from jaxreid.backbones import dinov2, frame_encoder
from jaxreid.backbones.resnet import ResNetConfig
from jaxreid.methods.method import find_method
from jaxreid.optimizers import find_group
from jaxreid.retrieval.distances import part_euclidean_distance
from jaxreid.run.config_values import check_config
from jaxreid.run.model import open_model
from jaxreid.training.importing import import_released
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

torch = pytest.importorskip("torch")  # what the restatement is written in
from references import dinogrl_forward as reference  # noqa: E402

pytestmark = pytest.mark.parity

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
    config = make_config(**{"mask.dropout": 0.0, "map_drop": 0.0, "lambda_border": 0.0})
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
        expected = peer(released)(np.array(batch.frames), np.asarray(batch.modality))
    shape = found["silhouette"].shape
    assert shape == (CLIPS * FRAMES, 32, 16)
    np.testing.assert_allclose(found["shares"], expected["shares"].reshape(*shape, 2), atol=1e-5)
    np.testing.assert_allclose(found["silhouette"], expected["silhouette"], atol=1e-5)
    np.testing.assert_allclose(found["parts"], expected["parts"].reshape(*shape, -1), atol=1e-5)
    for name in ("gait", "appearance"):
        scale = float(expected[name].abs().max())
        np.testing.assert_allclose(found[name], as_ours(expected[name]), atol=1e-4 * scale)
        assert found[name].shape == (CLIPS, 9, 6)
    own = jnp.concatenate([found["gait"], found["appearance"]], 1)
    other = torch.cat([expected["gait"], expected["appearance"]], 2)
    apart = np.asarray(reference.distance(other[:3], other[3:]))
    np.testing.assert_allclose(part_euclidean_distance(own[:3], own[3:]), apart, atol=1e-3 * apart.max())


def test_a_training_step_is_that_of_the_restated_code(released, step):
    """Losses with their published weights, running statistics, and gradients down to the stems."""
    batch = make_batch(1)
    (total, (metrics, changed, _)), gradient = step(released.variables, batch)
    moved = largest(gradient)
    assert moved.pop("dinov2") == 0.0 and all(value > 0 for value in moved.values()), moved

    net, label = peer(released, train=True), torch.as_tensor(np.asarray(batch.identity, np.int64))
    leaves = {name: x.requires_grad_() for name, x in net.t.items() if not name.endswith(("mean", "var", "tracked"))}
    found = net(np.array(batch.frames), np.asarray(batch.modality))
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
        assert float(metrics[f"loss_{name}"]) == pytest.approx(value.item(), rel=1e-3), name
    assert float(total) == pytest.approx(expected.item(), rel=1e-3)
    expected.backward()

    def close(ours, theirs):
        theirs = np.asarray(theirs.detach())
        np.testing.assert_allclose(np.asarray(ours).reshape(theirs.shape), theirs, atol=5e-3 * np.abs(theirs).max())

    branch = "dinov2.Denoising_Branch.down_sampling"
    close(gradient["part_branch"]["first"]["kernel"].T, leaves[f"{branch}.0.weight"].grad)
    weight = leaves["dinov2.Appearance_Branch.down_sampling.weight"].grad
    close(gradient["texture_branch"]["first"]["kernel"].T, weight)
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
    with refuses(ValueError, "enhance_app_net_3", "has no"):
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
    method = make_method(lambda_mse=0.0, lambda_sob_mask=0.0, lambda_border=0.0, **changes)
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
    assert (first.name, first.steps, first.pictures) == ("mask", 300, False) and first.cached
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
    assert float(total) == pytest.approx(
        float(metrics["loss_mse"] + 0.02 * metrics["loss_sob_mask"] + metrics["loss_border"])
    )
    assert (changed["gait_trunk"]["layer1_0"]["norm1"]["mean"]
            == variables["batch_stats"]["gait_trunk"]["layer1_0"]["norm1"]["mean"]).all()  # fmt: skip


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


# Switches -------------------------------------------------------------------------------------------------------------

SWITCHES = {
    "streams": ("appearance", {"dinov2", "mask_branch", "part_branch", "texture_branch", "part_stem", "texture_stem",
                               "fusion", "gait_trunk", "gait_parts", "gait_necks", "gait_exchange",
                               "appearance_exchange"}),
    "gait_input": ("silhouette", {"part_branch", "texture_branch"}),
    "pbmge.granularities": ((), {"gait_exchange", "appearance_exchange"}),
    "pbmge.direction": ("gait", {"appearance_exchange"}),
}  # fmt: skip


def test_its_pictures_are_of_the_middle_frame(released):
    """Cells of a silhouette are 0 or 1, and a part has a colour where somebody is seen."""
    method, batch = released.model.method, make_batch()
    found = method.examine(released.variables, {}, batch)
    frame, silhouette, parts = found.pictures
    mean, std = (np.array(getattr(method.config.frames, name)) for name in ("mean", "std"))
    np.testing.assert_allclose((frame - mean) / std, batch.frames[:, 1], atol=1e-5)
    grid = tuple(n // DINO.patch * 2 for n in DINO_SIZE)
    assert silhouette.shape == parts.shape == (CLIPS, *grid, 3)
    assert set(np.unique(silhouette)) <= {0.0, 1.0}
    np.testing.assert_array_equal((parts > 0).any(-1), silhouette[..., 0] > 0)
    seen = method.silhouettes(released.variables, {}, batch)["silhouette"]
    np.testing.assert_array_equal(silhouette[..., 0], seen[:, 1])


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
