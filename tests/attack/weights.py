"""Hostile weights: archives of arrays and saved states, damaged, lying, bursting, with code."""

import functools
import io
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmrfast import FileError
from cmrfast.models.transunet import Config, TransUNet
from tests.attack.frame import Attack
from tests.support.transunet_files import imagenet_arrays, official_state

_SMALL = Config(
    image=32, root=32, units=(1, 1, 1), width=3, depth=1, heads=1, hidden=4, decoder=(2, 2, 2, 2, 2)
)
_BURST = 64  # MiB that a bomb would unpack to


class _Code:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@functools.cache
def _network() -> TransUNet:
    torch.manual_seed(0)
    return TransUNet(_SMALL).eval()


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
    unused = dict.fromkeys(("head/kernel", "head/bias", "pre_logits/kernel"))
    return imagenet_arrays(_SMALL, **unused)


@functools.cache
def _state() -> dict[str, torch.Tensor]:
    return official_state(_network())


@functools.cache
def _npz(*, packed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **_arrays())
    return file.getvalue()


@functools.cache
def _pth(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(_state(), file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _damage(numbers: random.Random, raw: bytes) -> bytes:
    """Flip, cut or insert bytes, mostly where an archive keeps its names and sizes."""
    content = bytearray(raw)
    for _ in range(numbers.choice((1, 1, 2, 8))):
        if not content:
            break
        at = numbers.randrange(len(content))
        where = numbers.random()
        if where < 0.5:
            at = numbers.randrange(max(0, len(content) - 20_000), len(content))
        elif where < 0.8:  # in a header within the archive, or the pickle at the start
            start = max(0, content.find(b"PK", at))
            at = min(start + numbers.randrange(80), len(content) - 1)
        kind = numbers.randrange(6)
        if kind < 2:
            content[at] ^= 1 << numbers.randrange(8)
        elif kind == 2:
            content[at : at + 4] = numbers.choice((bytes(4), b"\xff" * 4, numbers.randbytes(4)))
        elif kind == 3:
            del content[at : at + numbers.choice((1, 4, 100, len(content)))]
        else:
            content[at:at] = numbers.randbytes(numbers.randrange(1, 9))
    return bytes(content)


def _header(numbers: random.Random, array: np.ndarray) -> bytes:
    """The start of an array that lies about what follows."""
    shape, version = array.shape, numbers.choice((1, 1, 1, 2, 3, 9))
    text = numbers.choice(
        (
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}",
            f"{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}, }}",
            f"{{'descr': '>f8', 'fortran_order': False, 'shape': {shape}, }}",
            f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}",
            f"{{'descr': '<U9', 'fortran_order': False, 'shape': {shape}, }}",
            f"{{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': {shape}, }}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4000000000), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},), }}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3L,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + "}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': " + "-" * 5000 + "1}",
            "{'descr': '<f4', 'fortran_order': __import__('os').abort(), 'shape': (1,), }",
            "{'descr': ('<f4', (9999, 9999)), 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<f4', 'shape': (1,)",
            "\xff\xfe\0",
            "",
            numbers.randbytes(30).decode("latin1"),
        )
    )
    raw = text.encode("latin1") + b"\n"
    size = numbers.choice((len(raw), len(raw), len(raw), 0, 65535, 2**31, 2**32 - 1))
    kind = "<H" if version == 1 else "<I"
    size = min(size, 65535) if version == 1 else size
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(kind, size) + raw


def _rewritten(numbers: random.Random) -> bytes:
    """An archive with some members replaced, added or packed in another way."""
    arrays = dict(_arrays())
    victims = {numbers.choice(list(arrays)) for _ in range(numbers.choice((1, 1, 3)))}
    file = io.BytesIO()
    method = numbers.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # duplicate names
        for name, array in arrays.items():
            stored = io.BytesIO()
            np.save(stored, array)
            raw = stored.getvalue()
            if name in victims:
                burst = _BURST if method == zipfile.ZIP_DEFLATED else 1
                raw = _replaced(numbers, array, raw, burst)
            if raw is not None:
                with archive.open(f"{name}.npy", "w") as member:
                    for piece in raw if isinstance(raw, list) else [raw]:
                        member.write(piece)
        if numbers.random() < 0.3:
            names = ("x.npy", "conv_root/kernel", "../x.npy", "é.npy")
            archive.writestr(numbers.choice(names), b"x")
    return file.getvalue()


def _replaced(
    numbers: random.Random, array: np.ndarray, raw: bytes, burst: int
) -> bytes | list[bytes] | None:
    zeros = bytes(1 << 20)
    stored = io.BytesIO()
    kind = numbers.randrange(9)
    if kind == 0:
        return None
    if kind == 1:  # more values than declared
        return [raw, *[zeros] * burst]
    if kind == 2:
        return _header(numbers, array) + array.tobytes()
    if kind == 3:
        return [_header(numbers, array), *[zeros] * burst]
    if kind == 4:
        np.save(stored, array.astype(numbers.choice(("<f8", ">f4", "<f2", "<i4", "?", "<c8"))))
    elif kind == 5:
        np.save(stored, np.zeros((*array.shape, numbers.choice((0, 1, 2)))))
    elif kind == 6:
        np.save(stored, np.zeros((1 << 20,), np.float32))
    elif kind == 7:
        return numbers.choice((b"", raw[: numbers.randrange(200)], raw + b"x", raw * 2))
    else:
        return _npz(packed=True)  # an archive in the archive
    return stored.getvalue()


