"""Position tables moved to another patch grid, at load time, by the rule of the code that the weights come from.

A rule is one small dense matrix per axis. The rules are not interchangeable: on a trained table, which is smooth,
another one costs little, but it is another network than the published one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

# (source, target) → float64 [target, source]: what every target row is made of.
Interpolation = Callable[[int, int], np.ndarray]


def bilinear(source: int, target: int) -> np.ndarray:
    """Half-pixel centres, no antialiasing: CLIP-ReID and its forks, TransReID (methods of the ViT family)."""
    centre = np.clip(_centres(target, source / target), 0, source - 1)
    return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(source)))


def bicubic(source: int, target: int, offset: float = 0.0) -> np.ndarray:
    """Cubic convolution with a = −0.75, no antialiasing: Hugging Face's DINOv2.

    With `offset` the step between samples is that of target + offset rows: DINOv2's own code without registers passes
    scale factors (target + 0.1) / source.
    """
    centre = _centres(target, source / (target + offset))
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((target, source))
    # Samples outside take the value at the border.
    np.add.at(matrix, (np.arange(target)[:, None], np.clip(taps, 0, source - 1)), _cubic(centre[:, None] - taps, -0.75))
    return matrix


def bicubic_antialiased(source: int, target: int) -> np.ndarray:
    """Cubic convolution with a = −0.5, as much wider as the grid shrinks, nothing outside: DINOv2 with registers."""
    widening = max(1.0, source / target)
    distance = _centres(target, source / target)[:, None] - np.arange(source)
    weights = _cubic(distance / widening, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


bicubic_offset: Interpolation = functools.partial(bicubic, offset=0.1)


def _centres(target: int, step: float) -> np.ndarray:
    """Where the target rows lie among the source rows, whose centres are 0, 1, …"""
    return (np.arange(target) + 0.5) * step - 0.5


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, which is 0 beyond 2."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_positions(
    table: np.ndarray, source: tuple[int, int], target: tuple[int, int], interpolation: Interpolation = bilinear
) -> np.ndarray:
    """Position table [1 + h·w, D] of a source grid (h, w) → float32 [1 + h'·w', D] of the target grid.

    The class token's row is kept, the patches are row-major. Equal grids return the table itself.
    """
    table = np.asarray(table, dtype=np.float32)
    if source == target:
        return table
    rows, columns = (interpolation(s, t) for s, t in zip(source, target, strict=True))
    resized = np.einsum("yh,xw,hwd->yxd", rows, columns, table[1:].reshape(*source, -1), optimize=True)
    return np.concatenate([table[:1], resized.reshape(target[0] * target[1], -1)]).astype(np.float32)
