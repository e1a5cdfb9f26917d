"""The prediction for GPUs: its arithmetic, and that the page shows the table of today's budgets."""

import pytest

from benchmarks import roofline
from benchmarks.budgets import Budget
from tests.support.paths import ROOT

SLOW_GPU = roofline.Gpu("slow", copy_bytes_s=1e12, clock_hz=1e9, tensor_flops_s=1e14)


def test_few_instructions_leave_the_copy_bandwidth_as_the_limit():
    assert SLOW_GPU.instructions_s == pytest.approx(132 * 128 * 1e9 * 0.75)
    assert SLOW_GPU.share(Budget("k", "c", "byte", 1, 1, 12, 1)) == 1
    assert SLOW_GPU.share(Budget("k", "c", "byte", 2, 1, 127, 1)) == pytest.approx(0.2, rel=1e-2)


def test_matrix_products_wait_for_the_other_instructions():
    budget = Budget("k", "c", "product", 1, 0, 1267, 1, tensor_flops=1e4)
    assert SLOW_GPU.share(budget) == pytest.approx(0.5, rel=1e-3)


def test_the_page_shows_what_the_budgets_let_expect():
    page = (ROOT / "benchmarks/README.md").read_text()
    assert roofline.table() in page
    assert "no GPU has been measured" in page
