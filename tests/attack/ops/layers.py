"""Random calls of the models' own layers."""

from torch.nn import functional as F

from cmrfast.models import kernels
from tests.attack.ops.call import Call, largest
from tests.attack.ops.make import FLOATS, Make


def same_conv2d(make: Make) -> Call:
    before, after, side = make.one_of(1, 16, 33), make.one_of(2, 16, 40), make.one_of(1, 3, 3, 5, 4)
    dilation = make.one_of(1, 1, 2, 3, 40, 2**40, 0)
    x = make.values(make.count(2), before, *make.sizes(2, 24), dtype=make.one_of(*FLOATS))
    weight = make.values(after, before, side, side, dtype=x.dtype, calm=True)
    bias = make.values(after, dtype=x.dtype, calm=True) if make.chance(0.5) else None
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return Call(
        lambda *given: kernels.same_conv2d(*given, dilation=dilation),
        inputs,
        size=largest(x) * before * side**2,
        gradient=largest(x) * 24,
        finite=True,
    )


def thin_conv3d(make: Make) -> Call:
    before, after = make.numbers.randint(1, 7), make.numbers.randint(1, 7)
    x = make.values(make.count(2), before, *make.sizes(3, 12), dtype=make.one_of(*FLOATS))
    weight = make.values(after, before, 3, 3, 3, dtype=x.dtype, calm=True)
    slope = make.one_of(1.0, 0.1, 0.01, 0.0 if make.chance(0.3) else 1.0)
    return Call(
        lambda *given: kernels.thin_conv3d(*given, slope=slope),
        [x, weight, make.values(after, dtype=x.dtype, calm=True)],
        size=largest(x) * before * 27,
        gradient=largest(x) * 36,
        finite=True,
    )


def max_pool(make: Make) -> Call:
    size = make.sizes(make.one_of(2, 3), 20)
    x = make.values(make.count(2), make.count(3), *size, dtype=make.one_of(*FLOATS))
    return Call(
        kernels.max_pool, [x], lambda x: F.max_pool2d(x, 2) if x.dim() == 4 else F.max_pool3d(x, 2)
    )
