"""nnU-Net on a study's patients (extra ``peers``).

python -m studies.peers joint_scar [--scale small|paper] [--data ROOT] [--minutes 20]

trains nnU-Net's 2-D configuration, its smallest, on the training patients of the study's first
seed, from one seed on the CPU, scores it on the test patients in the study's own way, and adds its
row to the result file. The study must have been run before: its folder has the patients.
"""

import argparse
import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cmrfast.data import open_dataset
from studies import comparisons, page
from studies.cohorts import Cohorts
from studies.design import Study
from studies.nnunet import PROBLEMS, run_nnunet
from studies.outcome import tested
from studies.peer import Peer

_HERE = Path(__file__).parent


def add(results: Path, study: Study, scale: str, peer: Peer, patients: Sequence[str]) -> str:
    """Put a peer into the study's result file, in place of its older row; returns its table.

    Args:
        results: folder of the result files.
        study: whose file it is.
        scale: tiny, small or paper.
        peer: to add.
        patients: names of the test patients, which must be those of the file.
    """
    path = results / f"{study.stem(scale)}.json"
    content = json.loads(path.read_text("utf-8"))
    if tested(content) != set(patients):
        raise SystemExit(f"{path} is of other test patients; run the study again")
    others = [row for row in content["peers"] if row["name"] != peer.name]
    content["peers"] = [*others, comparisons.without_nan(peer.as_json(study))]
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return page.peers(content)


def main() -> None:
    """Run nnU-Net on a study's patients; parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.peers")
    parser.add_argument("study", choices=PROBLEMS)
    parser.add_argument("--scale", choices=("tiny", "small", "paper"), default="small")
    parser.add_argument("--data", type=Path, help="root of the data set; default the phantoms")
    parser.add_argument("--out", type=Path, help="folder of the study's trainings")
    parser.add_argument("--results", type=Path, default=_HERE / "results")
    parser.add_argument("--minutes", type=float, default=20, help="of training")
    options = parser.parse_args()
    study: Study = importlib.import_module(f"studies.{options.study}").STUDIES[0]
    scale, arm = study.scale(options.scale), next(iter(study.arms.values()))
    out = options.out or _HERE / "runs" / study.stem(options.scale)
    cohorts = Cohorts(study, scale, out, options.data)
    result = options.results / f"{study.stem(options.scale)}.json"
    if not (cohorts.root(arm).exists() and result.exists()):
        raise SystemExit(f"run python -m studies.{study.method} first: the peers use its patients")
    patients, split = open_dataset(cohorts.layout, cohorts.root(arm)), cohorts.split(arm, 0)
    train, test = patients.subset(split.train), patients.subset(split.test)
    with tempfile.TemporaryDirectory() as folder:
        peer = run_nnunet(
            study.method,
            train,
            test,
            minutes=options.minutes,
            out=Path(folder),
            **scale.changes,
        )
    print(add(options.results, study, options.scale, peer, tuple(split.test)))


if __name__ == "__main__":
    main()
