"""Phantom hearts in the layouts of MS-CMRSeg, MyoPS, EMIDEC and t1_lge."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cmrfast.data.nifti import write_nifti
from cmrfast.data.phantom.heart import LABELS, Heart
from cmrfast.data.phantom.relaxation import Relaxation
from cmrfast.data.phantom.scanner import Matrix, Random
from cmrfast.data.phantom.sequences import (
    SEQUENCES,
    Prescription,
    Sequence,
    add_motion,
    patient_frame,
    prescribe,
    scan,
)
from cmrfast.data.volume import Volume

_ROUND = {"cavity": 500, "myocardium": 200, "right_ventricle": 600}


def _value_table(**values: int) -> npt.NDArray[np.int16]:
    """File value of each label; parts of the wall without a value count as myocardium."""
    wall = dict.fromkeys(("scar", "no_reflow", "edema"), values["myocardium"])
    return np.array([(wall | values).get(name, 0) for name in LABELS], np.int16)


_MSCMRSEG = _value_table(**_ROUND)
_MYOPS = _value_table(**_ROUND, scar=2221, no_reflow=2221, edema=1220)
_EMIDEC = _value_table(cavity=1, myocardium=2, scar=3, no_reflow=4)


def write_mscmrseg(root: Path, number: int, cases: int, rng: Random, shrink: float) -> None:
    """Three sequences on three grids, with masks for as large a part of the cases as published."""
    lesion = str(rng.choice(["none", "infarct", "fibrosis"], p=[0.3, 0.45, 0.25]))
    heart = Heart.random(rng, thick=lesion == "fibrosis", lesion=lesion)
    world_from_heart = patient_frame(rng)
    challenge, later = "C0LET2_nii45_for_challenge19", "C0LET2_gt_for_challenge19"
    for ours, name, slices, field_mm, labelled, folders in (
        ("cine", "C0", None, 320, 35, (f"{challenge}/c0gt", f"{later}/C0_manual_10")),
        ("t2", "T2", 3, 330, 35, (f"{challenge}/t2gt", f"{later}/T2_manual_10")),
        ("lge", "LGE", None, 300, 5, (f"{challenge}/lgegt", f"{later}/LGE_manual_35_TestData")),
    ):
        sequence = _coarsen(SEQUENCES[ours], shrink)
        # The stacks of cine and LGE extend beyond base and apex.
        extent_mm = heart.length_mm + rng.uniform(6, 26)
        plan = prescribe(
            rng,
            sequence,
            slices or round(extent_mm / sequence.spacing_mm[1]),
            field_mm,
            world_from_heart,
            height_mm=-0.05 * heart.length_mm,
        )
        plan = add_motion(rng, plan, 3.0)
        image, label = scan(rng, heart, sequence, plan)
        first = number <= max(1, round(cases * labelled / 45))
        _write_stack(root / challenge / "c0t2lge" / f"patient{number}_{name}.nii.gz", image, plan)
        path = root / folders[0 if first else 1] / f"patient{number}_{name}_manual.nii.gz"
        _write_stack(path, _MSCMRSEG[label], plan)


def write_myops(root: Path, number: int, cases: int, rng: Random, shrink: float) -> None:
    """Three registered sequences of an infarct on one grid."""
    heart = Heart.random(rng, thick=False, lesion="infarct")
    slices = int(rng.integers(2, 7))
    gap = float(rng.uniform(12, 15) if slices > 4 else rng.uniform(14, 20))
    like = _coarsen(replace(SEQUENCES["lge"], spacing_mm=(rng.uniform(0.73, 0.76), gap)), shrink)
    plan = prescribe(rng, like, slices, 330, patient_frame(rng))
    name = f"myops_training_{100 + number}"
    for ours, theirs in (("cine", "C0"), ("lge", "DE"), ("t2", "T2")):
        native = SEQUENCES[ours]
        blur = native.blur * native.spacing_mm[0] / like.spacing_mm[0] * shrink
        sequence = replace(native, spacing_mm=like.spacing_mm, thick_mm=8.0, blur=blur)
        # the residual error of the registration
        image, _ = scan(rng, heart, sequence, add_motion(rng, plan, 0.4, turn=0.005, swell=0.005))
        _write_stack(root / "train25" / f"{name}_{theirs}.nii.gz", image, plan)
    _, label = scan(rng, heart, like, plan)
    _write_stack(root / "train25_myops_gd" / f"{name}_gd.nii.gz", _MYOPS[label], plan)


def write_emidec(root: Path, number: int, cases: int, rng: Random, shrink: float) -> None:
    """A phase-sensitive LGE stack; a third of the patients have no infarct."""
    ill = number % 3 != 1
    heart = Heart.random(rng, thick=False, lesion="infarct" if ill else "none")
    slices = int(rng.integers(6, 10))
    psir = SEQUENCES["psir"]
    sequence = _coarsen(replace(psir, spacing_mm=(rng.uniform(1.37, 1.6), 88 / slices)), shrink)
    plan = prescribe(rng, sequence, slices, 340, patient_frame(rng))
    # The headers of this data set hold the spacing but no position.
    header = np.diag([-sequence.spacing_mm[0]] * 2 + [sequence.spacing_mm[1], 1.0])
    heart_from_world = plan.heart_from_world @ plan.world_from_vox @ np.linalg.inv(header)
    plan = replace(plan, world_from_vox=header, heart_from_world=heart_from_world)
    image, label = scan(rng, heart, sequence, add_motion(rng, plan, 3.0))
    name = f"Case_{'P' if ill else 'N'}{number:03d}"
    _write_stack(root / name / "Images" / f"{name}.nii.gz", image, plan)
    _write_stack(root / name / "Contours" / f"{name}.nii.gz", _EMIDEC[label], plan)
    sex, age = rng.choice(["M", "F"]), int(rng.integers(35, 85))
    text = f"Sex : {sex}\nAge : {age}\nFEVG : {int(rng.integers(25 if ill else 50, 65))}\n"
    (root / f"{name.replace('_', ' ')}.txt").write_text(text)


def write_t1_lge(
    root: Path,
    number: int,
    cases: int,
    rng: Random,
    shrink: float,
    lesion_t1_ms: float | None = None,
) -> None:
    """A native T1 map and LGE, a basal and a middle slice.

    Whether there is a lesion depends neither on the shape of the wall nor on what else changes T1.
    """
    thick, ill = rng.random(2) < (0.5, 0.7)
    heart = Heart.random(rng, thick=bool(thick), lesion="fibrosis" if ill else "none")
    relaxation = Relaxation.random(rng, heart, lesion_t1_ms)
    world_from_heart = patient_frame(rng)
    folder = root / f"subject{number:02d}"
    for name, mm in (("t1", 1.4), ("lge", 1.0)):
        sequence = _coarsen(replace(SEQUENCES[name], spacing_mm=(mm, 20.0), thick_mm=8.0), shrink)
        if name == "t1":
            sequence = replace(sequence, relaxation=relaxation)
        plan = prescribe(rng, sequence, 2, 300, world_from_heart, tilt_deg=0, height_mm=7)
        # The two images are from different breath-holds.
        plan = add_motion(rng, plan, 6.0, turn=0.1, swell=0.05)
        # Readers draw the wall without the pixels at its borders, which are partly blood or fat.
        margin_mm = 0.5 * sequence.blur * sequence.spacing_mm[0]
        image, label = scan(rng, heart, sequence, plan, margin_mm=margin_mm)
        wall = np.isin(label, [LABELS.index(part) for part in ("myocardium", "scar", "edema")])
        _write_stack(folder / f"{name}.nii.gz", image, plan)
        _write_stack(folder / f"{name}_myocardium.nii.gz", wall.astype(np.uint8), plan)
        if name == "lge":
            scar = label == LABELS.index("scar")
            _write_stack(folder / "lge_lesion.nii.gz", scar.astype(np.uint8), plan)
            _write_stack(folder / "lge_reference.nii.gz", _remote_mask(wall, scar), plan)


def _remote_mask(wall: npt.NDArray[np.bool_], scar: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The wall within 80° opposite the scar, slice by slice."""
    core = wall & ~scar
    chosen = np.zeros(wall.shape, np.uint8)
    for k in range(wall.shape[2]):
        if not core[..., k].any():
            continue
        centre = np.argwhere(wall[..., k]).mean(0)
        lesion = np.argwhere(scar[..., k])
        away = centre - lesion.mean(0) if len(lesion) else np.array([1.0, 0.0])
        i, j = np.argwhere(core[..., k]).T
        di, dj = i - centre[0], j - centre[1]
        near = (di * away[0] + dj * away[1]) > np.cos(0.7) * np.hypot(di, dj) * np.hypot(*away)
        chosen[i[near], j[near], k] = 1
    return chosen


def _coarsen(sequence: Sequence, shrink: float) -> Sequence:
    mm, gap = sequence.spacing_mm
    return replace(sequence, spacing_mm=(mm * shrink, gap))


def _write_stack(path: Path, data: npt.NDArray[np.generic], plan: Prescription) -> None:
    write_image(path, data, plan.world_from_vox)


def write_image(path: Path, data: npt.NDArray[np.generic], world_from_vox: Matrix) -> None:
    """Write one channel as NIfTI; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = torch.from_numpy(np.asarray(world_from_vox, np.float64))
    write_nifti(path, Volume(torch.from_numpy(np.ascontiguousarray(data))[None], matrix))
