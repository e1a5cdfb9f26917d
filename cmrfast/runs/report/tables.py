"""The tables of a report: scores beside published ones, and every patient."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmrfast import metrics
from cmrfast.runs.document import text
from cmrfast.runs.evaluate import Evaluation
from cmrfast.runs.text import format_numbers, in_words, unit_of

#: Tables of more columns are set narrower.
_MANY = 8


@dataclass(frozen=True)
class Head:
    """The head of a column: words, and what files call it."""

    words: str
    name: str = ""

    def html(self) -> str:
        """Its words; the name is a tooltip."""
        tip = f" title='{text(self.name)}'" if self.name else ""
        return f"<th scope=col{tip}>{text(self.words)}</th>"


def cards(evaluation: Evaluation, objective: str, most: int = 4) -> str:
    """The main scores, that of validation first, each with its n."""
    summary = {n: s for n, s in evaluation.summary().items() if n not in evaluation.pooled}
    names = sorted(summary, key=lambda name: name != objective)[:most]
    return f"<div class=cards>{''.join(_card(evaluation, n, summary[n]) for n in names)}</div>"


def _card(evaluation: Evaluation, name: str, summary: metrics.Summary) -> str:
    mean, sd = format_numbers([summary.mean, summary.sd])
    spread = f" <small>SD {sd}</small>" if not math.isnan(summary.sd) else ""
    patients = len(evaluation.case_means(name))
    units = "patients" if patients == len(evaluation.rows) else evaluation.units
    count = (
        "1 patient" if units == "patients" and summary.cases == 1 else f"{summary.cases} {units}"
    )
    of = "" if units == "patients" else f" of {patients} patient{'' if patients == 1 else 's'}"
    return (
        f"<div class=card title='{text(name)}'>{text(in_words(name))}<b>{mean}{spread}</b>"
        f"<span>mean of {text(count)}{of}</span></div>"
    )


def scores_table(evaluation: Evaluation) -> str:
    """Metrics down, in groups of one unit; across, this run and the rows of the paper's table.

    Numbers of a group have the same precision.
    """
    published = [row.title for row in evaluation.published.values()]
    own = ["mean", "SD", "median", "n", "both masks empty"]
    over = "<th></th><th colspan=5 scope=colgroup>this run</th>"
    over += f"<th colspan={len(published)} scope=colgroup>published</th>" if published else ""
    heads = [Head("score"), *map(Head, [*own, *published])]
    rows = evaluation.beside_published()
    body = ""
    for names in by_unit(rows).values():
        ours = [rows[name][0] for name in names]
        values = [v for s in ours for v in ((s.mean, s.sd, s.median) if s else (math.nan,) * 3)]
        numbers = format_numbers(values)
        lines = [
            [*numbers[3 * n : 3 * n + 3], *_counts(evaluation, name), *rows[name][1]]
            for n, name in enumerate(names)
        ]
        titles = [Head(in_words(name), name) for name in names]
        body += _body(heads, titles, lines)
    return _table(heads, body, over=f"<tr class=over>{over}</tr>")


def cases_table(evaluation: Evaluation) -> str:
    """Every patient's means; a column has one precision."""
    cases = list(dict.fromkeys(row.case for row in evaluation.rows))
    means = {name: evaluation.case_means(name) for name in evaluation.scores}
    columns = [format_numbers([m.get(c, math.nan) for c in cases]) for m in means.values()]
    heads = [Head("patient")]
    if len(cases) < len(evaluation.rows):
        heads.append(Head(evaluation.units))
        columns.insert(0, [str(sum(row.case == c for row in evaluation.rows)) for c in cases])
    heads += [Head(in_words(name), name) for name in means]
    return _table(
        heads, _body(heads, [Head(case) for case in cases], list(zip(*columns, strict=True)))
    )


def by_unit(scores: Iterable[str]) -> dict[str, list[str]]:
    """{unit: names of the scores that have it}, in order.

    Example:
        >>> by_unit(["lv_dice", "lv_hd95_mm", "rv_dice"])
        {'': ['lv_dice', 'rv_dice'], 'mm': ['lv_hd95_mm']}
    """
    groups: dict[str, list[str]] = {}
    for name in scores:
        groups.setdefault(unit_of(name), []).append(name)
    return groups


def definitions(values: Mapping[str, Any]) -> str:
    """Names and values, as a list."""
    return f"<dl>{''.join(f'<dt>{text(n)}</dt><dd>{text(v)}</dd>' for n, v in values.items())}</dl>"


def _counts(evaluation: Evaluation, name: str) -> list[str]:
    summary, empty = evaluation.summary().get(name), evaluation.both_empty(name)
    count = "-" if summary is None else "all" if name in evaluation.pooled else str(summary.cases)
    return [count, "-" if empty is None else str(empty)]


def _body(heads: Sequence[Head], titles: Sequence[Head], lines: Sequence[Sequence[str]]) -> str:
    """Rows, whose cells say their column too: narrow screens show them below each other."""
    rows = []
    for title, line in zip(titles, lines, strict=True):
        tip = f" title='{text(title.name)}'" if title.name else ""
        cells = "".join(
            f"<td data-head='{text(head.words)}'>{text(cell)}</td>"
            for head, cell in zip(heads[1:], line, strict=True)
        )
        rows.append(f"<tr><th scope=row{tip}>{text(title.words)}</th>{cells}</tr>")
    return f"<tbody>{''.join(rows)}</tbody>"


def _table(heads: Sequence[Head], body: str, over: str = "") -> str:
    head = "".join(head.html() for head in heads)
    wide = " class=wide" if len(heads) > _MANY else ""
    table = f"<table{wide}><thead>{over}<tr>{head}</tr></thead>{body}</table>"
    return f"<div class=scroll tabindex=0>{table}</div>"
