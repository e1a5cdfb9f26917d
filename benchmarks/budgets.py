"""How many instructions the hot loop of each GPU kernel may take, and the bytes that it must move.

Counted in machine code for sm_90 by tests/ops/test_budgets.py, without a GPU: a change that makes a
kernel fatter fails there. Whoever makes one leaner lowers its row.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The hot loop of one kernel, and the work of one pass of one thread through it."""

    kernel: str  # a Triton function, or the instance of a CUDA template
    case: str  # "cuda", or what tests/ops/test_budgets.py compiles the Triton kernel for
    unit: str  # what is counted
    units: float  # of them in one pass
    moved: float  # bytes that a unit must move; 0 where tensor cores are the limit
    instructions: int  # most in one pass
    target: float  # instructions a unit that we aim at
    loop: int = 0  # which loop of the function, in the order of their ends
    #: Operations of a unit on tensor cores.
    tensor_flops: float = 0
    #: float64 instructions that are still in a float32 kernel.
    float64: int = 0
    #: Whether all loads and stores are of 16 bytes.
    aligned: bool = True

    @property
    def per_unit(self) -> float:
        """Instructions a unit."""
        return self.instructions / self.units


#: A similarity of rows of 128 features: a product for it, and one for the gradient.
_PAIR_FLOPS = 2 * 2 * 128
_PARTS_FLOPS = 6 * _PAIR_FLOPS  # in float32: six products of bfloat16 parts each

DICE = [
    Budget("_sums", "dice_2d", "pixel of 4 classes", 4, 24, 470, 136),
    Budget("_gradient", "dice_2d", "pixel of 4 classes", 4, 40, 410, 136),
    Budget("_sums", "dice_3d", "logit", 16, 5, 260, 20),
    Budget("_gradient", "dice_3d", "logit", 16, 9, 375, 30),
]
PAIRS = [
    Budget("_anchor_tiles", "pairs_bfloat16", "similarity", 64, 0, 600, 9.3, 0, _PAIR_FLOPS),
    Budget("_candidate_tiles", "pairs_bfloat16", "similarity", 32, 0, 420, 9.3, 0, _PAIR_FLOPS),
    Budget("_anchor_tiles", "pairs_float32", "similarity", 32, 0, 1030, 32, 0, _PARTS_FLOPS),
    Budget("_candidate_tiles", "pairs_float32", "similarity", 32, 0, 1095, 32, 0, _PARTS_FLOPS),
]
#: The targets are those of the rewrite that has yet to come.
GEOMETRY = [
    Budget(
        "sample_linear<float, 3>", "cuda", "voxel", 1, 6.0, 610, 65, 1, float64=102, aligned=False
    ),
    Budget(
        "sample_linear<float, 2>", "cuda", "pixel of 4 channels", 1, 32, 470, 96, 1,
        float64=60, aligned=False,
    ),
]  # fmt: skip
BUDGETS = [*DICE, *PAIRS, *GEOMETRY]
