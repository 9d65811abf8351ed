"""Weights in and out: parity with transformers and torch, every key accounted for, errors that name the cause."""

import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.pretrained import (
    from_vision_params,
    load,
    read_description,
    resize_positions,
    save_vision_params,
    to_vision_params,
)
from jaxreid.backbones.tensors import CheckpointError, read_tensors
from jaxreid.backbones.vit import ViT, ViTConfig

TINY = ViTConfig(width=32, depth=2, heads=2, patch=8, image_size=(32, 32), projection=16)
REFERENCE = pathlib.Path(__file__).parent / "references" / "clip_vision_tiny.npz"
PREFIX = "vision_model."


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def weights(reference):
    """Hugging Face tensors of the tiny tower, float16 as stored."""
    return {k.removeprefix("weights/"): v for k, v in reference.items() if k.startswith("weights/")}


def run(params, config, frames):
    return jax.jit(ViT(config).apply)({"params": params}, np.asarray(frames, np.float32))


def trees_equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def openai_tensors(tensors, depth):
    """The same tower under OpenAI's names."""
    head = {
        "visual.conv1.weight": tensors[f"{PREFIX}embeddings.patch_embedding.weight"],
        "visual.class_embedding": tensors[f"{PREFIX}embeddings.class_embedding"],
        "visual.positional_embedding": tensors[f"{PREFIX}embeddings.position_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        head[f"visual.ln_pre.{kind}"] = tensors[f"{PREFIX}pre_layrnorm.{kind}"]
        head[f"visual.ln_post.{kind}"] = tensors[f"{PREFIX}post_layernorm.{kind}"]
        for i in range(depth):
            theirs, ours = f"visual.transformer.resblocks.{i}", f"{PREFIX}encoder.layers.{i}"
            qkv = [tensors[f"{ours}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            head[f"{theirs}.attn.in_proj_{kind}"] = np.concatenate(qkv)
            head[f"{theirs}.attn.out_proj.{kind}"] = tensors[f"{ours}.self_attn.out_proj.{kind}"]
            for a, b in {
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                head[f"{theirs}.{a}.{kind}"] = tensors[f"{ours}.{b}.{kind}"]
    return head


# ------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize(("size", "case"), [((32, 32), "native"), ((32, 16), "wide")])
def test_stored_reference_outputs(reference, weights, size, case):
    config = dataclasses.replace(TINY, image_size=size)
    outputs = run(to_vision_params(weights, config), config, reference["frames"][:, :, : size[1]])
    np.testing.assert_allclose(outputs["tokens"], reference[f"{case}/tokens"], atol=2e-5)
    np.testing.assert_allclose(outputs["class_token"], reference[f"{case}/tokens"][:, 0], atol=2e-5)
    np.testing.assert_allclose(outputs["projected"], reference[f"{case}/projected"], atol=2e-5)


CASES = {
    "tiny": dict(config=TINY, native=32),
    "gelu, eps 1e-6": dict(config=dataclasses.replace(TINY, activation="gelu", eps=1e-6), native=32),
    "four heads, tall": dict(config=dataclasses.replace(TINY, heads=4, image_size=(48, 24)), native=32),
    "overlapping stride": dict(config=dataclasses.replace(TINY, stride=5, image_size=(32, 20)), native=40),
    "B/16, two blocks": dict(config=vision_config("ViT-B/16", depth=2), native=224),
    "B/16, two blocks, 256×128": dict(config=vision_config("ViT-B/16", (256, 128), depth=2), native=224),
    "L/14, one block, 256×128": dict(config=vision_config("ViT-L/14", (256, 128), depth=1), native=224),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parity_with_transformers(case):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config, native = case["config"], case["native"]
    model = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=native,
            patch_size=config.patch,
            projection_dim=config.projection,
            hidden_act=config.activation,
            layer_norm_eps=config.eps,
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            std = 1.0 if "position" in name else fan_in**-0.5
            scale = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(scale + std * torch.randn(parameter.shape, generator=generator))
        pixels = torch.randn(2, 3, *config.image_size, generator=generator)
        embeddings = model.vision_model.embeddings
        table, side = embeddings.position_embedding.weight, native // config.patch
        patches = table[1:].T.reshape(1, -1, side, side)
        patches = torch.nn.functional.interpolate(patches, config.grid, mode="bilinear", align_corners=False)
        resized = torch.cat([table[:1], patches[0].flatten(1).T])
        embeddings.interpolate_pos_encoding = lambda *_: resized[None]
        embeddings.patch_embedding.stride = (config.patch_stride, config.patch_stride)
        result = model(pixels, interpolate_pos_encoding=True)
        tokens = model.vision_model.post_layernorm(result.last_hidden_state)

    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    params = to_vision_params(tensors, config)
    outputs = run(params, config, pixels.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(params["position_embedding"], resized.numpy(), atol=3e-6)
    np.testing.assert_allclose(outputs["tokens"], tokens.numpy(), atol=2e-5)
    np.testing.assert_allclose(outputs["class_token"], tokens[:, 0].numpy(), atol=2e-5)
    np.testing.assert_allclose(outputs["projected"], result.image_embeds.numpy(), atol=2e-5)
    if config.grid == (side, side):
        assert tensors.keys() == from_vision_params(params, config).keys()


def test_parity_of_the_openai_layout_with_torch_attention(weights):
    """OpenAI's blocks hold a torch.nn.MultiheadAttention: its in_proj rows are query, key, value."""
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value).float() for key, value in openai_tensors(weights, 2).items()}
    params = to_vision_params({key: value.numpy() for key, value in tensors.items()}, TINY)
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    key = "visual.transformer.resblocks.0"

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (32,), tensors[f"{key}.{name}.weight"], tensors[f"{key}.{name}.bias"])

    attention = torch.nn.MultiheadAttention(32, 2, batch_first=True)
    attention.load_state_dict({k: tensors[f"{key}.attn.{k}"] for k in attention.state_dict()})
    with torch.no_grad():
        y = norm(x, "ln_1")
        expected = x + attention(y, y, y, need_weights=False)[0]
        y = norm(expected, "ln_2") @ tensors[f"{key}.mlp.c_fc.weight"].T + tensors[f"{key}.mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        expected += y @ tensors[f"{key}.mlp.c_proj.weight"].T + tensors[f"{key}.mlp.c_proj.bias"]
    out = ViT(TINY).apply({"params": params}, x.numpy(), 0, 1, method="run_blocks")
    np.testing.assert_allclose(out, expected.numpy(), atol=2e-5)


# ---------------------------------------------------------------------------------------------------- positions

GRIDS = [((14, 14), (16, 8)), ((14, 14), (21, 10)), ((16, 16), (18, 9)), ((37, 37), (32, 16)), ((8, 4), (4, 4))]


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_position_resize_equals_torch(source, target):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1 + source[0] * source[1], 8)).astype(np.float32)
    patches = torch.tensor(table[1:]).T.reshape(1, 8, *source)
    expected = torch.nn.functional.interpolate(patches, target, mode="bilinear", align_corners=False)
    resized = resize_positions(table, source, target)
    np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_allclose(resized[1:], expected[0].flatten(1).T.numpy(), atol=3e-6)


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_position_resize_equals_jax_without_antialias(source, target):
    table = np.random.default_rng(0).normal(size=(1 + source[0] * source[1], 8)).astype(np.float32)
    expected = jax.image.resize(table[1:].reshape(*source, 8), (*target, 8), "linear", antialias=False)
    np.testing.assert_allclose(resize_positions(table, source, target)[1:], expected.reshape(-1, 8), atol=3e-6)


def test_position_resize_to_the_same_grid_is_the_identity(weights):
    table = weights[f"{PREFIX}embeddings.position_embedding.weight"].astype(np.float32)
    np.testing.assert_array_equal(resize_positions(table, (4, 4), (4, 4)), table)
    np.testing.assert_array_equal(to_vision_params(weights, TINY)["position_embedding"], table)


def test_a_grid_that_the_number_of_rows_does_not_tell_must_be_given(weights):
    name = f"{PREFIX}embeddings.position_embedding.weight"
    flat = dataclasses.replace(TINY, image_size=(64, 16))  # 8×2 = 16 patches, as many as the stored 4×4
    with pytest.raises(CheckpointError, match=r"16 patch rows.*4×4 or already 8×2.*source_grid"):
        to_vision_params(weights, flat)
    table = weights[name].astype(np.float32)
    kept = to_vision_params(weights, flat, source_grid=(8, 2))
    np.testing.assert_array_equal(kept["position_embedding"], table)
    moved = to_vision_params(weights, flat, source_grid=(4, 4))
    np.testing.assert_array_equal(moved["position_embedding"], resize_positions(table, (4, 4), (8, 2)))
    with pytest.raises(CheckpointError, match=r"16 patch rows, which is not source_grid \(5, 3\)"):
        to_vision_params(weights, flat, source_grid=(5, 3))
    with pytest.raises(CheckpointError, match="12 patch rows: neither"):
        to_vision_params(weights | {name: weights[name][:13]}, TINY)


# ------------------------------------------------------------------------------------------------------ layouts


def test_all_layouts_give_the_same_tree(weights):
    expected = to_vision_params(weights, TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(expected)} == {np.dtype("float32")}
    bare = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    assert trees_equal(to_vision_params(bare, TINY), expected)
    assert trees_equal(to_vision_params(openai_tensors(weights, 2), TINY), expected)


def test_the_text_tower_of_a_whole_clip_is_ignored_by_name(weights, caplog):
    text = {
        "text_model.embeddings.token_embedding.weight": np.zeros((4, 8)),
        "text_model.encoder.layers.0.mlp.fc1.bias": np.zeros(8),
        "text_projection.weight": np.zeros((16, 8)),
        "logit_scale": np.float32(4.6),
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }
    with caplog.at_level(logging.INFO, logger=to_vision_params.__module__):
        params = to_vision_params({**weights, **text}, TINY)
    assert trees_equal(params, to_vision_params(weights, TINY))
    assert all(key in caplog.text for key in text)
    scalars = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408, "logit_scale": 4.6}
    openai = {
        "transformer.resblocks.0.attn.in_proj_weight": np.zeros((24, 8)),
        "token_embedding.weight": np.zeros((4, 8)),
        "positional_embedding": np.zeros((77, 8)),
        "ln_final.weight": np.zeros(8),
        "text_projection": np.zeros((8, 16)),
        **{name: np.asarray(value) for name, value in scalars.items()},
    }
    custom = {f"text.{key}": value for key, value in openai.items() if key not in scalars}
    for keys in (openai, custom):
        assert trees_equal(to_vision_params({**openai_tensors(weights, 2), **keys}, TINY), params)


def test_layer_scale_of_openclip(weights):
    gammas = {
        f"visual.transformer.resblocks.{i}.ls_{j}.gamma": np.full(32, 10 * i + j) * 1.0 for i in (0, 1) for j in (1, 2)
    }
    config = dataclasses.replace(TINY, layer_scale=1.0)
    params = to_vision_params(openai_tensors(weights, 2) | gammas, config)
    assert params["block_01"]["layer_scale_2"][0] == 12.0
    with pytest.raises(CheckpointError, match=r"unused keys \(4\):\s+visual.transformer.resblocks.0.ls_1.gamma"):
        to_vision_params(openai_tensors(weights, 2) | gammas, TINY)
    with pytest.raises(CheckpointError, match=r"no key for \(4\):\s+block_00/layer_scale_1"):
        to_vision_params(weights, config)


def test_the_round_trip_is_lossless(weights):
    params = to_vision_params(weights, TINY)
    tensors = from_vision_params(params, TINY)
    assert tensors.keys() == weights.keys()
    for key, value in tensors.items():
        assert value.dtype == np.float32 and value.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(value, weights[key].astype(np.float32), err_msg=key)
    assert trees_equal(to_vision_params(tensors, TINY), params)
    plain = dataclasses.replace(TINY, projection=None)
    without = {key: value for key, value in params.items() if key != "projection"}
    assert "visual_projection.weight" not in from_vision_params(without, plain)


def test_a_tower_that_the_format_cannot_hold_is_refused(weights):
    params = to_vision_params(weights, TINY)
    with_registers = dataclasses.replace(TINY, register_tokens=2)
    tree = {**params, "register_tokens": np.zeros((2, 32), np.float32)}
    with pytest.raises(CheckpointError, match=r"has no key for \(1\):\s+register_tokens"):
        from_vision_params(tree, with_registers)
    with pytest.raises(CheckpointError, match=r"missing parameters \(1\):\s+register_tokens"):
        from_vision_params(params, with_registers)
    with pytest.raises(CheckpointError, match=r"position_embedding \(17, 32\) instead of \(9, 32\)"):
        from_vision_params(params, dataclasses.replace(TINY, image_size=(32, 16)))


# ------------------------------------------------------------------------------------------- wrong checkpoints


def test_missing_unused_and_misshapen_keys_are_all_named(weights):
    broken = dict(weights)
    del broken[f"{PREFIX}post_layernorm.bias"], broken[f"{PREFIX}encoder.layers.1.mlp.fc2.weight"]
    broken["vision_model.adapter.weight"] = np.zeros(3)
    broken[f"{PREFIX}encoder.layers.0.self_attn.q_proj.weight"] = np.zeros((32, 31), np.float32)
    broken[f"{PREFIX}embeddings.patch_embedding.weight"] = np.zeros((32, 192), np.float32)
    with pytest.raises(CheckpointError) as error:
        to_vision_params(broken, TINY, source="my.safetensors")
    message = str(error.value)
    assert message.startswith("my.safetensors (Hugging Face CLIP layout) does not fit a tower of 2 blocks")
    for line in (
        "missing keys (2):\n    vision_model.encoder.layers.1.mlp.fc2.weight\n    vision_model.post_layernorm.bias",
        "unused keys (1):\n    vision_model.adapter.weight",
        "vision_model.embeddings.patch_embedding.weight (32, 192), to hold patch_embedding/kernel (8, 8, 3, 32)",
        "q_proj.weight (32, 31), to hold block_00/attention/query/kernel (32, 32)",
    ):
        assert line in message
    openai = openai_tensors(weights, 2)
    openai["visual.transformer.resblocks.0.attn.in_proj_weight"] = np.zeros((95, 32), np.float32)
    with pytest.raises(CheckpointError, match=r"in_proj_weight \(95, 32\).*query/kernel \(32, 32\) \+ .*value"):
        to_vision_params(openai, TINY)


def test_a_tower_of_another_size_is_named(weights):
    with pytest.raises(CheckpointError, match=r"unused keys \(16\)(?s:.*)layers.1.mlp.fc1.bias"):
        to_vision_params(weights, dataclasses.replace(TINY, depth=1))
    with pytest.raises(CheckpointError, match=r"missing keys \(16\)(?s:.*)layers.2.mlp.fc1.bias"):
        to_vision_params(weights, dataclasses.replace(TINY, depth=3))
    with pytest.raises(CheckpointError, match=r"position_embedding.weight \(17, 32\), to hold"):
        to_vision_params(weights, dataclasses.replace(TINY, width=64))
    with pytest.raises(CheckpointError, match=r"unused keys \(1\):\s+visual_projection.weight"):
        to_vision_params(weights, dataclasses.replace(TINY, projection=None))


def test_values_that_are_no_weights_are_named(weights):
    key = f"{PREFIX}pre_layrnorm.bias"
    with pytest.raises(CheckpointError, match=r"unusable values \(1\):\s+vision_model.pre_layrnorm.bias \(not fin"):
        to_vision_params({**weights, key: np.full(32, np.nan, np.float32)}, TINY)
    with pytest.raises(CheckpointError, match=r"pre_layrnorm.bias \(int8 where floating point is expected"):
        to_vision_params({**weights, key: np.zeros(32, np.int8)}, TINY)


def test_a_checkpoint_of_something_else_is_named():
    with pytest.raises(CheckpointError, match=r"no image tower.*none of its 2 keys.*'bert.a'"):
        to_vision_params({"bert.a": np.zeros(1), "bert.b": np.zeros(1)}, TINY)


# -------------------------------------------------------------------------------------------------------- files


def save_folder(folder, tensors, **config):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_read_a_file_a_folder_and_a_sharded_folder(weights, tmp_path):
    single = tmp_path / "single"
    single.mkdir()
    save_folder(single, weights, model_type="clip_vision_model")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    keys = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": keys[:9], "model-00002-of-00002.safetensors": keys[9:]}
    for name, held in shards.items():
        safetensors.numpy.save_file({key: weights[key] for key in held}, sharded / name)
    index = {"weight_map": {key: name for name, held in shards.items() for key in held}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (single, single / "model.safetensors", sharded, sharded / "model.safetensors.index.json"):
        tensors = read_tensors(path)
        assert tensors.keys() == weights.keys()
        assert all(np.array_equal(tensors[key], weights[key]) for key in keys)
        assert trees_equal(load(path, TINY), to_vision_params(weights, TINY))

    index["weight_map"]["extra.weight"] = "model-00001-of-00002.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"listed but absent \(1\):\s+extra.weight"):
        read_tensors(sharded)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not in its folder: model-00002-of-00002.safetensors"):
        read_tensors(sharded)


def test_bfloat16_files_are_read(weights, tmp_path):
    import ml_dtypes

    rounded = {key: value.astype(ml_dtypes.bfloat16) for key, value in weights.items()}
    safetensors.numpy.save_file(rounded, tmp_path / "model.safetensors")
    params = load(tmp_path, TINY)
    expected = rounded[f"{PREFIX}post_layernorm.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["norm_post"]["scale"], expected)


def test_saved_weights_load_again_with_their_grid(weights, tmp_path):
    wide = dataclasses.replace(TINY, image_size=(64, 16))  # 8×2 patches: as many as the square grid 4×4
    params = to_vision_params(weights, wide, source_grid=(4, 4))
    path = tmp_path / "tower.safetensors"
    save_vision_params(path, params, wide)
    assert [p.name for p in tmp_path.iterdir()] == ["tower.safetensors"]
    assert read_description(path) == {"heads": 2, "activation": "quick_gelu", "eps": 1e-5, "grid": [8, 2]}
    assert trees_equal(load(path, wide), params)
    resized = load(path, dataclasses.replace(TINY, image_size=(32, 24)))["position_embedding"]
    expected = resize_positions(params["position_embedding"], (8, 2), (4, 3))
    np.testing.assert_array_equal(resized, expected)


def test_saving_that_fails_leaves_the_old_file(weights, tmp_path):
    path = tmp_path / "tower.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError):
        save_vision_params(path, to_vision_params(weights, TINY), dataclasses.replace(TINY, depth=1))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_no_shape_shows_is_compared_with_the_config(weights, tmp_path):
    folder = save_folder(
        tmp_path,
        weights,
        model_type="clip_vision_model",
        num_attention_heads=2,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    assert trees_equal(load(folder, TINY), to_vision_params(weights, TINY))
    with pytest.raises(CheckpointError, match="activation is 'quick_gelu' there and 'gelu' in the config"):
        load(folder, dataclasses.replace(TINY, activation="gelu"))
    with pytest.raises(CheckpointError, match="heads is 2 there and 4 in the config; eps is 1e-05 there and 1e-06"):
        load(folder, dataclasses.replace(TINY, heads=4, eps=1e-6))
    whole = {"model_type": "clip", "vision_config": {"num_attention_heads": 4}}
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match="heads is 4 there and 2 in the config"):
        load(folder, TINY)
    (folder / "config.json").unlink()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 16}}))
    with pytest.raises(CheckpointError, match="activation is 'gelu' there and 'quick_gelu' in the config"):
        load(folder, TINY)


def test_the_packaged_tower_fits_its_name():
    config = vision_config("walkers_vit_tiny")
    try:
        params = load("walkers_vit_tiny", config)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 830_720
    grown = load("walkers_vit_tiny", dataclasses.replace(config, image_size=(128, 64)))
    assert grown["position_embedding"].shape == (1 + 16 * 8, 128)
