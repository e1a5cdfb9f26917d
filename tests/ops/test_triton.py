"""Where Triton kernels are registered, and what the op contract's samples do not show of them."""

import json
import os
import subprocess
import sys

import pytest
import torch

from cmrfast import ops
from cmrfast.ops._backend import STATUS
from cmrfast.ops._op import OPS
from tests.ops import test_contract
from tests.support import op_calls

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(
    not STATUS.triton_ops["CPU"], reason="needs TRITON_INTERPRET=1 CMRFAST_BACKEND=triton"
)
WITH_CUDA = "import torch; torch.version.cuda = '13.0'; "
WITHOUT_TRITON = "import importlib.util as u; find = u.find_spec; " + (
    "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a); "
)
NAMED = "from cmrfast.ops import _backend, backends; print(_backend.STATUS.triton); "


def run_python(code, **environment):
    env = {**os.environ, "CMRFAST_BACKEND": "auto", "TRITON_INTERPRET": "0", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_torch_without_cuda_never_imports_triton_and_says_nothing():
    code = "import torch; torch.version.cuda = None; " + NAMED
    run = run_python(code + "import sys; print('triton' in sys.modules)")
    assert "has no CUDA" in run.stdout
    assert run.stdout.split()[-1] == "False"
    assert "Triton" not in run.stderr


def test_torch_with_cuda_gets_a_triton_kernel_for_every_op_without_a_native_one():
    run = run_python(WITH_CUDA + NAMED + "print({r['cuda'] for r in backends().values()})")
    assert "for ops without a native kernel" in run.stdout
    assert "reference" not in run.stdout


@pytest.mark.parametrize(("build", "key"), [("hip", "CUDA"), ("xpu", "XPU")])
def test_torch_for_other_gpus_gets_triton_kernels(build, key):
    code = f"import torch; torch.version.cuda = None; torch.version.{build} = '7.0'; " + NAMED
    count = f"from cmrfast.ops._backend import STATUS; print(len(STATUS.triton_ops[{key!r}]))"
    run = run_python(code + count)
    assert "for ops without a native kernel" in run.stdout, run.stderr
    assert int(run.stdout.split()[-1]) == sum(not op.cpu_only for op in OPS.values())


def test_missing_triton_is_said_once_with_its_extra():
    run = run_python(WITH_CUDA + WITHOUT_TRITON + NAMED, CMRFAST_CUDA="0")
    if "'reference'" in run.stdout or run.stderr:
        assert run.stderr.count("on CUDA ops run their reference: Triton is not installed") == 1
    assert "pip install 'cmrfast[triton]'" in run.stdout


def test_without_a_c_compiler_triton_is_left_out():
    run = run_python(WITH_CUDA + NAMED, PATH="", CC="")
    assert "Triton launches kernels by way of a C compiler, and there is none" in run.stdout


def test_triton_backend_without_triton_is_an_error():
    run = run_python(WITH_CUDA + WITHOUT_TRITON + NAMED, CMRFAST_BACKEND="triton")
    assert "cmrfast: CMRFAST_BACKEND=triton, but Triton is not installed" in run.stderr


def test_triton_backend_without_cuda_or_interpreter_is_an_error():
    code = "import torch; torch.version.cuda = None; " + NAMED
    run = run_python(code, CMRFAST_BACKEND="triton")
    assert "CMRFAST_BACKEND=triton, but torch" in run.stderr


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_other_backends_name_themselves_as_the_reason(backend):
    if backend == "native" and not _has_native():
        pytest.skip("no native kernels were built")
    run = run_python(WITH_CUDA + NAMED, CMRFAST_BACKEND=backend)
    assert run.stdout.splitlines()[0] == f"CMRFAST_BACKEND={backend}"


def _has_native():
    return run_python("import cmrfast.ops", CMRFAST_BACKEND="native").returncode == 0


def test_the_tuner_tries_few_candidates_of_every_row():
    from cmrfast.ops.triton import tune

    cases = list(tune.cases())
    assert {case.rows for case in cases} <= tune._launch.table().keys()
    for case in cases:
        tried = list(case.options())
        assert 4 <= len(tried) <= 20, (case.rows, case.dtype, len(tried))


def test_the_tuner_calls_every_op_with_arguments_that_it_takes():
    from cmrfast.ops.triton import tune

    for case in tune.cases():
        for arguments in (case.checked, case.timed):
            with torch.device("meta"):
                given = arguments()
            results = tune._results(OPS[case.op].call, given)
            assert all(x.is_meta and x.numel() for x in results), case.rows


def test_the_tuner_drops_candidates_that_fail_and_keeps_the_fastest(monkeypatch, capsys):
    from cmrfast.ops.triton import tune

    def run(values, weights):
        blocks = tune._launch.table()["contract_axis"][0]["blocks"]
        if blocks["BM"] == 16:
            raise RuntimeError("PassManager::run failed\nand a long dump")
        return OPS["contract_axis"].reference(values, weights) + (blocks["BM"] == 32)

    def arguments():
        return torch.randn(2, 5, 3), torch.randn(4, 5, dtype=torch.float64)

    monkeypatch.setitem(tune.KERNELS, "contract_axis", run)
    times = iter([2.0, 1.0])
    monkeypatch.setattr(tune.triton.testing, "do_bench", lambda call: next(times))
    sizes = {"BM": (16, 32, 64, 128), "num_warps": (4,)}
    case = tune.Case("contract_axis", "contract_axis", tune.FLOAT, arguments, arguments, sizes)
    assert tune.best(case, "cpu") == ({"BM": 128, "num_warps": 4}, 1.0)
    printed = capsys.readouterr().out
    assert "RuntimeError: PassManager::run failed, dropped" in printed
    assert "long dump" not in printed


@interpreted
def test_interpreted_kernels_serve_cpu_tensors():
    assert STATUS.triton_ops["CPU"] == {name for name, op in OPS.items() if not op.cpu_only}
    assert {row["cpu"] for row in ops.backends().values()} == {"triton"}


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("dtype", op_calls.FLOATS, ids=str)
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if not op.cpu_only])
def test_every_sample_matches_the_reference(name, dtype, monkeypatch):
    monkeypatch.setattr(op_calls, "INTERPRETED", False)
    test_contract.test_matches_reference(OPS[name], "cpu", dtype)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pairing_of_halves_is_as_exact_as_their_values(dtype):
    anchors, candidates = torch.randn(2, 37, 20).to(dtype)
    anchors, candidates = anchors * 300, candidates / 300
    loss, *grads = _pairing(anchors, candidates)
    expected, *slopes = _pairing(anchors.double(), candidates.double())
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=2e-6)
    for grad, slope in zip(grads, slopes, strict=True):
        assert grad.dtype == dtype
        rounding = 2 * torch.finfo(dtype).eps  # of the weights that enter the second product
        assert (grad - slope).abs().max() < rounding * slope.abs().max()


