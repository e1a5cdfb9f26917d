"""The benchmark harness: all variants agree at a small size; tables show what was measured."""

import json

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="the extra [bench] is not installed")

from benchmarks import measure, table, workloads
from benchmarks.measure import interleaved
from benchmarks.workloads import compat, loading
from benchmarks.workloads.jobs import Job, flair_inference, step_of

SMALL = {
    "extract_3d": lambda: workloads.extract_3d(0.05),
    "extract_3d_reused": lambda: workloads.extract_3d(0.05, reuse=True),
    "extract_2d": lambda: workloads.extract_2d(0.02),
    "pairing": lambda: workloads.pairing(32),
    "dice_3d": lambda: workloads.dice_3d(0.05),
    "dice_2d": lambda: workloads.dice_2d(0.05),
    "affine_2d": lambda: workloads.affine_2d(0.1),
    "affine_2d_backward": lambda: workloads.affine_2d(0.1, backward=True),
    "resample_3d": lambda: workloads.resample_3d(0.01, rotated=True),
    "resample_3d_spacing": lambda: workloads.resample_3d(0.01),
    "labels_3d": lambda: workloads.labels_3d(0.02),
    "intensities_3d": lambda: workloads.intensities_3d(0.01),
    "sample_3d": lambda: workloads.sample_3d(0.1),
    "merge_3d": lambda: workloads.merge_3d(0.25),
    "patches_3d": lambda: loading.patches_3d(0.03),
    "slices_2d": lambda: loading.slices_2d(0.05),
    "reading": lambda: loading.reading("int16", shrink=4),
    "reading_float32": lambda: loading.reading("float32", shrink=4),
}


COMPAT_SMALL = {
    "SlidingWindowInferer": lambda: compat.sliding_windows(0.01),
    "DiceCELoss": lambda: compat.loss("DiceCELoss", 0.01),
    "DiceLoss": lambda: compat.loss("DiceLoss", 0.01),
    "RandCropByPosNegLabeld": lambda: compat.crops(0.01),
    "RandAffined": lambda: compat.affines(0.05),
    "Spacingd": lambda: compat.spacing(0.01),
}


def test_other_processes_compute_until_the_end(monkeypatch):
    started = []

    def start(*args):
        started.append(popen(*args))
        return started[-1]

    popen = measure.subprocess.Popen
    monkeypatch.setattr(measure.subprocess, "Popen", start)
    with measure.busy_cores(2):
        assert [process.poll() for process in started] == [None, None]
    assert [process.poll() for process in started] == [-9, -9]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_all_ways_agree(name):
    SMALL[name]().check()


