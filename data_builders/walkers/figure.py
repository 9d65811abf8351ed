"""A person's projected joints painted as a map of materials.

Every body part is a polygon per frame; a frame is painted from far to near. The map says what is seen (skin, hair,
cloth A, ...), not its colour: one map serves every modality.
"""

from __future__ import annotations

import cv2
import numpy as np

from .person import JOINT, Person

MATERIALS = ("background", "skin", "hair", "upper_a", "upper_b", "lower", "shoes", "bag", "hat", "occluder")
MATERIAL = {name: index for index, name in enumerate(MATERIALS)}
FAR = 16  # added to the material of a limb on the far side, which is shaded
MATERIAL_MASK = FAR - 1

_SHIFT = 4  # fractional bits of OpenCV's polygon coordinates
_TEXTURE_ROWS, _TEXTURE_ANGLES = 32, 64
_HALF_CIRCLE = np.linspace(-np.pi / 2, np.pi / 2, 7)


def capsule(start, end, start_radius, end_radius) -> np.ndarray:
    """Outline [T, 14, 2] of a limb with round ends, from joints [T, 2] and radii [T]."""
    along = end - start
    angle = np.arctan2(along[:, 1], along[:, 0])[:, None] + _HALF_CIRCLE
    outline = np.empty((len(start), 2 * len(_HALF_CIRCLE), 2))
    back, front = outline[:, : len(_HALF_CIRCLE)], outline[:, len(_HALF_CIRCLE) :]
    for arc, centre, radius, angles in ((back, start, start_radius, angle + np.pi), (front, end, end_radius, angle)):
        radius = np.asarray(radius, float).reshape(-1, 1)
        arc[..., 0] = centre[:, :1] + radius * np.cos(angles)
        arc[..., 1] = centre[:, 1:] + radius * np.sin(angles)
    return outline


def pattern_texture(pattern: str) -> np.ndarray:
    """u8[rows, angles], 1 where cloth B shows; rows run from neck to hip, angles from the back over the front."""
    v, a = np.mgrid[0:_TEXTURE_ROWS, 0:_TEXTURE_ANGLES].astype(float)
    v, a = (
        (v + 0.5) / _TEXTURE_ROWS,
        ((a + 0.5) / _TEXTURE_ANGLES - 0.5) * 2,
    )  # a in (-1, 1): 0 front, ±1 back
    horizontal, vertical = (v * 4) % 1 < 0.5, (a * 6 + 0.25) % 1 < 0.5
    cloth_b = {
        "plain": np.zeros_like(v, bool),
        "raglan": np.zeros_like(v, bool),  # its sleeves are cloth B
        "striped": horizontal,
        "pinstriped": vertical,
        "checked": horizontal ^ vertical,
        "two-tone": v > 0.5,
        "logo": (np.abs(v - 0.4) < 0.2) & ((np.abs(a) < 0.2) | (np.abs(a) > 0.8)),
    }[pattern]
    return cloth_b.astype(np.uint8)


