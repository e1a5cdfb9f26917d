"""Conditions: what the bits of a training depend on besides its plan and its images."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

import cmrfast
from cmrfast.files import take
from cmrfast.ops._backend import STATUS
from cmrfast.train.plan import TrainOptions
from cmrfast.train.ranks import Ranks


@dataclass(frozen=True)
class Conditions:
    """Training repeats its bits where all of these are the same.

    Args:
        threads: of torch's own products, whose rounding depends on their number.
        ranks: processes that train together.
        device: cpu, or the name of the GPU.
        cpu: machine type and the instructions that torch uses on it.
        kernels: instructions that our CPU kernels use, or ``reference``.
        compiled: no, default or graphs.
        channels_last: the memory format that was asked for; None where the device decides.
        sharded: whether the weights are.
        cmrfast, torch, python: versions.
    """

    threads: int
    ranks: int
    device: str
    cpu: str
    kernels: str
    compiled: str
    channels_last: bool | None
    sharded: bool
    cmrfast: str
    torch: str
    python: str

    @classmethod
    def here(cls, options: TrainOptions, ranks: Ranks) -> "Conditions":
        """Those of this process."""
        gpu = ranks.device.type == "cuda"
        return cls(
            threads=torch.get_num_threads(),
            ranks=ranks.count,
            device=torch.cuda.get_device_name(ranks.device) if gpu else ranks.device.type,
            cpu=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            kernels=STATUS.cpu_level or "reference",
            compiled=options.compiled,
            channels_last=options.channels_last,
            sharded=options.sharded,
            cmrfast=cmrfast.__version__,
            torch=str(torch.__version__),
            python=platform.python_version(),
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Conditions":
        """Read what ``asdict`` made; an entry of another kind raises ``ValueError``."""
        kinds: dict[str, tuple[type, ...]] = {
            "threads": (int,),
            "ranks": (int,),
            "channels_last": (bool, type(None)),
            "sharded": (bool,),
        }
        names = [field.name for field in fields(cls)]
        found = cls(**{name: take(dict(stored), name, *kinds.get(name, (str,))) for name in names})
        if not 1 <= found.threads <= 4096:
            raise ValueError(f"threads must be 1 to 4096; it is {found.threads}")
        return found

    @property
    def options(self) -> dict[str, Any]:
        """Those that are options of the training."""
        return {name: getattr(self, name) for name in ("compiled", "channels_last", "sharded")}

    def differences(self, now: "Conditions") -> list[str]:
        """What differs, in words."""
        was, is_ = asdict(self), asdict(now)
        return [f"{name} {was[name]}, now {is_[name]}" for name in was if was[name] != is_[name]]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads; None leaves their number as it is."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
