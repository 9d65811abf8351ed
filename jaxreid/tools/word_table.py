"""Writes the words that the small text tower knows: those of drawn people's captions and of learned prompts.

    jaxreid make-word-table --out jaxreid/backbones/weights/walkers_words.json

Needs CLIP's vocabulary (`jaxreid.backbones.tokenizer.load_tokenizer`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from jaxreid.backbones.tokenizer import load_tokenizer
from jaxreid.backbones.word_table import WordTokenizer
from jaxreid.data.builders import builder_module
from jaxreid.errors import command
from jaxreid.files import expand

# What methods put before, behind and between the words that they learn.
PROMPTS = (
    "A photo of a X X X X person.",
    "A infrared photo of a visible person",
    "A person observed in both day and night conditions.",
    "a clear blurry low resolution video picture image of one man woman pedestrian, seen from above by a camera drone!",
)


def caption_words() -> list[str]:
    """Texts with every word that a caption of `walkers` may have."""
    caption, scene = builder_module("walkers", "caption"), builder_module("walkers", "scene")
    values = [" ".join(values) for values in caption.ATTRIBUTES.values()]
    grammar = (
        "a person of build with hair, wearing a long-sleeved sleeveless and shoes, carrying a, walking running with "
        "steps, in front of"
    )
    return [*values, *scene.PLACES, grammar]


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid make-word-table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=expand, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    table = WordTokenizer.of_texts([*caption_words(), *PROMPTS], load_tokenizer())
    lines = ",\n".join(f"  {json.dumps(word)}: {json.dumps(ids)}" for word, ids in table.words.items())
    options.out.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{len(table.words)} words, {len(table.clip_ids)} tokens: {options.out}")
    return 0