class Figure:
    """Polygons of one person over a tracklet, ready to be painted.

    Args:
      points: f32[T, J, 2] joints in elements of the map.
      depth: f32[T, J] metres, larger is farther.
      forward: f32[T, 2] the walking direction in camera x and depth, unit length.
      scale: f32[T] elements per metre.
      elevation: radians below the horizon under which a camera in the air looks; 0 for one on the ground, whose small
        angle changes nothing here.
    """

    def __init__(self, person: Person, points, depth, forward, scale, elevation: float = 0.0):
        self.person, self.points, self.scale = person, points, scale
        # What one metre along the ground away from the camera, and one metre up, are on the picture.
        self.deep, self.tall = np.sin(elevation), np.cos(elevation)
        self.nearer = 1.0 if elevation else 0.0  # from above the head hides what is below
        self.depth = depth - depth[:, [JOINT["root"]]]
        self.forward, self.left = forward, np.stack([-forward[:, 1], forward[:, 0]], -1)
        self.ahead, self.beside = self._on_picture(self.forward), self._on_picture(self.left)
        self.shapes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # outline, sort key, label
        self._torso_index = -1
        self._legs()
        self._torso()
        self._arms()
        self._head()
        self._bag()

    def _on_picture(self, along):
        """Directions on the ground [T, 2] (right, away) as they are on the picture (right, down)."""
        return along * np.array([1.0, -self.deep])

    def _disc(self, centre, side, front, key, material):
        """An elliptic cross-section of the upright body: what is seen of it from the air."""
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)[:, None]
        rim = side * np.cos(angle) * self.beside[:, None] + front * np.sin(angle) * self.ahead[:, None]
        self._add(centre[:, None] + rim * self.scale[:, None, None], key, material)

    def _joint(self, name):
        return self.points[:, JOINT[name]]

    def _depth(self, name):
        return self.depth[:, JOINT[name]]

    def _add(self, outline, key, material, far=False):
        outline = np.round(outline * (1 << _SHIFT)).astype(np.int32)
        keys, labels = np.empty(len(outline)), np.empty(len(outline), int)
        keys[:], labels[:] = key, MATERIAL[material] + FAR * np.asarray(far)
        self.shapes.append((outline, keys, labels))

    def _limb(self, start, end, radii, key, material, far=False):
        first, second = (radius * self.scale for radius in radii)
        start = self._joint(start) if isinstance(start, str) else start
        end = self._joint(end) if isinstance(end, str) else end
        self._add(capsule(start, end, first, second), key, material, far)

    def _half_width(self, side, front):
        """Half of the width in map elements of an upright elliptic cylinder with the given half axes (metres)."""
        return self.scale * np.hypot(side * self.left[:, 0], front * self.forward[:, 0])

    def _legs(self):
        body, outfit = self.person.body, self.person.outfit
        girth = body.girth * body.height / 1.72
        wide = 1.45 if outfit.lower == "wide trousers" else 1.0
        bare = outfit.lower in ("shorts", "skirt")
        for side in ("left", "right"):
            other = "right" if side == "left" else "left"
            far = self._depth(f"{side}_hip") - self._depth(f"{other}_hip") > 0.06
            # Legs are painted before the torso whatever their swing.
            key = 0.25 + 0.3 * self._depth(f"{side}_knee")
            hip, knee, ankle, toe = (f"{side}_{name}" for name in ("hip", "knee", "ankle", "toe"))
            shin = "skin" if bare else "lower"
            ends = (0.058 * girth * wide**0.5, (0.040 * girth if bare else 0.050 * girth) * wide)
            self._limb(ankle, toe, (0.045, 0.038), key + 1e-3, "shoes", far)
            self._limb(knee, ankle, ends, key, shin, far)
            self._limb(hip, knee, (0.088 * girth, 0.062 * girth * wide**0.5), key - 1e-3, "lower", far)
        if outfit.lower == "skirt":
            self._skirt("lower", 0.95, 0.055, girth)

    def _skirt(self, material, reach, key, girth):
        """Cloth from the hips over the thighs; `reach` is its length in thighs."""
        hips = self._joint("root")
        knees = np.stack([self._joint("left_knee"), self._joint("right_knee")], 1)
        waist = self._half_width(0.17 * girth, 0.12 * girth)
        flare = 0.085 * girth * self.scale
        low = hips[:, 1] + reach * (knees[:, :, 1].mean(1) - hips[:, 1])
        left = np.minimum(knees[:, :, 0].min(1) - flare, hips[:, 0] - waist)
        right = np.maximum(knees[:, :, 0].max(1) + flare, hips[:, 0] + waist)
        top = hips[:, 1] - 0.1 * self.scale
        corners = [(hips[:, 0] - waist, top), (hips[:, 0] + waist, top), (right, low), (left, low)]
        self._add(np.stack([np.stack(corner, -1) for corner in corners], 1), key, material)

    def _torso(self):
        body, outfit = self.person.body, self.person.outfit
        size = body.height / 1.72
        girth = body.girth * size
        root, thorax = self._joint("root"), self._joint("thorax")
        if outfit.upper == "coat":
            self._skirt("upper_a", 0.75, 0.05, girth * 1.08)
        if self.nearer:
            if outfit.lower == "skirt":
                self._disc(root, 0.21 * girth, 0.17 * girth, 0.054, "lower")
            self._disc(root, 0.16 * girth, 0.12 * girth, 0.02, "upper_a")
            broad = (0.150 * body.shoulder + 0.04 * body.girth) * size
            self._disc(thorax, broad, 0.115 * girth, -0.019, "upper_a")
        shoulder = self._half_width((0.150 * body.shoulder + 0.04 * body.girth) * size, 0.10 * girth)
        waist = self._half_width(0.150 * girth, 0.115 * girth)
        hip = self._half_width((0.11 * body.hip + 0.055 * body.girth) * size, 0.12 * girth)
        thick = 1.1 if outfit.upper == "coat" else 1.0
        outline = []
        rows = (  # fraction of the way from shoulders to hips, factor, half width
            (-0.10, 0.45, shoulder),
            (-0.03, 0.9, shoulder),
            (0.25, 1.0, shoulder),
            (0.65, 1.0, waist),
            (1.12, 1.0, hip),
        )
        for sign, ordered in ((-1, rows), (1, rows[::-1])):
            for fraction, narrow, half in ordered:
                centre = thorax + fraction * (root - thorax)
                outline.append(np.stack([centre[:, 0] + sign * narrow * thick * half, centre[:, 1]], -1))
        self._limb("thorax", "head", (0.055 * size, 0.05 * size), -0.01, "skin")
        self._torso_index = len(self.shapes)
        self._add(np.stack(outline, 1), -0.02, "upper_a")
        self._texture = pattern_texture(outfit.pattern)
        self._texture_half = thick * np.maximum(shoulder, hip)

    def _arms(self):
        body, outfit = self.person.body, self.person.outfit
        girth = (0.35 + 0.65 * body.girth) * body.height / 1.72
        cloth = "upper_b" if outfit.pattern == "raglan" else "upper_a"
        thick = 1.2 if outfit.upper == "coat" else 1.0
        for side in ("left", "right"):
            other = "right" if side == "left" else "left"
            far = self._depth(f"{side}_shoulder") - self._depth(f"{other}_shoulder") > 0.12
            key = self._depth(f"{side}_elbow") - 0.06
            shoulder, elbow, wrist = (f"{side}_{name}" for name in ("shoulder", "elbow", "wrist"))
            upper = cloth if outfit.sleeve != "no" else "skin"
            lower = cloth if outfit.sleeve == "long" else "skin"
            hand = self._joint(wrist) + 0.35 * (self._joint(wrist) - self._joint(elbow))
            self._limb(wrist, hand, (0.036, 0.036), key + 1e-3, "skin", far)
            self._limb(elbow, wrist, (0.046 * girth * thick, 0.036 * girth * thick), key, lower, far)
            self._limb(shoulder, elbow, (0.062 * girth * thick, 0.048 * girth * thick), key - 1e-3, upper, far)

    def _head(self):
        body, outfit = self.person.body, self.person.outfit
        unit = self.scale[:, None] * body.height * body.head / 1.72  # map elements per metre of an average head
        centre, neck = self._joint("head"), self._joint("neck")
        up = self._joint("head_top") - centre
        up = self.tall * unit * up / np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-6)
        ahead = unit * self.ahead
        unit = unit[:, 0]
        facing = -self.forward[:, 1]  # 1: looks at the camera

        def piece(start, end, radii, key, material):
            self._add(capsule(start, end, radii[0] * unit, radii[1] * unit), key - self.nearer, material)

        crown = "skin" if outfit.hair == "shaved" else "hair"
        piece(centre + 0.045 * up, centre - 0.03 * up, (0.088, 0.075), -0.040, crown)
        # The face turns out of sight as the person turns away.
        width = 0.088 * np.clip(0.55 + 0.75 * facing, 0.0, 0.82) * (1 - 0.75 * self.deep)
        face = centre + 0.055 * ahead
        piece(face, face - 0.065 * up, (width, 0.8 * width), -0.041, "skin")
        if outfit.hair == "long":
            # Over the shoulders from the back, beside the neck from the front.
            key = np.where(facing < -0.25, -0.045, 0.045)
            piece(centre - 0.05 * ahead, neck - 0.07 * ahead - 0.10 * up, (0.098, 0.085), key, "hair")
        elif outfit.hair == "tied":
            knot = centre - 0.12 * ahead + 0.05 * up
            piece(knot, knot - 0.11 * up, (0.042, 0.030), np.where(facing < 0, -0.042, 0.02), "hair")
        if outfit.hat != "none":
            dome = centre + 0.075 * up
            reach = 0.085 if outfit.hat == "cap" else 0.095
            piece(dome - 0.012 * up, dome + 0.03 * up, (reach, 0.8 * reach), -0.043, "hat")
            if outfit.hat == "cap":
                brim = dome - 0.02 * up
                piece(brim, brim + 0.14 * ahead, (0.030, 0.022), -0.044, "hat")

    def _bag(self):
        outfit, size = self.person.outfit, self.person.body.height / 1.72
        side = "left" if outfit.bag_side > 0 else "right"
        other = "right" if side == "left" else "left"
        sign = outfit.bag_side
        if outfit.bag == "backpack":
            offset = -0.17 * size * self.ahead * self.scale[:, None]
            thorax, root = self._joint("thorax"), self._joint("root")
            high, low = thorax + 0.18 * (root - thorax) + offset, thorax + 0.78 * (root - thorax) + offset
            half = self._half_width(0.15 * size, 0.09 * size) / self.scale
            key = np.where((self.forward[:, 1] > 0.15) | (self.deep > 0.4), -0.2, 0.03)
            self._limb(high, low, (half, half * 1.1), key, "bag")
            for name in ("left", "right"):  # straps, seen from the front
                shoulder = self._joint(f"{name}_shoulder")
                strap = thorax + 0.75 * (shoulder - thorax)
                ahead = 0.1 * size * self.ahead * self.scale[:, None]
                key = np.where(self.forward[:, 1] < -0.15, -0.03, 0.035)
                self._limb(strap + ahead, strap + ahead + 0.5 * (root - thorax), (0.018, 0.018), key, "bag")
        elif outfit.bag == "shoulder bag":
            hip = self._joint("root") + sign * 0.2 * size * self.beside * self.scale[:, None]
            key = sign * self.left[:, 1] * 0.25 - 0.055
            self._limb(self._joint(f"{other}_shoulder"), hip, (0.016, 0.016), -0.035, "bag")
            half = self._half_width(0.06, 0.13) / self.scale
            down = np.array([0.0, 0.12 * self.tall]) * self.scale[:, None]
            self._limb(hip, hip + down, (half, half), key, "bag")
        elif outfit.bag == "handbag":
            wrist, elbow = self._joint(f"{side}_wrist"), self._joint(f"{side}_elbow")
            hand = wrist + 0.35 * (wrist - elbow)
            half = self._half_width(0.05, 0.12) / self.scale
            down = np.array([0.0, self.tall]) * self.scale[:, None]
            key = self._depth(f"{side}_wrist") - 0.07
            self._limb(hand + 0.12 * down, hand + 0.28 * down, (half, half * 1.1), key, "bag")

    def paint(self, size: tuple[int, int]) -> np.ndarray:
        """The label map u8[T, h, w]: a material, plus FAR on a shaded far limb."""
        labels = np.zeros((len(self.points), *size), np.uint8)
        order = np.argsort(-np.stack([key for _, key, _ in self.shapes], 1), axis=1, kind="stable")
        patterned = bool(self._texture.any())
        columns = self._texture_columns()
        for t, frame in enumerate(labels):
            for index in order[t]:
                outline, _, label = self.shapes[index]
                cv2.fillConvexPoly(frame, outline[t], int(label[t]), cv2.LINE_8, _SHIFT)
                if patterned and index == self._torso_index:
                    self._paint_pattern(frame, t, columns[t])
        return labels

    def _texture_columns(self):
        """Which column of the cylinder's texture shows at each of 32 steps across the torso, [T, 32]."""
        to_camera = np.arctan2(-self.left[:, 1], -self.forward[:, 1])  # body angle that looks at the camera
        across = np.arcsin(np.linspace(-1, 1, 33)[:-1] + 1 / 32)
        turn = (to_camera[:, None] + across) / (2 * np.pi) + 0.5
        return np.floor(turn * _TEXTURE_ANGLES).astype(int) % _TEXTURE_ANGLES

    def _paint_pattern(self, frame, t, columns):
        texture = self._texture[:, columns]
        root, thorax = self._joint("root")[t], self._joint("thorax")[t]
        down, top = root - thorax, thorax
        if np.linalg.norm(down) < 0.1 * self.scale[t]:
            return  # seen from straight above
        across = 2 * self._texture_half[t] / texture.shape[1]
        along = 1.12 * down / _TEXTURE_ROWS
        corner = top - [self._texture_half[t], 0.0]
        matrix = np.array([[across, along[0], corner[0]], [0.0, along[1], corner[1]]])
        shown = cv2.warpAffine(texture, matrix, frame.shape[::-1], flags=cv2.INTER_NEAREST)
        frame[(shown == 1) & (frame == MATERIAL["upper_a"])] = MATERIAL["upper_b"]
