"""CSIP-ReID's modules: the tree of joints, PyTorch, and what looks at what."""

import functools

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses

from jaxreid.backbones.skeleton_graph import TREES, SkeletonConfig, SkeletonGraph, laplacian, tree_code, tree_of
from jaxreid.errors import UserError
from jaxreid.layers.csip import PrototypeFusion, SkeletonGuidedTemporal, Skeletons, released_view

# ------------------------------------------------------------------------------------------------------- the tree


def test_laplacian_of_the_tree():
    found = laplacian(TREES[17])
    # Joint 0 has three bones, joints 1 and 7 two, joint 3 one, joint 8 four.
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] == pytest.approx(-1 / 6**0.5) and found[2, 3] == pytest.approx(-1 / 2**0.5)
    assert found[7, 8] == pytest.approx(-1 / 8**0.5) and found[0, 8] == 0 and found[3, 4] == 0
    wanted = [0, 0.048943, 0.133975, 0.133975, 0.216191, 0.412215, 0.631702, 1, 1, 1, 1.368298, 1.587785, 1.783809]
    np.testing.assert_allclose(np.linalg.eigvalsh(found), [*wanted, 1.866025, 1.866025, 1.951057, 2], atol=1e-6)


@pytest.mark.parametrize("joints", TREES)
def test_the_code_of_a_tree_is_orthonormal_and_the_same_from_every_solver(joints, monkeypatch):
    tree, count = tree_of(joints), 10
    found = tree_code(tree, count)
    np.testing.assert_allclose(found.T @ found, np.eye(count), atol=1e-6)
    values = np.sort(np.linalg.eigvalsh(laplacian(tree)))[1 : count + 1]
    np.testing.assert_allclose(laplacian(tree) @ found, found * values, atol=1e-6)
    # Another solver: other signs, and within an eigenvalue another basis.
    values, vectors = np.linalg.eigh(laplacian(tree))
    for value in np.unique(values.round(4)):
        space = np.flatnonzero(np.abs(values - value) < 1e-3)
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(len(space),) * 2))[0]
        vectors[:, space] = -vectors[:, space] @ turn
    monkeypatch.setattr(np.linalg, "eigh", lambda _: (values, vectors))
    np.testing.assert_allclose(tree_code(tree, count), found, atol=1e-6)


def test_what_is_no_tree_is_refused():
    assert tree_of(3, [[0, 1], [1, 2]]) == ((0, 1), (1, 2))
    with refuses(UserError, "no tree of 3 joints is known"):
        tree_of(3)
    for edges in ([[0, 1]], [[0, 1], [0, 1]], [[0, 1], [1, 2], [2, 0]], [[0, 1], [1, 3]]):
        with refuses(UserError, "are no tree of the joints 0 … 2"):
            tree_of(3, edges)


# ------------------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parity
def test_the_skeleton_encoder_is_pytorch_s():
    from references import csip_forward

    c = SkeletonConfig(width=8, depth=2, heads=2, hidden=12, projection=6)
    module, rng = SkeletonGraph(c), np.random.default_rng(0)
    joints = jnp.asarray(rng.normal(size=(2, 3, 17, 3)), jnp.float32)
    variables = family.filled(module.init, joints, scale=4.0)  # so that some logits are cut
    found = module.apply(variables, joints)
    code = variables["batch_stats"]["tree_code"]
    for clip, frame in np.ndindex(2, 3):
        wanted = csip_forward.skeleton_tokens(variables["params"], code, joints[clip, frame], c.heads)
        np.testing.assert_allclose(found[clip, frame], wanted.numpy(), rtol=1e-4, atol=1e-3)


