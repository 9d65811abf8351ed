"""Weights in and out: parity with transformers and torch, every key accounted for, errors that name the cause."""

import dataclasses
import json
import logging
import math
import pathlib
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from messages import refuses, says

from jaxreid.backbones import positions, pretrained, saving
from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.descriptions import read_description
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.kinds import shapes_of
from jaxreid.backbones.positions import resize_positions
from jaxreid.backbones.pretrained import load, load_variables, to_variables
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.saving import save_folder, save_params, to_tensors
from jaxreid.backbones.tensors import CheckpointError, read_tensors
from jaxreid.backbones.text import TextConfig, TextTower, text_config
from jaxreid.backbones.vit import ViT, ViTConfig

TINY = ViTConfig(width=32, depth=2, heads=2, patch=8, image_size=(32, 32), projection=16)
TEXT = TextConfig(width=24, depth=2, heads=2, projection=16, vocabulary=50, context=12)
DINO = ViTConfig(
    width=32,
    depth=2,
    heads=2,
    patch=14,
    image_size=(56, 56),
    conv_bias=True,
    pre_norm_embeddings=False,
    layer_scale=1.0,
    eps=1e-6,
    activation="gelu",
)
DINOS = {
    "plain": DINO,
    "registers": dataclasses.replace(DINO, register_tokens=4),
    "gated": dataclasses.replace(DINO, gated_mlp=True, activation="silu"),
}
RESNET = ResNetConfig(depths=(2, 1, 1, 2), width=4, last_stride=2)
REFERENCE = pathlib.Path(__file__).parent / "references" / "clip_vision_tiny.npz"
PREFIX = "vision_model."


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def weights(reference):
    """Hugging Face tensors of the tiny image tower, float16 as stored."""
    return {k.removeprefix("weights/"): v for k, v in reference.items() if k.startswith("weights/")}


def to_params(tensors, config, **how):
    return to_variables(tensors, config, **how)["params"]


def random_variables(config, seed=0):
    draw = np.random.default_rng(seed)

    def array(path, shape):
        around = path.endswith(("scale", "var"))
        return (around + (0.1 if around else 0.3) * draw.normal(size=shape)).astype(np.float32)

    shapes = shapes_of(config)
    return {
        collection: unflatten_dict({path: array(path, shape) for path, shape in leaves.items()}, sep="/")
        for collection, leaves in shapes.items()
    }


def frames_of(config, seed=1):
    return np.random.default_rng(seed).normal(size=(2, *config.image_size, 3)).astype(np.float32)


def channels_first(frames):
    import torch

    return torch.tensor(np.asarray(frames)).permute(0, 3, 1, 2)


def run(params, config, frames):
    return jax.jit(ViT(config).apply)({"params": params}, np.asarray(frames, np.float32))


def trees_equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def renamed(tensors, *rules):
    """Tensors under other names: (pattern, replacement) in order; for the layouts of one model in several formats."""

    def rename(key):
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return {rename(key): value for key, value in tensors.items()}


def stacked(tensors, parts, whole):
    """One tensor `whole` in place of those whose names differ in `parts` (a format string)."""
    tensors = dict(tensors)
    pattern = re.compile(re.escape(parts[0]))
    for key in [key for key in tensors if pattern.search(key)]:
        pieces = [tensors.pop(key.replace(parts[0], part)) for part in parts]
        tensors[key.replace(parts[0], whole)] = np.concatenate(pieces)
    return tensors


QKV_PROJ = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")
OPENAI_NAMES = (
    (r"encoder\.layers", "transformer.resblocks"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"embeddings\.patch_embedding", "conv1"),
    (r"embeddings\.class_embedding", "class_embedding"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.token_embedding", "token_embedding"),
    (r"pre_layrnorm", "ln_pre"),
    (r"post_layernorm", "ln_post"),
    (r"final_layer_norm", "ln_final"),
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"^visual_projection\.weight", "visual.proj"),
    (r"^text_projection\.weight", "text_projection"),
)


def openai_tensors(tensors):
    """A CLIP, or a half of one, under OpenAI's names."""
    tensors = {key: value.T if "projection" in key else value for key, value in tensors.items()}
    return renamed(stacked(tensors, QKV_PROJ, "attn.in_proj_"), *OPENAI_NAMES)


DINO_NAMES = (
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.(\w+)", r"\1"),
    (r"encoder\.layer\.", "blocks."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"weights_in", "w12"),
    (r"weights_out", "w3"),
    (r"^layernorm\.", "norm."),
)
ATTENTION = ("attention.attention.query.", "attention.attention.key.", "attention.attention.value.")