def _lying_state(numbers: random.Random) -> Any:
    """What a saved file may hold besides the right tensors."""
    state: dict[Any, Any] = dict(_state())
    for name in numbers.sample(list(state), numbers.choice((0, 1, 1, 3))):
        x = state[name]
        changes: tuple[Callable[[], Any], ...] = (
            lambda x=x: x.double(),
            lambda x=x: x.to(torch.complex64),
            lambda x=x: x.to(torch.int64),
            lambda x=x: x.half(),
            lambda x=x: x.bool(),
            lambda x=x: x.to_sparse() if x.dim() else x,
            lambda x=x: torch.zeros((), dtype=x.dtype).expand(x.shape),
            lambda x=x: torch.empty(x.shape, dtype=x.dtype, device="meta"),
            lambda x=x: x[None],
            lambda x=x: x.flatten()[:-1],
            lambda x=x: torch.zeros(1).expand(10**6, 10**6),
            lambda x=x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
            lambda x=x: torch.nn.Parameter(x) if x.is_floating_point() else x,
            lambda x=x: x * torch.nan if x.is_floating_point() else x,
            lambda x=x: None,
            lambda x=x: [x, {"deep": x}],
            lambda x=x: 5,
        )
        state[name] = numbers.choice(changes)()
    kind = numbers.randrange(10)
    if kind == 0:
        state[numbers.choice((5, None, ("a",), b"b", 1.5))] = torch.zeros(1)
    elif kind == 1:
        state.pop(next(iter(state)))
    elif kind == 2:
        return numbers.choice(([state], {"state_dict": state}, None, 3, torch.zeros(3), "text"))
    elif kind == 3:
        return {f"module.{name}": x for name, x in state.items()}
    elif kind == 4:
        return state | {f"more{n}": torch.zeros(1) for n in range(2000)}
    return state


def _pickled(numbers: random.Random, marker: Path) -> bytes:
    """Pickles that run code where a pickle is trusted, or are no pickles of tensors."""
    protocol = numbers.choice((0, 2, 4))
    content: Any = numbers.choice(
        (_Code(marker), {"a": _Code(marker)}, {**_state(), "x": _Code(marker)}, {}, [1])
    )
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    if numbers.random() < 0.7:
        kept = numbers.choice((pickle.dumps(content, protocol), deep))
    else:
        codes = [code.code.encode("latin1") for code in pickletools.opcodes]
        kept = b"\x80\x02" + b"".join(
            numbers.choice(codes) + numbers.randbytes(numbers.randrange(5)) for _ in range(40)
        )
    if numbers.random() < 0.5:
        return kept
    file = io.BytesIO()  # in the place of the pickle of a saved file
    with zipfile.ZipFile(io.BytesIO(_pth(zipped=True))) as old, zipfile.ZipFile(file, "w") as new:
        for member in old.namelist():
            new.writestr(member, kept if member.endswith("data.pkl") else old.read(member))
    return file.getvalue()


def _packed_state(numbers: random.Random) -> bytes:
    """A saved state whose tensors are packed, and grow when they are read."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_pth(zipped=True))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        names = old.namelist()
        victim = numbers.choice([name for name in names if "/data/" in name])
        for name in names:
            with new.open(name, "w") as member:
                if name == victim and numbers.random() < 0.8:
                    for _ in range(_BURST):
                        member.write(bytes(1 << 20))
                else:
                    member.write(old.read(name))
    return file.getvalue()


def one(numbers: random.Random, folder: Path) -> str:
    """One file, which is loaded or refused; a refused one changes no weight."""
    marker, path = folder / "ran", folder / "weights"
    kind = numbers.randrange(10)
    if kind < 2:
        raw = _damage(numbers, _npz(packed=kind == 1))
    elif kind < 4:
        raw = _rewritten(numbers)
    elif kind < 6:
        raw = _damage(numbers, _pth(zipped=kind == 5))
    elif kind < 8:
        file = io.BytesIO()
        zipped = numbers.random() < 0.7
        torch.save(_lying_state(numbers), file, _use_new_zipfile_serialization=zipped)
        raw = file.getvalue()
        raw = _damage(numbers, raw) if numbers.random() < 0.2 else raw
    elif kind == 8:
        raw = _pickled(numbers, marker)
    else:
        raw = _packed_state(numbers)
    path.write_bytes(raw)
    network = _network()
    imagenet = kind < 4 if numbers.random() < 0.95 else kind >= 4
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (network.load_imagenet if imagenet else network.load_official)(path)
            word = "loaded"
        except FileError as error:
            assert "weights must" in str(error), error  # noqa: PT017
            assert len(str(error)) < 10_000  # noqa: PT017
            word = "refused"
    assert not marker.exists(), "code ran"
    for name, x in network.state_dict().items():
        assert x.shape == before[name].shape
        assert x.dtype == before[name].dtype
        if word == "refused":
            assert torch.equal(x.nan_to_num(), before[name].nan_to_num()), f"{name} changed"
    return word


ATTACK = Attack("weights", one, seconds=5.0, mebibytes=48)
