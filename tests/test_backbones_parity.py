"""The towers against Hugging Face's in PyTorch: outputs and gradients at random weights, in float32 and bfloat16.

Weights go over by renaming (`to_tree`), independent of the library's own readers.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.imagenet import imagenet_config
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.text import TextConfig, TextTower, text_config
from jaxreid.backbones.vit import ViT, ViTConfig

with contextlib.suppress(ImportError):  # without them, what follows is skipped
    import torch
    import transformers

pytestmark = pytest.mark.parity

# Largest deviations allowed, in units of the largest value of an output or gradient.
FLOAT32, BFLOAT16 = 2e-5, 3e-2

# Names of Hugging Face's modules, in the spellings of its versions → ours.
RENAMES = [
    (r"^(vision|text)_model\.", ""),
    (r"^(encoder\.)?layers?\.(\d+)\.", lambda m: f"block_{int(m[2]):02d}."),
    (r"^embeddings\.(patch_embedding|patch_embeddings\.projection)\.", "patch_embedding."),
    (r"^embeddings\.(class_embedding|cls_token)$", "class_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "position_embedding"),
    (r"^embeddings\.(register_tokens|token_embedding)(\.weight)?$", r"\1"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(post_layernorm|layernorm)\.", "norm_post."),
    (r"^final_layer_norm\.", "norm_final."),
    (r"^(visual|text)_projection\.", "projection."),
    (r"\.(layer_norm1|norm1|layernorm_before)\.", ".norm_1."),
    (r"\.(layer_norm2|norm2|layernorm_after)\.", ".norm_2."),
    (r"\.(self_attn|attention(\.attention|\.output)?)\.", ".attention."),
    (r"\.(q_proj|query)\.", ".query."),
    (r"\.(k_proj|key)\.", ".key."),
    (r"\.(v_proj|value)\.", ".value."),
    (r"\.attention\.(out_proj|o_proj|dense)\.", ".attention.out."),
    (r"\.mlp\.gate_proj\.", ".mlp.gate."),
    (r"\.mlp\.(fc1|up_proj)\.", ".mlp.up."),
    (r"\.mlp\.(fc2|down_proj)\.", ".mlp.down."),
    (r"\.layer_scale(\d)\.lambda1$", r".layer_scale_\1"),
    # ResNet
    (r"^embedder\.embedder\.", "stem."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d)\.", lambda m: f"layer{int(m[1]) + 1}_{m[2]}."),
    (r"\.shortcut\.convolution\.", ".downsample_conv."),
    (r"\.shortcut\.normalization\.", ".downsample_norm."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".norm{int(m[1]) + 1}."),
    (r"^stem\.convolution\.", "stem.conv."),
    (r"^stem\.normalization\.", "stem.norm."),
]


def to_tree(tensors: dict[str, Any], skip: str = "-") -> dict:
    """PyTorch's arrays by Hugging Face name → a tree of ours; running statistics come out as {mean, var}.

    Keys that start with the pattern `skip` are left out, as is what is no parameter of a tower.
    """
    found = {}
    for key, tensor in tensors.items():
        if re.match(f"{skip}|logit_scale|.*mask_token|.*num_batches", key):
            continue
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        array = tensor.detach().clone().numpy()  # running statistics move
        path = key.split(".")
        if path[-1] == "weight":
            path[-1] = "kernel" if array.ndim > 1 else "scale"
        path[-1] = {"running_mean": "mean", "running_var": "var"}.get(path[-1], path[-1])
        if path[-1] == "kernel":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        elif path[-1] in ("class_token", "position_embedding", "register_tokens") and array.ndim == 3:
            array = array[0]
        found[tuple(path)] = array.reshape(-1) if path == ["class_token"] else array
    return unflatten_dict(found)


def randomise(model: Any, seed: int = 0) -> Any:
    """All weights and statistics random: the 0s and 1s of initialization would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            draw = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + draw.abs())
            elif tensor.ndim < 2:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.5 if "lambda" in name else 0.0
                tensor.copy_(centre + 0.2 * draw)
            else:
                embedding = "embeddings." in name and "patch" not in name
                tensor.copy_(draw * (0.5 if embedding else tensor[0].numel() ** -0.5))
    return model.eval()


@dataclasses.dataclass
class Pair:
    """A tower here and there with the same weights: functions from an input to named outputs."""

    module: nn.Module
    variables: dict
    x: np.ndarray
    ours: Callable[[nn.Module, dict, Any], dict[str, jax.Array]]
    theirs: Callable[[Any], dict[str, Any]]
    model: Any  # PyTorch's, whose gradients and running statistics are read
    differing: tuple[str, ...] = ()  # parameters whose gradients mean something else there


