"""Random tensors, sizes and choices, drawn from the numbers of a case."""

import math
import random
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INTEGERS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
)


class Make:
    """Random tensors, sizes and choices of one case."""

    def __init__(self, numbers: random.Random) -> None:
        self.numbers = numbers
        self.generator = torch.Generator().manual_seed(numbers.randrange(2**31))

    def one_of(self, *options: Any) -> Any:
        return self.numbers.choice(options)

    def chance(self, probability: float) -> bool:
        return self.numbers.random() < probability

    def sizes(self, count: int, most: int = 9) -> tuple[int, ...]:
        return tuple(
            1 if self.chance(0.15) else self.numbers.randint(1, most) for _ in range(count)
        )

    def count(self, most: int) -> int:
        return 0 if self.chance(0.05) else self.numbers.randint(1, most)

    def values(self, *shape: int, dtype: torch.dtype, calm: bool = False) -> Tensor:
        """Numbers of a dtype; ``calm`` ones are normally distributed."""
        if dtype == torch.bool:
            return self.laid_out(torch.rand(shape, generator=self.generator) < 0.5)
        if not dtype.is_floating_point:
            limits = torch.iinfo(dtype)
            some = [limits.min, limits.max, limits.max - 1, 0, 1, 2, 7, 100]
            picks = torch.randint(len(some), shape, generator=self.generator)
            return self.laid_out(torch.tensor(some, dtype=dtype)[picks])
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        limits = torch.finfo(dtype)
        kind = (
            "normal" if calm else self.one_of("normal", "normal", "zero", "tiny", "huge", "mixed")
        )
        if kind == "zero":
            x *= 0
        elif kind == "tiny":
            x *= limits.smallest_normal * limits.eps * 1000
        elif kind == "huge":
            x *= 1e4 if dtype == torch.float16 else 1e30
        elif kind == "mixed":
            some = [0.0, -0.0, math.inf, -math.inf, math.nan, limits.smallest_normal / 8, 1e4]
            picks = torch.randint(len(some), shape, generator=self.generator)
            rare = torch.rand(shape, generator=self.generator) < 0.05
            x = torch.where(rare, torch.tensor(some, dtype=torch.float64)[picks], x)
        return self.laid_out(x.to(dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        """The values, or some of them repeated, with strides of any kind."""
        kind = self.one_of("plain", "plain", "offset", "gaps", "turned", "expanded")
        if not x.dim():
            return x
        if kind == "offset":
            memory = x.new_zeros(x.numel() + 3)
            memory[3:] = x.flatten()
            return memory[3:].view(x.shape)
        if kind == "gaps":
            memory = x.new_zeros(*x.shape, 3)
            memory[..., 1] = x
            return memory[..., 1]
        if kind == "turned":
            axes = list(range(x.dim()))
            self.numbers.shuffle(axes)
            back = [axes.index(a) for a in range(x.dim())]
            return x.permute(axes).contiguous().permute(back)
        axis = self.numbers.randrange(x.dim())
        if kind == "expanded" and x.shape[axis]:
            return x.narrow(axis, 0, 1).expand(x.shape)
        return x

    def floating(self) -> torch.dtype:
        return self.one_of(*FLOATS, *FLOATS, *HALVES)

    def real(self) -> torch.dtype:
        return self.one_of(*FLOATS, *HALVES, *INTEGERS, torch.bool)

    def starts(self, count: int, shape: tuple[int, ...]) -> Tensor:
        rows = [
            [self.numbers.randint(-n - 2, n + 2) for n in shape]
            if self.chance(0.9)
            else [self.one_of(0, 2**62, -(2**62), 2**31) for _ in shape]
            for _ in range(count)
        ]
        start = torch.tensor(rows, dtype=torch.int64).view(count, len(shape))
        small = start.numel() == 0 or bool(start.abs().max() < 100)
        return (
            start.to(self.one_of(torch.int8, torch.int32)) if small and self.chance(0.3) else start
        )
