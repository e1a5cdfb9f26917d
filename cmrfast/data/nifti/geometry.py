"""Geometry of a header: sform, qform and pixdim combined into one matrix in millimetres."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cmrfast.data.volume import fault_of_matrix

Matrix = npt.NDArray[np.float64]

#: Relative difference beyond which the sform's step lengths give way to those of pixdim.
LENGTHS_DIFFER = 1e-3
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metres, micrometres; anything else counts as mm


@np.errstate(over="ignore", invalid="ignore")  # overflow is refused below as not finite
def world_from_header(fields: Any) -> tuple[tuple[str, str], Matrix | None, tuple[str, ...]]:
    """The voxel-to-world matrix of a header, in mm.

    The sform is used if it is set, else the qform, else the spacing alone. If the sform's step
    lengths differ from pixdim, its directions and origin are kept and pixdim gives the lengths.

    Returns:
        (field, problem) if there is no matrix; the matrix or None; notes on what is unusual.
    """
    lengths = step_lengths(fields)
    valid = bool(np.isfinite(lengths).all() and lengths.all())
    notes = []
    if int(fields["sform_code"]) > 0:
        field, matrix = "srow", _from_rows(fields)
        if valid and not fault_of_matrix(matrix):
            steps = np.linalg.norm(matrix[:3, :3], axis=0)
            if np.abs(lengths / steps - 1).max() > LENGTHS_DIFFER:
                notes.append(
                    f"sform steps {_format_mm(steps)} differ from pixdim {_format_mm(lengths)}; "
                    "directions and origin are the sform's, lengths pixdim's"
                )
                matrix[:3, :3] *= lengths / steps
    elif not valid:
        return ("pixdim", f"must be positive; it is {lengths.tolist()}"), None, ()
    elif int(fields["qform_code"]) > 0:
        field, matrix = "quatern, qoffset", _from_quaternion(fields, lengths)
    else:
        field, matrix = "pixdim", np.diag([*lengths, 1.0])
        notes.append("neither sform nor qform is set: position and orientation are unknown")
    unit = _MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)
    if unit != 1:
        notes.append(f"lengths are not in mm; converted ({unit:g} mm per unit)")
        matrix[:3] *= unit
    fault = fault_of_matrix(matrix)
    return (field, fault), None if fault else matrix, tuple(notes)


def step_lengths(fields: Any) -> Matrix:
    """Pixdim of the three axes; of axes that the image lacks, where unset, the sform's step or 1.

    The standard gives no meaning to pixdim beyond dim[0], and some programs leave 0 there.
    """
    lengths = np.abs(np.asarray(fields["pixdim"][1:4], np.float64))
    lacking = np.arange(3) >= int(fields["dim"][0])
    unset = lacking & ~(np.isfinite(lengths) & (lengths > 0))
    if unset.any():
        has_sform = int(fields["sform_code"]) > 0
        steps = np.linalg.norm(_from_rows(fields)[:3, :3], axis=0) if has_sform else np.ones(3)
        lengths[unset] = steps[unset]
    return lengths


def set_geometry(fields: Any, world_from_vox: Matrix, code: int) -> None:
    """Set sform, qform and pixdim[0..3], in mm; the qform of a sheared matrix is the nearest."""
    from nibabel.quaternions import mat2quat

    steps = world_from_vox[:3, :3]
    lengths = np.linalg.norm(steps, axis=0)
    # A qform cannot represent shear: use the nearest orthogonal matrix (the polar factor).
    u, _, vh = np.linalg.svd(steps / lengths)
    rotation = u @ vh
    # A quaternion cannot represent a reflection: NIfTI stores it as the sign in pixdim[0].
    handedness = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    rotation[:, 2] *= handedness
    fields["pixdim"][:4] = [handedness, *lengths]
    _, fields["quatern_b"], fields["quatern_c"], fields["quatern_d"] = mat2quat(rotation)
    for row, axis in enumerate("xyz"):
        fields[f"srow_{axis}"] = world_from_vox[row]
        fields[f"qoffset_{axis}"] = world_from_vox[row, 3]
    fields["qform_code"] = fields["sform_code"] = code
    fields["xyzt_units"] = (int(fields["xyzt_units"]) & ~7) | 2


def _from_rows(fields: Any) -> Matrix:
    rows = [fields[f"srow_{axis}"] for axis in "xyz"]
    return np.vstack([*rows, [0, 0, 0, 1]]).astype(np.float64)


def _from_quaternion(fields: Any, lengths: Matrix) -> Matrix:
    b, c, d = (float(fields[f"quatern_{x}"]) for x in "bcd")
    matrix = np.eye(4)
    squares = b * b + c * c + d * d
    if not np.isfinite(squares):
        return np.full((4, 4), np.nan)  # the caller refuses it as not finite
    if squares > 1:  # a half turn, rounded up
        b, c, d = (x / np.sqrt(squares) for x in (b, c, d))
    a = np.sqrt(max(0.0, 1 - squares))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    handedness = np.array([1, 1, -1 if fields["pixdim"][0] < 0 else 1])
    matrix[:3, :3] = rotation * lengths * handedness
    matrix[:3, 3] = [float(fields[f"qoffset_{x}"]) for x in "xyz"]
    return matrix


def _format_mm(lengths: Matrix) -> str:
    return " x ".join(f"{x:.4g}" for x in lengths)
