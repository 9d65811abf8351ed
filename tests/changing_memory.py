"""The baseline in two stages whose memories have nothing in common, for tests of their border."""

import dataclasses

import jax.numpy as jnp

from jaxreid.methods.baseline import Baseline


class ChangingMemory(Baseline):
    def stages(self):
        (stage,) = super().stages()
        stage = dataclasses.replace(stage, epochs=2, calibrate=False, extraction=None)
        return tuple(dataclasses.replace(stage, name=name) for name in ("first", "second"))

    def init_memory(self):
        return {"steps": jnp.zeros(())}

    def begin_stage(self, memory, stage):
        return memory if stage.name == "first" else {"before": memory["steps"], "pair": jnp.zeros(2)}

    def loss(self, variables, memory, batch, context):
        out = super().loss(variables, memory, batch, context)
        counted = {"steps": memory["steps"] + 1} if "steps" in memory else {**memory, "pair": memory["pair"] + 1}
        return out.replace(memory=counted)

    def embed(self, variables, memory, batch):
        found = super().embed(variables, memory, batch)
        return found | {"feature": found["feature"] + 0 * memory["pair"].sum()}  # as the last stage has it


METHOD = ChangingMemory
