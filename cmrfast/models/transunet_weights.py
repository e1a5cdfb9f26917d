"""Loading of public TransUNet weights: ``R50+ViT-B_16.npz`` and state dicts of the authors' code.

A table gives, for each of our tensors, the array of the file that it is loaded from, the shape that
array must have and how to convert it. A file that does not fit is rejected before anything changes.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.errors import FileError
from cmrfast.files import open_regular
from cmrfast.models.transunet_config import Config

_HEADER_BYTES = 10_000  # of an array; NumPy's own limit
_FAULTS = 20  # that a message lists
_GRID = 14  # tokens along one side in the ImageNet file, which is for 224 pixels


@dataclass(frozen=True)
class _Entry:
    """One of our tensors, or a third of its rows, and the array of the file that fills it."""

    target: Tensor
    name: str
    shape: tuple[int, ...]
    convert: Callable[[Tensor], Tensor]


def load_imagenet(
    config: Config, encoders: Sequence[Mapping[str, Tensor]], path: str | Path
) -> list[str]:
    """Load ``R50+ViT-B_16.npz`` into state dicts of encoders; see ``TransUNet.load_imagenet``."""
    path = Path(path)
    entries = [entry for encoder in encoders for entry in _imagenet_entries(config, encoder)]
    wanted = {entry.name for entry in entries}
    with (
        _open("load_imagenet", path, "an archive of plain arrays") as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = {member.removesuffix(".npy"): member for member in archive.namelist()}
        headers = {
            name: _read_array_header(archive, members[name]) for name in wanted & members.keys()
        }
        _check("load_imagenet", path, entries, headers)
        arrays = {name: _read_array(archive, header) for name, header in headers.items()}
    _copy(entries, arrays)
    return sorted(members.keys() - wanted)


def load_official(config: Config, network: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a file of the authors' code into a state dict; see ``TransUNet.load_official``."""
    path = Path(path)
    with _open("load_official", path, "a saved state of tensors") as file:
        _refuse_compressed(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(x, Tensor) for x in state.values()):
        raise FileError(
            f"load_official: {path.name} must hold tensors by name; got {type(state).__name__}"
        )
    arrays = {name.removeprefix("module."): x for name, x in state.items()}  # from DataParallel
    entries = list(_official_entries(config, network))
    unexpected = set(arrays) - {entry.name for entry in entries}
    _check("load_official", path, entries, arrays, unexpected=unexpected)
    _copy(entries, arrays)


@contextmanager
def _open(who: str, path: Path, kind: str) -> Iterator[BinaryIO]:
    """A regular file; whatever a damaged one makes its reader raise becomes ``FileError``."""
    try:
        with open_regular(path) as file:
            yield file
    except FileError:
        raise
    except FileNotFoundError as fault:
        raise FileError(f"{who}: {path.name} must be a file; got none") from fault
    except Exception as fault:  # a damaged file can raise almost anything
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise FileError(f"{who}: {path.name} must be {kind}; got {reason}") from fault


@dataclass(frozen=True)
class _ArrayHeader:
    """What an archive says about an array; ``shape`` and ``dtype`` are as of a tensor."""

    member: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: np.dtype[Any]
    fortran: bool
    offset: int


def _read_array_header(archive: zipfile.ZipFile, member: str) -> _ArrayHeader:
    """Read the start of a member, whose size is limited whatever length the header declares."""
    info = archive.getinfo(member)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member}, packed by method {info.compress_type}")
    with archive.open(member) as stream:
        start = io.BytesIO(stream.read(_HEADER_BYTES))
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(start)]
    shape, fortran, stored = read_header(start, max_header_size=_HEADER_BYTES)
    if stored.kind != "f" or stored.itemsize not in (2, 4, 8):
        raise ValueError(f"{member} of {stored}")
    if info.file_size != start.tell() + math.prod(shape) * stored.itemsize:
        raise ValueError(f"{member} of {info.file_size} bytes for {shape} of {stored}")
    dtype = getattr(torch, f"float{8 * stored.itemsize}")
    return _ArrayHeader(member, shape, dtype, stored, fortran, start.tell())


def _read_array(archive: zipfile.ZipFile, header: _ArrayHeader) -> Tensor:
    """Read an array, within the size that its header declares."""
    size = header.offset + math.prod(header.shape) * header.stored.itemsize
    with archive.open(header.member) as stream:
        content = stream.read(size)
        if len(content) < size or stream.read(1):  # the read past the end verifies the checksum
            raise ValueError(f"{header.member} of another size than it declares")
    values = np.frombuffer(content, header.stored, offset=header.offset)
    array = values.astype(header.stored.newbyteorder("="))
    return torch.from_numpy(array.reshape(header.shape, order="F" if header.fortran else "C"))


