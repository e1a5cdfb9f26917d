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
    loop: int | None = 0  # which one, in the order of their ends; None is all of a kernel without
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
    Budget("_sums", "dice_2d", "pixel of 4 classes", 4, 24, 477, 136),
    Budget("_gradient", "dice_2d", "pixel of 4 classes", 4, 40, 416, 136),
    Budget("_sums", "dice_3d", "logit", 16, 5, 260, 20),
    Budget("_gradient", "dice_3d", "logit", 16, 9, 375, 30),
]
PAIRS = [
    Budget("_anchor_tiles", "pairs_bfloat16", "similarity", 64, 0, 600, 9.3, 0, _PAIR_FLOPS),
    Budget("_candidate_tiles", "pairs_bfloat16", "similarity", 32, 0, 388, 9.3, 0, _PAIR_FLOPS),
    Budget("_candidate_tiles", "symmetric_bfloat16", "similarity", 32, 0, 390, 13, 0, _PAIR_FLOPS),
    Budget("_anchor_tiles", "pairs_float32", "similarity", 32, 0, 1030, 32, 0, _PARTS_FLOPS),
    Budget("_candidate_tiles", "pairs_float32", "similarity", 32, 0, 1060, 32, 0, _PARTS_FLOPS),
]


def _gathers(
    kernel: str, unit: str, units: float, moved: float, instructions: int, target: float, loop: int
) -> Budget:
    """A CUDA kernel that reads what a position asks for, word by word."""
    return Budget(kernel, "cuda", unit, units, moved, instructions, target, loop, aligned=False)


#: An image's gradient has 2 candidates an axis where nothing is scaled, a merged voxel lies in 3
#: windows, and an interpolated one has 4 taps an axis.
GEOMETRY = [
    _gathers("sample_linear<float, 3, true>", "voxel", 2, 6, 100, 65, 1),
    _gathers("sample_linear<float, 3, true>", "voxel, spacing only", 2, 6, 71, 25, 0),
    _gathers("sample_linear<float, 2, true>", "pixel", 4, 8, 108, 24, 1),
    _gathers("gather_gradient<float, 3, 1>", "candidate", 1, 8 / 8, 23, 24, 0),
    _gathers("gather_gradient<float, 2, 4>", "candidate of 4 channels", 1, 32 / 4, 53, 96, 0),
    _gathers("sum_matrix_gradient<float, 3>", "voxel", 1, 8, 98, 97, 1),
    _gathers("sum_matrix_gradient<float, 2>", "pixel", 1, 8, 64, 63, 1),
    _gathers(
        "merge_patches<float, 4, true, false>", "voxel of a window", 16, 4 + 4 / 3, 154, 10, 0
    ),
    _gathers("extract_patches<float, float>", "voxel", 8, 6, 132, 19, 0),
    _gathers("contract_axis<float>", "tap", 16, 8 / 4, 89, 5.5, 0),
]
#: A voxel's neighbours are mostly in the caches: a label is made of 0.2 logits of each class, and a
#: blurred voxel of 5 taps an axis. Parameters of a channel are float64.
INTENSITIES = [
    Budget("_argmax", "argmax_3d", "voxel of a class", 4, 0.8, 134, 30, aligned=False),
    Budget("_pass", "noise_3d", "voxel", 8, 8, 456, 53, None, float64=2, aligned=False),
    Budget("_blur", "blur_3d", "tap along the last axis", 8, 8 / 5, 89, 8, aligned=False),
]
#: With all taps of a tile inside; its positions come before the loop over channels.
SAMPLES = [
    Budget("_sample", "sample_float32", "voxel", 4, 8, 240, 65, float64=2, aligned=False),
    Budget("_sample", "sample_int16", "voxel", 4, 6, 265, 65, float64=2, aligned=False),
]
BUDGETS = [*DICE, *PAIRS, *GEOMETRY, *INTENSITIES, *SAMPLES]
