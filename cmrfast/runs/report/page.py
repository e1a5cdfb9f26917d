"""The HTML of a report: one page that needs no other file."""

import base64
import html
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

import cmrfast
from cmrfast.methods import Picture
from cmrfast.runs.evaluate import Evaluation
from cmrfast.runs.report.figures import draw_slice, validations
from cmrfast.runs.text import format_numbers, in_words
from cmrfast.train.run import Run

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;
color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:.8rem 0}
th,td{padding:.2rem .8rem;border-bottom:1px solid #eee;text-align:right;
font-variant-numeric:tabular-nums}
th{min-width:4.5rem;vertical-align:bottom;border-bottom:2px solid #999}
th:first-child,td:first-child{text-align:left}td:first-child{white-space:nowrap}
th.over{text-align:left;padding-left:2rem;border-bottom:1px solid #eee}
.about td{text-align:left;vertical-align:top;overflow-wrap:anywhere}
.notes{background:#fff6e0;border-left:4px solid #e69f00;padding:.6rem 1rem;margin:1rem 0}
.notes p{margin:.2rem 0}
.scroll{overflow-x:auto}.case{display:inline-block;vertical-align:top;margin:0 1rem 1.5rem 0;
max-width:100%}
.case img{display:none;height:20rem;max-width:100%;object-fit:contain;background:#000}
.case img.on{display:block}
.case input{width:100%}img.plot{max-width:100%}.note{color:#666}
"""
_SCRIPT = """
for (const c of document.querySelectorAll('.case')) {
  const images = c.querySelectorAll('img'), slider = c.querySelector('input');
  const show = () => images.forEach((x, i) => x.classList.toggle('on', i == slider.value));
  slider.addEventListener('input', show); show();
}
"""
_RESEARCH = "For research only. Not a medical device; not for use on patients."


def render(
    run: Run,
    evaluation: Evaluation,
    log: Sequence[Mapping[str, Any]],
    curves: bytes,
    pictures: Mapping[str, Picture],
) -> str:
    """The page.

    Args:
        run: that it is about.
        evaluation: of one part of its split.
        log: of the training.
        curves: figure of the training, PNG.
        pictures: of single cases, by title.
    """
    name = _text(run.plan.method)
    notes = "".join(f"<p>{_text(note)}</p>" for note in [*evaluation.notes, _RESEARCH])
    structures = "".join(f"<br>{_text(line)}" for line in evaluation.structures())
    body = [
        f"<h1>{name}</h1><div class=notes>{notes}</div>{_about(run)}",
        f"<h2>Training</h2>{_training(log, curves)}",
        f"<h2>Scores on the {_text(evaluation.part)} patients</h2>",
        f"<p>{_text(evaluation.size)}{structures}</p>{_scores(evaluation)}{_protocols(evaluation)}",
        "<h2>Slices of single patients</h2><p class=note>Move the slider through the slices.</p>",
        *(_case(title, picture, run.method.structures) for title, picture in pictures.items()),
        "<h2>Every patient</h2><p class=note>Means; "
        f"evaluation-{_text(evaluation.part)}.csv has every row.</p>{_cases(evaluation)}",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{name}</title><style>{_STYLE}</style>"
        f"<body>{''.join(body)}<script>{_SCRIPT}</script></body></html>\n"
    )


def _about(run: Run) -> str:
    plan, split, trained = run.plan, run.plan.split, run.conditions
    here = f"cmrfast {cmrfast.__version__}, torch {torch.__version__}"
    here += f", Python {platform.python_version()}"
    facts = {
        "paper": run.method.paper,
        "patients": f"{len(split.train)} to train, {len(split.validate)} to validate, "
        f"{len(split.test)} to test",
        "data": f"{plan.layout}, {run.data}",
        "steps": f"{run.checkpoint().step} of {plan.steps}",
        "seed": plan.seed,
        "config": _fields(plan.config),
        "recipe": _fields(plan.recipe),
        "trained with": f"cmrfast {trained.cmrfast}, torch {trained.torch}, "
        f"Python {trained.python}, on {trained.device}"
        if trained
        else "unknown versions",
        "reported with": here,
    }
    return _table("about", [[_text(name), _text(value)] for name, value in facts.items()])


def _training(log: Sequence[Mapping[str, Any]], curves: bytes) -> str:
    scores = validations(log)
    validated = (
        f"<p>Validation score {format_numbers([scores[0][1]])[0]} at step {scores[0][0]}.</p>"
        if len(scores) == 1
        else ""
    )
    return f"<img class=plot alt='loss over steps' src='{_inline(curves)}'>{validated}"


def _case(title: str, picture: Picture, names: Mapping[int, str]) -> str:
    images = [draw_slice(picture, k, names) for k in range(picture.image.shape[2])]
    pictures = "".join(f"<img alt='slice {k}' src='{_inline(p)}'>" for k, p in enumerate(images))
    middle = len(images) // 2
    return (
        f"<div class=case><b>{_text(title)}</b><br>"
        f"<span class=note>predicted{' | reference' if picture.reference else ''}</span>{pictures}"
        f"<input type=range min=0 max={len(images) - 1} value={middle}></div>"
    )


def _scores(evaluation: Evaluation) -> str:
    """Metrics down; across, this run and the rows of the paper's table."""
    published = [row.title for row in evaluation.published.values()]
    paper = f"<th colspan={len(published)} class=over>published</th>" if published else ""
    over = f"<tr><th class=over></th><th colspan=5 class=over>this run</th>{paper}</tr>"
    head = ["score", "mean", "SD", "median", "n", "both masks empty", *published]
    lines = []
    for name, (ours, theirs) in evaluation.beside_published().items():
        empty = evaluation.both_empty(name)
        counts = ["-" if ours is None else "all" if name in evaluation.pooled else str(ours.cases)]
        counts.append("-" if empty is None else str(empty))
        numbers = format_numbers([ours.mean, ours.sd, ours.median]) if ours else ["-"] * 3
        lines.append([_head(name), *map(_text, [*numbers, *counts, *theirs])])
    return _scrolling(over + _heads(map(_text, head)), lines)


def _protocols(evaluation: Evaluation) -> str:
    """On whom and how the published rows were measured, each protocol once."""
    return "".join(
        f"<p class=note>Published, {_text('; '.join(titles))}: {_text(protocol)}.</p>"
        for protocol, titles in evaluation.protocols.items()
    )


def _cases(evaluation: Evaluation) -> str:
    names, cases = list(evaluation.scores), list(dict.fromkeys(r.case for r in evaluation.rows))
    summaries = [evaluation.summary(case) for case in cases]
    columns = [format_numbers([s[n].mean for s in summaries]) for n in names]
    counts = [str(sum(row.case == case for row in evaluation.rows)) for case in cases]
    several = len(cases) < len(evaluation.rows)  # units of a patient
    head = ["patient", *(["n"] if several else []), *map(_head, names)]
    body = [map(_text, cases), *([counts] if several else []), *columns]
    return _scrolling(_heads(head), zip(*body, strict=True))


def _head(score: str) -> str:
    """A score in words; the name that files use is its tooltip."""
    return f"<span title='{_text(score)}'>{_text(in_words(score))}</span>"


def _heads(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<th>{cell}</th>' for cell in cells)}</tr>"


def _scrolling(heads: str, lines: Iterable[Iterable[str]]) -> str:
    return f"<div class=scroll>{_table('', lines, heads)}</div>"


def _table(kind: str, lines: Iterable[Iterable[str]], heads: str = "") -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table class='{kind}'>{heads}{rows}</table>"


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return html.escape(str(value))


def _inline(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
