"""The baseline in a stage of seven steps, for tests of lengths in steps."""

import dataclasses

from jaxreid.methods.baseline import Baseline


class SevenSteps(Baseline):
    def stages(self):
        return (dataclasses.replace(super().stages()[0], epochs=3, steps=7),)


METHOD = SevenSteps
