"""The state that training begins with, and what becomes of it at the border of a stage."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid import optimizers
from jaxreid.backbones import pretrained
from jaxreid.data.batch import Batch
from jaxreid.devices import parallel, processes
from jaxreid.methods.method import Method, Stage, Variables
from jaxreid.run.model import Model, example_batch
from jaxreid.training.steps import TrainState, init_train_state, variables_of


def init_variables(run: Model) -> Variables:
    """Parameters and batch statistics at the start: random, then pretrained weights where the method names some, in the
    types that its `init` has them in."""
    rng, batch = jax.random.PRNGKey(run.config.seed), example_batch(run)
    with processes.together():
        sources = [
            (backbone.path, pretrained.load_variables(backbone.name, backbone.config))
            for backbone in run.method.backbones()
            if backbone.name
        ]
    if jax.process_count() > 1:
        checksums = {"/".join(path): _checksums(weights) for path, weights in sources}
        processes.same("file of pretrained weights", checksums)

    def random_part(variables: Variables) -> Variables:
        variables = jax.tree.map(lambda leaf: leaf, variables)  # dicts of its own
        for path, weights in sources:  # what weights replace is neither drawn nor compiled
            for collection, loaded in weights.items():
                tree, name = _at(variables[collection], path)
                tree[name] = _without(tree[name], loaded)
        return variables

    def init(rng: jax.Array, batch: Batch) -> Variables:
        return random_part(run.method.init(rng, batch))

    shapes = jax.eval_shape(run.method.init, rng, batch)
    shardings = parallel.state_sharding(shapes, run.mesh)
    placed = parallel.state_sharding(random_part(shapes), run.mesh)
    variables = jax.jit(init, out_shardings=placed)(rng, batch)
    for path, weights in sources:
        for collection, loaded in weights.items():
            tree, name = _at(variables[collection], path)
            place, like = (_at(each[collection], path)[0][name] for each in (shardings, shapes))
            tree[name] = optimizers.merge(tree[name], _placed(loaded, place, like))
    return variables


def _checksums(weights: Any) -> Any:
    return jax.tree.map(lambda leaf: zlib.crc32(leaf.tobytes()), weights)


def _without(tree: Any, other: Any) -> Any:
    """The leaves of a nested dict that another has not: a backbone's adapters, say, that no weights replace."""
    left = {}
    for key, value in tree.items():
        if key not in other:
            left[key] = value
        elif isinstance(value, dict) and (inside := _without(value, other[key])):
            left[key] = inside
    return left


def _placed(tree: Any, shardings: Any, like: Any) -> Any:
    """The leaves of a nested dict where shardings, and in the types that shapes, of a tree with more leaves say."""
    if isinstance(tree, dict):
        return {key: _placed(value, shardings[key], like[key]) for key, value in tree.items()}
    return parallel.place(tree.astype(like.dtype, copy=False), shardings)


def _at(tree: Any, path: tuple[str, ...]) -> tuple[Any, str]:
    """(the dict that holds a path's last name, that name)."""
    for key in path[:-1]:
        tree = tree[key]
    return tree, path[-1]


def memory_at(method: Method, stage: Stage) -> Any:
    """Memory as a stage of the method begins with it, before anything was learned: structure and shapes are right."""
    memory = jax.tree.map(jnp.asarray, method.init_memory())
    for other in method.stages():
        memory = method.begin_stage(memory, other)
        if other.name == stage.name:
            break
    return memory


def memory_for_tests(run: Model, number: int, memory: Any) -> Any:
    """Memory of stage `number` in the structure that the last stage gives it, for which `Method.embed` is compiled."""
    for stage in run.method.stages()[number + 1 :]:
        memory = run.method.begin_stage(memory, stage)
    return jax.device_put(memory, parallel.state_sharding(memory, run.mesh))


def abstract_train_state(run: Model, stage: Stage) -> tuple[TrainState, Any]:
    """Shapes and types of a stage's state; nothing is computed and no weight is read."""

    def start() -> tuple[TrainState, Any]:
        variables = run.method.init(jax.random.PRNGKey(0), example_batch(run))
        return init_train_state(stage, variables, memory_at(run.method, stage), jnp.int32(0), jax.random.PRNGKey(0))

    return jax.eval_shape(start)


def enter_stage(run: Model, stage: Stage, state: TrainState | None, frozen: Any) -> tuple[TrainState, Any]:
    """State at the border of a stage: what trains changes, and with it the memory where the method says so; the rest is
    carried over."""
    if state is None:
        variables = init_variables(run)
        with processes.together():  # a method may read a vocabulary
            memory = run.method.init_memory()
        step, rng = np.int32(0), jax.random.PRNGKey(run.config.seed + 1)
    else:
        variables, memory, step, rng = variables_of(state, frozen), state.memory, state.step, state.rng
    return begin_stage(run, stage, variables, run.method.begin_stage(memory, stage), step, rng)


def begin_stage(
    run: Model, stage: Stage, variables: Variables, memory: Any, step: Any, rng: Any
) -> tuple[TrainState, Any]:
    """(state on the devices, frozen parameters) of a stage that begins with these variables and this memory."""
    state, frozen = init_train_state(stage, variables, memory, step, rng)
    state = jax.tree.map(jnp.asarray, state)
    return jax.device_put(state, parallel.state_sharding(state, run.mesh)), frozen
