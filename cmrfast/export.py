"""Export a trained network for other programs, as a torch.export program or as ONNX."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from cmrfast.atomic import atomic_write
from cmrfast.errors import FileError

_SUFFIXES = (".pt2", ".onnx")


def export(model: nn.Module, path: str | os.PathLike[str], inputs: Mapping[str, Tensor]) -> None:
    """Write a network with its weights; the batch size stays variable, other sizes are fixed.

    A .pt2 file is read by ``torch.export.load`` without this package, an .onnx file by any ONNX
    runtime (``pip install cmrfast[export]``). Results equal those of the model up to rounding. For
    ``new_lesions``, export the result of ``fold``, which is smaller and faster. Outputs have the
    names that forward gives them; in ONNX, a name that is also an input's gets the suffix ``_out``.

    Args:
        model: in evaluation mode.
        path: must end in .pt2 or .onnx; written atomically.
        inputs: arguments of the model's forward by name, (B, …), as examples of their sizes and
            dtypes. The file has no input for arguments that are left out, such as
            ``siamese_lesion``'s ``lge``.

    Example:
        >>> import tempfile
        >>> from cmrfast.models import build
        >>> model = build("adversarial_transfer").generator.eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(model, f"{folder}/generator.pt2", {"images": torch.zeros(1, 1, 64, 64)})
        ...     program = torch.export.load(f"{folder}/generator.pt2").module()
        >>> tuple(program(images=torch.zeros(3, 1, 64, 64)).shape)
        (3, 4, 64, 64)
    """
    target = Path(path)
    if target.suffix not in _SUFFIXES:
        raise ValueError(f"export: path must end in {' or '.join(_SUFFIXES)}; got {target.name}")
    if model.training:
        raise ValueError("export: model must be in evaluation mode; call its eval() first")
    if not inputs or any(x.dim() < 1 or not len(x) for x in inputs.values()):
        shapes = ", ".join(f"{k} {tuple(x.shape)}" for k, x in inputs.items()) or "none"
        raise ValueError(f"export: inputs must be (B, …) with B at least 1; got {shapes}")
    if target.suffix == ".onnx":
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                raise ImportError(f"export: needs {package}; pip install cmrfast[export]")
    # torch.export treats a size of 0 or 1 as a constant, so the example has a batch of 2.
    example = {name: x[:1].expand(2, *x.shape[1:]).contiguous() for name, x in inputs.items()}
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            model, (), example, dynamic_shapes={name: {0: batch} for name in example}
        )
    try:
        with atomic_write(target) as temporary:
            if target.suffix == ".pt2":
                with temporary.open("wb") as file:  # given a path, it insists on the suffix
                    torch.export.save(program, file)
            else:
                names = [f"{n}_out" if n in inputs else n for n in _names(program)]
                _save_onnx(program, temporary, names)
    except OSError as error:
        raise FileError(f"export: {target}: {error.strerror or error}") from error


def _names(program: torch.export.ExportedProgram) -> list[str]:
    """Names of the outputs: the keys of the dict that forward returns."""
    spec = program.call_spec.out_spec
    keys = spec.context if spec is not None and spec.type is dict else None
    return [str(key) for key in keys] if keys else ["output"]


def _save_onnx(program: torch.export.ExportedProgram, path: Path, names: list[str]) -> None:
    torch.onnx.export(
        program, (), path, dynamo=True, output_names=names, external_data=False, verbose=False
    )
