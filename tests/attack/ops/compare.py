"""How closely the results of two backends must agree."""

import torch
from torch import Tensor

from tests.attack.ops.call import Call, largest

_TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def assert_alike(ours: list[Tensor], theirs: list[Tensor], call: Call, whose: str) -> None:
    assert len(ours) == len(theirs)
    for number, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        where = f"result {number} against {whose}"
        assert (x.shape, x.dtype) == (y.shape, y.dtype), f"{where}: {x.shape} {x.dtype}, {y.shape}"
        if not x.dtype.is_floating_point:
            assert torch.equal(x, y), f"{where}: {x}\n{y}"
            continue
        near = _TOLERANCE[x.dtype]
        least = 8 * torch.finfo(x.dtype).smallest_normal if x.dtype != torch.float16 else 1e-7
        if call.finite:  # sums may overflow in another order
            both = x.isfinite() & y.isfinite()
            alike = both | (~x.isfinite() & ~y.isfinite()) | (y.abs() > 1e37)
            assert call.zero_weights or alike.all(), f"{where}: {x}\n{y}"
            x, y = torch.where(both, x, 0), torch.where(both, y, 0)
        scale = max(largest(y), call.gradient if number else call.size)
        torch.testing.assert_close(
            x,
            y,
            rtol=near,
            atol=near * scale + least,
            equal_nan=True,
            msg=lambda m, w=where: f"{w}: {m}",
        )
