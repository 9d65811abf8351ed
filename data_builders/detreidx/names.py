"""What the name of a DetReIDX frame says of where it was taken from, when, and of the person."""

from __future__ import annotations

import dataclasses
import math
import re

from jaxreid.data.schema import ATTRIBUTE_NOT_PROVIDED, ATTRIBUTE_UNKNOWN, NUM_ATTRIBUTES

ATTRIBUTES = (
    "gender", "age", "height", "weight", "ethnicity", "hair_color", "hair_style", "beard", "moustache", "glasses",
    "head_accessories", "upper_body", "lower_body", "feet", "accessories", "action",
)  # fmt: skip
INDOOR = slice(0, 5)  # attributes that indoor names give
OUTDOOR = slice(5, 16)  # attributes that outdoor names give

# Height, distance and angle of the capture points 1 to 18.
POINTS = (
    (5.8, 10, 30), (11.5, 20, 30), (17.3, 30, 30), (23.1, 40, 30), (40, 80, 30), (60, 120, 30),
    (15, 10, 60), (30, 20, 60), (45, 30, 60), (60, 40, 60), (75, 80, 60), (90, 120, 60),
    (10, 0, 90), (20, 0, 90), (30, 0, 90), (40, 0, 90), (80, 0, 90), (120, 0, 90),
)  # fmt: skip
UNKNOWN = -1
_REAL = r"(\d+(?:\.\d+)?)"
# PID_DD_MM_YYYY_HH_MM_height_distance_angle_location_<11 attributes>_scene_session or …_session_frame
_OUTDOOR_NAME = re.compile(rf"\d+_\d+_\d+_\d{{4}}_\d+_\d+_{_REAL}_{_REAL}_{_REAL}_.*")
# PID_<5 attributes>_view, documented with an angle before the view
_INDOOR_NAME = re.compile(r"\d+((?:_-?\d+){5})(?:_[^_]+)??_[FLR](?:_\d+)?")


@dataclasses.dataclass(frozen=True)
class View:
    """Where a tracklet was taken from; NaN and −1 are unknown."""

    platform: str = "unknown"  # as in schema.PLATFORMS
    altitude: float = math.nan
    distance: float = math.nan
    angle: float = math.nan
    session: int = UNKNOWN
    attributes: tuple[int, ...] = (ATTRIBUTE_NOT_PROVIDED,) * NUM_ATTRIBUTES

    @property
    def camera(self) -> int:
        """0 on the ground, else the number of the drone's session."""
        return 0 if self.platform == "ground" else self.session

    @property
    def cam_name(self) -> str:
        return {0: "ground", UNKNOWN: ""}.get(self.camera, f"uav_S{self.camera}")

    @property
    def slant_range(self) -> float:
        """Metres from the drone to the person."""
        return math.hypot(self.altitude, self.distance)

    @property
    def point(self) -> int:
        """The capture point, within 0.1 in each measure."""
        here = self.altitude, self.distance, self.angle
        for number, point in enumerate(POINTS, start=1):
            if all(abs(one - other) < 0.1 for one, other in zip(here, point, strict=True)):
                return number
        return UNKNOWN


def parse(name: str) -> View:
    """The view that a frame's name tells; what it does not tell is unknown.

    A name of fewer than eight fields is of the ground, as in the authors' reader.
    """
    stem = name.rpartition(".")[0]
    fields = stem.split("_")
    outdoor = _OUTDOOR_NAME.fullmatch(stem)
    if outdoor:
        altitude, distance, angle = map(float, outdoor.groups())
        attributes = _slots(fields[10:21], OUTDOOR)
        return View("uav", altitude, distance, angle, _session(fields), attributes)
    indoor = _INDOOR_NAME.fullmatch(stem)
    if indoor:
        return View("ground", attributes=_slots(indoor[1].split("_")[1:], INDOOR))
    return View("ground") if len(fields) < 8 else View()


def _session(fields: list[str]) -> int:
    """From the last two fields: the session, marked by an S or not, may be followed by the frame's number."""
    for pattern, field in ((r"S(\d)", fields[-1]), (r"S?(\d)", fields[-2]), (r"(\d)", fields[-1])):
        match = re.fullmatch(pattern, field)
        if match:
            return int(match[1])
    return UNKNOWN


def _slots(fields: list[str], where: slice) -> tuple[int, ...]:
    """Attributes in their slots; a field that is no number is unknown."""
    slots = [ATTRIBUTE_NOT_PROVIDED] * NUM_ATTRIBUTES
    for slot, field in zip(range(where.start, where.stop), fields, strict=False):
        slots[slot] = int(field) if re.fullmatch(r"-?\d+", field) else ATTRIBUTE_UNKNOWN
    return tuple(slots)
