"""Names of the code as people write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def readable(direction: str) -> str:
    """A direction's name as people write it: 'visible_to_infrared/mAP' is 'visible to infrared, mAP'."""
    return direction.replace("_to_", " to ").replace("/", ", ")


def camera_word(number: int, names: Mapping[int, str]) -> str:
    """A camera as people call it: by its name, by its number where it has none."""
    name = names.get(int(number), "")
    return f"camera {name or number}" if not name or name.isdigit() else name


def ranked_direction(record: Mapping[str, Any]) -> str:
    """What a result record ranked: its direction, told apart from the same of another output, with re-ranked distances
    or with a re-scored shortlist."""
    output = record.get("output", "feature")
    named = "" if output == "feature" else f", {output}"
    named += ", re-ranked" if record.get("reranking") else ""
    named += f", re-scored with the {record['rescoring']}" if record.get("rescoring") else ""
    return record["direction"] + named
