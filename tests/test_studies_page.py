"""The page of the studies: its tables, texts and pictures."""

import pytest
import torch

from cmrfast.data import Volume
from studies import page
from studies.figures import mean_curve
from tests.support.paths import ROOT


def test_claims_say_why():
    kept = {"difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.012}
    units = {"patients": 20, "left_out": 1, "seeds": 5}
    none = dict.fromkeys((*kept, "patients", "left_out"))
    names = {"claim": "a is better", "first": "a", "second": "b", "score": "scar_dice"}
    compared = [
        names | kept | units | {"verdict": "reproduced"},
        names | kept | units | {"verdict": "ours", "low": None, "p_holm": None, "left_out": 0},
        names | none | {"verdict": page.NOT_RUN, "seeds": 3},
    ]
    content = {"method": "m", "experiment": "", "scale": "small", "repeats": False}
    text = page.claims([content | {"comparisons": compared}])
    test, units = "scar dice, `a` minus `b`", "20 patients{} and 5 seeds, both random"
    assert text.splitlines()[2:] == [
        f"| a is better | m, small: {test}, {units.format(' (1 more without a value)')} | "
        "**reproduced** | +0.2 [+0.1, +0.3], p = 0.012 by Holm |",
        f"| our question: a is better | m, small: {test}, {units.format('')} | **ours** | "
        "+0.2; too few patients or seeds for a test |",
        f"| a is better | m, small: {test} | **{page.NOT_RUN}** | - |",
    ]


def test_the_papers_tests_name_their_unit():
    test = {"first": "a", "second": "b", "score": "dice", "difference": 0.1, "p": 0.0001}
    content = {"as_the_paper_tested": [test | {"units": 75, "unit": "pairs of slices"}]}
    text = page.paper_tests(content)
    assert "| `a` minus `b` | +0.1 (n = 75, p < 0.001) |" in text
    assert "unit: pairs of slices" in text
    assert page.paper_tests({"as_the_paper_tested": []}) == "The paper reports no test."


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    committed = (ROOT / "studies" / "README.md").read_text("utf-8")
    (tmp_path / "README.md").write_text(committed, "utf-8")
    page.update(tmp_path / "README.md", ROOT / "studies" / "results", page.all_studies())
    assert (tmp_path / "README.md").read_text("utf-8") == committed


def test_table_sets_published_figures_beside_ours():
    arms = {
        "a": {"scores": {"f1": [0.5, 0.7]}, "published": {"f1": "0.61"}},
        "b": {"scores": {"f1": [None, 0.5]}, "published": {}},
    }
    text = page.table({"scores": ["f1"], "arms": arms})
    assert text.splitlines() == [
        "| variant | f1 | published |",
        "| --- | ---: | ---: |",
        "| a | 0.600 ± 0.141 | 0.61 |",
        "| b | 0.500 | - |",
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [([81.61, 79.0], "80.3 ± 1.8"), ([0.05], "0.0500"), ([], "-"), ([0.0], "0.00"), ([250], "250")],
)
def test_mean_has_three_digits(values, text):
    assert page.mean_sd(values) == text


def test_page_without_marks_says_so(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(SystemExit, match="has no <!-- claims: begin -->"):
        page.update(tmp_path / "README.md", tmp_path, [])


def test_pictures_show_what_is_labelled_or_the_middle():
    pytest.importorskip("matplotlib")
    from studies import figures

    mask = Volume(torch.zeros(1, 200, 160, 9, dtype=torch.uint8), torch.eye(4, dtype=torch.float64))
    assert figures._crop_box(mask, mask) == ([100, 80, 4], 160)
    mask.data[0, 20:40, 30:35, 7] = 1
    mask.data[0, 60, 60, 2] = 2  # the highest label
    mask.data[0, 50, 60, 2] = 1
    assert figures._crop_box(mask, mask) == ([55, 60, 2], 70)


def test_curves_of_unequal_length_are_averaged_to_the_end_of_the_shortest():
    assert mean_curve([[1, 2, 3], [3, 6]]).tolist() == [2, 4]
