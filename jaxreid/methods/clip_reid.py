"""CLIP-ReID: the bank is the text tower on prompts that a first stage learns, then the whole image tower trains.

Li et al., "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete Text Labels", AAAI
2023. On clips, features are means over their frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxreid.methods.class_banks import SENTENCE_VALUES, Bank
from jaxreid.methods.clip_family import ClipFamily, ClipNetwork, family_values, prompt_faults, prompted
from jaxreid.methods.released import clip_reid

VALUES = {**family_values(), **SENTENCE_VALUES}


class ClipReID(ClipFamily):
    """See the module's docstring."""

    values = VALUES
    released = clip_reid.RELEASED

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        yield from prompt_faults(config)

    def make_network(self) -> ClipNetwork:
        return ClipNetwork(**self.shared(), text=prompted(self.config, self.info, self.text))

    def make_bank(self) -> Bank:
        return self.prompt_bank()


METHOD = ClipReID