@functools.cache
def temporal(layout="paper", time=0):
    """(module, variables, inputs) of SGTM: two clips of two frames of five tokens, with three joints."""
    module, rng = SkeletonGuidedTemporal(2, layout=layout, time_embedding=time), np.random.default_rng(1)
    tokens, joints = (jnp.asarray(rng.normal(size=(2, 2, n, w)), jnp.float32) for n, w in ((5, 8), (3, 6)))
    seen = jnp.ones((2, 2), bool)
    variables = family.filled(
        lambda key, *x: module.init(key, *x, False), tokens, seen, Skeletons(joints, seen), scale=1.0
    )
    run = jax.jit(lambda tokens, mask, skeletons: module.apply(variables, tokens, mask, skeletons, False))
    return variables["params"], run, (tokens, seen, joints)


@pytest.mark.parity
@pytest.mark.parametrize("with_skeletons", [True, False])
def test_guided_modeling_is_pytorch_s(with_skeletons):
    from references import csip_forward

    params, run, (tokens, seen, joints) = temporal()
    clip, frames = run(tokens, seen, Skeletons(joints, seen) if with_skeletons else None)
    for row in range(2):
        wanted = csip_forward.guided(params, 2, tokens[row], joints[row] if with_skeletons else None).numpy()
        np.testing.assert_allclose(frames[row], wanted, atol=1e-4)
        np.testing.assert_allclose(clip[row], wanted.mean(0), atol=1e-4)


@pytest.mark.parity
def test_fusion_is_pytorch_s():
    from references import csip_forward

    module, rng = PrototypeFusion(4), np.random.default_rng(2)
    s, v = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
    variables = family.filled(lambda key: module.init(key, s, v, jnp.ones(3, bool), method="fused"), scale=2.0)
    found = module.apply(variables, s, v, jnp.array([True, True, False]), method="fused")
    for row in range(2):
        wanted = csip_forward.fused(variables["params"], s[row], v[row]).detach().numpy()
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)
    np.testing.assert_array_equal(found[2], v[2])  # no skeleton was seen
    gate = variables["params"]["gate_out"]
    for bias, wanted in ((0.0, (s + v) / 2), (-jnp.inf, v), (jnp.inf, s)):
        last = {"kernel": jnp.zeros_like(gate["kernel"]), "bias": jnp.full_like(gate["bias"], bias)}
        changed = {"params": {**variables["params"], "gate_out": last}}
        np.testing.assert_allclose(module.apply(changed, s, v, jnp.ones(3, bool), method="fused"), wanted, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- attention


def test_the_released_view_of_joint_tokens():
    """Two clips of two frames of three joints: what stands beside the first frame of the first clip."""
    clip, frame, joint = np.meshgrid(*(np.arange(n) for n in (2, 2, 3)), indexing="ij")
    names = jnp.asarray(np.stack([clip, frame, joint], -1))
    assert released_view(names)[0, 0].tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 2]]
    assert names[0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]


@pytest.mark.parametrize("layout", ["paper", "released"])
def test_skeletons_of_another_clip(layout):
    _, run, (tokens, seen, joints) = temporal(layout)
    before, after = (run(tokens, seen, Skeletons(x, seen))[0] for x in (joints, joints.at[1].add(1.0)))
    assert np.abs(after[1] - before[1]).max() > 1e-2
    assert (np.array_equal(before[0], after[0])) == (layout == "paper")


def test_frames_without_skeletons_are_left_out():
    _, run, (tokens, seen, joints) = temporal()
    half = seen.at[0, 1].set(False).at[1].set(False)
    found = run(tokens, seen, Skeletons(joints, half))
    garbage = jnp.where(half[..., None, None], joints, 77.0)
    for a, b in zip(found, run(tokens, seen, Skeletons(garbage, half)), strict=True):
        np.testing.assert_array_equal(a, b)
    # A clip without any is taken as at test time.
    np.testing.assert_allclose(found[0][1], run(tokens, seen, None)[0][1], atol=1e-5)
    # Frames that only fill a clip change nothing in the others.
    short = seen.at[0, 1].set(False)
    noise = tokens.at[0, 1].set(9.0)
    np.testing.assert_array_equal(*(run(x, short, Skeletons(joints, seen))[0] for x in (tokens, noise)))
