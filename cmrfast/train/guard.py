"""What ends a run early: non-finite values and signals."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from cmrfast.errors import NotFiniteError


class Stop:
    """Whether the process was asked to end; true after the first SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """Exit code by the convention of shells; SIGTERM's if another rank got the signal."""
        return 128 + (self.signal or signal.SIGTERM)


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Note SIGTERM and the first Ctrl-C, for the loop to stop between two steps.

    Python lets only the main thread set handlers; in another one nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: FrameType | None) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def first_not_finite(model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """Where a forward pass first yields a non-finite value, in words.

    Args:
        model: in the state in which the step failed.
        inputs: arguments of its forward.
    """
    for name, tensor in inputs.items():
        if not _finite(tensor):
            return f"the input {name}"
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name}"
    first: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            values = output.values() if isinstance(output, dict) else [output]
            if not first and not all(_finite(v) for v in values if isinstance(v, Tensor)):
                first.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        with torch.no_grad(), suppress(NotFiniteError):  # a network that takes another's output
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return f"the module {first[0]}" if first else "the loss; every module's output is finite"


def all_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether every parameter and buffer is."""
    return all(_finite(tensor) for tensor in weights.values())


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