_TINY_TRANSUNET = {
    **{"image": 32, "root": 32, "units": (1, 1, 1), "width": 8, "depth": 1},
    **{"heads": 2, "hidden": 16, "decoder": (16, 8, 8, 8, 8)},
}
TINY_JOBS = [
    Job("siamese_lesion", 4, 3, {"patch": 32}, {"spacing_mm": 3.0}),
    Job("joint_scar", 2, 3, _TINY_TRANSUNET),
    Job("joint_registration", 2, 3, {"widths": (4, 8)}, {"side": 64, "spacing_mm": 2.6}),
    Job("new_lesions", 2, 4, {}, {"patch": 16, "spacing_mm": 4.0, "overlap": 4}),
    Job("adversarial_transfer", 2, 3, {"size": 32, "width": 8}, {"lge_masks": 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize("job", TINY_JOBS, ids=lambda job: job.name)
def test_a_step_in_plain_torch_loses_the_same(job):
    pytest.importorskip("monai")
    step_of(job).check()


@pytest.mark.slow
def test_inference_in_plain_torch_says_the_same():
    pytest.importorskip("monai")
    flair_inference(0.0, side=16).check()


@pytest.mark.slow
@pytest.mark.parametrize("name", compat.COMPAT)
def test_drop_ins_agree_with_monai(name):
    pytest.importorskip("monai")
    COMPAT_SMALL[name]().check()


def test_a_wrong_way_is_found():
    workload = workloads.extract_2d(0.02)
    right = workload.variants["cmrfast"]
    workload.variants["wrong"] = lambda: [x + 1 for x in right()]
    with pytest.raises(AssertionError, match="wrong"):
        workload.check()


def test_peers_that_fail_or_differ_are_left_out_by_name():
    workload = workloads.extract_2d(0.02)
    right = workload.variants["torch slices"]

    def fails():
        raise torch.OutOfMemoryError("too large")

    workload.variants |= {"wrong": lambda: [x + 1 for x in right()], "fails": fails}
    reasons = workload.drop_failing()
    assert reasons.keys() == {"wrong", "fails"}
    assert reasons["fails"] == "OutOfMemoryError: too large"
    assert {"cmrfast", "torch slices"} <= workload.variants.keys()
    assert not reasons.keys() & workload.variants.keys()


def test_ours_may_not_fail():
    workload = workloads.extract_2d(0.02)
    workload.variants["cmrfast"] = lambda: 1 // 0
    with pytest.raises(ZeroDivisionError):
        workload.drop_failing()


@pytest.mark.parametrize("value", [5.0, float("nan")])
def test_a_share_of_entries_may_differ(value):
    ours = torch.ones(1000)
    others = ours.clone()
    others[:2] = value
    variants = {"cmrfast": lambda: [ours], "torch": lambda: [others]}
    workloads.Workload(variants, outliers=2e-3).check()
    with pytest.raises(AssertionError, match="torch"):
        workloads.Workload(variants, outliers=1e-3).check()


def test_a_machine_without_git_is_described(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert measure.machine()["commit"] == ""


def test_a_wrong_place_is_found(monkeypatch):
    pytest.importorskip("monai")
    workload = loading.slices_2d(0.02)
    workload.verify()
    monkeypatch.setattr("benchmarks.loaders.theta_from_centred", lambda *_: torch.eye(3)[:2] * 1.02)
    with pytest.raises(AssertionError):
        workload.verify()


def test_zeros_do_not_pass_for_a_tiny_gradient():
    workload = workloads.dice_2d(0.025)
    ours = workload.variants["cmrfast"]
    workload.variants = {"cmrfast": ours, "zeros": lambda: [0 * x for x in ours()]}
    with pytest.raises(AssertionError, match="zeros"):
        workload.check()


def test_interleaved_runs_every_way_in_turn():
    order = []
    interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "a", "b", "b"] * 3


def test_table_gives_ratios_and_their_geometric_mean():
    rates = {"copy_gb_s": 10.0, "fresh_gb_s": 5.0, "matmul_gflop_s": 100.0}
    common = {"rates": rates, "title": "job", "peak_mb": {"cmrfast": 1, "torch": 5, "x": 5}}
    first = {"cmrfast": 2.0, "torch": 8.0, "x": 9.0, "torch.compile": 3.0}
    infos = [
        {"workload": "A", "median_ms": first, "floor_ms": 1.0, **common},
        {"workload": "B", "median_ms": {"cmrfast": 1.0, "x": 9.0}, "floor_ms": 0.5, **common},
    ]
    machine = {"cpu": "a cpu", "threads": 2, "cpu_level": "avx2", "versions": {"torch": "2.13"}}
    results = {"machine_info": machine, "benchmarks": [{"extra_info": i} for i in infos]}
    text = table.table(results)
    assert "| A job | 2 ms | torch 8 ms | **4.0x** | 1.5x | 2.0x | 1 / 5 MB |" in text
    assert "| B job | 1 ms | x 9 ms | **9.0x** | - | 2.0x | 1 / 5 MB |" in text
    assert "Geometric mean over best peers: **6.0x**" in text


def test_table_of_recorded_lines_names_the_peers_left_out(tmp_path):
    rates = {"copy_gb_s": 10.0, "fresh_gb_s": 5.0, "matmul_gflop_s": 100.0}
    info = {"workload": "A", "title": "job", "rates": rates, "floor_ms": 1.0}
    info |= {"median_ms": {"cmrfast": 2.0}, "left_out": {"torch": "OutOfMemoryError: too large"}}
    machine = {"cpu": "a cpu", "threads": 2, "cpu_level": "avx2", "versions": {"torch": "2.13"}}
    lines = [{"machine_info": machine}, {"extra_info": info}]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = table.table(table.read(path))
    assert "| A job | 2 ms | - | - | - | 2.0x | - |" in text
    assert "* A, torch left out: OutOfMemoryError: too large" in text


def test_table_of_kernels_sets_runs_beside_one_another():
    def run(**workloads):
        infos = [{"workload": name, "median_ms": times} for name, times in workloads.items()]
        return {"benchmarks": [{"extra_info": info} for info in infos]}

    native = run(A={"cmrfast": 2.0, "torch": 8.0, "torch.compile": 3.0})
    triton = run(A={"cmrfast": 4.0, "torch": 8.0}, B={"cmrfast": 1.0, "torch": 9.0})
    text = table.kernels_table({"native": native, "triton": triton})
    assert "| A | 2, 4.0x, 1.5x | 4, 2.0x, - |" in text
    assert "| B | - | 1, 9.0x, - |" in text


def test_table_of_whole_jobs_says_what_data_takes():
    rates = {"copy_gb_s": 10.0, "fresh_gb_s": 5.0, "matmul_gflop_s": 100.0}
    common = {"rates": rates, "title": "batch 4", "peak_mb": {"cmrfast": 10, "torch + MONAI": 50}}
    times = {"cmrfast": 2000.0, "torch + MONAI": 3000.0}
    infos = [
        {"workload": "a, step", "median_ms": times, "data_ms": {"cmrfast": 9.0}, **common},
        {"workload": "a, inference", "median_ms": times, "data_ms": {}, **common},
    ]
    machine = {"cpu": "a cpu", "threads": 2, "cpu_level": "avx2", "versions": {"torch": "2.13"}}
    results = {"machine_info": machine, "benchmarks": [{"extra_info": i} for i in infos]}
    text = table.jobs_table(results)
    assert "| a, step: batch 4 | 2 s | 3 s | **1.50x** | 0.4% | 10 / 50 MB |" in text
    assert "| a, inference: batch 4 | 2 s | 3 s | **1.50x** | - | 10 / 50 MB |" in text


def test_table_of_a_gpu_names_it_its_kernels_and_what_a_graph_takes():
    rates = {"copy_gb_s": 4000.0, "matmul_gflop_s": 5e4, "matmul_bf16_gflop_s": 7e5}
    times = {"cmrfast": 2.0, "torch": 8.0, "torch.compile": 3.0}
    info = {"workload": "A", "title": "job", "rates": rates, "median_ms": times, "floor_ms": 1.0}
    machine = {"gpu": "a gpu", "gpu_kernels": {"nt_xent": "triton"}, "versions": {"torch": "2.11"}}
    benchmarks = [{"extra_info": {**info, "graph_ms": 0.5}}]
    text = table.table({"machine_info": machine, "benchmarks": benchmarks})
    assert "| A job | 2 ms (graph 0.5) | torch 8 ms |" in text
    assert "a gpu, kernels: nt_xent triton; bfloat16 matrix product 700000 GFLOP/s; copy" in text


def test_growth_table_says_what_a_doubling_costs():
    points = [(1, 1.0), (2, 2.0), (8, 32.0)]
    infos = [{"growth": "op", "size": s, "median_ms": {"cmrfast": t}} for s, t in points]
    text = table.growth_table({"benchmarks": [{"extra_info": i} for i in infos]})
    assert "| `op` | 1, 2, 8 | 1, 2, 32 | 2.00x, 4.00x |" in text


def test_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    infos = [
        {"growth": op, "size": s, "floor_ms": s / 2, "median_ms": {"cmrfast": s, "torch": 3 * s}}
        for op in ("a", "b", "c")
        for s in (1.0, 2.0)
    ]
    table.plot({"benchmarks": [{"extra_info": i} for i in infos]}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
