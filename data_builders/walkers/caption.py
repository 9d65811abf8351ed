"""A person in words: captions, and the same attributes as small integers."""

from __future__ import annotations

import numpy as np

from .person import BAGS, COLOURS, GARMENTS, HAIR, HATS, LOWER, PATTERNS, SLEEVES, UPPER, Person

HEIGHTS, BUILDS, LEGS, STRIDES, ARMS = (
    ("short", "medium", "tall"),
    ("slim", "average", "broad"),
    ("short", "long"),
    ("short", "long"),
    ("still", "swinging"),
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "height": HEIGHTS,
    "build": BUILDS,
    "legs": LEGS,
    "stride": STRIDES,
    "arms": ARMS,
    "upper": UPPER,
    "sleeve": SLEEVES,
    "pattern": PATTERNS,
    "lower": LOWER,
    "hair": HAIR,
    "hat": HATS,
    "bag": BAGS,
    **{f"{garment}_colour": tuple(COLOURS) for garment in GARMENTS},
}


def words(person: Person) -> dict[str, str]:
    """Every attribute of a person (keys of ATTRIBUTES) as one word of its vocabulary."""
    body, gait, outfit = person.body, person.gait, person.outfit
    return {
        "height": HEIGHTS[int(np.digitize(body.height, (1.65, 1.80)))],
        "build": BUILDS[int(np.digitize(body.girth, (1.0, 1.2)))],
        "legs": LEGS[int(body.leg > 0.995)],
        "stride": STRIDES[int(gait.stride > 0.42)],
        "arms": ARMS[int(gait.arm_swing > 0.35)],
        "upper": outfit.upper,
        "sleeve": outfit.sleeve,
        "pattern": outfit.pattern,
        "lower": outfit.lower,
        "hair": outfit.hair,
        "hat": outfit.hat,
        "bag": outfit.bag,
        **{f"{garment}_colour": colour for garment, colour in zip(GARMENTS, outfit.colours, strict=True)},
    }


def attribute_codes(person: Person) -> np.ndarray:
    """i32[len(ATTRIBUTES)]: the index of each attribute's word in its vocabulary."""
    return np.array([ATTRIBUTES[name].index(word) for name, word in words(person).items()], np.int32)


# What can be said of a person, put together in several ways.
WORDINGS = (
    "a {height} person of {build} build with {hair} hair, wearing a {upper}, {lower} and {shoes}{hat}{bag}, "
    "{gait}{place}",
    "a photo of a pedestrian in a {upper} and {lower} with {shoes}{hat}{bag}, {height} and of {build} build, "
    "with {hair} hair, {gait}{place}",
    "one person {gait}, with {hair} hair, {shoes}, {lower} and a {upper}{bag}{hat}, {build} and {height}{place}",
)


def describe(person: Person, infrared: bool = False, place: str = "", wording: int = 0) -> str:
    """One English phrase, one of WORDINGS; an infrared camera sees no colours. `place` is appended where given."""
    word = words(person)

    def coloured(garment, noun):
        return noun if infrared else f"{word[f'{garment}_colour']} {noun}"

    pattern, upper = (
        word["pattern"],
        f"{word['sleeve']}-sleeved {word['upper']}".replace("no-sleeved", "sleeveless"),
    )
    if pattern == "plain":
        upper = coloured("upper_a", f"plain {upper}")
    elif infrared:
        upper = f"{pattern} {upper}"
    else:
        upper = f"{word['upper_a_colour']} and {word['upper_b_colour']} {pattern} {upper}"
    return WORDINGS[wording].format(
        **{name: word[name] for name in ("height", "build", "hair")},
        upper=upper,
        lower=coloured("lower", word["lower"]),
        shoes=coloured("shoes", "shoes"),
        hat="" if word["hat"] == "none" else f", a {coloured('hat', word['hat'])}",
        bag="" if word["bag"] == "none" else f", carrying a {coloured('bag', word['bag'])}",
        gait=f"{'running' if person.gait.running else 'walking'} with {word['stride']} steps",
        place=place and f", in front of {place}",
    )
