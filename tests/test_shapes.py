"""Shapes in signatures are checked while the tests run."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from jaxreid.losses.identity import cross_entropy


def test_a_wrong_shape_is_refused():
    logits, label, valid = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), jnp.ones(4, bool)
    assert cross_entropy(logits, label, valid).shape == ()
    for wrong in ((logits[0], label, valid), (logits, label[:3], valid), (logits, label, valid.astype(jnp.float32))):
        with pytest.raises(TypeCheckError):
            cross_entropy(*wrong)
