"""Measures block sizes on this machine's GPU: ``python -m cmrfast.ops.triton.tune``.

Tries the candidates of an op on the workloads below, at most 20 for each row of the table, drops
those that fail or differ from the reference, and writes the fastest into the table, in a row for
this device. The table is committed: nothing is timed while a user's program runs.
"""

import argparse
import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from cmrfast.ops._op import OPS
from cmrfast.ops.triton import KERNELS, _launch

FLOAT, HALF = "float32", "bfloat16"
#: Largest error of a result, relative to its largest entry.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
Blocks = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A workload: the rows of the table that it decides, its op, and the arguments of the calls."""

    rows: str
    op: str
    dtype: str
    timed: Callable[[], tuple[Any, ...]]
    checked: Callable[[], tuple[Any, ...]]
    candidates: dict[str, tuple[Any, ...]]
    up_to: dict[str, int] = field(default_factory=dict)
    tile: tuple[str, ...] = ()  # the block sizes whose product is a program's number of results
    results: tuple[int, int] = (4, 16)  # least and most of them in a thread

    def options(self) -> Iterator[Blocks]:
        """Combinations of the candidates' values that keep threads busy but not short of registers.

        Without ``tile``, every combination.
        """
        for values in itertools.product(*self.candidates.values()):
            blocks = dict(zip(self.candidates, values, strict=True))
            least, most = (32 * blocks["num_warps"] * limit for limit in self.results)
            if not self.tile or least <= math.prod(blocks[name] for name in self.tile) <= most:
                yield blocks


def normal(*shape: int, dtype: str = FLOAT) -> Tensor:
    """Random numbers on the default device, as all arguments of the calls."""
    return torch.randn(*shape).to(getattr(torch, dtype))


def cases() -> Iterator[Case]:
    """All cases, those of ``nt_xent`` first."""
    for dtype, length, few in itertools.product(
        (HALF, "float16", FLOAT), (128, 256), (True, False)
    ):
        for rows in ("nt_xent", "nt_xent_candidates"):
            yield _nt_xent_case(rows, dtype, length, 1024 if few else 16384, few)
    streams = {"tile": (512, 1024, 2048, 4096), "num_warps": (4, 8)}
    for rows in ("dice_ce_sums", "dice_ce_sums_backward"):
        yield Case(
            rows,
            rows,
            FLOAT,
            partial(_dice_args, rows, 640),
            partial(_dice_args, rows, 2),
            streams,
            tile=("tile",),
        )
    yield Case(
        "extract_patches",
        "extract_patches",
        FLOAT,
        partial(_extract_args, 640),
        partial(_extract_args, 2),
        streams,
        tile=("tile",),
    )
    yield Case(
        "merge_patches", "merge_patches", FLOAT, partial(_merge_args, 16), partial(_merge_args, 3),
        streams | {"BP": (16, 32, 64)}, tile=("tile",),
    )  # fmt: skip
    for rows, args in (("resample_argmax", _argmax_args), ("augment_intensity", _augment_args)):
        yield Case(
            rows, rows, FLOAT, partial(args, 128), partial(args, 20),
            {"BLOCK": (128, 256, 512, 1024, 2048), "num_warps": (4, 8)},
            tile=("BLOCK",), results=(1, 16),
        )  # fmt: skip
    samples = {"BLOCK": (128, 256, 512, 1024), "num_warps": (2, 4, 8)}
    for rows in ("affine_sample", "affine_sample_backward"):
        yield Case(
            rows, rows, FLOAT, partial(_affine_args, rows, 182), partial(_affine_args, rows, 20),
            samples,
        )  # fmt: skip
    yield Case(
        "contract_axis", "contract_axis", FLOAT,
        lambda: (normal(182, 218, 182), normal(218, 218).double()),
        lambda: (normal(3, 21, 17), normal(19, 21).double()),
        {"BM": (32, 64), "BQ": (32, 64, 128), "BT": (16, 32), "num_warps": (4, 8)},
        tile=("BM", "BQ"), results=(8, 32),
    )  # fmt: skip


def _nt_xent_case(rows: str, dtype: str, length: int, count: int, few: bool) -> Case:
    def args(n: int) -> tuple[Any, ...]:
        pairs = normal(2, n, length, dtype=dtype)
        return pairs[0], pairs[1], torch.arange(n), 0.07, None, True

    candidates: dict[str, tuple[Any, ...]] = {
        "BM": (64, 128),
        "BN": (32, 64) if dtype == FLOAT else (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (1, 2) if dtype == FLOAT else (2, 3),
    }
    up_to = {"d": length, **({"rows": count} if few else {})}
    return Case(
        rows, "nt_xent", dtype, partial(args, count), partial(args, 777), candidates, up_to,
        tile=("BM", "BN"), results=(16, 64),
    )  # fmt: skip


def _dice_args(op: str, batch: int) -> tuple[Any, ...]:
    logits, labels = normal(batch, 4, 224 * 224), torch.randint(4, (batch, 224 * 224))
    grad = (normal(batch, 4, 4),) if op.endswith("backward") else ()
    entropy = () if grad else (True,)
    return *grad, logits, labels, 0, -100, 1e-4, *entropy


def _extract_args(patches: int) -> tuple[Any, ...]:
    table = torch.tensor([[0, 225, 270, 225]])
    start = torch.stack([torch.randint(-8, n - 48, (patches,)) for n in (225, 270, 225)], 1)
    index, ones = torch.zeros(patches, dtype=torch.int64), torch.ones(1, 2).double()
    flips, size = torch.rand(patches, 3) < 0.5, (56, 56, 56)
    buffer = normal(2 * 225 * 270 * 225)
    return buffer, table, (), start, index, flips, 0 * ones, ones, 2, size, 0.0, torch.float32


def _merge_args(steps: int) -> tuple[Any, ...]:
    start = torch.cartesian_prod(*[torch.arange(steps) * 14] * 3)
    weight = torch.rand(28, 28, 28)
    return normal(len(start), 2, 28, 28, 28), start, weight, (14 * steps + 14,) * 3, 0.0


def _affine_args(op: str, n: int) -> tuple[Any, ...]:
    images, size = normal(1, 2, n, n, n), (n + 7, n, n - 5)
    matrix = torch.eye(3, 4, dtype=torch.float64)[None]
    matrix = matrix + 0.05 * torch.randn(1, 3, 4, dtype=torch.float64)
    if op.endswith("backward"):
        return normal(1, 2, *size), images, matrix, 0, 0, 0, True, True
    return images, matrix, size, 0, 0, 0, 0.0


def _argmax_args(n: int) -> tuple[Any, ...]:
    matrix = torch.diag(torch.tensor([0.7, 0.5, 0.5], dtype=torch.float64))
    matrix = torch.cat((matrix, torch.zeros(3, 1)), 1)
    return normal(14, n, n, n), matrix, (n + n // 3, 2 * n, 2 * n), 0, torch.uint8


def _augment_args(n: int) -> tuple[Any, ...]:
    # Without noise: that of the reference in float64 is another one in its last digits.
    steps = torch.tensor([math.nan, 0.75, 0.75, 0.75, 1.1, 0.1, 1.2, 0.6, 0.6, 0.6, 0.85, 1.3])
    parameters = steps.double().expand(8, 1, -1)
    return normal(8, 1, n, n, n), 0, torch.arange(8), parameters, 0b11111110


@contextlib.contextmanager
def row_in_front(rows: str, blocks: Blocks) -> Iterator[None]:
    """Use these block sizes for everything in the context."""
    _launch.table()[rows].insert(0, {"blocks": blocks})
    _launch._blocks.cache_clear()
    try:
        yield
    finally:
        _launch.table()[rows].pop(0)
        _launch._blocks.cache_clear()


def best(case: Case, device: str = "cuda") -> tuple[Blocks, float] | None:
    """The fastest candidate that fits and is correct, and its time in ms."""
    torch.manual_seed(0)
    with torch.device(device):
        checked, timed = case.checked(), case.timed()
    expected = _results(OPS[case.op].reference, _to_double(checked))
    winner: tuple[Blocks, float] | None = None
    for blocks in case.options():
        with row_in_front(case.rows, blocks):
            try:
                error = _error(_results(KERNELS[case.op], checked), expected)
                if not error <= TOLERANCE[case.dtype]:
                    print(f"  {blocks}: error {error:.1e}, dropped")
                    continue
                ms = float(triton.testing.do_bench(lambda: KERNELS[case.op](*timed)))
            except Exception as reason:  # which ones there are differs between versions of Triton
                first = str(reason).partition("\n")[0]
                print(f"  {blocks}: {type(reason).__name__}: {first}, dropped")
                continue
        print(f"  {blocks}: {ms:.3f} ms, error {error:.1e}", flush=True)
        if winner is None or ms < winner[1]:
            winner = blocks, ms
    return winner


def _results(call: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    output = call(*args)
    return [output] if isinstance(output, Tensor) else list(output)


def _to_double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _error(results: list[Tensor], expected: list[Tensor]) -> float:
    errors = [
        ((x.double() - y).abs().max() / y.double().abs().max().clamp(min=1e-30)).item()
        for x, y in zip(results, expected, strict=True)
        if y.numel()
    ]
    return max(errors)


def put(table: dict[str, list[Blocks]], case: Case, device: str, blocks: Blocks) -> None:
    """Insert a row before the less specific ones of the op, replacing one for the same sizes."""
    row = {"device": device, "dtype": case.dtype, "up_to": case.up_to, "blocks": blocks}
    same = [{**row, "blocks": old["blocks"]} == old for old in table[case.rows]]
    rows = [old for old, known in zip(table[case.rows], same, strict=True) if not known]
    place = max((i + 1 for i, old in enumerate(rows) if _more_specific(old, row)), default=0)
    table[case.rows] = [*rows[:place], row, *rows[place:]]


def _more_specific(old: Blocks, new: Blocks) -> bool:
    """Whether an older row of the same device must stay first, as it matches fewer sizes."""
    if old.get("device") != new["device"] or old.get("dtype") != new["dtype"]:
        return False
    far = float("inf")
    old_limits, new_limits = (
        [float(row["up_to"].get(axis, far)) for axis in ("d", "rows")] for row in (old, new)
    )
    return old_limits < new_limits


def write(table: dict[str, list[Blocks]], path: Path) -> None:
    """Write the table with one row per line."""
    ops = []
    for op, rows in table.items():
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        ops.append(f"  {json.dumps(op)}: [\n{lines}\n  ]")
    path.write_text("{\n" + ",\n".join(ops) + "\n}\n")


def main() -> None:
    """Measure the ops named on the command line, all by default, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m cmrfast.ops.triton.tune")
    parser.add_argument("ops", nargs="*", help="rows of the table to measure; default all")
    parser.add_argument("--out", type=Path, default=_launch.TABLE, help="default: the table itself")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune: needs a CUDA device; torch sees none")
    unknown = set(chosen.ops) - _launch.table().keys()
    if unknown:
        raise SystemExit(f"tune: no rows for {', '.join(sorted(unknown))}")
    device = torch.cuda.get_device_name()
    for case in cases():
        if chosen.ops and case.rows not in chosen.ops:
            continue
        print(f"{case.rows} {case.dtype} {case.up_to or ''}", flush=True)
        winner = best(case)
        if winner is not None:
            put(_launch.table(), case, device, winner[0])
            _launch._blocks.cache_clear()
            write(_launch.table(), chosen.out)
            print(f"  -> {winner[0]}, {winner[1]:.3f} ms", flush=True)


if __name__ == "__main__":
    main()
