"""The results page: claims, tables and figures of every study, from its result file.

python -m studies.page
"""

import importlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmrfast.models import MODELS
from studies.design import Study

CLAIMS = "claims"  # the mark of the first table
NOT_RUN = "not run"
OURS = "our question: {}"
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
    return _markdown(lines)


def mean_sd(values: list[float | None]) -> str:
    """Mean ± sample SD, with three significant digits of the mean."""
    valid = [v for v in values if v is not None and not math.isnan(v)]
    if not valid:
        return "-"
    mean = statistics.fmean(valid)
    digits = max(0, 2 - math.floor(math.log10(abs(mean) or 1)))
    sd = f" ± {statistics.stdev(valid):.{digits}f}" if len(valid) > 1 else ""
    return f"{mean:.{digits}f}{sd}"


def claims(contents: Sequence[dict[str, Any]]) -> str:
    """A row per planned comparison: the paper's claim, the verdict, and the result."""
    lines = [["claim of the paper", "comparison", "verdict", "result"], ["---"] * 4]
    for content in contents:
        for c in content["comparisons"]:
            claim = OURS.format(c["claim"]) if c["verdict"] == "ours" else c["claim"]
            test = f"{_name(content)}: {_test(c, content)}"
            lines.append([claim, test, f"**{c['verdict']}**", _result(c, content)])
    return _markdown(lines)


def other_scores(content: dict[str, Any]) -> str:
    """Intervals of the scores that have no verdict, as a markdown table."""
    if not content["other_scores"]:
        return ""
    units = (
        {"repeats": "seeds"} if content["repeats"] else {"patients": "patients", "seeds": "seeds"}
    )
    lines = [["other scores", "difference [95 % interval]", *units]]
    lines += [["---", "---:", *["---:"] * len(units)]]
    for c in content["other_scores"]:
        test = f"{_title(c['score'])}, {_arms(c)}"
        lines.append([test, _difference(c), *(str(c[unit]) for unit in units.values())])
    return _markdown(lines)


def paper_tests(content: dict[str, Any]) -> str:
    """The paper's own tests: pairs of arms down, scores across."""
    tests = content["as_the_paper_tested"]
    if not tests:
        return "The paper reports no test."
    scores = list(dict.fromkeys(t["score"] for t in tests))
    cells = {
        (_arms(t), t["score"]): f"{t['difference']:+.3g} (n = {t['units']}, p {_p(t['p'])})"
        for t in tests
    }
    lines = [["as the paper tested", *map(_title, scores)], ["---", *["---:"] * len(scores)]]
    for pair in dict.fromkeys(_arms(t) for t in tests):
        lines.append([pair, *(cells.get((pair, score), "-") for score in scores)])
    note = (
        f"Paired t-test, unit: {tests[0]['unit']} (n), averaged over seeds. Several of them are of "
        "one patient and not independent, so these p are too small; no verdict depends on them."
    )
    return f"{_markdown(lines)}\n\n{note}"


def power(content: dict[str, Any]) -> str:
    """What the study could find, and the controls of its phantoms."""
    lines = [
        f"* {_title(p['score'])}, {_arms(p)}: {_number(p['detectable'])} would be found with 80 % "
        f"power ({p['patients']} patients{' in all' if content['repeats'] else ''}, {p['seeds']} "
        f"{'repeats' if content['repeats'] else 'seeds'}; from two seeds on other patients)"
        for p in content["power"]
    ]
    controls = [f"* control, {_control(c)}" for c in content["controls"]]
    return "\n".join(
        [
            *(lines or ["* The power was not estimated."]),
            *(controls or ["* No control of the phantoms has been run."]),
        ]
    )


def peers(content: dict[str, Any]) -> str:
    """Other programs on the same patients, as a markdown table; scores are means as of one seed."""
    if not content.get("peers"):
        return ""
    scores = [s for s in content["scores"] if any(s in peer["scores"] for peer in content["peers"])]
    lines = [
        ["other programs", "version", *map(_title, scores), "test patients", "minutes", "how"],
        ["---", "---", *["---:"] * len(scores), "---:", "---:", "---"],
    ]
    for peer in content["peers"]:
        values = (mean_sd([peer["scores"].get(score)]) for score in scores)
        minutes = f"{peer['seconds'] / 60:.1f}"
        lines.append(
            [peer["name"], peer["version"], *values, str(peer["patients"]), minutes, peer["note"]]
        )
    return _markdown(lines)


