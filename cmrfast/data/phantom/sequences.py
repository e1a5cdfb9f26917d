"""Short-axis stacks of a heart: contrast, grid, motion and noise of each MR sequence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cmrfast.data.phantom.chest import TISSUES, paint_chest, paint_heart
from cmrfast.data.phantom.heart import Heart
from cmrfast.data.phantom.relaxation import FIT_MS, Relaxation
from cmrfast.data.phantom.scanner import (
    Array,
    Grid,
    Matrix,
    Random,
    add_rician_noise,
    rotation,
    shading,
)
from cmrfast.data.phantom.surfaces import surfaces

#: Half the side of the box around the heart in which slices are averaged over their thickness, mm.
_BOX_MM = 80.0
#: Directions of the heart frame in the world (right, front, head) as columns x, y, z: oblique.
_WORLD_FROM_HEART = np.array([[-0.71, 0.27, 0.65], [-0.69, -0.47, -0.55], [0.16, -0.84, 0.52]])


@dataclass(frozen=True)
class Sequence:
    """An MR sequence.

    Args:
        kind: magnitude; psir (signed, zero at 2048); map (T1 in ms).
        spacing_mm: in plane, and between slices.
        thick_mm: slice thickness.
        signal: signal of each tissue, 1 for the brightest, or ms; also ``seam`` (dark borders
            between fat and water) and ``wall_sd`` (relative variation along healthy muscle).
        noise: SD of the noise, in units of the signal.
        drift: relative variation of the signals between patients.
        blur: width of the point spread function, in pixels.
        muscle: range of the muscle's signal between patients, whose inversion time is not exactly
            right: from below zero over null to grey; None for a sequence without inversion.
        relaxation: T1 of this patient's muscle, for a map.
    """

    kind: str
    spacing_mm: tuple[float, float]
    thick_mm: float
    signal: Mapping[str, float]
    noise: float
    drift: float = 0.1
    blur: float = 1.3
    muscle: tuple[float, float] | None = None
    relaxation: Relaxation | None = None


@dataclass(frozen=True)
class Prescription:
    """The grid of a stack, and the true position of the heart during the scan.

    Args:
        shape: (I, J, K).
        world_from_vox: the matrix written to the header.
        heart_from_world: position of the heart at rest.
        shift_mm: (K, 3), displacement of the heart in each slice, in its own frame.
        turn: in-plane rotation of the heart, radians.
        swell: size of the heart relative to rest (another moment of the heartbeat).
    """

    shape: tuple[int, int, int]
    world_from_vox: Matrix
    heart_from_world: Matrix
    shift_mm: Array = field(default_factory=lambda: np.zeros((1, 3), np.float32))
    turn: float = 0.0
    swell: float = 1.0


def _signals(*values: float, **extra: float) -> dict[str, float]:
    return dict(zip(TISSUES, values, strict=True)) | extra


#                   air  skin  fat musc bone lung liver gut  vess blood myo  scar  mvo edema
_CINE = _signals(0.01, 0.5, 0.95, 0.24, 0.6, 0.03, 0.36, 0.5, 0.6, 0.85, 0.3, 0.33, 0.3, 0.33)
_T2 = _signals(0.01, 0.3, 0.25, 0.28, 0.3, 0.04, 0.3, 0.9, 0.1, 0.13, 0.42, 0.68, 0.55, 0.66)
_LGE = _signals(0.01, 0.4, 0.8, 0.3, 0.5, 0.03, 0.38, 0.5, 0.3, 0.68, 0.1, 0.9, 0.13, 0.13)
_PSIR = _signals(0, 0.35, 0.8, 0.2, 0.45, 0, 0.3, 0.35, 0.2, 0.52, -0.05, 0.8, -0.08, -0.02)
_T1 = _signals(3900, 420, 320, 930, 480, 3900, 640, 1500, 1550, 1600, 1010, 1085, 1040, 1060)

#: Where the T1 of a map is higher than this there is nothing to fit; the result is noise.
_NOTHING_MS = 2000
#: Signal of blood after contrast agent, relative to scar: in many patients as bright.
_BLOOD = (0.6, 1.05)

SEQUENCES = {
    "cine": Sequence("magnitude", (1.25, 8.0), 8.0, _CINE | {"seam": 0.55}, 0.022),
    "t2": Sequence("magnitude", (1.35, 14.0), 12.0, _T2, 0.035),
    "lge": Sequence("magnitude", (0.75, 5.0), 5.0, _LGE, 0.036, blur=2.0, muscle=(-0.13, 0.34)),
    "psir": Sequence("psir", (1.45, 10.0), 8.0, _PSIR, 0.035, muscle=(-0.15, 0.12)),
    "t1": Sequence("map", (1.4, 20.0), 8.0, _T1 | {"wall_sd": 0.02}, 50.0, drift=0.035),
}


def prescribe(
    rng: Random,
    sequence: Sequence,
    slices: int,
    field_mm: float,
    world_from_heart: Matrix,
    *,
    tilt_deg: float = 4.0,
    height_mm: float = 1.0,
) -> Prescription:
    """Plan a stack from base to apex, with small random variations.

    Args:
        slices: number of slices.
        field_mm: approximate field of view.
        world_from_heart: (4, 4), of the patient.
        tilt_deg: largest tilt of the planes about each axis of the heart.
        height_mm: height of the stack's centre in the heart frame.
    """
    mm, gap = sequence.spacing_mm
    i, j = (round((field_mm + rng.uniform(-16, 16)) / mm) for _ in range(2))
    heart_from_vox = np.eye(4)
    turn = rotation(*np.deg2rad(rng.uniform(-tilt_deg, tilt_deg, 3)))
    heart_from_vox[:3, :3] = turn * [mm, mm, -gap]
    centre = np.array([-12, 6, height_mm]) + rng.uniform(-6, 6, 3) * [1, 1, 0.3]
    middle = (np.array([i, j, slices]) - 1) / 2
    heart_from_vox[:3, 3] = centre - heart_from_vox[:3, :3] @ middle
    return Prescription(
        (i, j, slices),
        world_from_heart @ heart_from_vox,
        np.linalg.inv(world_from_heart).astype(np.float64),
    )


def patient_frame(rng: Random) -> Matrix:
    """Draw world_from_heart, (4, 4), of a patient on the table."""
    world_from_heart = np.eye(4)
    axes, _ = np.linalg.qr(_WORLD_FROM_HEART)
    axes *= np.sign((axes * _WORLD_FROM_HEART).sum(0))
    world_from_heart[:3, :3] = axes @ rotation(*np.deg2rad(rng.uniform(-9, 9, 3)))
    world_from_heart[:3, 3] = rng.uniform([-40, 10, -60], [-10, 50, 60])
    return world_from_heart


def add_motion(
    rng: Random, plan: Prescription, size_mm: float, turn: float = 0.03, swell: float = 0.03
) -> Prescription:
    """Vary the breath-hold: one shift of the heart per stack, and a smaller one per slice."""
    slices = plan.shape[2]
    shift = rng.uniform(-size_mm, size_mm, 3) * [1, 1, 0.4]
    jitter = rng.normal(0, 0.15 * size_mm, (slices, 3)) * [1, 1, 0.3]
    return replace(
        plan,
        shift_mm=(shift + jitter).astype(np.float32),
        turn=rng.uniform(-turn, turn),
        swell=rng.uniform(1 - swell, 1 + swell),
    )


def scan(
    rng: Random,
    heart: Heart,
    sequence: Sequence,
    plan: Prescription,
    *,
    margin_mm: float = 0.0,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Compute the image and its label map (indices into ``heart.LABELS``), both (I, J, K).

    ``margin_mm`` is that of ``Surfaces.label``.
    """
    image = np.zeros(plan.shape, np.float32)
    label = np.zeros(plan.shape, np.uint8)
    signal = _vary_signals(rng, sequence)
    grid = Grid(plan.shape, plan.heart_from_world @ plan.world_from_vox)
    blur = sequence.blur * sequence.spacing_mm[0]
    for k in range(plan.shape[2]):
        x, y, z = (p[..., 0] for p in grid.points((*_whole(plan), slice(k, k + 1))))
        image[:, :, k] = paint_chest(heart, x, y, z, signal, blur)
        box = _box(x, y)
        points = x[box], y[box], z[box]
        parts = np.array([-0.33, 0, 0.33]) * sequence.thick_mm / sequence.spacing_mm[1]
        chest = image[box][..., k]
        total = np.zeros_like(chest)
        for part in parts:
            step = grid.frame_from_vox[:3, 2] * part
            shifted = (p + np.float32(s) for p, s in zip(points, step, strict=True))
            x, y, z = _undo_motion(plan, k, *shifted)
            place = surfaces(heart, x, y, z)
            textures = heart.texture["slow"](x, y, z), heart.texture["fine"](x, y, z)
            picture = chest.copy()
            paint_heart(heart, picture, place, textures, signal, blur)
            if sequence.relaxation is not None:
                picture += sequence.relaxation.artefact_ms(x, y, z)
            total = total + picture
            if part == 0:
                label[box][..., k] = place.label(margin_mm)
        image[box][..., k] = total / np.float32(len(parts))
    return _acquire(rng, sequence, image), label


