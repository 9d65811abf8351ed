"""Arrays with their shapes in signatures (jaxtyping); the tests check them, nothing else does.

    features: Float[Array, "clips dim"]    floats of any precision, as a jax array; fp32 where results are meant
    label: Int[Array, " clips"]            one axis: the space keeps linters from taking it for a name
    valid: Bool[AnyArray, " *rest"]        NumPy arrays as well, such as a host batch's; any number of axes
    loss: Float[Array, ""]                 no axis

An axis name has one size within a call. The names, and the letters that docstrings have for them:

    clips       B, or M of a whole extraction pass: rows of a batch, each a clip of a tracklet
    tracklets   N          frames   T          tokens   L, class token and patches      heads   H
    dim         D, or E in the joint space of images and text
    classes     C, training identities         slots    K, rows of a memory             cameras   C, camera keys
    queries     Q          gallery  G          rows     N, features of no particular side
    pairs       a clip's row against all others: [clips clips]
"""

from __future__ import annotations

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Real, Shaped

__all__ = ["AnyArray", "Array", "Bool", "Float", "Int", "Real", "Scalar", "Shaped"]

AnyArray = Array | np.ndarray
Scalar = float | Real[AnyArray, ""]  # a whole number as well