def _pairing(*rows):
    rows = [r.detach().requires_grad_() for r in rows]
    loss = ops.nt_xent(*rows)
    return loss.detach(), *torch.autograd.grad(loss, rows)


@interpreted
def test_long_rows_go_through_several_chunks_of_columns():
    args = (*torch.randn(2, 19, 83, dtype=torch.float64), torch.arange(19), 0.1, None, True)
    torch.testing.assert_close(OPS["nt_xent"](*args), OPS["nt_xent"].reference(*args))


@interpreted
@pytest.mark.parametrize("scale", [1e-38, 1e-18, 1e18, 3e37])
def test_pairing_knows_rows_of_any_magnitude(scale):
    anchors, candidates = torch.randn(2, 9, 5)
    loss = ops.nt_xent(anchors * scale, candidates)
    torch.testing.assert_close(loss, ops.nt_xent(anchors, candidates), rtol=1e-5, atol=1e-5)


@interpreted
@pytest.mark.parametrize("bad", [-1, 9, 2**62])
def test_a_wrong_target_gives_nan_and_reads_nothing(bad):
    targets = torch.arange(9)
    targets[4] = bad
    loss, grad_anchors, grad_candidates = OPS["nt_xent"](
        *torch.randn(2, 9, 5), targets, 0.1, None, True
    )
    assert loss.isnan()
    assert grad_anchors[4].isnan().all()
    assert grad_anchors[torch.arange(9) != 4].isfinite().all()
    assert grad_candidates.isnan().all()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_of_half_logits_are_those_of_their_values(dtype):
    logits = (4 * torch.randn(2, 3, 50)).to(dtype)
    labels = torch.randint(0, 3, (2, 50))
    sums = ops.dice_ce_sums(logits, labels)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, ops.dice_ce_sums(logits.float(), labels))


@interpreted
def test_softmax_keeps_its_digits_far_from_zero():
    logits = 9999 + torch.randn(1, 3, 100)  # a rounded log of the sum would lose three of them
    args = (torch.randint(0, 3, (1, 100)), 0, -100, 1e-4, True)
    expected = OPS["dice_ce_sums"].reference(logits.double(), *args).float()
    torch.testing.assert_close(OPS["dice_ce_sums"](logits, *args), expected)


