"""`backbone.remat` and `backbone.scan` change how a step is computed: no parameter, no result, in no method."""

import dataclasses

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses, says

from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.run.workdirs import claim_workdir

DEPTH = 4  # the last block is computed for the class token alone, the one before it is tapped by some
METHODS = {
    "baseline": {},
    "hitpro": {},
    "cluster_contrast": {},
    "clip_reid": {"triplet.features": ("last", "projected")},
    "vsla_clip": {"adapters.width": 4},
    "tf_clip": {},
    "cg_clip": {},
    "lsmrl": {"stfl_split": (2, 0, 2)},
    "language_image": {},
}
# Of the others, whose loss needs a memory that was mined, what they extract is looked at.
LABELLED = {*METHODS} - {"hitpro", "cluster_contrast"}
PLAIN, REMAT, SCAN, BOTH = (False, False), (True, False), (False, True), (True, True)


def weighed(method):
    """A loss without labels: features times fixed numbers."""

    def loss(params, stats, memory, batch):
        variables = {"params": params, "batch_stats": stats}
        extraction = method.stages()[-1].extraction
        found = ((extraction and extraction.extract) or method.embed)(variables, memory, batch)
        parts = jax.tree.map(lambda x: (x * jnp.linspace(-1.0, 1.0, x.size).reshape(x.shape)).sum(), found)
        return sum(jax.tree.leaves(parts)), parts

    return loss


def step(name, remat, scan):
    """(loss, what else the step gives), gradients."""
    options = {"backbone.remat": remat, "backbone.scan": scan}
    method = family.make_method(name, **METHODS[name], **options)
    variables, batch = family.random_variables(method, scale=0.3), family.make_batch()
    loss = family.loss_of(method.stages()[-1]) if name in LABELLED else weighed(method)
    arguments = (variables["params"], variables.get("batch_stats", {}), method.init_memory(), batch)
    traced = str(jax.make_jaxpr(loss)(*arguments))
    assert ("remat" in traced, " scan[" in traced) == (remat, scan)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(*arguments)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hitpro", (BOTH,)),
        *(pytest.param(name, (REMAT, SCAN), marks=pytest.mark.extended) for name in METHODS),
    ],
)
def test_a_step_is_the_same(name, options, monkeypatch):
    captioned = dataclasses.replace(family.make_info(), captions=(("a person",),) * len(family.make_info().table))
    monkeypatch.setattr(family, "make_info", lambda: captioned)
    monkeypatch.setattr(family, "IMAGE", dataclasses.replace(family.IMAGE, depth=DEPTH))
    monkeypatch.setattr(family, "TEXT", dataclasses.replace(family.TEXT, depth=DEPTH))
    family.small_towers(monkeypatch)
    (value, aux), gradients = step(name, *PLAIN)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    assert np.isfinite(size) and size > 0
    for option in options:
        (other, other_aux), others = step(name, *option)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), other_aux, aux)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * size), others, gradients)


def test_a_resnet_cannot_be_scanned():
    with refuses(ValueError, "resnet50", "backbone.scan"):
        encoder_config("resnet50", (256, 128), "float32", scan=True)
    assert encoder_config("resnet50", (256, 128), "float32", remat=True).remat


def test_they_may_change_when_a_run_goes_on(tmp_path, capsys):
    config = {"method": "a", "seed": 1, "dataset": {}, "backbone": {"name": "a", "remat": False, "scan": False}}
    claim_workdir(tmp_path, config)
    (tmp_path / "results.json").write_text("{}")  # it has come to something
    claim_workdir(tmp_path, config | {"backbone": {"name": "a", "remat": True, "scan": True}})
    says(capsys.readouterr().out, "backbone.remat", "False → True")
    with refuses(ValueError, "backbone.name", "a → b"):
        claim_workdir(tmp_path, config | {"backbone": {"name": "b", "remat": True, "scan": True}})
