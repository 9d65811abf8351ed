"""The count of operations: by hand, against XLA's, and against figures that were worked out apart."""

import jax
import jax.numpy as jnp
import pytest

from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.flops import count, resnet_flops, text_flops, vit_flops
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.text import text_config
from jaxreid.backbones.vit import ViT, ViTConfig

TINY = ViTConfig(width=32, depth=3, heads=2, patch=8, image_size=(32, 16), projection=16)


def test_by_hand():
    a, b = jnp.zeros((5, 3)), jnp.zeros((3, 4))
    assert count(jnp.matmul, a, b) == 2 * 5 * 3 * 4
    batched = jax.ShapeDtypeStruct((7, 5, 3), jnp.float32)
    assert count(jnp.matmul, batched, b) == 7 * 2 * 5 * 3 * 4
    assert count(lambda a: jax.lax.scan(lambda x, _: (x @ jnp.eye(3), None), a, length=10)[0], a) == 10 * 2 * 5 * 3 * 3
    assert count(lambda a, b: (a @ b, a)[1], a, b) == 0  # what is not returned is not counted
    assert count(jax.jit(jax.checkpoint(lambda a, b: jnp.tanh(a @ b))), a, b) == 2 * 5 * 3 * 4
    assert count(lambda a: jax.lax.cond(a.sum() > 0, lambda a: a @ a.T, lambda a: jnp.eye(5), a), a) == 2 * 5 * 3 * 5
    with pytest.raises(ValueError, match="while"):
        count(lambda a: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ jnp.eye(3), a), a)


def test_a_fused_attention_counts_as_its_products(monkeypatch):
    """cuDNN's kernel, of which a program shows the name alone; it need not be here to be traced."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    q, k = jnp.ones((2, 6, 3, 8), jnp.bfloat16), jnp.ones((2, 10, 3, 8), jnp.bfloat16)

    def attention(form):
        return lambda q, k, v: (jax.nn.dot_product_attention(q, k, v, implementation=form) ** 2).sum()

    assert count(attention("cudnn"), q, k, k) == count(attention("xla"), q, k, k) == 2 * 2 * (2 * 3 * 6 * 10 * 8)
    fused, plain = (jax.grad(attention(form), argnums=(0, 1, 2)) for form in ("cudnn", "xla"))
    assert count(fused, q, k, k) == count(plain, q, k, k) == 3 * count(attention("xla"), q, k, k)


def test_a_linear_layer_s_gradient_costs_twice_its_forward_pass():
    x, w = jnp.ones((4, 6)), jnp.ones((6, 5))
    forward = count(jnp.matmul, x, w)
    assert count(jax.grad(lambda x, w: ((x @ w) ** 2).sum(), argnums=(0, 1)), x, w) == 3 * forward

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 2, 3, 5))
    assert count(convolve, x, w) == 2 * (2 * 4 * 4) * 5 * (2 * 2 * 3)
    assert count(jax.grad(lambda x, w: (convolve(x, w) ** 2).sum(), argnums=(0, 1)), x, w) == 3 * count(convolve, x, w)


@pytest.mark.parametrize(
    ("name", "size", "multiply_adds"),
    [
        ("ViT-B/16", (288, 144), 14.43e9),
        ("ViT-B/16", (256, 128), 11.34e9),
        ("ViT-L/14", (224, 224), 81.0e9),
    ],
)
def test_work_of_image_towers(name, size, multiply_adds):
    assert vit_flops(vision_config(name, size)) / 2 == pytest.approx(multiply_adds, rel=1e-3)


def test_work_of_the_text_tower():
    assert text_flops(text_config("ViT-B/16")) / 2 == pytest.approx(2.98e9, rel=1e-3)
    assert text_flops(text_config("ViT-B/16"), 16) / 2 == pytest.approx(0.607e9, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "last_stride", "multiply_adds"),
    [((288, 144), 1, 5.13e9), ((256, 128), 1, 4.05e9), ((224, 224), 2, 4.09e9)],
)
def test_work_of_resnet_50(size, last_stride, multiply_adds):
    assert resnet_flops(ResNetConfig(last_stride=last_stride), size) / 2 == pytest.approx(multiply_adds, rel=2e-3)


def test_a_second_stem_costs_two_percent():
    one, two = (resnet_flops(ResNetConfig(stems=stems), (288, 144)) for stems in (1, 2))
    assert two - one == 2 * 144 * 72 * 64 * 7 * 7 * 3
    assert 1.01 < two / one < 1.02


def test_by_the_formula():
    """Of a block: 4 projections, scores and values, MLP; and the patches, and the class token's projection."""
    n, d = TINY.tokens, TINY.width
    blocks = TINY.depth * (4 * n * d * d + 2 * n * n * d + 8 * n * d * d)
    assert vit_flops(TINY) == 2 * (TINY.patches * 8 * 8 * 3 * d + blocks + d * 16)
    # The last block for the class token alone: keys and values of all, the rest of one.
    last = 2 * n * d * d + 2 * d * d + 2 * n * d + 8 * d * d
    saved = (4 * n * d * d + 2 * n * n * d + 8 * n * d * d) - last
    assert vit_flops(TINY) - vit_flops(TINY, class_token_only=True) == 2 * saved
    scanned = ViTConfig(width=32, depth=3, heads=2, patch=8, image_size=(32, 16), projection=16, scan=True, remat=True)
    assert vit_flops(scanned) == vit_flops(TINY)
    gated = dinov2_config("ViT-S/14", (28, 14), depth=1, gated_mlp=True)
    plain = dinov2_config("ViT-S/14", (28, 14), depth=1)
    assert vit_flops(gated) == vit_flops(plain)  # three layers, two thirds as wide


@pytest.mark.parametrize("module", [ViT(TINY), ResNet(ResNetConfig(depths=(1, 1), width=16))], ids=["vit", "resnet"])
def test_against_xla_s_analysis(module):
    """XLA counts every addition too, and leaves out the products with a convolution's padding."""
    x = jnp.zeros((2, 64, 32, 3)) if isinstance(module, ResNet) else jnp.zeros((2, 32, 16, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    lowered = jax.jit(module.apply).lower(variables, x)
    ours, theirs = count(module.apply, variables, x), lowered.cost_analysis()["flops"]
    assert theirs == pytest.approx(ours, rel=0.12)