@interpreted
@pytest.mark.parametrize(("temperature", "factor"), [(0.07, 1), (0.01, 3)])
def test_float32_pairing_is_as_exact_as_torchs(temperature, factor):
    """Products of three bfloat16 parts, with and without a running maximum."""
    rows = torch.nn.functional.normalize(torch.randn(2, 150, 100)), torch.arange(150)
    args = (*rows[0], rows[1], temperature, None, True)
    exact = OPS["nt_xent"].reference(*(x.double() for x in rows[0]), *args[2:])
    ours, torchs = OPS["nt_xent"](*args), OPS["nt_xent"].reference(*args)
    for a, b, c in zip(ours, torchs, exact, strict=True):
        assert (a - c).norm() <= factor * (b - c).norm() + 2e-7 * c.norm()


@interpreted
def test_a_gradient_that_is_not_finite_comes_back_as_nan():
    images = torch.randn(1, 1, 5, 5, requires_grad=True)
    grad = torch.ones(1, 1, 5, 5)
    grad[0, 0, 2, 2] = torch.inf
    ops.affine_sample(images, torch.eye(2, 3)[None]).backward(grad)
    assert images.grad.isnan().all()


@interpreted
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sums_in_whole_units_keep_the_digits_of_a_float(scale):
    images = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    grad = scale * torch.randn(1, 1, 40, 40, dtype=torch.float64)
    matrix = torch.tensor([[[0.03, 0.0, 0.9], [0.0, 0.03, 0.9]]], dtype=torch.float64)
    backward = OPS["affine_sample_backward"]
    sums, _ = backward(grad, images, matrix, 0, 0, 0, True, False)
    expected, _ = backward.reference(grad, images, matrix, 0, 0, 0, True, False)
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-12 * scale)


@interpreted
def test_patches_of_uint64_are_rounded_and_saturate():
    values = torch.tensor([[[-1.0, 2.5, 3e18], [1.5e19, 1e20, torch.nan]]], dtype=torch.float64)
    start, size = torch.tensor([[0, 0]]), (2, 3)
    patches = ops.extract_patches(values, start, size, dtype=torch.uint64)
    expected = [[0, 2, 3 * 10**18], [15 * 10**18, 2**64 - 1, 0]]
    assert patches[0, 0].tolist() == expected
    center, matrix = torch.tensor([[0.5, 1.0]]), torch.eye(2)[None]
    sampled = ops.sample_patches(values, center, matrix, size, dtype=torch.uint64)
    assert sampled[0, 0].tolist() == expected


def test_table_row_is_the_first_that_fits():
    from cmrfast.ops.triton import _launch

    rows = {"nt_xent": [{"device": "other"}, {"dtype": "float16"}, {"up_to": {"d": 3}}]}
    device = torch.device("cpu")
    table, _launch.table = _launch.table, lambda: rows
    try:
        for index, row in enumerate(rows["nt_xent"]):
            row["blocks"] = {"row": index}
        find = _launch._blocks.__wrapped__
        assert find("nt_xent", device, "float16", (("d", 9),))["row"] == 1
        assert find("nt_xent", device, "float32", (("d", 3),))["row"] == 2
        with pytest.raises(LookupError, match=r"no entry for nt_xent on cpu, float32, \{'d': 4\}"):
            find("nt_xent", device, "float32", (("d", 4),))
    finally:
        _launch.table = table


def test_tuned_rows_come_before_those_they_refine(tmp_path):
    from cmrfast.ops.triton import tune

    def case(**up_to):
        return tune.Case("nt_xent", "nt_xent", "float16", tuple, tuple, {}, up_to)

    table = {"nt_xent": [{"blocks": {"any": 0}}]}
    for length in (128, 64, 256):
        tune.put(table, case(d=length), "gpu", {"from": length})
        tune.put(table, case(d=length, rows=1024), "gpu", {"from": length + 1})
    tune.put(table, case(d=64), "gpu", {"from": 0})
    order = [row["blocks"].get("from") for row in table["nt_xent"]]
    assert order == [65, 0, 129, 128, 257, 256, None]
    tune.write(table, tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text()) == table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_refused():
    command = [sys.executable, "-m", "cmrfast.ops.triton.tune"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "tune: needs a CUDA device; torch sees none"


def test_tuning_cases_name_rows_and_ops_that_exist():
    from cmrfast.ops.triton import KERNELS, _launch, tune

    for case in tune.cases():
        assert case.rows in _launch.table()
        assert case.op in KERNELS
        keys = set(_launch.table()[case.rows][-1]["blocks"])
        assert set(next(case.options())) <= keys | {"num_stages"}
