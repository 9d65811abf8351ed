"""KeyRe-ID's local branch over-fits two people who differ in the lower legs' colour alone, and only where it sees them.

The tower has one block, so that the local branch gets patches as they are embedded: earlier blocks would have told the
class token, which no key point weighs, what every patch shows.
"""

import dataclasses
import functools

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_keyre_id import CLIPS, FRAMES, PEOPLE, SMALL, make_batch, make_config

from jaxreid.backbones import imagenet
from jaxreid.devices.parallel import register_batch
from jaxreid.footage.poses import make_estimator
from jaxreid.methods.method import find_method

HEIGHT, WIDTH, STEPS = 64, 32, 60
LEGS, OTHERS = slice(13, 17), slice(0, 13)  # of COCO's points: knees and ankles; all else
CHANCE = np.log(PEOPLE)


def make_clips(hidden=slice(0)):
    """Four clips of each of two people, the same but for the shins; `hidden` points score nothing."""
    register_batch()
    (points,) = make_estimator("stripes")([np.zeros((HEIGHT, WIDTH, 3), np.uint8)])
    points = points / [WIDTH, HEIGHT, 1]
    points[hidden, 2] = 0
    people = np.arange(CLIPS) % 2
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.normal(size=(CLIPS // 2, FRAMES, HEIGHT, WIDTH, 3)) / 2, 2, axis=0)
    frames[:, :, 26:48, 10:22] = -0.5  # trousers
    frames[:, :, 48:, 10:22] = np.where(people, 1.5, -1.5)[:, None, None, None, None] * [1, 0, -1]
    batch = make_batch(erased=False)
    extras = {"keypoints": np.broadcast_to(points, (CLIPS, FRAMES, 17, 3)), "keypoints_mask": batch.frame_mask}
    same = jnp.zeros(CLIPS, jnp.int32)
    return batch.replace(
        frames=jnp.asarray(frames, jnp.float32),
        identity=jnp.asarray(people),
        camera_index=same,
        extras=batch.extras | jax.tree.map(jnp.float32, extras) | {"keypoints_mask": batch.frame_mask},
    )


@functools.cache
def compiled(layout="paper"):
    """Training from the start, and the features that come of it, compiled once for all clips."""
    small = {"label_smoothing": 0.0, "branches": "local", "local.layout": layout}
    config = make_config(**small, **{"frames.height": HEIGHT, "frames.width": WIDTH})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(imagenet.TOWERS, "small", dataclasses.replace(SMALL, depth=1, image_size=(HEIGHT, WIDTH)))
        info = dataclasses.replace(family.make_info(), frame_size=(HEIGHT, WIDTH))
        method = find_method("keyre_id")(config, info)
    optimizer = optax.adam(1e-2)

    def train(batch):
        variables = method.init(jax.random.key(0), batch)

        def step(carry, _):
            variables, memory, moments = carry

            def loss(params):
                out = method.loss(variables | {"params": params}, memory, batch, family.context())
                return out.total, out

            gradient, out = jax.grad(loss, has_aux=True)(variables["params"])
            change, moments = optimizer.update(gradient, moments)
            variables = {"params": optax.apply_updates(variables["params"], change), "batch_stats": out.batch_stats}
            return (variables, out.memory, moments), out.metrics["loss_identity"]

        start = variables, method.init_memory(), optimizer.init(variables["params"])
        (variables, memory, _), losses = jax.lax.scan(step, start, None, STEPS)
        return losses[-1], method.embed(variables, memory, batch)["feature"]

    return jax.jit(train)


def overfit(batch, **changes):
    """(identity loss at the end, share of clips whose nearest other clip is of the same person)."""
    loss, found = compiled(**changes)(batch)
    found = np.asarray(found, np.float64)
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1) + np.diag(np.full(CLIPS, np.inf))
    people = np.asarray(batch.identity)
    return float(loss), np.mean(people[apart.argmin(1)] == people)


def test_legs_tell_two_people_apart_and_no_other_part_does():
    """The loss is the mean of six parts: the legs' come to nothing, and the four that do not see the shins stay at
    chance, which is the logarithm of the classes. No more than the legs' points is needed."""
    for hidden in (slice(0), OTHERS):
        loss, found = overfit(make_clips(hidden))
        assert loss == pytest.approx(4 / 6 * CHANCE, abs=0.02) and found == 1


def test_without_points_of_the_legs_nothing_does():
    """Two clips that differ in the shins alone are then one: each is the other's nearest."""
    loss, found = overfit(make_clips(LEGS))
    assert loss == pytest.approx(CHANCE, abs=1e-3) and found == 0


def test_in_the_published_layout_all_parts_do_with_or_without_points():
    """docs/keyre_id.md: the published guidance is inert."""
    loss, found = overfit(make_clips(LEGS), layout="released")
    assert loss < 0.02 and found == 1
