"""Predicts what share of a GPU's copy bandwidth or matrix rate each kernel reaches.

``python -m benchmarks.roofline`` prints a table for benchmarks/README.md, to be compared with the
first measured run: no GPU has been measured. A pass takes the longer of two times, moving its bytes
and issuing its instructions (budgets.py); matrix products, which wait for one another, add to the
instructions.
"""

from dataclasses import dataclass

from benchmarks.budgets import BUDGETS, Budget

#: Instructions that a scheduler issues per cycle, of at most one.
_SUSTAINED = 0.75
_LANES = 4 * 32  # threads that a multiprocessor issues an instruction for per cycle


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet, and the copy bandwidth that such machines are reported to reach."""

    name: str
    copy_bytes_s: float
    multiprocessors: int = 132
    clock_hz: float = 1.755e9
    tensor_flops_s: float = 989e12  # of bfloat16

    @property
    def instructions_s(self) -> float:
        """Instructions issued in a second, counted for each thread."""
        return self.multiprocessors * _LANES * self.clock_hz * _SUSTAINED

    def share(self, budget: Budget) -> float:
        """The predicted share of the copy bandwidth, or of the matrix rate."""
        issuing = budget.per_unit / self.instructions_s
        if budget.tensor_flops:
            multiplying = budget.tensor_flops / self.tensor_flops_s
            return multiplying / (multiplying + issuing)
        moving = budget.moved / self.copy_bytes_s
        return moving / max(moving, issuing)


GPUS = (Gpu("H100", 2.9e12), Gpu("H200", 4.2e12))


def table() -> str:
    """The predictions as Markdown."""
    lines = [
        "| kernel | instructions | target | limit | H100 | H200 |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for budget in BUDGETS:
        name = budget.kernel.strip("_")
        limit = "matrix rate" if budget.tensor_flops else "copy"
        shares = " | ".join(f"{gpu.share(budget):.0%}" for gpu in GPUS)
        lines.append(
            f"| `{name}`, {budget.case} | {budget.per_unit:.3g} a {budget.unit} "
            f"| {budget.target:.3g} | {limit} | {shares} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
