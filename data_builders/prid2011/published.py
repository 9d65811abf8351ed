"""How large PRID2011 is as its video protocol uses it; importable without TFDS."""

from typing import Any

# The people with long enough tracklets before both cameras, who are the same in all ten splits.
_TOO_SHORT = (6, 19, 31, 52, 57, 62, 71, 94, 106, 120, 136, 138, 139, 142, 145, 158, 159, 166, 183, 190)
PEOPLE = tuple(f"person_{number:04d}" for number in range(1, 199) if number not in _TOO_SHORT)
# Of every split; how many frames there are is not published.
COUNTS: dict[str, dict[str, Any]] = {
    "train": {"tracklets": 178, "identities": 89, "cameras": 2},
    "query": {"tracklets": 89, "identities": 89, "cameras": 2},
    "gallery": {"tracklets": 89, "identities": 89, "cameras": 2},
}
