"""DetReIDX, the data of VReID-XFD; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from jaxreid.data.building.case_tree import variants
from jaxreid.data.building.variants import Variants

VERSION = "1.0.0"
CASES = {1: "case1_aerial_to_ground", 2: "case2_ground_to_aerial", 3: "case3_aerial_to_aerial"}
HELD_OUT = "dev"  # cases cut from the training people, where the identities of the test are not given

VARIANTS = Variants("detreidx", VERSION, (*variants(CASES), HELD_OUT), max_frames=64)
locate, settings = VARIANTS.locate, VARIANTS.settings