def _vary_signals(rng: Random, sequence: Sequence) -> dict[str, float]:
    """Draw the signals of one patient; lesions keep their contrast to the muscle around them."""
    drift = {name: np.exp(rng.normal(0, sequence.drift)) for name in TISSUES}
    for name in ("scar", "no_reflow", "edema"):
        drift[name] = drift["myocardium"] * drift[name] ** 0.2
    signal = {name: value * drift.get(name, 1) for name, value in sequence.signal.items()}
    if sequence.muscle is not None:
        muscle = rng.uniform(*sequence.muscle)
        own = sequence.signal["myocardium"]
        for name in ("no_reflow", "edema"):
            signal[name] = muscle + sequence.signal[name] - own
        signal |= {"myocardium": muscle, "scar": sequence.signal["scar"] * drift["scar"]}
        signal["blood"] = signal["scar"] * rng.uniform(*_BLOOD)
    if sequence.relaxation is not None:
        signal["myocardium"] += sequence.relaxation.diffuse_ms
        signal["scar"] = signal["myocardium"] + sequence.relaxation.lesion_ms
    return signal


def _whole(plan: Prescription) -> tuple[slice, slice]:
    return slice(0, plan.shape[0]), slice(0, plan.shape[1])


def _undo_motion(
    plan: Prescription, k: int, x: Array, y: Array, z: Array
) -> tuple[Array, Array, Array]:
    """Map points of the moving heart to the frame of the heart at rest."""
    dx, dy, dz = plan.shift_mm[k % len(plan.shift_mm)]
    c, s = (np.float32(f(plan.turn) / plan.swell) for f in (np.cos, np.sin))
    x, y = x - dx, y - dy
    return c * x + s * y, c * y - s * x, z - dz


def _box(x: Array, y: Array) -> tuple[slice, slice]:
    near = (np.abs(x + 12) < _BOX_MM) & (np.abs(y) < _BOX_MM)
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _acquire(rng: Random, sequence: Sequence, image: Array) -> npt.NDArray[np.int16]:
    if sequence.kind == "map":
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sequence.noise)
        nothing = 1100 + 300 * rng.standard_normal(image.shape, dtype=np.float32)
        return _quantise(np.clip(np.where(image > _NOTHING_MS, nothing, image + noise), *FIT_MS))
    field = shading(rng, image.shape[:2], 0.35)[..., None]
    field = field * np.linspace(1.5, 0.7, image.shape[1], dtype=np.float32)[None, :, None]
    if sequence.kind == "psir":
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sequence.noise)
        return _quantise(2048 + 1400 * (image * field + noise))
    image = add_rician_noise(rng, image * field, sequence.noise)
    return _quantise(image * np.float32(np.exp(rng.uniform(np.log(150), np.log(1100)))))


def _quantise(image: Array) -> npt.NDArray[np.int16]:
    """Round to 12-bit integers, as scanners do."""
    voxels: npt.NDArray[np.int16] = np.clip(np.rint(image), 0, 4095).astype(np.int16)
    return voxels
