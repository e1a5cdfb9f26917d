"""Random calls of every public op: native kernels, the reference, PyTorch where it has an equal.

Shapes, strides, dtypes and values are hostile but legal for the most part, or wrong in a way that
both backends must refuse alike. The reference runs in a process of its own, which makes the same
case from the same random numbers.
"""

import random
from pathlib import Path

import torch

from cmrfast import ops
from cmrfast.models import kernels
from tests.attack.frame import Attack
from tests.attack.ops.compare import assert_alike
from tests.attack.ops.outcome import run_case
from tests.attack.ops.reference import Reference


def one(numbers: random.Random, _: Path) -> str:
    """One call; the outcome is ``equal`` or ``refused``."""
    state = numbers.getstate()
    call, ours = run_case(numbers)
    theirs = Reference.outcome(state)
    if isinstance(ours, Exception):
        if not isinstance(ours, ValueError | TypeError):
            raise ours
        assert type(ours) is type(theirs), f"only one backend refuses: {ours!r}; {theirs!r}"
        assert str(ours) == str(theirs)
        name = str(ours).partition(":")[0].partition(".")[0]
        assert name in (*ops.__all__, *kernels.__all__), f"by no name: {ours!r}"
        return "refused"
    assert not isinstance(theirs, Exception), f"only the reference raises: {theirs!r}"
    assert_alike(ours, theirs, call, "the reference")
    if call.equal is not None:
        with torch.no_grad():
            assert_alike(ours[:1], [call.equal(*call.inputs)], call, "PyTorch")
    return "equal"


#: The first case starts the process of the reference, which takes seconds.
ATTACK = Attack("ops", one, seconds=20.0)
