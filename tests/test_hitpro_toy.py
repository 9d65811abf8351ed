"""What each part of HiTPro is worth on synthetic persons; it takes minutes."""

import functools

import numpy as np
import pytest

from benchmarks import hitpro_toy


@functools.cache
def rank1(variant, seeds):
    """Cross-modality rank-1 in per cent, mean over both directions and all seeds."""
    results = [hitpro_toy.run(hitpro_toy.VARIANTS[variant], seed) for seed in seeds]
    return np.mean([[r["ir_rgb_r1"], r["rgb_ir_r1"]] for r in results])


@pytest.mark.extended
@pytest.mark.parametrize(
    ("worse", "margin", "better", "seeds"),
    [
        ("l1", 5, "l1_l2", (10, 11, 12)),
        ("l1_l2", 5, "full", (10, 11, 12)),
        ("full_fixed_0.8", 15, "full", (10, 11, 12)),
        ("fragmented_no_look_alikes", 20, "fragmented", (10, 11, 12)),
    ],
)
def test_orderings_of_variants(worse, margin, better, seeds):
    assert rank1(worse, seeds) + margin < rank1(better, seeds)
