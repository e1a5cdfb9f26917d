"""The results page: tables and figures of every study, from its result file.

python -m studies.page
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"
_HERE = Path(__file__).parent


def table(content: dict[str, Any]) -> str:
    """A markdown table: a row per arm; mean ± SD over seeds of each score, published values."""
    arms = content["arms"].values()
    has_published = {s: any(s in arm["published"] for arm in arms) for s in content["scores"]}
    head, rule = ["variant"], ["---"]
    for score, published in has_published.items():
        head += [_title(score), *(["published"] if published else [])]
        rule += ["---:", *(["---:"] if published else [])]
    lines = [head, rule]
    for name, arm in content["arms"].items():
        line = [name]
        for score, published in has_published.items():
            line.append(mean_sd(arm["scores"].get(score, [])))
            if published:
                line.append(arm["published"].get(score, "-"))
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_sd(values: list[float | None]) -> str:
    """Mean ± sample SD, with three significant digits of the mean."""
    valid = [v for v in values if v is not None and not math.isnan(v)]
    if not valid:
        return "-"
    mean = statistics.fmean(valid)
    digits = max(0, 2 - math.floor(math.log10(abs(mean) or 1)))
    sd = f" ± {statistics.stdev(valid):.{digits}f}" if len(valid) > 1 else ""
    return f"{mean:.{digits}f}{sd}"


def tests(content: dict[str, Any]) -> str:
    """The paired tests as a markdown list."""
    return "\n".join(
        f"* {_title(t['score'])}, `{t['first']}` minus `{t['second']}`: {t['difference']:+.3g} "
        f"(paired t-test, n = {t['units']}, p {_p(t['p'])})"
        for t in content["tests"]
    )


def section(content: dict[str, Any]) -> str:
    """The generated part of a study's section, between its marks."""
    method, versions = content["method"], content["versions"]
    patients = content["patients"]
    duration = f", {content['minutes']:.0f} minutes in all" if content["minutes"] else ""
    figure = f"results/{method}-{content['scale']}"
    changes = ", ".join(f"{k} {v}" for k, v in content["changes"].items()) or "none"
    facts = "\n".join(f"* {name}: {_fact(value)}" for name, value in content["facts"].items())
    parts = [
        table(content),
        f"{content['data']}: {patients['train']} training, {patients['validate']} validation and "
        f"{patients['test']} test patients; {content['seeds']} seeds, {content['steps']} steps "
        f"each{duration}, on {versions['cores']} cores, {versions['cpu']}; "
        f"torch {versions['torch']}. Changed from the published recipe: {changes}.",
        "\n".join(part for part in (tests(content), facts) if part),
        f"![scores and curves]({figure}.png)",
        f"![test patients]({figure}-cases.png)",
    ]
    return "\n\n".join(part for part in parts if part)


def update(page: Path, results: Path) -> None:
    """Replace each study's section between its marks."""
    text = page.read_text("utf-8")
    for file in sorted(results.glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        begin, end = (mark.format(file.stem) for mark in (BEGIN, END))
        before, mark, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not (mark and closing):
            raise SystemExit(f"{page} has no {begin} ... {end}")
        text = f"{before}{begin}\n{section(content)}\n{end}{after}"
    page.write_text(text, "utf-8")


def _title(score: str) -> str:
    return score.replace("_", " ")


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return mean_sd(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    update(_HERE / "README.md", _HERE / "results")
