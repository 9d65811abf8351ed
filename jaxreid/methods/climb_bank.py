"""CLIMB-ReID's bank on CLIP-ReID's tower: two rows per identity that follow the features of training.

Yu et al., "CLIMB-ReID: A Hybrid CLIP-Mamba Framework for Person Re-Identification", AAAI 2025. Of the paper this is the
memory alone: a mean and a hard proxy per identity, made anew from the tower before every epoch and moved by every
batch. Its Mamba branch is not here, so results of this module are not a reproduction of the paper's.
"""

from __future__ import annotations

from typing import Any

from jaxreid.data.batch import Batch
from jaxreid.methods.class_banks import MOVING_VALUES, Bank, BankMemory, MovingBank
from jaxreid.methods.clip_family import ClipFamily, ClipNetwork, family_values
from jaxreid.methods.method import Variables

VALUES = {**family_values(), **MOVING_VALUES}


class ClimbBank(ClipFamily):
    """See the module's docstring."""

    values = VALUES

    def make_network(self) -> ClipNetwork:
        return ClipNetwork(**self.shared())

    def make_bank(self) -> Bank:
        return MovingBank(self.config, self.info, self.joint_width, self.features)

    def features(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, Any]:
        """ "projected" of the tower as it is now."""
        found: Any = self.network.apply(variables, batch, False, method="encode")
        return {"projected": found["projected"]}

    def notes(self) -> tuple[str, ...]:
        return (*super().notes(), "CLIMB-ReID's memory without its Mamba branch.")


METHOD = ClimbBank
