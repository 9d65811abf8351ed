"""CG-CLIP on the toy of its family: captions of eight tracklets, a method, and the memory that training starts from."""

import dataclasses

import family
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.methods.cg_clip import CGClip
from jaxreid.methods.method import Features

CAPTIONS = (  # two tracklets of each person; the last person is nobody's
    ("a person with short hair, wearing a red shirt", "a tall person"),
    ("a person with short hair and white shoes",),
    ("a slim person with long hair",),
    (),
    ("a person with tied hair",),
    ("a person with tied hair",),
    (),
    (),
)


def make_info(captions=CAPTIONS, **changes):
    return dataclasses.replace(family.make_info(), captions=captions, **changes)


def make_method(info=None, **changes):
    config = family.make_config("cg_clip", **{"batch.seq_len": 3, "evaluation.seq_len": 3, **changes})
    return CGClip(config, info or make_info())


def memory_for(method, variables, projected=None):
    """What the refreshing before the stage makes of tracklets' image features, random ones unless some are given, and
    of captions."""
    if projected is None:
        projected = jnp.asarray(np.random.default_rng(3).normal(size=(8, 8)), jnp.float32)
    count = len(projected)
    features = Features({"projected": projected}, jnp.arange(count), jnp.zeros(count, jnp.int32), jnp.ones(count, bool))
    return jax.jit(method.bank.refresh)(variables, method.init_memory(), features, family.context())