def images(size: tuple[int, int], count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *size, 3)).astype(np.float32)


SMALL = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
OURS = {"width": 48, "depth": 2, "heads": 3}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BASE_TEXT = BASE | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}


def vit_pair(config: ViTConfig, model: Any, size: tuple[int, int]) -> Pair:
    """`config` at its native size; for another, the reference resizes its table, and what it makes is taken over."""
    tower = getattr(model, "vision_model", model)
    native, module = size == config.image_size, ViT(dataclasses.replace(config, image_size=size))
    norm = getattr(tower, "post_layernorm", lambda x: x)  # CLIP's class applies it to the class token alone

    def theirs(x):
        tokens = norm(tower(x.permute(0, 3, 1, 2), interpolate_pos_encoding=not native).last_hidden_state)
        patches = tokens[:, 1 + config.register_tokens :]
        found = {"tokens": tokens, "class_token": tokens[:, 0], "patch_tokens": patches}
        return found | ({"projected": model.visual_projection(tokens[:, 0])} if config.projection else {})

    params = to_tree(model.state_dict(), skip="text_")
    if not native:
        like = torch.zeros(1, 1 + module.config.patches, config.width)
        params["position_embedding"] = tower.embeddings.interpolate_pos_encoding(like, *size)[0].detach().numpy()
    differing = () if native else ("position_embedding",)
    return Pair(module, {"params": params}, images(size), lambda m, v, x: m.apply(v, x), theirs, model, differing)


def clip_model(vision: dict, text: dict, projection: int) -> Any:
    text = {"vocab_size": 300, "max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 0} | text
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)
    return randomise(transformers.CLIPModel(config))


def clip(size=(64, 64)) -> Pair:
    model = clip_model({"image_size": 64, "patch_size": 16} | SMALL, SMALL, 24)
    return vit_pair(vision_config("ViT-B/16", (64, 64), projection=24, **OURS), model, size)


def clip_vision(size=(64, 64)) -> Pair:
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(image_size=64, patch_size=32, **SMALL))
    return vit_pair(vision_config("ViT-B/32", (64, 64), projection=None, **OURS), randomise(model), size)


def clip_full() -> Pair:
    model = clip_model({"image_size": 224, "patch_size": 16} | BASE, SMALL, 512)
    return vit_pair(vision_config("ViT-B/16"), model, (256, 128))


def dinov2(name: str, size=(70, 70), native=(70, 70), reference: dict = SMALL, ours: dict = OURS) -> Pair:
    family = transformers.Dinov2WithRegistersModel if "reg4" in name else transformers.Dinov2Model
    shape = {k: v for k, v in reference.items() if k != "intermediate_size"}
    options = {"image_size": native[0], "patch_size": 14, "use_swiglu_ffn": "-g/" in name} | shape
    return vit_pair(dinov2_config(name, native, **ours), randomise(family(family.config_class(**options))), size)


def imagenet(size=(64, 64), native=(64, 64), reference: dict = SMALL, ours: dict = OURS) -> Pair:
    options = transformers.ViTConfig(image_size=native[0], patch_size=16, **reference)
    model = randomise(transformers.ViTModel(options, add_pooling_layer=False))
    return vit_pair(imagenet_config("ViT-B/16", native, **ours), model, size)


def text_pair(config: TextConfig, model: Any) -> Pair:
    """Token embeddings in, for the sake of their gradient; that ids give them is tested beside."""
    tower, module = getattr(model, "text_model", model), TextTower(config)
    start, end = config.vocabulary - 2, config.vocabulary - 1
    ids = np.zeros((3, config.context), np.int32)
    for row, length in enumerate((5, 12, config.context - 2)):
        ids[row, : length + 2] = [start, *np.random.default_rng(row).integers(1, start, length), end]
    given: dict = {}
    tower.embeddings.token_embedding.register_forward_hook(lambda *_: given.get("x"))

    def theirs(x):
        given["x"] = x
        out = tower(input_ids=torch.tensor(ids, dtype=torch.long))
        found = {"tokens": out.last_hidden_state}
        if hasattr(model, "text_projection"):
            found["projected"] = model.text_projection(out.pooler_output)
        return found

    def ours(m, v, x):
        return m.apply(v, x, jnp.asarray(ids.argmax(1)), method="encode_embeddings")

    params = to_tree(model.state_dict(), skip="vision_|visual_")
    params.setdefault("projection", {"kernel": np.zeros((config.width, config.projection), np.float32)})
    return Pair(module, {"params": params}, params["token_embedding"][ids], ours, theirs, model)


