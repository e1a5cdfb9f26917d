"""Tables and plot of a result file.

python -m benchmarks.table results.json [--plot growth.png] [--readme README.md]
python -m benchmarks.table --kernels native.jsonl triton.jsonl

Result files are pytest-benchmark's JSON, or the lines that --record appends as they are measured.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

#: Code of a workload -> its name in the tables; the code is given beside it.
NAMES = {
    "E3": "extract 3-D",
    "E3r": "extract 3-D, reused",
    "E2": "extract 2-D",
    "N32": "nt_xent 32",
    "N4k": "nt_xent 4096",
    "N16k": "nt_xent 16,384",
    "N32k": "nt_xent 32,768",
    "D3": "batch Dice 3-D",
    "D2": "Dice + CE 2-D",
    "A2": "affine 2-D",
    "A2b": "affine 2-D, backward",
    "S3": "sample 3-D",
    "A3": "resample, rotated",
    "R3": "resample, spacing",
    "RA": "resample labels",
    "AI": "augment intensity",
    "M3": "merge 3-D",
    "P3": "load patches 3-D",
    "S2": "load slices 2-D",
    "RI": "read int16",
    "RF": "read float32",
    "RM": "read mask",
}


def read(path: Path) -> dict[str, Any]:
    """The results in a file; of a run that was cut off, those that it recorded."""
    text = path.read_text()
    if path.suffix != ".jsonl":
        return dict(json.loads(text))
    results: dict[str, Any] = {"benchmarks": []}
    for line in text.splitlines():
        entry = json.loads(line)
        if "machine_info" in entry:
            results.update(entry)
        else:
            results["benchmarks"].append(entry)
    return results


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per workload, in the order in which they ran."""
    infos = [b["extra_info"] for b in results["benchmarks"] if "workload" in b["extra_info"]]
    for info in infos:
        times = dict(info["median_ms"])
        info["ours"] = times.pop("cmrfast")
        info["compiled"] = times.pop("torch.compile", None)
        fastest = min(times.items(), key=lambda item: item[1], default=(None, math.nan))
        info["peer"], info["best"] = fastest
    return infos


def describe(workload: str, title: str) -> str:
    """Name, code and title of a workload; just code and title where it has no name."""
    name = NAMES.get(workload.partition(" ")[0])  # "E3 x16" is E3 at 16 times the size
    return f"{name} ({workload})<br>{title}" if name else f"{workload} {title}"


