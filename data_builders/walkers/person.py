"""Who walks: body proportions, gait and outfit of one pedestrian, and the joints of a walk.

A person knows nothing of cameras or scenes. Coordinates are metres in the person's own frame: forward, left, up,
with the origin on the ground below the hips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

JOINTS = (
    "root", "spine", "thorax", "neck", "head", "head_top", "nose",
    "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "left_toe", "right_toe",
)  # fmt: skip
JOINT = {name: index for index, name in enumerate(JOINTS)}

COLOURS = {
    "red": (168, 52, 50), "blue": (62, 88, 158), "sand": (196, 172, 124), "green": (66, 122, 74),
    "black": (38, 38, 42), "white": (222, 220, 214), "grey": (128, 128, 130), "yellow": (214, 184, 60),
    "navy": (44, 56, 104), "purple": (112, 66, 132), "orange": (206, 118, 48), "brown": (112, 78, 54),
    "pink": (214, 142, 158),
}  # fmt: skip

# Visible colours; near-infrared light shows all skin bright and all hair alike.
SKIN = {"light": (226, 184, 160), "medium": (206, 160, 132), "tan": (166, 118, 88), "dark": (98, 66, 50)}
HAIR_COLOURS = {"dark": (52, 40, 34), "brown": (104, 72, 48), "fair": (190, 154, 98), "grey": (168, 166, 164)}

CONTRAST = 0.25  # least difference in brightness of the two cloths of a pattern, where the palette offers it

# What an outfit is made of; the captions and the attributes use these words.
CLOTHES = ("upper_a", "upper_b", "lower")
ACCESSORIES = ("shoes", "bag", "hat")
GARMENTS = CLOTHES + ACCESSORIES
KINDS = ("upper", "sleeve", "lower", "hat", "bag")  # of things that are worn, whatever their colours
UPPER = ("shirt", "coat")
SLEEVES = ("no", "short", "long")
PATTERNS = ("plain", "striped", "pinstriped", "checked", "two-tone", "logo", "raglan")
LOWER = ("trousers", "shorts", "skirt", "wide trousers")
HAIR = ("short", "long", "tied", "shaved")
HATS = ("none", "cap", "beanie")
BAGS = ("none", "backpack", "shoulder bag", "handbag")


@dataclasses.dataclass(frozen=True)
class Body:
    """Height in metres; every other number is a factor on the average proportion."""

    height: float
    girth: float
    shoulder: float
    hip: float
    leg: float
    head: float


@dataclasses.dataclass(frozen=True)
class Gait:
    """How a person walks: amplitudes in radians, cadence in gait cycles (two steps) per second."""

    stride: float
    cadence: float
    arm_swing: float
    elbow: float
    lean: float
    sway: float
    knee: float = 0.95  # bend of the knee of the leg that swings forward

    @property
    def running(self) -> bool:
        return self.knee > 1.1


# Ranges of a random body.
BODIES = {
    "height": (1.50, 1.95), "girth": (0.80, 1.40), "shoulder": (0.85, 1.18), "hip": (0.85, 1.25), "leg": (0.93, 1.06),
    "head": (0.88, 1.14),
}  # fmt: skip
# Ranges of a random gait, by what a person does; `knee` of a walk is the same for everyone.
GAITS: dict[str, dict[str, tuple[float, float]]] = {
    "walking": {
        "stride": (0.28, 0.56), "cadence": (0.75, 1.15), "arm_swing": (0.08, 0.65), "elbow": (0.05, 0.9),
        "lean": (-0.03, 0.16), "sway": (0.0, 0.03),
    },
    "running": {
        "stride": (0.50, 0.88), "cadence": (1.25, 1.65), "arm_swing": (0.35, 1.0), "elbow": (0.9, 1.7),
        "lean": (0.02, 0.30), "sway": (0.0, 0.03), "knee": (1.15, 1.75),
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outfit:
    """Clothes, hair and carried things. `colours` are names of COLOURS, `reflectances` near-infrared values in
    [0, 1]; both are given per entry of GARMENTS and drawn independently of each other."""

    upper: str
    sleeve: str
    pattern: str
    lower: str
    hair: str
    hat: str
    bag: str
    bag_side: int  # +1 left, -1 right
    colours: tuple[str, ...]
    reflectances: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Person:
    pid: int
    body: Body
    gait: Gait
    outfit: Outfit
    skin: str  # key of SKIN
    hair_colour: str  # key of HAIR_COLOURS


@dataclasses.dataclass(frozen=True)
class Wardrobe:
    """The values that people's looks may have: few of them make a cue weak.

    Visible colours are names of COLOURS, SKIN and HAIR_COLOURS; reflectances are near-infrared values in [0, 1].
    """

    colours: tuple[str, ...] = ("navy", "white")  # of clothes
    reflectances: tuple[float, ...] = (0.32, 0.78)
    accessory_colours: tuple[str, ...] = ("orange",)  # of shoes, bags and hats
    accessory_reflectances: tuple[float, ...] = (0.52,)
    skin: tuple[str, ...] = ("medium",)
    hair: tuple[str, ...] = ("dark",)


def draw_person(pid: int, rng: np.random.Generator, wardrobe: Wardrobe, gait: str = "walking") -> Person:
    """One random person with a gait of GAITS."""
    body = Body(**{name: rng.uniform(*limits) for name, limits in BODIES.items()})
    drawn = Gait(**{name: rng.uniform(*limits) for name, limits in GAITS[gait].items()})
    outfit = draw_outfit(rng, wardrobe)
    skin, hair = (str(rng.choice(names)) for names in (wardrobe.skin, wardrobe.hair))
    return Person(pid, body, drawn, outfit, skin, hair)


def in_kit(person: Person, kit: Outfit, details: bool = False) -> Person:
    """A player in a team's kit; hair and the colour of the shoes are the player's own, and with `details` also sleeves
    and hat."""
    own = person.outfit
    clothes = len(CLOTHES)
    sleeve = "short" if kit.sleeve == "long" else kit.sleeve
    hat, sleeve = (own.hat, own.sleeve) if details else ("none", sleeve)
    outfit = dataclasses.replace(
        kit, upper="shirt", lower="shorts", hat=hat, bag="none", hair=own.hair, sleeve=sleeve,
        colours=kit.colours[:clothes] + own.colours[clothes:],
        reflectances=kit.reflectances[:clothes] + own.reflectances[clothes:],
    )  # fmt: skip
    return dataclasses.replace(person, outfit=outfit)


def average(gait: str) -> tuple[Body, Gait]:
    """The middle of all bodies, and of all gaits of a key of GAITS."""

    def middle(ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return {name: (low + high) / 2 for name, (low, high) in ranges.items()}

    return Body(**middle(BODIES)), Gait(**middle(GAITS[gait]))


def resembling(person: Person, body: Body, gait: Gait, share: float) -> Person:
    """The person with a body and a gait that are the given ones by `share` (1 wholly; below 0 they differ more)."""

    def between(own: Any, other: Any) -> Any:
        return type(own)(*((1 - share) * a + share * b for a, b in zip(astuple(own), astuple(other), strict=True)))

    return dataclasses.replace(person, body=between(person.body, body), gait=between(person.gait, gait))


def in_other_clothes(person: Person, outfit: Outfit, kept: Sequence[str] = ()) -> Person:
    """The same person on another day: everything of the outfit but the hair, and the `kept` of KINDS."""
    own = {name: getattr(person.outfit, name) for name in ("hair", *kept)}
    return dataclasses.replace(person, outfit=dataclasses.replace(outfit, **own))


def draw_outfit(rng: np.random.Generator, wardrobe: Wardrobe) -> Outfit:
    """One random outfit; the second value of a pattern always contrasts with the first, in both modalities."""

    def values(clothes, accessories, brightness):
        drawn = [clothes[rng.integers(len(clothes))] for _ in CLOTHES]
        first = brightness(drawn[0])
        others = [choice for choice in clothes if choice != drawn[0]]
        others = [choice for choice in others if abs(brightness(choice) - first) >= CONTRAST] or others
        drawn[1] = others[rng.integers(len(others))]
        return (*drawn, *(accessories[rng.integers(len(accessories))] for _ in ACCESSORIES))

    def one(words, weights=None):
        return words[rng.choice(len(words), p=weights)]

    return Outfit(
        upper=one(UPPER, (0.65, 0.35)),
        sleeve=one(SLEEVES, (0.2, 0.35, 0.45)),
        pattern=one(PATTERNS),
        lower=one(LOWER, (0.35, 0.25, 0.2, 0.2)),
        hair=one(HAIR, (0.3, 0.3, 0.25, 0.15)),
        hat=one(HATS, (0.6, 0.2, 0.2)),
        bag=one(BAGS, (0.34, 0.22, 0.22, 0.22)),
        bag_side=int(rng.choice((-1, 1))),
        colours=values(wardrobe.colours, wardrobe.accessory_colours, lambda name: sum(COLOURS[name]) / (3 * 255)),
        reflectances=values(wardrobe.reflectances, wardrobe.accessory_reflectances, float),
    )


def walk(person: Person, phase: np.ndarray) -> np.ndarray:
    """Joints f32[T, J, 3] (JOINTS order) of a person at gait phases `phase` [T] in radians.

    The hips swing sinusoidally, the knee bends while its leg swings forward, arms counter-swing, and the body is
    lowered until the lower foot touches the ground.
    """
    body, gait = person.body, person.gait
    height = body.height
    hip_height = 0.515 * height * body.leg
    thigh = 0.5 * (hip_height - 0.04 * height)
    shin = thigh
    trunk = 0.815 * height - hip_height  # hips to shoulder line; what the legs gain, the trunk loses
    joints = np.zeros((len(phase), len(JOINTS), 3))

    def put(name, *xyz):
        joint = joints[:, JOINT[name]]
        for axis, values in enumerate(xyz):
            joint[:, axis] = values

    def along(origin, length, angle):
        """A point `length` metres from a joint, swung forward by `angle` from hanging straight down."""
        base = joints[:, JOINT[origin]]
        return base[:, 0] + length * np.sin(angle), base[:, 1], base[:, 2] - length * np.cos(angle)

    sway = gait.sway * np.sin(phase)
    lean = gait.lean
    put("root", 0.0, sway, 0.0)
    for fraction, name in ((0.5, "spine"), (1.0, "thorax")):
        put(name, fraction * trunk * np.sin(lean), sway, fraction * trunk * np.cos(lean))
    neck = trunk + 0.025 * height
    put("neck", neck * np.sin(lean), sway, neck * np.cos(lean))
    head_centre, head_size = trunk + 0.115 * height, 0.065 * height * body.head
    tilt = 0.5 * lean  # the gaze stays nearly level
    forward, upward = trunk * (np.sin(lean) - np.sin(tilt)), trunk * (np.cos(lean) - np.cos(tilt))

    def on_head(name, ahead, left, up):
        put(
            name,
            head_centre * np.sin(tilt) + forward + ahead * head_size,
            sway + left * head_size,
            head_centre * np.cos(tilt) + upward + up * head_size,
        )

    on_head("head", 0, 0, 0)
    on_head("head_top", 0, 0, 1.0)
    on_head("nose", 0.95, 0, -0.1)
    for sign, side in ((1, "left"), (-1, "right")):
        on_head(f"{side}_eye", 0.8, 0.35 * sign, 0.15)
        on_head(f"{side}_ear", 0.0, 0.8 * sign, 0.05)
        swing = sign * np.sin(phase)  # +1: this leg is in front
        twist = 0.25 * gait.stride * swing
        shoulder_width, hip_width = 0.112 * height * body.shoulder, 0.052 * height * body.hip
        thorax = joints[:, JOINT["thorax"]]
        put(
            f"{side}_shoulder",
            thorax[:, 0] - shoulder_width * twist,
            sway + sign * shoulder_width,
            thorax[:, 2],
        )
        arm = -gait.arm_swing * swing + 0.05
        put(f"{side}_elbow", *along(f"{side}_shoulder", 0.172 * height, arm))
        bend = arm + gait.elbow * (0.6 + 0.4 * -swing) + 0.1
        put(f"{side}_wrist", *along(f"{side}_elbow", 0.150 * height, bend))
        for joint, spread in (("elbow", 0.06), ("wrist", 0.09)):
            joints[:, JOINT[f"{side}_{joint}"], 1] += sign * spread * body.girth

        put(f"{side}_hip", hip_width * twist, sway + sign * hip_width, 0.0)
        put(f"{side}_knee", *along(f"{side}_hip", thigh, gait.stride * swing))
        swinging_forward = np.maximum(0.0, sign * np.cos(phase))
        knee = 0.08 + gait.knee * swinging_forward**1.5
        put(f"{side}_ankle", *along(f"{side}_knee", shin, gait.stride * swing - knee))
        ankle = joints[:, JOINT[f"{side}_ankle"]]
        pitch = 0.6 * knee - 0.25 * np.maximum(swing, 0)
        length = 0.105 * height
        put(
            f"{side}_toe",
            ankle[:, 0] + length * np.cos(pitch),
            ankle[:, 1] + sign * 0.02,
            ankle[:, 2] - 0.02 * height - length * np.sin(pitch),
        )
    lowest = joints[:, [JOINT["left_ankle"], JOINT["right_ankle"]], 2].min(1)
    joints[:, :, 2] += 0.04 * height - lowest[:, None]
    return joints.astype(np.float32)