def official_dinov2(tensors):
    """A Hugging Face DINOv2 under the names of its own code."""
    return renamed(stacked(tensors, ATTENTION, "attn.qkv."), *DINO_NAMES)


# --------------------------------------------------------------------------------------------------- CLIP, parity


@pytest.mark.parametrize(("size", "case"), [((32, 32), "native"), ((32, 16), "wide")])
def test_stored_reference_outputs(reference, weights, size, case):
    config = dataclasses.replace(TINY, image_size=size)
    outputs = run(to_params(weights, config), config, reference["frames"][:, :, : size[1]])
    np.testing.assert_allclose(outputs["tokens"], reference[f"{case}/tokens"], atol=2e-5)
    np.testing.assert_allclose(outputs["class_token"], reference[f"{case}/tokens"][:, 0], atol=2e-5)
    np.testing.assert_allclose(outputs["projected"], reference[f"{case}/projected"], atol=2e-5)


CASES = {
    "tiny": dict(config=TINY, native=32),
    "gelu, eps 1e-6": dict(config=dataclasses.replace(TINY, activation="gelu", eps=1e-6), native=32),
    "four heads, tall": dict(config=dataclasses.replace(TINY, heads=4, image_size=(48, 24)), native=32),
    "overlapping stride": dict(config=dataclasses.replace(TINY, stride=5, image_size=(32, 20)), native=40),
    "B/16, one block, 256×128": dict(config=vision_config("ViT-B/16", (256, 128), depth=1), native=224),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parity_with_transformers(case):
    import torch
    import transformers

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
    params = to_params(tensors, config)
    outputs = run(params, config, pixels.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(params["position_embedding"], resized.numpy(), atol=3e-6)
    np.testing.assert_allclose(outputs["tokens"], tokens.numpy(), atol=2e-5)
    np.testing.assert_allclose(outputs["class_token"], tokens[:, 0].numpy(), atol=2e-5)
    np.testing.assert_allclose(outputs["projected"], result.image_embeds.numpy(), atol=2e-5)
    if config.grid == (side, side):
        assert tensors.keys() == to_tensors(params, config).keys()


def openai_clip():
    """OpenAI's model written again for this test, in its names and its order of operations."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.attn = nn.MultiheadAttention(width, heads)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential()
            self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
            self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

        def forward(self, x, mask):
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = self.mlp.c_fc(self.ln_2(x))
            return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))

    class Transformer(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.resblocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))

        def forward(self, x, mask=None):
            x = x.transpose(0, 1)
            for block in self.resblocks:
                x = block(x, mask)
            return x.transpose(0, 1)

    class Visual(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.conv1 = nn.Conv2d(3, c.width, c.patch, c.patch, bias=False)
            self.class_embedding = nn.Parameter(torch.randn(c.width))
            self.positional_embedding = nn.Parameter(torch.randn(1 + c.patches, c.width))
            self.ln_pre, self.ln_post = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
            self.transformer = Transformer(c)
            self.proj = nn.Parameter(torch.randn(c.width, c.projection))

        def forward(self, x):
            x = self.conv1(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding
            return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj

    class Clip(nn.Module):
        def __init__(self, image, text):
            super().__init__()
            self.visual, self.transformer = Visual(image), Transformer(text)
            self.token_embedding = nn.Embedding(text.vocabulary, text.width)
            self.positional_embedding = nn.Parameter(torch.randn(text.context, text.width))
            self.ln_final = nn.LayerNorm(text.width)
            self.text_projection = nn.Parameter(torch.randn(text.width, text.projection))
            self.logit_scale = nn.Parameter(torch.ones([]))
            for name, value in (("input_resolution", 32), ("context_length", 12), ("vocab_size", 50)):
                self.register_buffer(name, torch.tensor(value))

        def forward(self, frames, ids):
            mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
            x = self.transformer(self.token_embedding(ids) + self.positional_embedding, mask)
            x = self.ln_final(x)[torch.arange(ids.shape[0]), ids.argmax(-1)] @ self.text_projection
            return self.visual(frames), x

    torch.manual_seed(0)
    return Clip(TINY, TEXT).eval()


IDS = np.array([[48, 5, 6, 49] + [0] * 8, [48, 7, 8, 9, 10, 49] + [0] * 6], np.int32)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Converting a tensor")
def test_parity_with_an_openai_archive(tmp_path):
    """Both towers from a TorchScript file with half-precision weights, as OpenAI publishes them."""
    import torch

    model, frames = openai_clip(), frames_of(TINY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" not in name and "embedding" not in name:
                parameter.copy_(parameter.half())  # the numbers that the file can hold
        image, text = model(channels_first(frames), torch.tensor(IDS))
        scripted = torch.jit.trace(model, (channels_first(frames), torch.tensor(IDS)), check_trace=False)
        for name, parameter in scripted.named_parameters():
            if "ln_" not in name and "embedding" not in name:
                parameter.data = parameter.data.half()
    scripted.save(str(tmp_path / "ViT.pt"))
    assert read_tensors(tmp_path / "ViT.pt")["visual.conv1.weight"].dtype == np.float16
    params = load(tmp_path / "ViT.pt", TINY)
    np.testing.assert_allclose(run(params, TINY, frames)["projected"], image, atol=3e-5)
    outputs = TextTower(TEXT).apply({"params": load(tmp_path / "ViT.pt", TEXT)}, IDS)
    np.testing.assert_allclose(outputs["projected"], text, atol=3e-5)


def test_all_formats_of_a_clip_give_the_same_trees():
    image, text = random_variables(TINY)["params"], random_variables(TEXT)["params"]
    whole = to_tensors(image, TINY) | to_tensors(text, TEXT) | {"logit_scale": np.float32(1)}
    openai = openai_tensors(whole)
    scalars = {name: np.array(1) for name in ("input_resolution", "context_length", "vocab_size")}
    own_class = {key if key.startswith(("visual.", "logit")) else f"text.{key}": v for key, v in openai.items()}
    formats = {
        "Hugging Face": whole | {"vision_model.embeddings.position_ids": np.arange(17)[None]},
        "OpenAI": openai | scalars | {"transformer.resblocks.0.attn_mask": np.zeros((12, 12), np.float32)},
        "OpenCLIP's text tower of its own": own_class | {"logit_bias": np.zeros(())},
        "behind DataParallel": {f"module.{key}": value for key, value in openai.items()},
    }
    for name, tensors in formats.items():
        assert trees_equal(to_params(tensors, TINY), image), name
        assert trees_equal(to_params(tensors, TEXT), text), name
    for params, config in ((image, TINY), (text, TEXT)):  # a tower in a file of its own
        bare = renamed(to_tensors(params, config), (r"^\w+_model\.", ""))
        assert trees_equal(to_params(bare, config), params)
    timm = {key.removeprefix("visual."): value for key, value in openai.items() if key.startswith("visual.")}
    timm = renamed(
        timm,
        (r"transformer\.resblocks", "blocks"),
        (r"attn\.in_proj_", "attn.qkv."),
        (r"attn\.out_proj", "attn.proj"),
        (r"ln_(\d)", r"norm\1"),
        (r"mlp\.c_fc", "mlp.fc1"),
        (r"mlp\.c_proj", "mlp.fc2"),
        (r"conv1", "patch_embed.proj"),
        (r"class_embedding", "cls_token"),
        (r"positional_embedding", "pos_embed"),
        (r"ln_pre", "norm_pre"),
        (r"ln_post", "norm"),
        (r"^proj$", "head.weight"),
    )
    timm |= {"cls_token": timm["cls_token"][None, None], "pos_embed": timm["pos_embed"][None]}
    timm |= {"head.weight": timm["head.weight"].T, "head.bias": np.zeros(16, np.float32)}
    assert trees_equal(to_params(timm, TINY), image)
    with refuses(CheckpointError, "head.bias", "(16,)"):
        to_params(timm | {"head.bias": np.ones(16, np.float32)}, TINY)


def test_the_other_tower_of_a_whole_clip_is_ignored_by_name(weights, caplog):
    text = {
        "text_model.final_layer_norm.weight": np.zeros(8),
        "text_projection.weight": np.zeros((4, 8)),
        "logit_scale": np.zeros(()),
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }
    with caplog.at_level(logging.INFO, logger=pretrained.__name__):
        params = to_params({**weights, **text}, TINY)
    assert trees_equal(params, to_params(weights, TINY))
    says(caplog.text, 4, "logit_scale", "text_model.final")


def test_layer_scale_of_open_clip_is_read():
    for plain, prefix in ((TINY, "visual."), (TEXT, "")):
        config = dataclasses.replace(plain, layer_scale=1e-5)
        tensors = openai_tensors(to_tensors(random_variables(plain)["params"], plain))
        with refuses(CheckpointError, "missing", 4, f"{prefix}transformer.resblocks.0.ls_1.gamma"):
            to_params(tensors, config)
        gammas = {
            f"{prefix}transformer.resblocks.{i}.ls_{j}.gamma": np.full(config.width, i + j, np.float32)
            for i in range(2)
            for j in (1, 2)
        }
        params = to_params(tensors | gammas, config)
        np.testing.assert_array_equal(params["block_01"]["layer_scale_2"], np.full(config.width, 3))
        with refuses(CheckpointError, "Hugging Face CLIP", 4, "block_00/layer_scale_1"):
            to_tensors(params, config)


# ----------------------------------------------------------------------------------------------- DINOv2, timm ViT


@pytest.mark.parity
@pytest.mark.parametrize("config", DINOS.values(), ids=DINOS)
def test_parity_of_dinov2_with_transformers(config, tmp_path):
    """Through a folder that transformers writes; at another size, which moves the positions."""
    import torch
    import transformers

    kind = "Dinov2WithRegisters" if config.register_tokens else "Dinov2"
    changes = dict(num_register_tokens=4) if config.register_tokens else {}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            use_swiglu_ffn=config.gated_mlp,
            initializer_range=0.3,
            **changes,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda" in name or "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    for size in ((56, 56), (84, 42), (28, 70)):
        resized = dataclasses.replace(config, image_size=size)
        frames = frames_of(resized)
        with torch.no_grad():
            expected = model(channels_first(frames)).last_hidden_state
        outputs = run(load(tmp_path, resized), resized, frames)
        np.testing.assert_allclose(outputs["tokens"], expected, atol=5e-5)
        np.testing.assert_allclose(outputs["patch_tokens"], expected[:, 1 + config.register_tokens :], atol=5e-5)


@pytest.mark.parametrize("config", DINOS.values(), ids=DINOS)
def test_all_formats_of_dinov2_give_the_same_tree(config):
    params = random_variables(config)["params"]
    tensors = to_tensors(params, config)
    official = official_dinov2(tensors)
    assert {"blocks.0.attn.qkv.weight", "mask_token", "blocks.1.ls2.gamma", "norm.bias"} <= official.keys()
    prefix = "dinov2_with_registers." if config.register_tokens else "dinov2."
    classifier = {"classifier.weight": np.zeros((3, 64), np.float32)}
    formats = {
        "Hugging Face": tensors,
        "Hugging Face, a classifier": {prefix + key: value for key, value in tensors.items()} | classifier,
        "official": official,
        "official, without its mask token": {key: v for key, v in official.items() if key != "mask_token"},
        "official, in chunks": renamed(official, (r"^blocks\.(\d)\.", r"blocks.0.\1.")),
        "official, a teacher": {f"backbone.{key}": value for key, value in official.items()}
        | {"dino_head.mlp.0.weight": np.zeros((2, 2), np.float32)},
    }
    for name, tensors in formats.items():
        assert trees_equal(to_params(tensors, config), params), name


@pytest.mark.parity
def test_parity_of_the_timm_layout(tmp_path):
    """transformers' ViT computes what timm's does; here it stands under timm's names in a PyTorch file."""
    import torch
    import transformers

    config = dataclasses.replace(DINO, layer_scale=None)
    torch.manual_seed(0)
    model = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            image_size=56,
            patch_size=14,
            layer_norm_eps=1e-6,
            initializer_range=0.3,
        ),
        add_pooling_layer=False,
    ).eval()
    model.save_pretrained(tmp_path / "folder")
    tensors = renamed(
        stacked(read_tensors(tmp_path / "folder"), ATTENTION, "attn.qkv."),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"(layer\.\d+\.)output\.dense", r"\1mlp.fc2"),
        *DINO_NAMES,
    )
    tensors |= {"head.weight": np.zeros((3, 32), np.float32), "head.bias": np.zeros(3, np.float32)}
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, tmp_path / "vit.pth")
    frames = frames_of(config)
    with torch.no_grad():
        expected = model(channels_first(frames)).last_hidden_state
    outputs = run(load(tmp_path / "vit.pth", config), config, frames)
    np.testing.assert_allclose(outputs["tokens"], expected, atol=5e-5)