def section(content: dict[str, Any]) -> str:
    """The generated part of a study's section, between its marks."""
    method, versions = content["method"], content["versions"]
    patients = content["patients"]
    duration = (
        f", {content['minutes']:.0f} minutes without the controls" if content["minutes"] else ""
    )
    stem = "-".join(part for part in (method, content["experiment"], content["scale"]) if part)
    figure = f"results/{stem}"
    each, trainings = (" of each repeat", "repeats") if content["repeats"] else ("", "seeds")
    changes = ", ".join(f"{k} {v}" for k, v in content["changes"].items()) or "none"
    facts = "\n".join(f"* {name}: {_fact(value)}" for name, value in content["facts"].items())
    parts = [
        claims([content]),
        table(content),
        f"{content['data']}: {patients['train']} training, {patients['validate']} validation and "
        f"{patients['test']} test patients{each}; {content['seeds']} {trainings}, "
        f"{content['steps']} steps each{duration}, on {versions['cores']} cores, "
        f"{versions['cpu']}; torch {versions['torch']}. "
        f"Changed from the published recipe: {changes}.",
        peers(content),
        other_scores(content),
        paper_tests(content),
        "\n".join(part for part in (power(content), facts) if part),
        f"![scores and curves]({figure}.png)",
        f"![test patients]({figure}-cases.png)",
    ]
    return "\n\n".join(part for part in parts if part)


def update(page: Path, results: Path, studies: Sequence[Study]) -> None:
    """Replace the table of all claims, and each study's section, each between its marks.

    Args:
        page: to change.
        results: folder of the result files.
        studies: of which the small scale has a section, whether or not it was run.
    """
    contents = {study.stem("small"): _not_run(study) for study in studies}
    parts = dict.fromkeys(contents, "This experiment has not been run yet.")
    for file in sorted(results.glob("*.json")):
        contents[file.stem] = json.loads(file.read_text("utf-8"))
        parts[file.stem] = section(contents[file.stem])
    parts[CLAIMS] = claims(list(contents.values()))
    text = page.read_text("utf-8")
    for name, part in parts.items():
        begin, end = (mark.format(name) for mark in (BEGIN, END))
        before, mark, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not (mark and closing):
            raise SystemExit(f"{page} has no {begin} ... {end}")
        text = f"{before}{begin}\n{part}\n{end}{after}"
    page.write_text(text, "utf-8")


def all_studies() -> list[Study]:
    """Every experiment of every method."""
    modules = (importlib.import_module(f"studies.{name}") for name in MODELS)
    return [study for module in modules for study in module.STUDIES]


def _not_run(study: Study) -> dict[str, Any]:
    """The entry of a study without a result file in the table of claims."""
    return {
        "method": study.method,
        "experiment": study.experiment,
        "scale": "small",
        "repeats": study.small.repeats,
        "comparisons": [
            {
                **asdict(planned),
                "patients": None,
                "claim": planned.claim if planned.expected else OURS.format(planned.claim),
                "verdict": NOT_RUN,
            }
            for planned in study.comparisons
        ],
    }


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _control(control: dict[str, Any]) -> str:
    value = f"{control['name']}: {_number(control['value'])}"
    if control["passed"] is None:
        return f"{value} ({control['accept']})"
    verdict = "passed" if control["passed"] else "not passed"
    return f"{value}; accepted if {control['accept']}: {verdict}"


def _arms(compared: dict[str, Any]) -> str:
    return f"`{compared['first']}` minus `{compared['second']}`"


def _name(content: dict[str, Any]) -> str:
    """Method, experiment and scale."""
    parts = (content["method"], content["experiment"].replace("_", " "), content["scale"])
    return ", ".join(part for part in parts if part)


def _test(comparison: dict[str, Any], content: dict[str, Any]) -> str:
    """What was compared, over which units."""
    test = f"{_title(comparison['score'])}, {_arms(comparison)}"
    if comparison["patients"] is None:
        return test
    if content["repeats"]:
        on = " on other splits of the same patients" if content.get("resplit") else ""
        return f"{test}, {comparison['seeds']} repeats of the whole experiment{on}"
    left_out = comparison["left_out"]
    without = f" ({left_out} more without a value)" if left_out else ""
    return (
        f"{test}, {comparison['patients']} patients{without} and {comparison['seeds']} seeds, "
        "both random"
    )


def _result(comparison: dict[str, Any], content: dict[str, Any]) -> str:
    if comparison["patients"] is None:
        return "-"
    if comparison["p_holm"] is None:
        why = "too few patients or seeds for a test"
        if content.get("resplit"):
            why = "no test, as the repeats share patients"
        return f"{_difference(comparison)}; {why}"
    return f"{_difference(comparison)}, p {_p(comparison['p_holm'])} by Holm"


def _difference(comparison: dict[str, Any]) -> str:
    if comparison["low"] is None:
        return _number(comparison["difference"], "+")
    return "{} [{}, {}]".format(
        *(_number(comparison[k], "+") for k in ("difference", "low", "high"))
    )


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3g}"


def _title(score: str) -> str:
    return score.replace("_", " ")


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return mean_sd(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    update(_HERE / "README.md", _HERE / "results", all_studies())