def table(results: dict[str, Any]) -> str:
    """The workloads as a markdown table: ratios within one run, and their geometric mean."""
    lines = [
        "| workload | cmrfast | best peer | times faster than best peer | times faster than "
        "torch.compile | times the hardware floor | peak memory: cmrfast / best peer |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    entries = rows(results)
    for e in entries:
        compiled = f"{e['compiled'] / e['ours']:.1f}x" if e["compiled"] else "-"
        peaks = (e.get("peak_mb") or {}).get("cmrfast"), (e.get("peak_mb") or {}).get(e["peer"])
        memory = "-" if None in peaks else f"{peaks[0]:.0f} / {peaks[1]:.0f} MB"
        graph = f" (graph {e['graph_ms']:.3g})" if "graph_ms" in e else ""
        best, ratio = "-", "-"
        if e["peer"]:
            best, ratio = f"{e['peer']} {_ms(e['best'])}", f"**{e['best'] / e['ours']:.1f}x**"
        lines.append(
            f"| {describe(e['workload'], e['title'])} | {_ms(e['ours'])}{graph} "
            f"| {best} | {ratio} | {compiled} "
            f"| {e['ours'] / e['floor_ms']:.1f}x | {memory} |"
        )
    return "\n".join([*lines, *_left_out(entries), "", _footer(results, entries)])


def _ms(time: float) -> str:
    """Three digits, and no power of ten."""
    return f"{float(f'{time:.3g}'):g} ms"


def _left_out(entries: list[dict[str, Any]]) -> list[str]:
    """A line for each peer that failed or did not compute the same."""
    reasons = [(e, *item) for e in entries for item in e.get("left_out", {}).items()]
    lines = [f"* {e['workload']}, {name} left out: {reason}" for e, name, reason in reasons]
    return ["", *lines] if lines else []


def kernels_table(runs: dict[str, dict[str, Any]]) -> str:
    """Runs with different kernels beside one another, each compared within itself."""
    names = [f"{name}: ms, times torch, times torch.compile" for name in runs]
    lines = [f"| workload | {' | '.join(names)} |", "|---|" + "---:|" * len(runs)]
    by_run = [{e["workload"]: e for e in rows(results)} for results in runs.values()]
    for workload in dict.fromkeys(name for entries in by_run for name in entries):
        cells = []
        for entry in (entries.get(workload) for entries in by_run):
            if entry is None:
                cells.append("-")
                continue
            compiled = f"{entry['compiled'] / entry['ours']:.1f}x" if entry["compiled"] else "-"
            ratio = f"{entry['best'] / entry['ours']:.1f}x" if entry["peer"] else "-"
            cells.append(f"{entry['ours']:.3g}, {ratio}, {compiled}")
        lines.append(f"| {workload} | {' | '.join(cells)} |")
    return "\n".join(lines)


def jobs_table(results: dict[str, Any]) -> str:
    """Whole jobs as a markdown table, with the fraction of our time spent on making batches."""
    lines = [
        "| job | cmrfast | plain torch + MONAI | times faster | time spent on data "
        "| peak memory: cmrfast / peer |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    entries = rows(results)
    for e in entries:
        data = f"{e['data_ms']['cmrfast'] / e['ours']:.1%}" if e["data_ms"] else "-"
        peaks = " / ".join(f"{e['peak_mb'][variant]:.0f}" for variant in ("cmrfast", e["peer"]))
        lines.append(
            f"| {e['workload']}: {e['title']} | {e['ours'] / 1e3:.3g} s | {e['best'] / 1e3:.3g} s "
            f"| **{e['best'] / e['ours']:.2f}x** | {data} | {peaks} MB |"
        )
    return "\n".join([*lines, "", _footer(results, entries)])


def _footer(results: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    logs = [math.log(e["best"] / e["ours"]) for e in entries if e["peer"]]
    mean = math.exp(sum(logs) / len(logs)) if logs else math.nan
    machine, rates = results["machine_info"], entries[0]["rates"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return (
        f"Geometric mean over best peers: **{mean:.1f}x** faster. Medians of one run in which all "
        "implementations are timed in turn; peak memory excludes the inputs. "
        f"{_place(machine, rates)}; copy {rates['copy_gb_s']:.0f} GB/s, "
        f"matrix product {rates['matmul_gflop_s']:.0f} GFLOP/s; {versions}."
    )


def _place(machine: dict[str, Any], rates: dict[str, float]) -> str:
    if "matmul_bf16_gflop_s" not in rates:  # only measured on a GPU
        busy = f", {machine['busy_cores']} cores busy" if machine.get("busy_cores") else ""
        threads = f"{machine['threads']} threads{busy}"
        return f"{machine['cpu']}, {threads}, {machine['cpu_level']} kernels"
    kinds = ", ".join(f"{op} {kind}" for op, kind in machine["gpu_kernels"].items())
    bf16 = rates["matmul_bf16_gflop_s"]
    return f"{machine['gpu']}, kernels: {kinds}; bfloat16 matrix product {bf16:.0f} GFLOP/s"


def growth_table(results: dict[str, Any]) -> str:
    """How time grows with size; the last column is the factor per doubling of the size."""
    lines = ["| op | sizes | cmrfast, ms | time per doubling of size |", "|---|---|---|---|"]
    for op, points in growth(results).items():
        sizes = ", ".join(f"{p['size']:g}" for p in points)
        times = ", ".join(f"{p['median_ms']['cmrfast']:.3g}" for p in points)
        doubling = ", ".join(f"{x:.2f}x" for x in doublings(points))
        lines.append(f"| `{op}` | {sizes} | {times} | {doubling} |")
    return "\n".join(lines)


def doublings(points: list[dict[str, Any]]) -> list[float]:
    """The factor in our time per doubling, from each size to the next; 2 where time is linear."""
    factors = []
    for a, b in pairwise(points):
        slope = math.log(b["median_ms"]["cmrfast"] / a["median_ms"]["cmrfast"])
        factors.append(2 ** (slope / math.log(b["size"] / a["size"])))
    return factors


def growth(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Points of the size sweep by op."""
    points = defaultdict(list)
    for b in results["benchmarks"]:
        if "growth" in b["extra_info"]:
            points[b["extra_info"]["growth"]].append(b["extra_info"])
    return dict(points)


def plot(results: dict[str, Any], path: Path) -> None:
    """Time over size, with peers and floor: one log-log panel per op."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = growth(results)
    figure, axes = pyplot.subplots(2, math.ceil(len(panels) / 2), figsize=(13, 7.5))
    for ax, (op, points) in zip(axes.flat, panels.items(), strict=False):
        sizes = [p["size"] for p in points]
        names = {name for p in points for name in p["median_ms"]}
        for name in sorted(
            names, key=lambda name: (name != "cmrfast", name)
        ):  # same colour for cmrfast in each panel
            times = [p["median_ms"].get(name, math.nan) for p in points]
            ours = name == "cmrfast"
            ax.plot(sizes, times, "o-", label=name, lw=2.5 if ours else 1, zorder=3 if ours else 2)
        ax.plot(sizes, [p["floor_ms"] for p in points], "k:", label="floor")
        ax.set(xscale="log", yscale="log", title=op, ylabel="ms")
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
        ax.set_xticks([], minor=True)
        ax.set_xlabel("rows" if op == "nt_xent" else "size (1: the workload of the table)")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the tables; optionally draw the plot and update the table in a README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument(
        "--kernels", action="store_true", help="one table of files that differ in their kernels"
    )
    parser.add_argument("--plot", type=Path, help="where to write the growth plot")
    parser.add_argument(
        "--readme", type=Path, help="file whose table, between its marks, is replaced"
    )
    options = parser.parse_args()
    if options.kernels:
        found = [path for path in options.results if path.exists()]
        print(kernels_table({path.stem: read(path) for path in found}))
        return
    results = read(options.results[0])
    if not rows(results):
        sys.exit(f"{options.results[0]}: no workload was measured")
    whole_jobs = any(entry.get("data_ms") for entry in rows(results))
    text = jobs_table(results) if whole_jobs else table(results)
    print(text)
    if growth(results):
        print(f"\n{growth_table(results)}")
        if options.plot:
            plot(results, options.plot)
    if options.readme:
        before, mark, rest = options.readme.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (mark and end):
            sys.exit(f"{options.readme} has no {BEGIN} ... {END}")
        options.readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
