"""Signed distances in mm, negative inside, from points in space to the surfaces of a heart."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmrfast.data.phantom.heart import LABELS, Heart, Scar
from cmrfast.data.phantom.scanner import Array

#: Thickness of the right ventricle's free wall.
RIGHT_WALL_MM = 3.0
_FAR = np.float32(99)
#: Radius of a scar's edges.
_EDGE_MM = 2.5


@dataclass(frozen=True)
class Surfaces:
    """Signed distances to each structure, all of one shape.

    Attributes:
        cavity: endocardium of the left ventricle; the papillary muscles are inside.
        outer: epicardium of the left ventricle.
        right: cavity of the right ventricle.
        base: valve plane, positive above it.
        scar, core, edema: the lesion, its obstructed part, and the swollen zone around it; they
            may extend beyond the wall.
        papillary: papillary muscles.
    """

    cavity: Array
    outer: Array
    right: Array
    base: Array
    scar: Array
    core: Array
    edema: Array
    papillary: Array

    def label(self, margin_mm: float = 0.0) -> npt.NDArray[np.uint8]:
        """The structure that contains each point, as an index into ``LABELS``.

        Args:
            margin_mm: the wall is drawn this far inside of its borders, but never thinner than
                half.
        """
        below = self.base < 0
        thick = self.cavity - self.outer
        margin = np.minimum(np.float32(margin_mm), thick / 4)
        wall = below & (self.outer < -margin) & (self.cavity >= margin)
        code = np.zeros(self.outer.shape, np.uint8)
        for name, mask in (
            ("right_ventricle", (self.right < 0) & (self.base < 8)),
            ("cavity", below & (self.cavity < 0)),
            ("myocardium", wall),
            ("edema", wall & (self.edema < 0)),
            ("scar", wall & (self.scar < 0)),
            ("no_reflow", wall & (self.scar < 0) & (self.core < 0)),
        ):
            code[mask] = LABELS.index(name)
        return code


def surfaces(heart: Heart, x: Array, y: Array, z: Array) -> Surfaces:
    """Compute the distances at points of the heart frame (arrays that broadcast, mm)."""
    up = z / np.float32(heart.length_mm)  # −0.55 at the apex, 0.45 at the base
    x = x - np.float32(heart.curve_mm[0]) * up * 2
    y = y - np.float32(heart.curve_mm[1]) * up * 2
    radius = np.sqrt(x * x + y * y) + np.float32(1e-3)
    angle = _harmonics(x / radius, y / radius)
    cavity_mm, outer_mm = _profiles(heart, up)
    edge = heart.texture["edge"](x, y, z)

    thick = outer_mm - cavity_mm
    inner = cavity_mm * (1 + _series(heart.cavity_terms, angle))
    bulge = np.exp(-((_chord(angle, heart.bulge_angle) / np.float32(0.8)) ** 2))
    thick = thick * (1 + _series(heart.wall_terms, angle) + np.float32(heart.bulge) * bulge)
    cavity = radius - inner
    outer = cavity - thick
    scar, core, edema = _lesions(heart, angle, z, radius, cavity / thick, thick, edge)

    spread = _cosine(angle, heart.septum_angle + 0.12) * np.float32(1.35) - np.float32(0.35)
    window = np.clip(spread, 0, 1)
    taper = np.sqrt(np.clip((up + np.float32(0.4)) / np.float32(0.62), 0, 1.15))
    reach = np.float32(heart.right_mm) * window * (2 - window) * taper
    right = np.maximum(outer - reach, np.float32(0.3) - outer)

    papillary = np.full_like(radius, _FAR)
    for theta, size in heart.papillary:
        away = inner * np.float32(0.68)
        dx, dy = x - away * np.float32(np.cos(theta)), y - away * np.float32(np.sin(theta))
        body = np.sqrt(dx * dx + dy * dy) - np.float32(size) * (1 + np.float32(0.15) * edge)
        papillary = np.minimum(papillary, np.maximum(body, np.abs(z + 4) - np.float32(22)))
    base = z - np.float32(heart.base_mm) + 0 * radius
    return Surfaces(cavity, outer, right, base, scar, core, edema, papillary)


def _profiles(heart: Heart, up: Array) -> tuple[Array, Array]:
    """Radii of cavity and epicardium at each height: half ellipsoids of different lengths."""
    top = np.float32(0.38)

    def radius(size_mm: float, apex: float) -> Array:
        height = (top - up) / np.float32(top + apex)
        square = 1 - np.where(up < top, height, height * np.float32(0.6)) ** 2
        return np.asarray(np.float32(size_mm) * np.sign(square) * np.sqrt(np.abs(square)))

    apex_wall = 0.6 * heart.wall_mm / heart.length_mm
    inner = radius(heart.cavity_mm, 0.55 - apex_wall)
    outer = radius(heart.cavity_mm + heart.wall_mm, 0.55)
    return inner, np.maximum(outer, inner + np.float32(2))


def _lesions(
    heart: Heart,
    angle: list[Array],
    z: Array,
    radius: Array,
    depth: Array,
    thick: Array,
    edge: Array,
) -> tuple[Array, Array, Array]:
    scar = np.full_like(radius, _FAR)
    core, edema = scar.copy(), scar.copy()
    for one in heart.scars:
        side, height, chord = _extent(one, angle, z, radius)
        # The wavefront of an infarct reaches deepest at its centre.
        shape = np.clip(1 - (chord / np.float32(1.25 * one.half_angle)) ** 2, 0, 1)
        inner, outer = np.float32(one.depth[0]), np.float32(one.depth[1])
        if inner < 0:
            outer = outer * (np.float32(0.45) + np.float32(0.55) * shape)
        across = np.maximum(inner - depth, depth - outer) * thick
        around = np.maximum(side, height)
        scar = np.minimum(scar, _rounded_maximum(around, across) + edge)
        edema = np.minimum(edema, around - 6 + 3 * edge)
        if one.no_reflow:
            deep = np.maximum(np.float32(0.1) - depth, depth - np.float32(0.55) * outer) * thick
            core = np.minimum(core, np.maximum(around + 7, deep) + edge)
    return scar, core, edema


def _rounded_maximum(a: Array, b: Array) -> Array:
    """Signed distance to the intersection of two bodies, with rounded edges."""
    a, b = a + np.float32(_EDGE_MM), b + np.float32(_EDGE_MM)
    outside = np.sqrt(np.maximum(a, 0) ** 2 + np.maximum(b, 0) ** 2)
    return np.asarray(outside + np.minimum(np.maximum(a, b), 0) - np.float32(_EDGE_MM))


def _extent(one: Scar, angle: list[Array], z: Array, radius: Array) -> tuple[Array, Array, Array]:
    chord = _chord(angle, one.angle)
    side = (chord - np.float32(one.half_angle)) * radius
    return side, np.abs(z - np.float32(one.z_mm)) - np.float32(one.half_mm), chord


def _harmonics(c: Array, s: Array) -> list[Array]:
    """cos and sin of 1, 2 and 3 times an angle, from its cos and sin."""
    c2, s2 = c * c - s * s, 2 * s * c
    return [c, s, c2, s2, c2 * c - s2 * s, s2 * c + c2 * s]


def _series(terms: Array, angle: list[Array]) -> Array:
    return np.asarray(sum(t * a for t, a in zip(terms.ravel(), angle, strict=True)))


def _cosine(angle: list[Array], theta: float) -> Array:
    return angle[0] * np.float32(np.cos(theta)) + angle[1] * np.float32(np.sin(theta))


def _chord(angle: list[Array], theta: float) -> Array:
    """Chord length to an angle, which approximates the difference in radians where it is small."""
    return np.sqrt(np.maximum(2 - 2 * _cosine(angle, theta), 0))