def _refuse_compressed(file: BinaryIO) -> None:
    """torch stores tensors as they are, so a packed one has been made to burst."""
    zipped = file.read(4) == b"PK\3\4"  # what torch goes by
    file.seek(0)
    if not zipped:
        return
    with zipfile.ZipFile(file) as archive:
        packed = [m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
        size = sum(member.file_size for member in archive.infolist())
    if packed or size > os.fstat(file.fileno()).st_size:
        raise ValueError("compressed or overlapping entries")
    file.seek(0)


def _imagenet_entries(config: Config, state: Mapping[str, Tensor]) -> Iterator[_Entry]:
    """The file stores kernels as (rows, columns, in, out), those of attention by head."""
    width, heads, hidden = config.width, config.heads, config.hidden

    def conv(name: str, source: str) -> Iterator[_Entry]:
        kernel = state[f"{name}.weight"]
        shape = (*kernel.shape[2:], kernel.shape[1], kernel.shape[0])
        yield _Entry(kernel, f"{source}/kernel", shape, lambda x: x.permute(3, 2, 0, 1))

    def norm(name: str, source: str, ones: int = 0) -> Iterator[_Entry]:
        for kind, scale in (("weight", "scale"), ("bias", "bias")):
            target = state[f"{name}.{kind}"]
            shape = (1,) * ones + tuple(target.shape)
            yield _Entry(target, f"{source}/{scale}", shape, torch.flatten)

    def linear(
        weight: Tensor, bias: Tensor, source: str, kernel: tuple[int, ...], biases: tuple[int, ...]
    ) -> Iterator[_Entry]:
        yield _Entry(weight, f"{source}/kernel", kernel, lambda x: x.reshape(weight.shape[::-1]).T)
        yield _Entry(bias, f"{source}/bias", biases, torch.flatten)

    yield from conv("resnet.conv", "conv_root")
    yield from norm("resnet.norm", "gn_root", ones=3)
    for unit, source, projects in _bottlenecks(config):
        for n in (1, 2, 3):
            yield from conv(f"{unit}.conv{n}", f"{source}/conv{n}")
            yield from norm(f"{unit}.norm{n}", f"{source}/gn{n}", ones=3)
        if projects:
            yield from conv(f"{unit}.project.0", f"{source}/conv_proj")
            yield from norm(f"{unit}.project.1", f"{source}/gn_proj", ones=3)
    yield from conv("embed", "embedding")
    yield _Entry(state["embed.bias"], "embedding/bias", (width,), torch.flatten)
    yield _Entry(
        state["positions"],
        "Transformer/posembed_input/pos_embedding",
        (1, 1 + _GRID**2, width),
        lambda x: resize_positions(x[:, 1:], config.grid),  # without the class token's
    )
    by_head = (heads, width // heads)
    for number in range(config.depth):
        layer, source = f"layers.{number}", f"Transformer/encoderblock_{number}"
        attention = f"{source}/MultiHeadDotProductAttention_1"
        yield from norm(f"{layer}.norm1", f"{source}/LayerNorm_0")
        weights = state[f"{layer}.query_key_value.weight"].chunk(3)
        biases = state[f"{layer}.query_key_value.bias"].chunk(3)
        for weight, bias, name in zip(weights, biases, ("query", "key", "value"), strict=True):
            yield from linear(weight, bias, f"{attention}/{name}", (width, *by_head), by_head)
        for name, dense, kernel, out in (
            ("out", f"{attention}/out", (*by_head, width), width),
            ("expand", f"{source}/MlpBlock_3/Dense_0", (width, hidden), hidden),
            ("contract", f"{source}/MlpBlock_3/Dense_1", (hidden, width), width),
        ):
            weight, bias = state[f"{layer}.{name}.weight"], state[f"{layer}.{name}.bias"]
            yield from linear(weight, bias, dense, kernel, (out,))
        yield from norm(f"{layer}.norm2", f"{source}/LayerNorm_2")
    yield from norm("norm", "Transformer/encoder_norm")


def _official_entries(config: Config, state: Mapping[str, Tensor]) -> Iterator[_Entry]:
    """Shapes are equal; only names differ, and query, key and value are separate."""
    cnn, blocks = "transformer.embeddings.hybrid_model", "transformer.encoder.layer"
    names = {
        "encoder.resnet.conv": f"{cnn}.root.conv",
        "encoder.resnet.norm": f"{cnn}.root.gn",
        "encoder.embed": "transformer.embeddings.patch_embeddings",
        "encoder.norm": "transformer.encoder.encoder_norm",
        "decoder.first.conv": "decoder.conv_more.0",
        "decoder.first.norm": "decoder.conv_more.1",
        "decoder.head": "segmentation_head.0",
    }
    for unit, source, projects in _bottlenecks(config):
        unit, source = f"encoder.{unit}", f"{cnn}.body.{source.replace('/', '.')}"
        for n in (1, 2, 3):
            names |= {f"{unit}.conv{n}": f"{source}.conv{n}", f"{unit}.norm{n}": f"{source}.gn{n}"}
        if projects:
            names |= {
                f"{unit}.project.0": f"{source}.downsample",
                f"{unit}.project.1": f"{source}.gn_proj",
            }
    for number in range(config.depth):
        layer, source = f"encoder.layers.{number}", f"{blocks}.{number}"
        names |= {
            f"{layer}.norm1": f"{source}.attention_norm",
            f"{layer}.out": f"{source}.attn.out",
            f"{layer}.norm2": f"{source}.ffn_norm",
            f"{layer}.expand": f"{source}.ffn.fc1",
            f"{layer}.contract": f"{source}.ffn.fc2",
        }
    for number in range(len(config.decoder) - 1):
        for n in (1, 2):
            up, source = f"decoder.ups.{number}.conv{n}", f"decoder.blocks.{number}.conv{n}"
            names |= {f"{up}.conv": f"{source}.0", f"{up}.norm": f"{source}.1"}

    for name, target in state.items():
        module, _, kind = name.rpartition(".")
        if module.endswith("query_key_value"):
            source = f"{blocks}.{module.split('.')[2]}.attn"
            for third, part in zip(("query", "key", "value"), target.chunk(3), strict=True):
                yield _Entry(part, f"{source}.{third}.{kind}", tuple(part.shape), torch.clone)
        elif name == "encoder.positions":
            source = "transformer.embeddings.position_embeddings"
            yield _Entry(target, source, tuple(target.shape), torch.clone)
        else:
            yield _Entry(target, f"{names[module]}.{kind}", tuple(target.shape), torch.clone)


def _bottlenecks(config: Config) -> Iterator[tuple[str, str, bool]]:
    """Names of each bottleneck in the encoder and in the ImageNet file; whether it projects."""
    for block, units in enumerate(config.units):
        for unit in range(units):
            yield f"resnet.blocks.{block}.{unit}", f"block{block + 1}/unit{unit + 1}", unit == 0


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize positions (1, M·M, width) to (1, grid·grid, width), linearly, with aligned corners."""
    side = round(positions.shape[1] ** 0.5)
    if side == grid:
        return positions
    image = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    image = F.interpolate(image, (grid, grid), mode="bilinear", align_corners=True)
    return image.flatten(2).transpose(1, 2)


def _check(
    who: str,
    path: Path,
    entries: Sequence[_Entry],
    arrays: "Mapping[str, Tensor | _ArrayHeader]",
    unexpected: Collection[str] = (),
) -> None:
    """Raise unless every array fits its target."""
    faults = {}
    for entry in entries:
        array, target = arrays.get(entry.name), entry.target
        if array is None:
            faults[entry.name] = f"no {entry.name}"
        elif tuple(array.shape) != entry.shape:
            faults[entry.name] = f"{entry.name} {tuple(array.shape)} for {entry.shape}"
        elif array.dtype.is_complex or array.dtype.is_floating_point != target.is_floating_point():
            faults[entry.name] = f"{entry.name} of {array.dtype} for {target.dtype}"
        elif isinstance(array, Tensor) and not _is_plain(array):
            faults[entry.name] = f"{entry.name} that is no plain tensor"
    faults |= {name: f"unexpected {name}" for name in sorted(unexpected)}
    if faults:
        first = ", ".join(list(faults.values())[:_FAULTS])
        more = f" and {len(faults) - _FAULTS} more" if len(faults) > _FAULTS else ""
        raise FileError(
            f"{who}: {path.name} must fit this network; got {len(faults)} faults: {first}{more}"
        )


def _is_plain(array: Tensor) -> bool:
    """Whether a tensor has a stored value for each index."""
    kind = (array.device.type, array.layout, array.is_quantized, array.is_nested)
    if kind != ("cpu", torch.strided, False, False):
        return False
    return array.numel() * array.element_size() <= array.untyped_storage().nbytes()


def _copy(entries: Sequence[_Entry], arrays: Mapping[str, Tensor]) -> None:
    """Fill all targets."""
    for entry in entries:
        entry.target.copy_(entry.convert(arrays[entry.name]))
