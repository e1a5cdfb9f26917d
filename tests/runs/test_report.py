"""The report: one page without outside files, that a browser shows, prints and lets read."""

import re
import sys

import pytest
import torch

import cmrfast
from cmrfast import methods
from cmrfast.data import Volume
from cmrfast.methods import Picture, Row
from cmrfast.runs.evaluate import Evaluation
from cmrfast.runs.report import report
from cmrfast.runs.report.cases import Chosen, choose_cases, introduction, render_case
from cmrfast.runs.report.figures import as_svg, box_figure, loss_figure, validation_figure
from cmrfast.runs.report.page import Contents, render
from cmrfast.train import train
from tests.support import training_task
from tests.support.browser import CHROMIUM, Browser

SCAR = methods.get("joint_scar")


@pytest.fixture
def run(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    changes = training_task.SMALL
    out = tmp_path / "<run>"
    return train("siamese_lesion", "nowhere", out, steps=3, changes=changes, device="cpu")


def scar_evaluation(*values):
    """A patient for each value; None: neither mask has a scar, which is not the best case."""
    rows = [
        Row(
            {"case": f"c{n}", "slice": 0},
            {"scar_dice": 1.0 if value is None else value},
            {"scar": "neither" if value is None else "both"},
        )
        for n, value in enumerate(values)
    ]
    return Evaluation("joint_scar", "test", rows, {}, SCAR)


def test_the_page_needs_nothing_else(run):
    text = report(run, part="test").read_text()
    assert not re.search(r"(src|href)=(?!['\"](data:|#))", text)
    assert "default-src 'none'" in text  # a browser would refuse requests
    assert "<run>" not in text  # names are escaped
    assert text.count("<input type=range aria-label=slice") == 1
    assert "81.61" not in text  # this task publishes nothing
    assert text.count("<section class=viewer") == text.count("id=niivue-bundle>") == 1
    for name in ("loss", "validation", "scores-1", "patient-1"):
        assert (run.path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (run.path / "evaluation-test.csv").read_text().startswith("case,accuracy\n")


def test_without_the_viewer_the_page_is_small(run):
    text = report(run, viewer=False).read_text()
    assert len(text) < 300_000
    assert "NiiVue" not in text


def test_the_same_run_gives_the_same_page(run):
    assert report(run).read_bytes() == report(run).read_bytes()


def test_the_summary_comes_first(run):
    text = report(run).read_text()
    parts = ["<h1>", "class=lead>", "class=cards>", "class=notes>", "<h2>Scores", "<h2>Patients"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert re.search(
        r"class=lead>Trained on \d patients, validated on 1, for 3 of 3 steps\. ", text
    )
    assert "Scored on 1 patient of the test set." in text
    assert "<span>mean of 1 patient</span>" in text
    assert "The only patient with a value of accuracy." in text


def test_the_page_says_what_its_scores_are_worth(run):
    text = report(run).read_text()
    assert "<meta name=viewport content='width=device-width" in text
    notes = text.partition("<div class=notes>")[2].partition("</div>")[0]
    assert re.findall("<p>(.*?)</p>", notes) == [
        "The network is hardly trained: it stopped in epoch 2 of the recipe&#x27;s 300.",
        "Only 1 patient is scored: fewer than 10 say little about others.",
        "For research only. Not a medical device; not for use on patients.",
    ]
    versions = f"cmrfast {cmrfast.__version__}, torch {torch.__version__}, Python "
    assert text.count(versions) == 2  # of the training and of the report


def test_published_rows_and_scores_are_named_in_words(run):
    record = methods.get("joint_registration")
    scores = {"rv_cd_mm": 2.0, "lv_cd_mm": 12.345, "cine_dice_percent": 80.0}
    rows = [Row({"case": "<a>", "cine_slice": k}, scores) for k in range(2)]
    evaluation = Evaluation("joint_registration", "test", rows, {"rv_cd_mm_p": 0.5}, record)
    text = render(run, evaluation, Contents())
    for part in (
        "<th scope=row title='rv_cd_mm'>RV centre distance (mm)</th><td data-head='mean'>2.0</td>",
        "<th scope=row title='lv_cd_mm'>LV centre distance (mm)</th><td data-head='mean'>12.3</td>",
        "<th scope=col title='cine_dice_percent'>cine Dice (%)</th>",
        "<th scope=col>registration alone (stn), 25 patients</th>",
        "Published, before registration: the test patients before registration.",
        "Scored on 1 patient, 2 pairs of slices of the test set.",
        "<span>mean of 2 pairs of slices of 1 patient</span>",
        "<tr><th scope=row>&lt;a&gt;</th><td data-head='pairs of slices'>2</td>"
        "<td data-head='RV centre distance (mm)'>2.00</td>",
    ):
        assert part in text
    assert text.count("<div class=scroll tabindex=0><table") == 2
    assert text.count("<table class=wide>") == 1  # that with the published rows


@pytest.mark.parametrize(
    ("values", "places", "words"),
    [
        ([], "", "No patient has a value of scar Dice."),
        ([0.5], "1:c0", "The only patient with a value of scar Dice."),
        ([0.5, None], "1:c0", "The only patient with a value of scar Dice."),
        ([0.5, 0.75], "1:c1 2:c0", "All 2 patients with a value of scar Dice, the highest first."),
        ([0.1, 0.3, 0.2], "1:c1 2:c2 3:c0", "All 3 patients"),
        ([0.1, 0.4, 0.2, 0.3], "best:c1 median:c2 worst:c0", "Three of 4 patients, ranked by"),
        ([0.0] * 5, "1:c0 2:c1 3:c2", "5 patients have a value of scar Dice, all the same;"),
    ],
)
def test_few_cases_are_not_called_median(values, places, words):
    evaluation = scar_evaluation(*values)
    chosen = choose_cases(SCAR.objective, evaluation)
    assert " ".join(f"{shown.place}:{shown.case}" for shown in chosen) == places
    assert introduction(chosen, SCAR.objective, evaluation).startswith(words)


def test_large_images_are_cropped_or_left_out(monkeypatch):
    image = Volume(torch.rand(1, 40, 40, 4), torch.eye(4))
    mask = torch.zeros(1, 40, 40, 4, dtype=torch.uint8)
    mask[:, 35:, 35:, 2] = 1
    picture = Picture(image, image.with_data(mask))
    chosen = Chosen("best", "a b", 0.5)

    def rendered(limit):
        monkeypatch.setattr(sys.modules[render_case.__module__], "_MOST_BYTES", limit)
        return render_case(chosen, picture, {1: "scar"}, SCAR.objective, viewer=True)

    assert "Best: a b, scar Dice 0.500" in rendered(10**6)
    assert "Cropped to 20 mm around the labels." in rendered(25_000)
    assert "Cropped to" not in rendered(10**6)
    assert "too large for this page; <code>cmrfast view RUN a b</code>" in rendered(100)


def test_long_stacks_show_some_slices():
    image = Volume(torch.rand(1, 4, 4, 40), torch.eye(4))
    picture = Picture(image, image.with_data(torch.zeros(1, 4, 4, 40, dtype=torch.uint8)))
    text = render_case(Chosen("1", "a", 0.5), picture, {}, SCAR.objective, viewer=False)
    assert text.count("<img alt='slice") == 24
    assert "16 other slices are left out." in text


def test_masks_are_named_from_left_to_right():
    image = Volume(torch.rand(1, 8, 8, 2), torch.eye(4))
    mask = image.with_data(torch.ones(1, 8, 8, 2, dtype=torch.uint8))

    def caption(**more):
        chosen, picture = Chosen("1", "a", 0.5), Picture(image, mask, **more)
        html = render_case(chosen, picture, {}, SCAR.objective, viewer=False)
        return html.partition("<p class=note>")[2].partition("</p>")[0]

    assert caption() == "Prediction."
    assert caption(reference=mask) == "From left to right: prediction, reference."
    assert caption(reference=mask, before=mask) == (
        "From left to right: before registration, prediction, reference."
    )


def test_curves_show_the_loss_above_its_parts():
    log = [{"step": n, "loss": n, "whole": n, "half": n / 2, "lr": 1.0} for n in (1, 2)]
    lines = loss_figure(log).axes[0].lines
    assert [line.get_label() for line in lines] == ["half", "loss"]
    assert not loss_figure([]).axes[0].lines


def test_a_single_validation_is_a_point_with_its_value():
    log = [{"step": 2, "validation": 0.5}, {"step": 3, "validation": None}]
    (panel,) = validation_figure(log).axes
    assert [text.get_text() for text in panel.texts] == ["0.500 at step 2"]
    (panel,) = validation_figure([{"step": 1, "validation": 0.4}, *log]).axes
    assert not panel.texts
    assert panel.lines[0].get_xydata().tolist() == [[1, 0.4], [2, 0.5]]
    assert validation_figure([]) is None


def test_boxes_are_drawn_of_at_least_five_values():
    (panel,) = box_figure({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.1, 0.2, 0.3, 0.4, 0.5]}, "").axes
    points = [line for line in panel.lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in points] == [
        [0.1, 0.2, 0.3, 0.4],
        [*points[1].get_xdata()],
    ]
    (median,) = [line for line in panel.lines if line.get_linewidth() == 2.2]
    assert median.get_xdata().tolist() == [0.3, 0.3]
    assert panel.get_xlim() == (-0.03, 1.03)


def test_figures_have_the_colours_of_the_page():
    svg = as_svg(box_figure({"a": [1.0, 2.0]}, "mm"), "one")
    assert svg.startswith("<svg role=img viewBox=")
    assert "var(--ink)" in svg
    assert "var(--bar)" in svg
    assert "#000000" not in svg


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it(run, tmp_path):
    page = report(run)
    with Browser(page, dark=True, gl=False) as browser:
        browser.run("document.querySelector('h1').textContent = 'adversarial_transfer_'.repeat(3)")
        for width in (400, 800, 1200):
            browser.resize(width, 900)
            assert browser.run("document.documentElement.scrollWidth") == width
        dark = browser.screenshot()
        browser.run("document.querySelector('button.theme').click()")
        light = browser.screenshot()
        assert (light.min(-1) > 0.95).mean() > 0.5
        assert dark.mean() < 0.5 * light.mean()
        assert "no WebGL 2" in browser.run("document.querySelector('.reason').textContent")
        browser.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert (browser.errors, browser.requests) == ([], [])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_patient_opens_in_the_viewer(run):
    with Browser(report(run), width=600, height=500) as browser:
        assert browser.run("typeof window.niivue") == "undefined"  # until it is needed
        browser.run("document.querySelector('button.open').click()")
        browser.wait("document.querySelector('section.viewer').classList.contains('ready')")
        assert browser.run("document.querySelector('canvas').clientHeight") > 200
        assert (browser.errors, browser.requests) == ([], [])
