"""Public weights of TransUNet: ImageNet's ``R50+ViT-B_16.npz``, and states of the authors' code.

A table says of each of our tensors which array of the other file it is, of which shape that must
be, and how to turn it. A file that does not fit is refused before anything changes.
"""

import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.errors import FileError
from cmrfast.models.transunet_config import Config

_GRID = 14  # tokens along one side of the 224 pixels that the ImageNet file was made for


@dataclass(frozen=True)
class _Part:
    """Where one tensor of ours, or a third of its rows, comes from."""

    to: Tensor
    name: str
    shape: tuple[int, ...]
    turn: Callable[[Tensor], Tensor]


def load_imagenet(
    config: Config, encoders: Sequence[Mapping[str, Tensor]], path: str | Path
) -> list[str]:
    """Read ``R50+ViT-B_16.npz`` into encoders' states; see ``TransUNet.load_imagenet``."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    except FileNotFoundError as fault:
        raise FileError(f"load_imagenet: {path.name} must be a file; got none") from fault
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as fault:
        raise FileError(
            f"load_imagenet: {path.name} must be an archive of plain arrays; got {fault}"
        ) from fault
    parts = [part for encoder in encoders for part in _imagenet(config, encoder)]
    _copy("load_imagenet", path, parts, arrays)
    return sorted(set(arrays) - {part.name for part in parts})


def load_official(config: Config, network: Mapping[str, Tensor], path: str | Path) -> None:
    """Read a state of the authors' code into a network's state; see ``TransUNet.load_official``."""
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as fault:
        raise FileError(f"load_official: {path.name} must be a file; got none") from fault
    except (OSError, RuntimeError, EOFError, UnpicklingError) as fault:
        raise FileError(
            f"load_official: {path.name} must be a saved state of tensors; got something else"
        ) from fault
    tensors = isinstance(state, Mapping) and all(isinstance(x, Tensor) for x in state.values())
    if not tensors:
        raise FileError(
            f"load_official: {path.name} must hold tensors by name; got {type(state).__name__}"
        )
    arrays = {name.removeprefix("module."): x for name, x in state.items()}  # of DataParallel
    parts = list(_official(config, network))
    _copy("load_official", path, parts, arrays, surplus=set(arrays) - {p.name for p in parts})


def _imagenet(config: Config, ours: Mapping[str, Tensor]) -> Iterator[_Part]:
    """Kernels are stored (rows, columns, in, out), those of attention by head."""
    width, heads, hidden = config.width, config.heads, config.hidden

    def conv(name: str, theirs: str) -> Iterator[_Part]:
        to = ours[f"{name}.weight"]
        shape = (*to.shape[2:], to.shape[1], to.shape[0])
        yield _Part(to, f"{theirs}/kernel", shape, lambda x: x.permute(3, 2, 0, 1))

    def norm(name: str, theirs: str, ones: int = 0) -> Iterator[_Part]:
        for kind, scale in (("weight", "scale"), ("bias", "bias")):
            to = ours[f"{name}.{kind}"]
            yield _Part(to, f"{theirs}/{scale}", (1,) * ones + tuple(to.shape), torch.flatten)

    def linear(
        weight: Tensor, bias: Tensor, theirs: str, kernel: tuple[int, ...], biases: tuple[int, ...]
    ) -> Iterator[_Part]:
        yield _Part(weight, f"{theirs}/kernel", kernel, lambda x: x.reshape(weight.shape[::-1]).T)
        yield _Part(bias, f"{theirs}/bias", biases, torch.flatten)

    yield from conv("resnet.conv", "conv_root")
    yield from norm("resnet.norm", "gn_root", ones=3)
    for unit, theirs, projects in _units(config):
        for n in (1, 2, 3):
            yield from conv(f"{unit}.conv{n}", f"{theirs}/conv{n}")
            yield from norm(f"{unit}.norm{n}", f"{theirs}/gn{n}", ones=3)
        if projects:
            yield from conv(f"{unit}.project.0", f"{theirs}/conv_proj")
            yield from norm(f"{unit}.project.1", f"{theirs}/gn_proj", ones=3)
    yield from conv("embed", "embedding")
    yield _Part(ours["embed.bias"], "embedding/bias", (width,), torch.flatten)
    yield _Part(
        ours["positions"],
        "Transformer/posembed_input/pos_embedding",
        (1, 1 + _GRID**2, width),
        lambda x: resize_positions(x[:, 1:], config.grid),  # the first is the class token's
    )
    by_head = (heads, width // heads)
    for number in range(config.depth):
        layer, theirs = f"layers.{number}", f"Transformer/encoderblock_{number}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        yield from norm(f"{layer}.norm1", f"{theirs}/LayerNorm_0")
        weights = ours[f"{layer}.query_key_value.weight"].chunk(3)
        biases = ours[f"{layer}.query_key_value.bias"].chunk(3)
        for weight, bias, name in zip(weights, biases, ("query", "key", "value"), strict=True):
            yield from linear(weight, bias, f"{attention}/{name}", (width, *by_head), by_head)
        for name, dense, kernel, out in (
            ("out", f"{attention}/out", (*by_head, width), width),
            ("expand", f"{theirs}/MlpBlock_3/Dense_0", (width, hidden), hidden),
            ("contract", f"{theirs}/MlpBlock_3/Dense_1", (hidden, width), width),
        ):
            weight, bias = ours[f"{layer}.{name}.weight"], ours[f"{layer}.{name}.bias"]
            yield from linear(weight, bias, dense, kernel, (out,))
        yield from norm(f"{layer}.norm2", f"{theirs}/LayerNorm_2")
    yield from norm("norm", "Transformer/encoder_norm")


def _official(config: Config, ours: Mapping[str, Tensor]) -> Iterator[_Part]:
    """Equal shapes; only names differ, and query, key and value are apart."""
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
    for unit, theirs, projects in _units(config):
        unit, theirs = f"encoder.{unit}", f"{cnn}.body.{theirs.replace('/', '.')}"
        for n in (1, 2, 3):
            names |= {f"{unit}.conv{n}": f"{theirs}.conv{n}", f"{unit}.norm{n}": f"{theirs}.gn{n}"}
        if projects:
            names |= {
                f"{unit}.project.0": f"{theirs}.downsample",
                f"{unit}.project.1": f"{theirs}.gn_proj",
            }
    for number in range(config.depth):
        layer, theirs = f"encoder.layers.{number}", f"{blocks}.{number}"
        names |= {
            f"{layer}.norm1": f"{theirs}.attention_norm",
            f"{layer}.out": f"{theirs}.attn.out",
            f"{layer}.norm2": f"{theirs}.ffn_norm",
            f"{layer}.expand": f"{theirs}.ffn.fc1",
            f"{layer}.contract": f"{theirs}.ffn.fc2",
        }
    for number in range(len(config.decoder) - 1):
        for n in (1, 2):
            up, theirs = f"decoder.ups.{number}.conv{n}", f"decoder.blocks.{number}.conv{n}"
            names |= {f"{up}.conv": f"{theirs}.0", f"{up}.norm": f"{theirs}.1"}

    for name, to in ours.items():
        module, _, kind = name.rpartition(".")
        if module.endswith("query_key_value"):
            theirs = f"{blocks}.{module.split('.')[2]}.attn"
            for third, part in zip(("query", "key", "value"), to.chunk(3), strict=True):
                yield _Part(part, f"{theirs}.{third}.{kind}", tuple(part.shape), torch.clone)
        elif name == "encoder.positions":
            theirs = "transformer.embeddings.position_embeddings"
            yield _Part(to, theirs, tuple(to.shape), torch.clone)
        else:
            yield _Part(to, f"{names[module]}.{kind}", tuple(to.shape), torch.clone)


def _units(config: Config) -> Iterator[tuple[str, str, bool]]:
    """Each bottleneck's name in the encoder, in the ImageNet file, and whether it projects."""
    for block, units in enumerate(config.units):
        for unit in range(units):
            yield f"resnet.blocks.{block}.{unit}", f"block{block + 1}/unit{unit + 1}", unit == 0


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Positions (1, M·M, width) to (1, grid·grid, width), linearly, corner tokens on corners."""
    side = round(positions.shape[1] ** 0.5)
    if side == grid:
        return positions
    image = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    image = F.interpolate(image, (grid, grid), mode="bilinear", align_corners=True)
    return image.flatten(2).transpose(1, 2)


def _copy(
    who: str,
    path: Path,
    parts: Sequence[_Part],
    arrays: Mapping[str, Tensor],
    surplus: Collection[str] = (),
) -> None:
    """Fill all parts once every one is known to fit."""
    faults = {}
    for part in parts:
        if part.name not in arrays:
            faults[part.name] = f"no {part.name}"
        elif tuple(arrays[part.name].shape) != part.shape:
            shape = tuple(arrays[part.name].shape)
            faults[part.name] = f"{part.name} {shape} for {part.shape}"
    faults |= {name: f"{name} too many" for name in sorted(surplus)}
    if faults:
        raise FileError(
            f"{who}: {path.name} must fit this network; got {len(faults)} faults: "
            f"{', '.join(faults.values())}"
        )
    for part in parts:
        part.to.copy_(part.turn(arrays[part.name]))
