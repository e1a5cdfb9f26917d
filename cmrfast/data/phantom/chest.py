"""Paint a short-axis slice as a scanner would see it: chest, organs and heart, back to front."""

from collections.abc import Mapping

import numpy as np

from cmrfast.data.phantom.heart import Heart
from cmrfast.data.phantom.scanner import Array, partial_volume, smooth_minimum
from cmrfast.data.phantom.surfaces import RIGHT_WALL_MM, Surfaces

#: Tissues with a signal of their own.
TISSUES = (
    *("air", "skin", "fat", "muscle", "bone", "lung", "liver", "stomach", "vessel"),
    *("blood", "myocardium", "scar", "no_reflow", "edema"),
)
Signals = Mapping[str, float]


def paint_chest(heart: Heart, x: Array, y: Array, z: Array, signal: Signals, blur: float) -> Array:
    """Paint the body without its heart (arrays of one shape, mm in the heart frame)."""
    organ, slow = heart.texture["organ"](x, y, z), heart.texture["slow"](x, y, z)
    thread = heart.texture["vessel"](x, y, z) ** 2 + heart.texture["branch"](x, y, z) ** 2
    wide, deep = heart.chest_mm
    u, v = (x + 22) / np.float32(wide), (y - 32) / np.float32(deep)
    rho = np.sqrt(np.sqrt(u**4 + v**4 + np.float32(1.6) * u * u * v * v)) + np.float32(1e-3)
    skin = (rho - 1) * np.float32(0.5 * (wide + deep)) * (1 + np.float32(0.25) * (1 - rho))
    image = np.full_like(x, signal["air"])
    _blend(image, skin, signal["skin"], blur)
    fat = (
        np.float32(9 + 2 * heart.fat_mm)
        * (1 + np.float32(0.35) * organ)
        * (1 - np.float32(0.45) * v / rho)
    )
    _blend(image, skin + 2, signal["fat"], blur)
    _blend(image, skin + 2 + fat, signal["muscle"], 2 * blur)
    within = skin + 2 + fat
    # Ribs: two oblique sets of bars in the muscle layer, marrow within cortical bone.
    bars = np.sin((x + np.float32(0.8) * z) / np.float32(5.2) + 2 * slow)
    rib = np.maximum(np.abs(within + 8) - np.float32(4.5), (np.float32(0.25) - bars) * 7)
    _blend(image, rib, signal["air"], blur)
    _blend(image, rib + np.float32(1.5), signal["bone"], blur)
    pleura = within + 14 + slow + organ
    _blend(image, pleura, signal["lung"], blur)
    fine = np.exp(-thread * 45) * np.float32(signal["vessel"] - signal["lung"])
    image += partial_volume(pleura + 2, blur) * fine * np.float32(0.6)

    dome = (
        np.float32(heart.diaphragm_mm) - y + np.float32(0.0016) * (x + 60) ** 2 + slow + 4 * organ
    )
    _blend(image, np.maximum(dome, pleura + 1), signal["fat"], blur)
    below = np.maximum(dome + 2, pleura + 3)
    left = x - np.float32(12) - np.float32(0.35) * (y - 60) + 6 * organ
    liver = signal["liver"] * (1 + np.float32(0.03) * slow)
    liver = liver + np.exp(-thread * 60) * np.float32(0.7 * (signal["blood"] - signal["liver"]))
    _blend(image, np.maximum(below, left), liver, blur)
    gut = np.sqrt((x - 58) ** 2 + (y - 78 - 4 * organ) ** 2) - 27 + 5 * slow
    _blend(image, np.maximum(below + 2, gut), signal["muscle"], blur)
    _blend(image, np.maximum(below + 2, gut + 4), signal["stomach"] * (1 + 0.2 * organ), blur)
    return _spine(image, x, y, signal, blur)


def _spine(image: Array, x: Array, y: Array, signal: Signals, blur: float) -> Array:
    """Paint the vertebra, its canal, the aorta in front of it and the muscles beside them."""
    for dx, dy, wide, high, name in (
        (-30, 122, 52, 26, "muscle"),
        (-30, 104, 22, 18, "fat"),
        (-30, 102, 19, 15, "bone"),
        (-30, 124, 9, 7, "fat"),
        (-30, 124, 7, 5, "stomach"),
        (-8, 84, 13, 13, "muscle"),
        (-8, 84, 11, 11, "blood"),
    ):
        off = np.sqrt(((x - dx) / wide) ** 2 + ((y - dy) / high) ** 2)
        _blend(image, (off - 1) * np.float32(min(wide, high)), signal[name], blur)
    return image


def paint_heart(
    heart: Heart,
    image: Array,
    place: Surfaces,
    textures: tuple[Array, Array],
    signal: Signals,
    blur: float,
) -> None:
    """Paint the heart into an image of the chest around it, in place.

    Args:
        textures: slow and fine random fields at the points.
    """
    slow, fine = textures
    wall = place.right - np.float32(RIGHT_WALL_MM)
    sac = smooth_minimum(place.outer, wall, 22) - np.float32(heart.fat_mm) * np.maximum(
        np.float32(0.7) + np.float32(0.9) * slow, 0
    )
    _blend(image, sac - np.float32(1.2), signal["muscle"] * 0.7, blur)
    _blend(image, sac, signal["fat"], blur)
    muscle = np.float32(signal["myocardium"]) * (1 + np.float32(signal.get("wall_sd", 0)) * slow)
    blood = signal["blood"] * (1 + np.float32(0.04) * slow)
    _blend(image, wall + np.float32(0.5) * fine, muscle, blur)
    trabeculae = np.maximum(fine - np.float32(0.9), 0) * np.clip(place.right + 9, 0, 6)
    _blend(image, place.right + trabeculae, blood, blur)
    _blend(image, place.outer, muscle, blur)
    _blend(image, np.maximum(place.outer + 1, place.edema), signal["edema"], 3 * blur)
    scar = muscle + np.float32(signal["scar"] - signal["myocardium"])
    _blend(image, np.maximum(place.outer, place.scar), scar, 1.3 * blur)
    _blend(
        image,
        np.maximum(place.outer, np.maximum(place.scar, place.core)),
        signal["no_reflow"],
        1.3 * blur,
    )
    # Above the valve plane there is no wall: the blood continues into atrium and outflow tract.
    rough = place.cavity + np.clip(fine, -0.3, 2) * np.float32(0.7)
    atrium = np.maximum(place.outer + np.float32(2.5), -place.base)
    _blend(image, np.minimum(rough, atrium), blood, blur)
    _blend(image, np.maximum(place.papillary, place.cavity), muscle, blur)
    if "seam" in signal:  # fat and water cancel where they share a voxel
        for edge in (sac, smooth_minimum(place.outer, wall, 22)):
            image *= 1 - np.float32(signal["seam"]) * np.exp(-((edge / np.float32(1.3)) ** 2))


def _blend(image: Array, distance: Array, signal: Array | float, blur: float) -> None:
    image += partial_volume(distance, blur) * (np.asarray(signal, np.float32) - image)
