"""A demonstration: synthetic patients, training, scores and a report in under two minutes."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cmrfast.data.phantom import write_phantoms
from cmrfast.runs.evaluate import evaluate
from cmrfast.runs.report import report
from cmrfast.train import Run, train

#: The paper's generator at half its width, on images of a third of the resolution.
_METHOD, _LAYOUT, _SHRINK, _STEPS = "adversarial_transfer", "mscmrseg", 3, 250
_CHANGES = {
    **{"variant": "u", "width": 16, "lr": 2e-3, "batch": 8},
    **{"pixel_mm": 3.75, "size": 80, "view_px": 80},
}


def demo(out: Path, *, say: Callable[[str], None] = print) -> Run:
    """Synthetic patients, a small network trained on them, its scores and a page about it.

    Args:
        out: a new or empty folder, or that of an earlier demo, which is continued.
        say: called with each line of what happens.
    """
    began = time.monotonic()

    def at(text: str) -> None:
        say(f"[{time.monotonic() - began:3.0f} s] {text}")

    data = out / "patients"
    if not data.exists():
        at("writing 10 synthetic patients: bSSFP, T2 and LGE of each heart")
        _write_patients(data)
    at(f"training the generator of {_METHOD}, {_STEPS} steps")
    run = train(
        _METHOD,
        data,
        out / "run",
        changes=_CHANGES,
        steps=_STEPS,
        resume=True,
        stream=sys.stderr,
    )
    at("scoring it on the test patients")
    say(evaluate(run).table())
    at("writing the report")
    page = report(run)
    at("done")
    say(
        f"\nLook at {page}\n"
        "Synthetic hearts and a small network: these figures say nothing about patients.\n\n"
        "Next:\n"
        f"  cmrfast predict {run.path} {data} --out masks/\n"
        f"  cmrfast train {_METHOD} --data YOUR_DATA --out run1\n"
        "  cmrfast --help"
    )
    return run


def _write_patients(data: Path) -> None:
    """All patients or none: an interrupted demo starts again from here."""
    unfinished = data.with_name(f"{data.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_phantoms(_LAYOUT, unfinished, cases=10, shrink=_SHRINK)
    unfinished.rename(data)