# -------------------------------------------------------------------------------------------------------- ResNet


def hugging_face_resnet(folder):
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[2, 1, 1, 2])
    ).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "normalization" in name and value.dtype == torch.float32:
                value.copy_(value + 0.1 * torch.randn(value.shape).abs())
    model.save_pretrained(folder)
    return model


TORCHVISION_NAMES = (
    (r"^resnet\.", ""),
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.0", "layer1"),
    (r"encoder\.stages\.1", "layer2"),
    (r"encoder\.stages\.2", "layer3"),
    (r"encoder\.stages\.3", "layer4"),
    (r"\.layers\.", "."),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"layer\.0\.convolution", "conv1"),
    (r"layer\.1\.convolution", "conv2"),
    (r"layer\.2\.convolution", "conv3"),
    (r"layer\.0\.normalization", "bn1"),
    (r"layer\.1\.normalization", "bn2"),
    (r"layer\.2\.normalization", "bn3"),
    (r"classifier\.1", "fc"),
)


@pytest.mark.parity
def test_parity_and_formats_of_the_resnet(tmp_path):
    import torch

    model = hugging_face_resnet(tmp_path / "folder")
    frames = np.random.default_rng(1).normal(size=(2, 64, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model.resnet(channels_first(frames)).last_hidden_state.permute(0, 2, 3, 1)
    variables = load_variables(tmp_path / "folder", RESNET)
    assert variables.keys() == {"params", "batch_stats"}
    outputs = ResNet(RESNET).apply(variables, frames)
    np.testing.assert_allclose(outputs["map"], expected, rtol=2e-5, atol=2e-5)

    tensors = renamed(read_tensors(tmp_path / "folder"), *TORCHVISION_NAMES)
    assert {"layer1.0.downsample.1.running_var", "layer4.1.bn3.bias", "bn1.num_batches_tracked"} <= tensors.keys()
    assert trees_equal(to_variables(tensors, RESNET), variables)
    written = to_tensors(variables, RESNET)
    assert tensors.keys() - written.keys() == {k for k in tensors if k.startswith("fc.") or k.endswith("_tracked")}
    assert all(np.array_equal(values, tensors[key]) for key, values in written.items())
    with refuses(CheckpointError, "stem for each modality"):
        to_tensors(variables, dataclasses.replace(RESNET, stems=2))
    two = to_variables(tensors, dataclasses.replace(RESNET, stems=2))
    for collection in ("params", "batch_stats"):  # both stems start with the same weights
        assert trees_equal(two[collection].pop("stem_infrared"), variables[collection]["stem"])
    assert trees_equal(two, variables)
    trunk = to_variables(tensors, dataclasses.replace(RESNET, stems=0))
    assert trees_equal(trunk["params"], {k: v for k, v in variables["params"].items() if k != "stem"})

    with refuses(CheckpointError, "missing", 15, "layer4.2.conv1.weight"):
        to_variables(tensors, dataclasses.replace(RESNET, depths=(2, 1, 1, 3)))
    with refuses(TypeError, "load_variables"):
        load(tmp_path / "folder", RESNET)
    stored = json.loads((tmp_path / "folder" / "config.json").read_text())
    (tmp_path / "folder" / "config.json").write_text(json.dumps(stored | {"downsample_in_bottleneck": True}))
    with refuses(CheckpointError, "stride", "convolution"):
        load_variables(tmp_path / "folder", RESNET)


# ------------------------------------------------------------------------------------------------ published sizes


def numbers(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parity
@pytest.mark.parametrize(("name", "total"), [("ViT-B/16", 149_620_737), ("ViT-L/14", 427_616_513)])
def test_published_clips_have_the_keys_and_shapes_of_transformers(name, total):
    import torch
    import transformers

    image, text = vision_config(name), text_config(name)
    halves = {
        part: dict(
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
        )
        for part, config in (("vision_config", image), ("text_config", text))
    }
    halves["vision_config"] |= dict(patch_size=image.patch, image_size=224)
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(projection_dim=image.projection, **halves))
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    ours = {"logit_scale": ()}
    for config in (image, text):
        layout, prefix = saving._usual_layout(config)
        shapes = shapes_of(config)["params"]
        for key, paths, arrangement in layout.entries(config, prefix):
            ours[key] = arrangement.write(*(np.broadcast_to(np.float32(0), shapes[path]) for path in paths)).shape
    assert ours == theirs and numbers(ours) == total


@pytest.mark.parametrize(("name", "total"), [("ViT-S/14", 22_056_576), ("ViT-g/14", 1_136_480_768)])
def test_published_dinov2_has_as_many_parameters(name, total):
    config = dinov2_config(name, scan=True)
    assert numbers(shapes_of(config)["params"]) + config.width == total  # and the mask token


# ---------------------------------------------------------------------------------------------------- positions

GRIDS = [
    ((14, 14), (16, 8)),
    ((14, 14), (21, 10)),
    ((16, 16), (18, 9)),
    ((37, 37), (32, 16)),
    ((37, 37), (18, 9)),
    ((37, 37), (40, 20)),
    ((8, 4), (4, 4)),
]
RULES = {
    "bilinear": dict(mode="bilinear"),
    "bicubic": dict(mode="bicubic"),
    "bicubic_offset": dict(mode="bicubic"),
    "bicubic_antialiased": dict(mode="bicubic", antialias=True),
}


@pytest.mark.parity
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_position_resize_equals_torch(source, target, rule):
    """To a millionth where PyTorch computes in float64; in float32 it rounds the places that it samples at."""
    import torch

    table = np.random.default_rng(0).normal(size=(1 + source[0] * source[1], 8)).astype(np.float32)
    patches = torch.tensor(table[1:]).T.reshape(1, 8, *source)
    how = dict(size=target)
    if rule == "bicubic_offset":  # as DINOv2's own code calls it
        how = dict(scale_factor=tuple((t + 0.1) / s for s, t in zip(source, target, strict=True)))
    resized = resize_positions(table, source, target, getattr(positions, rule))
    np.testing.assert_array_equal(resized[0], table[0])
    for values, tolerance in ((patches.double(), 1e-6), (patches, 2.5e-5)):
        expected = torch.nn.functional.interpolate(values, **how, **RULES[rule], align_corners=False)
        assert expected.shape[2:] == target
        np.testing.assert_allclose(resized[1:], expected[0].flatten(1).T.numpy(), atol=tolerance)


def test_position_resize_equals_jax_without_antialias():
    table = np.random.default_rng(0).normal(size=(1 + 14 * 14, 8)).astype(np.float32)
    expected = jax.image.resize(table[1:].reshape(14, 14, 8), (16, 8, 8), "linear", antialias=False)
    np.testing.assert_allclose(resize_positions(table, (14, 14), (16, 8))[1:], expected.reshape(-1, 8), atol=3e-6)


def test_every_format_has_its_rule():
    """The rule belongs to the code that trained the weights; on noise they differ by the order of the values."""
    tall = dict(image_size=(84, 42))
    registers = DINOS["registers"]
    timm = dataclasses.replace(DINO, layer_scale=None)
    of = {config: to_tensors(random_variables(config)["params"], config) for config in (DINO, registers, TINY)}
    official = official_dinov2(of[DINO])
    scaleless = {key: value for key, value in official.items() if ".ls" not in key and key != "mask_token"}
    for tensors, config, rule in (
        (of[DINO], DINO, positions.bicubic),
        (of[registers], registers, positions.bicubic_antialiased),
        (official, DINO, positions.bicubic_offset),
        (official_dinov2(of[registers]), registers, positions.bicubic_antialiased),
        (scaleless, timm, positions.bilinear),
        (of[TINY], TINY, positions.bilinear),
        (openai_tensors(of[TINY]), TINY, positions.bilinear),
    ):
        native = to_params(tensors, config)["position_embedding"]
        target = dataclasses.replace(config, **tall)
        expected = resize_positions(native, config.grid, target.grid, rule)
        np.testing.assert_array_equal(to_params(tensors, target)["position_embedding"], expected)


def test_position_resize_to_the_same_grid_is_the_identity(weights):
    table = weights[f"{PREFIX}embeddings.position_embedding.weight"].astype(np.float32)
    np.testing.assert_array_equal(resize_positions(table, (4, 4), (4, 4)), table)
    np.testing.assert_array_equal(to_params(weights, TINY)["position_embedding"], table)


def test_a_grid_that_the_number_of_rows_does_not_tell_must_be_given(weights):
    name = f"{PREFIX}embeddings.position_embedding.weight"
    flat = dataclasses.replace(TINY, image_size=(64, 16))  # 8×2 = 16 patches, as many as the stored 4×4
    with refuses(CheckpointError, 16, "4×4", "8×2", "source_grid"):
        to_params(weights, flat)
    table = weights[name].astype(np.float32)
    kept = to_params(weights, flat, source_grid=(8, 2))
    np.testing.assert_array_equal(kept["position_embedding"], table)
    moved = to_params(weights, flat, source_grid=(4, 4))
    np.testing.assert_array_equal(moved["position_embedding"], resize_positions(table, (4, 4), (8, 2)))
    with refuses(CheckpointError, 16, "source_grid", "(5, 3)"):
        to_params(weights, flat, source_grid=(5, 3))
    with refuses(CheckpointError, "12 patch rows"):
        to_params(weights | {name: weights[name][:13]}, TINY)


# --------------------------------------------------------------------------------------------------- weights out


@pytest.mark.parity
def test_a_whole_clip_goes_to_transformers_and_back(tmp_path):
    import torch
    import transformers

    image, text = random_variables(TINY)["params"], random_variables(TEXT)["params"]
    save_folder(tmp_path, (image, TINY), (text, TEXT), logit_scale=3.0)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    frames = frames_of(TINY)
    with torch.no_grad():
        result = model(input_ids=torch.tensor(IDS).long(), pixel_values=channels_first(frames))
    ours = run(image, TINY, frames)["projected"], TextTower(TEXT).apply({"params": text}, IDS)["projected"]
    for expected, found in zip((result.image_embeds, result.text_embeds), ours, strict=True):
        found = found / np.linalg.norm(found, axis=-1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=5e-6)
    assert model.logit_scale == 3.0
    assert trees_equal(load(tmp_path, TINY), image) and trees_equal(load(tmp_path, TEXT), text)
    model.save_pretrained(tmp_path / "again")
    assert trees_equal(load(tmp_path / "again", TINY), image) and trees_equal(load(tmp_path / "again", TEXT), text)


@pytest.mark.parity
@pytest.mark.parametrize("config", DINOS.values(), ids=DINOS)
def test_dinov2_goes_to_transformers(config, tmp_path):
    import torch
    import transformers

    params, frames = random_variables(config)["params"], frames_of(config)
    save_folder(tmp_path, (params, config))
    model, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        expected = model.eval()(channels_first(frames)).last_hidden_state
    np.testing.assert_allclose(run(params, config, frames)["tokens"], expected, atol=5e-5)
    assert trees_equal(load(tmp_path, config), params)


@pytest.mark.parity
def test_single_towers_go_to_transformers(tmp_path):
    import transformers

    bare = dataclasses.replace(TINY, projection=None)
    for config, kind in (
        (TINY, transformers.CLIPVisionModelWithProjection),
        (bare, transformers.CLIPVisionModel),
        (TEXT, transformers.CLIPTextModelWithProjection),
    ):
        params = random_variables(config)["params"]
        save_folder(tmp_path, (params, config))
        _, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), kind
        assert trees_equal(load(tmp_path, config), params)


def test_what_transformers_can_not_say_is_refused(tmp_path):
    def pair(config, **changes):
        config = dataclasses.replace(config, **changes)
        return random_variables(config)["params"], config

    for towers, named in (
        ([pair(TINY, image_size=(32, 16))], ("square", "4×2", "save_params")),
        ([pair(TINY, stride=4)], ("7×7", 8, 4)),
        ([pair(TINY), pair(TEXT, projection=8)], (16, 8)),
        ([pair(DINO), pair(TEXT)], ("dinov2", "clip_text_model")),
        ([], ("transformers",)),
        ([pair(DINO, layer_scale=None)], ("Hugging Face DINOv2", 4, "block_00/layer_scale_1")),
        ([pair(TINY, register_tokens=2)], ("Hugging Face CLIP", 1, "register_tokens")),
    ):
        with refuses(CheckpointError, *named):
            save_folder(tmp_path, *towers)
    assert not any(tmp_path.iterdir())


def test_params_to_tensors_and_back_bit_for_bit(weights):
    params = to_params(weights, TINY)
    tensors = to_tensors(params, TINY)
    assert tensors.keys() == weights.keys()
    assert all(np.array_equal(tensors[key], weights[key]) and tensors[key].dtype == np.float32 for key in weights)
    assert trees_equal(to_params(tensors, TINY), params)


def test_a_tree_of_another_network_can_not_be_written(weights):
    params = to_params(weights, TINY)
    with refuses(CheckpointError, "missing", 16):
        to_tensors(params, dataclasses.replace(TINY, depth=3))
    del params["class_token"]
    params["norm_post"]["scale"] = np.zeros(31, np.float32)
    params["head"] = np.zeros(3)
    with pytest.raises(CheckpointError) as error:
        to_tensors(params, TINY)
    says(str(error.value), "class_token")
    says(str(error.value), 1)
    says(str(error.value), "norm_post/scale", 31, 32)


# ------------------------------------------------------------------------------------------- wrong checkpoints


def test_missing_unused_and_misshapen_keys_are_all_named(weights):
    broken = dict(weights)
    del broken[f"{PREFIX}post_layernorm.bias"], broken[f"{PREFIX}encoder.layers.1.mlp.fc2.weight"]
    broken["vision_model.adapter.weight"] = np.zeros(3)
    broken[f"{PREFIX}encoder.layers.0.self_attn.q_proj.weight"] = np.zeros((32, 31), np.float32)
    broken[f"{PREFIX}embeddings.patch_embedding.weight"] = np.zeros((32, 192), np.float32)
    with pytest.raises(CheckpointError) as error:
        to_params(broken, TINY, source="my.safetensors")
    message = str(error.value)
    assert message.startswith("my.safetensors (Hugging Face CLIP layout) does not fit a tower of 2 blocks")
    says(message, "missing", 2)
    says(message, "vision_model.encoder.layers.1.mlp.fc2.weight")
    says(message, "vision_model.post_layernorm.bias")
    says(message, 1)
    says(message, "vision_model.adapter.weight")
    says(message, "vision_model.embeddings.patch_embedding.weight", 32, 192, "patch_embedding/kernel", 8, 3)
    says(message, "q_proj.weight", 32, 31, "block_00/attention/query/kernel")
    openai = openai_tensors(weights)
    openai["visual.transformer.resblocks.0.attn.in_proj_weight"] = np.zeros((95, 32), np.float32)
    with refuses(CheckpointError, "in_proj_weight", "(95, 32)", "query/kernel", "(32, 32)"):
        to_params(openai, TINY)


def test_a_tower_of_another_size_is_named(weights):
    with refuses(CheckpointError, "unused", 16, "layers.1.mlp.fc1.bias"):
        to_params(weights, dataclasses.replace(TINY, depth=1))
    with refuses(CheckpointError, "missing", 16, "layers.2.mlp.fc1.bias"):
        to_params(weights, dataclasses.replace(TINY, depth=3))
    with refuses(CheckpointError, "position_embedding.weight", "(17, 32)"):
        to_params(weights, dataclasses.replace(TINY, width=64))
    with refuses(CheckpointError, "unused", 1, "visual_projection.weight"):
        to_params(weights, dataclasses.replace(TINY, projection=None))


def test_values_that_are_no_weights_are_named(weights):
    key = f"{PREFIX}pre_layrnorm.bias"
    with refuses(CheckpointError, 1, "vision_model.pre_layrnorm.bias"):
        to_params({**weights, key: np.full(32, np.nan, np.float32)}, TINY)
    with refuses(CheckpointError, "pre_layrnorm.bias", "int8"):
        to_params({**weights, key: np.zeros(32, np.int8)}, TINY)


def test_a_checkpoint_of_something_else_is_named():
    with refuses(CheckpointError, "image tower", 2, "'bert.a'"):
        to_params({"bert.a": np.zeros(1), "bert.b": np.zeros(1)}, TINY)


# -------------------------------------------------------------------------------------------------------- files


def folder_of(folder, tensors, **config):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_read_a_file_a_folder_and_a_sharded_folder(weights, tmp_path):
    single = tmp_path / "single"
    single.mkdir()
    folder_of(single, weights, model_type="clip_vision_model", num_attention_heads=2)
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
        assert trees_equal(load(path, TINY), to_params(weights, TINY))

    index["weight_map"]["extra.weight"] = "model-00001-of-00002.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with refuses(CheckpointError, 1, "extra.weight"):
        read_tensors(sharded)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with refuses(FileNotFoundError, "model-00002-of-00002.safetensors"):
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
    params = to_params(weights, wide, source_grid=(4, 4))
    path = tmp_path / "tower.safetensors"
    save_params(path, (params, wide))
    assert [p.name for p in tmp_path.iterdir()] == ["tower.safetensors"]
    assert read_description(path, TINY) == {"heads": 2, "activation": "quick_gelu", "eps": 1e-5, "grid": [8, 2]}
    assert trees_equal(load(path, wide), params)
    resized = load(path, dataclasses.replace(TINY, image_size=(32, 24)))["position_embedding"]
    expected = resize_positions(params["position_embedding"], (8, 2), (4, 3))
    np.testing.assert_array_equal(resized, expected)


def test_saving_that_fails_leaves_the_old_file(weights, tmp_path):
    path = tmp_path / "tower.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError):
        save_params(path, (to_params(weights, TINY), dataclasses.replace(TINY, depth=1)))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_no_shape_shows_is_compared_with_the_config(weights, tmp_path):
    folder = folder_of(
        tmp_path,
        weights,
        model_type="clip_vision_model",
        num_attention_heads=2,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    assert trees_equal(load(folder, TINY), to_params(weights, TINY))
    for path in (folder, folder / "model.safetensors"):
        with refuses(CheckpointError, "activation", "'quick_gelu'", "'gelu'"):
            load(path, dataclasses.replace(TINY, activation="gelu"))
    with refuses(CheckpointError, "heads", 2, 4, "eps", "1e-05", "1e-06"):
        load(folder, dataclasses.replace(TINY, heads=4, eps=1e-6))
    whole = {"model_type": "clip", "vision_config": {"num_attention_heads": 4}}
    (folder / "config.json").write_text(json.dumps(whole))
    with refuses(CheckpointError, "heads", 4, 2):
        load(folder, TINY)
    (folder / "config.json").unlink()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 16}}))
    with refuses(CheckpointError, "activation", "'gelu'", "'quick_gelu'"):
        load(folder, TINY)


def test_the_packaged_tower_fits_its_name():
    config = vision_config("walkers_vit_tiny")
    params = load("walkers_vit_tiny", config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 830_720
    grown = load("walkers_vit_tiny", dataclasses.replace(config, image_size=(128, 64)))
    assert grown["position_embedding"].shape == (1 + 16 * 8, 128)
