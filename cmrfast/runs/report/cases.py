"""The patients that a report shows: which, their slices, and their images for the viewer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cmrfast import viz
from cmrfast.methods import Objective, Picture
from cmrfast.runs.document import inline_png, text
from cmrfast.runs.evaluate import Evaluation
from cmrfast.runs.report.figures import draw_slice
from cmrfast.runs.text import format_numbers, in_words
from cmrfast.runs.view.embed import embed_scene
from cmrfast.runs.view.scene import crop_to_labels, scene_of_picture

#: Up to this many patients are all shown, in order: none of them is a median.
_ALL = 3
_PLACES = {"best": "Best", "median": "Nearest to the median", "worst": "Worst"}
_MOST_SLICES = 24
#: Bytes of one patient's volumes in a page; larger images are cropped, or left out.
_MOST_BYTES = 12_000_000
_MARGIN_MM = 20.0


@dataclass(frozen=True)
class Chosen:
    """A patient that the report shows.

    Args:
        place: ``best``, ``median`` or ``worst``, or a number from 1 where there are no such.
        case: name of the patient.
        score: mean of the method's objective over its units.
    """

    place: str
    case: str
    score: float


def choose_cases(objective: Objective, evaluation: Evaluation) -> list[Chosen]:
    """Up to three patients, the best first, by the mean of the method's objective.

    Patients without a value, such as those whose masks are both empty, have no rank.
    """
    means = evaluation.case_means(objective.name)
    ranked = sorted(means, key=lambda name: means[name], reverse=objective.maximise)
    count = len(ranked)
    places = {"best": 0, "median": count // 2, "worst": count - 1}
    if count <= _ALL or means[ranked[0]] == means[ranked[-1]]:
        places = {str(n + 1): n for n in range(min(count, _ALL))}
    return [Chosen(place, ranked[n], means[ranked[n]]) for place, n in places.items()]


def introduction(chosen: list[Chosen], objective: Objective, evaluation: Evaluation) -> str:
    """Which patients are shown, in a sentence."""
    score, count = in_words(objective.name), len(evaluation.case_means(objective.name))
    if not chosen:
        return f"No patient has a value of {score}."
    if count == 1:
        return f"The only patient with a value of {score}."
    if chosen[0].score == chosen[-1].score:
        return f"{count} patients have a value of {score}, all the same; these are some of them."
    order = "highest" if objective.maximise else "lowest"
    if count <= _ALL:
        return f"All {count} patients with a value of {score}, the {order} first."
    return f"Three of {count} patients, ranked by {score}; best is the {order}."


def render_case(
    chosen: Chosen,
    picture: Picture,
    structures: Mapping[int, str],
    objective: Objective,
    *,
    viewer: bool,
) -> str:
    """One patient: a title, its slices and, if asked for, its images for the viewer."""
    place = f"{_PLACES[chosen.place]}: " if chosen.place in _PLACES else ""
    score = f"{in_words(objective.name)} {format_numbers([chosen.score])[0]}"
    shown = _viewer(chosen, picture, structures) if viewer else ""
    return (
        f"<div class=case><h3>{place}{text(chosen.case)}, {text(score)}</h3>"
        f"{_slices(picture, structures)}{shown}</div>"
    )


def _slices(picture: Picture, structures: Mapping[int, str]) -> str:
    masks = picture.masks()
    labelled = np.any([mask.data[0].cpu().numpy() != 0 for mask in masks.values()], axis=0)
    shown, count = viz.choose_slices(labelled, _MOST_SLICES), picture.image.shape[2]
    drawn = [inline_png(draw_slice(picture, k, structures)) for k in shown]
    images = "".join(
        f"<img alt='slice {k} (0 to {count - 1})' src='{image}'>"
        for k, image in zip(shown, drawn, strict=True)
    )
    order = "From left to right: " * (len(masks) > 1) + ", ".join(masks)
    caption = f"{order[0].upper()}{order[1:]}."
    left_out = count - len(shown)
    more = f" {left_out} other slices are left out." if left_out else ""
    return (
        f"<p class=note>{caption}{more}</p><div class=slices>{images}<label><output></output>"
        f"<input type=range aria-label=slice min=0 max={len(shown) - 1} value={len(shown) // 2}>"
        "</label></div>"
    )


def _viewer(chosen: Chosen, picture: Picture, structures: Mapping[int, str]) -> str:
    scene = scene_of_picture(chosen.case, picture, structures)
    for attempt in (scene, crop_to_labels(scene, _MARGIN_MM)):
        html, size = embed_scene(attempt, f"case-{chosen.place}", alone=False)
        if size <= _MOST_BYTES:
            return html
    command = f"cmrfast view RUN {chosen.case}"
    return (
        f"<p class=note>Its images are too large for this page; <code>{text(command)}</code> shows "
        "them.</p>"
    )
