"""Work of a computation, counted in its matrix products and convolutions: what utilisation figures divide by.

A multiply and an add are two operations. Everything else (norms, softmax, activations) is left out, and so is the
work that rematerialisation repeats, as usual in the literature. The count is that of the mathematics: positions that
a convolution pads, and products that a mask makes superfluous, count like others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.text import TextConfig, TextTower
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.errors import UserError


def count(function: Callable[..., Any], *args: Any) -> int:
    """Operations of `function(*args)`; arguments may be shapes (`jax.ShapeDtypeStruct`), nothing is computed.

    What the function computes and does not return counts nothing. Raises UserError at a loop of unknown length.
    """
    jaxpr = jax.jit(function).trace(*args).jaxpr.jaxpr
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: Any) -> int:
    return sum(_operations(equation) for equation in jaxpr.eqns)


def _operations(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    inputs: Any = [variable.aval for variable in equation.invars]
    output: Any = equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * output.size * math.prod(inputs[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = inputs[1].shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        # Zeros between the inputs, which the gradient of a strided convolution puts there, are not multiplied.
        zeros = math.prod(params["lhs_dilation"])
        return 2 * output.size * (math.prod(kernel) // outputs) // zeros
    if name.startswith("dot_product_attention"):  # cuDNN's kernel: two products forward, four backward
        query, key = inputs[:2]
        return (4 if "bwd" in name else 2) * 2 * query.size * key.shape[1]
    if name == "while" and any(_count(inner) for inner in _inner(params)):
        raise UserError("flops.count: matrix products in a while loop, whose length is not known")
    if name == "cond":
        return max(_count(branch) for branch in _inner(params))
    return params.get("length", 1) * sum(_count(inner) for inner in _inner(params))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an operation: bodies of loops, jitted functions, branches."""
    for value in jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, core.ClosedJaxpr | core.Jaxpr)):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def vit_flops(config: ViTConfig, class_token_only: bool = False) -> int:
    """Operations per frame of `ViT(config)`, forward."""
    frame = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    return _forward(ViT(config), frame, class_token_only=class_token_only)


def text_flops(config: TextConfig, length: int | None = None) -> int:
    """Operations per row of `TextTower(config)`, forward; rows of `length` ids, None for the whole context."""
    return _forward(TextTower(config), jax.ShapeDtypeStruct((1, length or config.context), jnp.int32))


def resnet_flops(config: ResNetConfig, image_size: tuple[int, int]) -> int:
    """Operations per frame (height, width) of `ResNet(config)`, forward; with two stems both are computed."""
    frame = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return _forward(ResNet(config), frame, None, jax.ShapeDtypeStruct((1,), jnp.int32))


def _forward(module: Any, *args: Any, **static: Any) -> int:
    variables = jax.eval_shape(module.init, jax.random.key(0), *args)
    return count(lambda variables, args: module.apply(variables, *args, **static), variables, args)
