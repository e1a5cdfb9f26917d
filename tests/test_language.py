"""Phrases and names that read as translated stay out of the documentation and the sources.

The lists are fixed: phrases that reviews found, each with what to write instead, and no common
words. A phrase is found across line breaks, one without capitals in any case.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

PAGES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "studies/*.md")
SOURCES = ("cmrfast", "csrc", "benchmarks", "studies", "examples", "docs")
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh", ".sh"}

#: Name → what it is called now; the changelog may say what things were called.
NAMES = {
    "tell_apart": "discriminator_losses",
    "deceive": "adversarial_loss",
    "by_sums": "grad_grad",
    "by_x": "grad_x",
    "to_x": "grad_x",
    "to_weight": "grad_weight",
    "to_bias": "grad_bias",
    "to_sums": "grad_sums",
    "to_images": "grad_images",
    "to_matrix": "grad_matrix",
    "stopping(": "catch_signals(",
    "replacing(": "atomic_write(",
    "joined(": "process_group(",
    "share_norms": "sync_batch_norms",
    "task_class": "methods.get(name).task",
    "prepared_cases": "prepare_cases",
    "in_batches": "predict_batches",
    "as_slices": "pack_slices",
    "widened": "upcast",
}
#: Phrase → what to write.
PHRASES = {
    "a screen of calls": "The API at a glance",
    "a sixth method": "Adding a method",
    "anew": "again",
    "as ever": "as usual",
    "beside LGE that": "with LGE, which",
    "brings this page up to date": "updates this page",
    "by heart": "memorises",
    "cine aligned with LGE": "registers cine to LGE",
    "Continue, or start": "Resume if a run exists",
    "deal out": "split",
    "deals out": "splits",
    "dealt out": "split",
    "deals weights": "shards weights",
    "deals patients": "splits patients",
    "deals a cohort": "splits a cohort",
    "Deal the weights": "Shard the weights",
    "From nothing to a report": "A report from synthetic patients",
    "gets at once": "processes at a time",
    "going on where": "resuming where",
    "goes on where": "resumes where",
    "go on after": "resume after",
    "go on where": "resume where",
    "`--resume` goes on": "`--resume` continues",
    "again it goes on": "again it resumes",
    "had never seen the like": "was not trained on such data",
    "has never seen the like": "was not trained on such data",
    "halves as they": "half precision as it",
    "held against": "compared with",
    "hold against": "compare with",
    "Hold a run against": "Evaluate a run against",
    "holds against": "compares with",
    "Honest limits": "Limitations",
    "is at hand": "is available",
    "is there twice": "occurs twice",
    "judged by": "evaluated on",
    "kernel takes halves": "kernel supports half precision",
    "Lay a folder out": "Create a data set",
    "Look first": "Inspect your files",
    "may not be passed on": "cannot be redistributed",
    "headers must be true": "headers must be correct",
    "Not to be solved by brightness": "Not solvable by thresholding",
    "of everything random": "seeds every random choice",
    "of which the like": "such as",
    "One op alone": "Using one op",
    "predicts and judges": "predicts and scores",
    "put through the network at once": "process at a time",
    "puts 4 samples through the network at once": "processes 4 samples at a time",
    "said aloud": "explicit",
    "samples at once": "samples at a time",
    "says of": "says about",
    "say of": "say about",
    "shall be compared": "is compared",
    "slices that the network gets": "slices per forward pass",
    "spend their time in": "are dominated by",
    "stand in `": "are in `",
    "stands in `": "is in `",
    "stands in Info": "is in Info",
    "stands on": "is on",
    "stands with each": "is listed with each",
    "tells of": "depends on",
    "The same bits again": "Reproducibility",
    "the step in hand": "the current step",
    "they are in hand": "they are available",
    "to be rid of": "to avoid",
    "to mend it": "to fix it",
    "What is over the floor": "The remaining overhead",
    "What the network says": "Saving predictions",
    "where they know most": "towards their centre",
    "Which files where": "Expected file layout",
    "whose fault it": "which process failed",
}


def pattern(phrase: str) -> re.Pattern[str]:
    """A phrase as whole words; between its words may be a line break and a comment's mark."""
    words = (re.escape(word) for word in phrase.split(" "))
    text = r"(?:[ \t]|\n[ \t]*(?:#:?|//|\*|>)?)+".join(words)
    before = r"(?<!\w)" if phrase[0].isalnum() else ""
    after = r"(?!\w)" if phrase[-1].isalnum() else ""
    return re.compile(before + text + after, re.IGNORECASE if phrase.islower() else 0)


PATTERNS = {phrase: pattern(phrase) for phrase in NAMES | PHRASES}


def findings(path: Path, root: Path = ROOT) -> Iterator[str]:
    """``file:line: phrase -> suggestion`` for each phrase of the lists in a file."""
    text = path.read_text("utf-8")
    lower = text.lower()
    for phrase, instead in (PHRASES if path.name == "CHANGELOG.md" else NAMES | PHRASES).items():
        if max(phrase.split(), key=len).lower() not in lower:  # much faster than the pattern
            continue
        for match in PATTERNS[phrase].finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(root)}:{line}: {phrase!r} -> {instead!r}"


def files() -> list[Path]:
    """The pages and sources of the repository."""
    pages = {path for glob in PAGES for path in ROOT.glob(glob)}
    sources = {path for folder in SOURCES for path in (ROOT / folder).rglob("*")}
    return sorted(pages | {path for path in sources if path.suffix in SUFFIXES})


def test_pages_and_sources_read_as_english():
    found = [finding for path in files() for finding in findings(path)]
    assert not found, f"{len(found)} phrases to reword:\n" + "\n".join(found)


def test_planted_phrases_are_found_with_their_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Fine\n\n## Honest limits\n\nArms are held\nagainst one another.\n")
    source = tmp_path / "source.py"
    source.write_text("x = 1\n# How it is measured stands\n# in `there`.\nto_x = tell_apart(x)\n")
    assert sorted([*findings(page, tmp_path), *findings(source, tmp_path)]) == [
        "page.md:3: 'Honest limits' -> 'Limitations'",
        "page.md:5: 'held against' -> 'compared with'",
        "source.py:2: 'stands in `' -> 'is in `'",
        "source.py:4: 'tell_apart' -> 'discriminator_losses'",
        "source.py:4: 'to_x' -> 'grad_x'",
    ]


def test_names_are_found_whole(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("into_x = to_xyz = conv_joined(x)\nundeceived = 'an honest limitation'\n")
    assert not list(findings(source, tmp_path))


def test_suggestions_pass():
    for phrase, instead in (NAMES | PHRASES).items():
        assert not any(found.search(instead) for found in PATTERNS.values()), (phrase, instead)