def clip_text() -> Pair:
    model = clip_model({"image_size": 64, "patch_size": 32} | SMALL, SMALL, 24)
    return text_pair(text_config("ViT-B/16", vocabulary=300, context=20, projection=24, **OURS), model)


def clip_text_alone() -> Pair:
    config = transformers.CLIPTextConfig(
        vocab_size=300, max_position_embeddings=20, eos_token_id=2, bos_token_id=0, **SMALL
    )
    ours = text_config("ViT-B/16", vocabulary=300, context=20, **OURS)
    return text_pair(ours, randomise(transformers.CLIPTextModel(config)))


def clip_text_full() -> Pair:
    shape = BASE_TEXT | {"vocab_size": 49_408, "max_position_embeddings": 77}
    return text_pair(text_config("ViT-B/16"), clip_model({"image_size": 64, "patch_size": 32} | SMALL, shape, 512))


def resnet(size=(64, 64), last_stride=1, train=False, depths=(1, 2), width=8) -> Pair:
    config = ResNetConfig(depths=depths, width=width, last_stride=last_stride)
    channels = [4 * width * 2**i for i in range(len(depths))]
    model = transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=width, hidden_sizes=channels, depths=list(depths))
    )
    first = randomise(model).train(train).encoder.stages[-1].layers[0]
    for convolution in (first.shortcut.convolution, first.layer[1].convolution):
        convolution.stride = (last_stride, last_stride)

    def theirs(x):
        maps = model(x.permute(0, 3, 1, 2)).last_hidden_state.permute(0, 2, 3, 1)
        found = {"map": maps, "pooled": ((maps**3).mean((1, 2)) + 1e-12) ** (1 / 3)}
        return found | (running() if train else {})

    def running():
        return {f"batch_stats/{path}": torch.tensor(y) for path, y in flat(statistics(model.state_dict())).items()}

    def ours(m, v, x):
        if not train:
            return m.apply(v, x)
        out, update = m.apply(v, x, train=True, mutable=["batch_stats"])
        return out | {f"batch_stats/{path}": y for path, y in flat(update["batch_stats"]).items()}

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variables = {"params": to_tree(state, skip=".*running"), "batch_stats": statistics(state)}
    return Pair(ResNet(config), variables, images(size, 3), ours, theirs, model)


def statistics(state: dict[str, Any]) -> dict:
    return to_tree({name: tensor for name, tensor in state.items() if "running" in name}, skip="-")


def flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


PAIRS: dict[str, Callable[[], Pair]] = {
    "CLIP vision": clip,
    "CLIP vision 256×128": lambda: clip((256, 128)),
    "CLIP vision without projection": clip_vision,
    "CLIP text": clip_text,
    "CLIP text without projection": clip_text_alone,
    "DINOv2": lambda: dinov2("ViT-S/14"),
    "DINOv2 252×126": lambda: dinov2("ViT-S/14", (252, 126)),
    "DINOv2 registers": lambda: dinov2("ViT-S/14_reg4"),
    "DINOv2 registers 252×126": lambda: dinov2("ViT-S/14_reg4", (252, 126)),
    "DINOv2 SwiGLU": lambda: dinov2("ViT-g/14"),
    "ImageNet ViT": imagenet,
    "ImageNet ViT 256×128": lambda: imagenet((256, 128)),
    "ResNet": resnet,
    "ResNet 64×32, stride 2": lambda: resnet((64, 32), last_stride=2),
    "ResNet training": lambda: resnet((64, 32), train=True),
}
FULL_PAIRS: dict[str, Callable[[], Pair]] = {
    "CLIP ViT-B/16 256×128": clip_full,
    "CLIP text B/16": clip_text_full,
    "DINOv2 ViT-S/14 252×126": lambda: dinov2("ViT-S/14", (252, 126), (224, 224), SMALL | SIZE_S, {}),
    "DINOv2 ViT-S/14 registers": lambda: dinov2("ViT-S/14_reg4", (224, 224), (224, 224), SMALL | SIZE_S, {}),
    "ImageNet ViT-B/16 256×128": lambda: imagenet((256, 128), (224, 224), BASE, {}),
    "ResNet-50 256×128": lambda: resnet((256, 128), depths=(3, 4, 6, 3), width=64),
    "ResNet-50 288×144, stride 2": lambda: resnet((288, 144), 2, depths=(3, 4, 6, 3), width=64),
}
SIZE_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}


