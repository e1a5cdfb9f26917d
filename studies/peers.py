"""Other programs and simple rules on a study's patients (extra ``peers``).

python -m studies.peers joint_scar [--scale small|paper] [--data ROOT] [--minutes 20]

scores them on the study's test patients, in the study's own way, and adds their rows to its result
file. The study must have been run before: its folder has the patients. For scar, LGE and new
lesions, nnU-Net trains its 2-D configuration, its smallest, on the study's training patients, from
one seed on the CPU. SimpleITK registers cine and LGE slice by slice. The rules are the 6-SD rule
for scar, a threshold of the difference image for new lesions, and for LGE the borrowed masks.
"""

import argparse
import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cmrfast import methods
from cmrfast.data import open_dataset
from cmrfast.train.plan import choose_split
from studies import comparisons, page
from studies.design import Scale, Study
from studies.nnunet import PROBLEMS, run_nnunet
from studies.peer import Peer
from studies.rules import RULES

_HERE = Path(__file__).parent


def add(results: Path, study: Study, scale: str, peer: Peer, patients: Sequence[str]) -> str:
    """Put a peer into the study's result file, in place of its older row; returns its table.

    Args:
        results: folder of the result files.
        study: whose file it is.
        scale: small or paper.
        peer: to add.
        patients: names of the test patients, which must be those of the file.
    """
    path = results / f"{study.method}-{scale}.json"
    content = json.loads(path.read_text("utf-8"))
    measured = {
        name
        for scores in content["measurements"].values()
        for by_patient in scores.values()
        for name in by_patient
    }
    if measured != set(patients):
        raise SystemExit(f"{path} is of other test patients; run the study again")
    others = [row for row in content.get("peers", []) if row["name"] != peer.name]
    content["peers"] = [*others, comparisons.without_nan(peer.as_json(study))]
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return page.peers(content)


def main() -> None:
    """Run nnU-Net on a study's patients; parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.peers")
    parser.add_argument("study", choices=RULES)
    parser.add_argument("--scale", choices=("small", "paper"), default="small")
    parser.add_argument("--data", type=Path, help="root of the data set; default the phantoms")
    parser.add_argument("--out", type=Path, help="folder of the study's trainings")
    parser.add_argument("--results", type=Path, default=_HERE / "results")
    parser.add_argument("--minutes", type=float, default=20, help="nnU-Net trains; 0 leaves it out")
    options = parser.parse_args()
    study: Study = importlib.import_module(f"studies.{options.study}").STUDY
    scale: Scale = getattr(study, options.scale)
    out = options.out or _HERE / "runs" / f"{study.method}-{options.scale}"
    data = options.data or out / "patients"
    if not data.exists() or not (options.results / f"{study.method}-{options.scale}.json").exists():
        raise SystemExit(f"run python -m studies.{study.method} first: the peers use its patients")
    method = methods.get(study.method)
    layout, split = choose_split(method, data, method.configure(scale.changes)[1], seed=0)
    patients = open_dataset(layout, data)
    train, test = patients.subset(split.train), patients.subset(split.test)
    found = RULES[study.method](train, test, **scale.changes)
    if study.method in PROBLEMS and options.minutes:
        with tempfile.TemporaryDirectory() as folder:
            minutes, out = options.minutes, Path(folder)
            found.append(
                run_nnunet(study.method, train, test, minutes=minutes, out=out, **scale.changes)
            )
    for peer in found:
        text = add(options.results, study, options.scale, peer, split.test)
    print(text)


if __name__ == "__main__":
    main()
