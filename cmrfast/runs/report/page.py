"""The HTML of a report: one page that needs no other file."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import cmrfast
from cmrfast.methods import Picture
from cmrfast.runs.document import RESEARCH, document, text
from cmrfast.runs.evaluate import Evaluation
from cmrfast.runs.report.cases import Chosen, introduction, render_case
from cmrfast.runs.report.figures import as_svg
from cmrfast.runs.report.tables import cards, cases_table, definitions, scores_table
from cmrfast.runs.text import in_words
from cmrfast.runs.view import embed
from cmrfast.train.run import Run

_PARTS = {"train": "training", "validate": "validation", "test": "test", "all": ""}


@dataclass(frozen=True)
class Contents:
    """What a report shows besides its run and the scores.

    Args:
        figures: of training and of scores, by name.
        chosen: the patients that are shown, with their pictures.
        viewer: whether they can be opened in the viewer.
    """

    figures: Mapping[str, Any] = field(default_factory=dict)
    chosen: Sequence[tuple[Chosen, Picture]] = ()
    viewer: bool = True


def render(run: Run, evaluation: Evaluation, contents: Contents) -> str:
    """The page.

    Args:
        run: that it is about.
        evaluation: of one part of its split.
        contents: what else it shows.
    """
    method, figures = run.method, contents.figures
    structures = {value: in_words(name) for value, name in method.structures.items()}
    names = [chosen for chosen, _ in contents.chosen]
    cases = "".join(
        render_case(chosen, picture, structures, method.objective, viewer=contents.viewer)
        for chosen, picture in contents.chosen
    )
    training = {n: f for n, f in figures.items() if not n.startswith("scores")}
    scores = {n: f for n, f in figures.items() if n not in training}
    body = [
        f"<div class=top><div><h1>{text(method.name)}</h1>"
        f"<p class=subtitle>{text(method.paper)}</p></div>"
        "<button class=theme type=button>Dark</button></div>",
        f"<p class=lead>{text(_summary(run, evaluation))}</p>",
        cards(evaluation, method.objective.name),
        embed.page_notes([*evaluation.notes, RESEARCH]),
        f"<h2>Scores</h2>{_structures(evaluation)}{scores_table(evaluation)}",
        f"{_protocols(evaluation)}{_figures(scores)}",
        "<p class=note>Each point of the plots is a patient's mean; boxes span the middle half of "
        "at least five patients, with a line at the median.</p>"
        if scores
        else "",
        f"<h2>Patients</h2><p>{text(introduction(names, method.objective, evaluation))}</p>{cases}",
        "<h2>Every patient</h2><p class=note>Means over a patient; "
        f"evaluation-{text(evaluation.part)}.csv has every row.</p>{cases_table(evaluation)}",
        f"<h2>Training</h2>{_figures(training)}{_about(run)}",
        embed.embed_viewer() if contents.viewer and contents.chosen else "",
    ]
    viewer = contents.viewer and contents.chosen
    return document(
        f"{method.name}: report",
        "\n".join(body),
        styles=["report.css", *(embed.STYLES if viewer else ())],
        scripts=["theme.js", "report.js", *(embed.SCRIPTS if viewer else ())],
    )


def _summary(run: Run, evaluation: Evaluation) -> str:
    """What was trained, on how many patients, and who was scored."""
    split, step = run.plan.split, run.checkpoint().step
    trained = f"Trained on {_patients(len(split.train))}"
    trained += f", validated on {len(split.validate)}" if split.validate else ""
    part = _PARTS.get(evaluation.part, evaluation.part)
    scored = f"Scored on {evaluation.size}"
    scored += f" of the {part} set" if part else ""
    return f"{trained}, for {step} of {run.plan.steps} steps. {scored}."


def _patients(count: int) -> str:
    return f"{count} patient{'' if count == 1 else 's'}"


def _structures(evaluation: Evaluation) -> str:
    return "".join(f"<p class=note>{text(line)}</p>" for line in evaluation.structures())


def _protocols(evaluation: Evaluation) -> str:
    """On whom and how the published rows were measured, each protocol once."""
    return "".join(
        f"<p class=note>Published, {text('; '.join(titles))}: {text(protocol)}.</p>"
        for protocol, titles in evaluation.protocols.items()
    )


def _figures(figures: Mapping[str, Any]) -> str:
    drawn = "".join(f"<figure>{as_svg(f, name)}</figure>" for name, f in figures.items())
    return f"<div class=figures>{drawn}</div>"


def _about(run: Run) -> str:
    """Data, versions, config and recipe."""
    plan, trained = run.plan, run.conditions
    here = f"cmrfast {cmrfast.__version__}, torch {torch.__version__}"
    here += f", Python {platform.python_version()}"
    facts = {
        "data": f"{plan.layout}, {run.data}",
        "seed": plan.seed,
        **({"started from": plan.init} if plan.init else {}),
        "trained with": f"cmrfast {trained.cmrfast}, torch {trained.torch}, "
        f"Python {trained.python}, on {trained.device}"
        if trained
        else "unknown versions",
        "reported with": here,
    }
    fields = {"Network (config)": plan.config, "Training (recipe)": plan.recipe}
    folded = "".join(
        f"<details><summary>{title}</summary>"
        f"{definitions({name: json.dumps(value) for name, value in values.items()})}</details>"
        for title, values in fields.items()
    )
    return f"<div class=about>{definitions(facts)}{folded}</div>"