def deviation(ours: Any, theirs: Any, scale: float = 0.0) -> float:
    """Largest difference in units of the largest value there, or of `scale` where that is more."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), scale))


def in_type(pair: Pair, dtype: Any) -> Pair:
    """The pair with our side computing in another type."""
    config: Any = pair.module.config
    return dataclasses.replace(pair, module=pair.module.clone(config=dataclasses.replace(config, dtype=dtype)))


def output_deviations(pair: Pair) -> dict[str, float]:
    out = jax.jit(partial(pair.ours, pair.module))(pair.variables, pair.x)
    with torch.no_grad():
        expected = pair.theirs(torch.tensor(pair.x))
    return {name: deviation(out[name], y) for name, y in expected.items()}


def deviations(pair: Pair) -> dict[str, float]:
    """Of all outputs; and of the gradients of a random linear function of them, to the input and every parameter."""
    x = torch.tensor(pair.x, requires_grad=True)
    expected = pair.theirs(x)
    rng = np.random.default_rng(3)
    weight = {name: rng.normal(size=y.shape).astype(np.float32) for name, y in expected.items() if y.requires_grad}
    sum((expected[name] * torch.tensor(w)).sum() for name, w in weight.items()).backward()

    def loss(params, x):
        out = pair.ours(pair.module, pair.variables | {"params": params}, x)
        return sum(jnp.vdot(out[name], w) for name, w in weight.items()), out

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (gradient, x_gradient), out = jax.jit(gradient)(pair.variables["params"], pair.x)
    found = {name: deviation(out[name], y.detach()) for name, y in expected.items()}

    found["input's gradient"] = deviation(x_gradient, x.grad)
    ours = flat(gradient)
    theirs = flat(to_tree({k: p.grad for k, p in pair.model.named_parameters() if p.grad is not None}))
    assert len(theirs) > 20 and theirs.keys() <= ours.keys()
    for path in theirs.keys() - set(pair.differing):
        # Softmax ignores the bias of the keys: its gradient is rounding, and measured by that of the queries' bias.
        scale = np.abs(theirs[path.replace("key", "query")]).max() if path.endswith("key/bias") else 0.0
        found[f"gradient of {path}"] = deviation(ours[path], theirs[path], scale)
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_gradients(name):
    found = deviations(PAIRS[name]())
    worst = max(found, key=lambda key: found[key])
    assert found[worst] < FLOAT32, f"{worst}: {found[worst]:.1e}"


@pytest.mark.parametrize("name", ["CLIP vision", "CLIP text", "DINOv2 SwiGLU"])
def test_bfloat16(name):
    """Measured: outputs within 1.2e-2, gradients within 2.8e-2."""
    found = deviations(in_type(PAIRS[name](), jnp.bfloat16))
    for key, error in found.items():
        assert error < (2 * BFLOAT16 if "gradient" in key else BFLOAT16), f"{key}: {error:.1e}"
    assert all(found[name] > FLOAT32 for name in found.keys() & {"tokens", "projected"})


def test_bfloat16_resnet():
    """Outputs alone: rounding switches so many ReLUs that gradients at this width differ by a tenth and more."""
    found = output_deviations(in_type(resnet((64, 32), last_stride=2), jnp.bfloat16))
    assert all(FLOAT32 < error < BFLOAT16 for error in found.values()), found


def test_resnet_at_a_person_s_size():
    """Outputs alone: among so many ReLUs, one input within rounding of 0 can switch and move the gradient."""
    found = output_deviations(resnet((256, 128), train=True))
    assert len(found) > 2 and max(found.values()) < FLOAT32, found


def test_text_from_ids():
    pair = clip_text()
    ids = np.full((2, 6), 0, np.int32)
    ids[0, :4], ids[1] = [298, 7, 9, 299], [298, 1, 2, 3, 4, 299]
    out = jax.jit(pair.module.apply)(pair.variables, ids)
    tower = pair.model.text_model
    with torch.no_grad():
        expected = tower(input_ids=torch.tensor(ids, dtype=torch.long))
        projected = pair.model.text_projection(expected.pooler_output)
    assert deviation(out["tokens"], expected.last_hidden_state) < FLOAT32
    assert deviation(out["projected"], projected) < FLOAT32


@pytest.mark.extended
@pytest.mark.parametrize("name", FULL_PAIRS)
def test_full_size_outputs(name):
    pair = FULL_PAIRS[name]()
    assert max(output_deviations(pair).values()) < FLOAT32
    assert max(output_deviations(in_type(pair, jnp.bfloat16)).values()) < BFLOAT16
