"""Run the attacks by name, all of them by default, or one case of one of them again."""

import argparse
import importlib
import logging
import sys
import warnings

from tests.attack.frame import Attack, run

#: Modules of this package; each holds one ATTACK.
NAMES = ("nifti", "dicom", "weights", "checkpoints", "ops")


def attack(name: str) -> Attack:
    """The attack of a module."""
    found: Attack = importlib.import_module(f"tests.attack.{name}").ATTACK
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each; default 60")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--only", metavar="NAME:CASE", help="repeat one case")
    options = parser.parse_args()
    if options.list:
        print(*NAMES, sep="\n")
        return 0
    if options.only:
        name, number = options.only.split(":")
        plan = [(name, 0.0, int(number))]
    else:
        plan = [(name, options.seconds, 0) for name in options.names or NAMES]
    logging.disable()  # of what was passed over, a line each case
    warnings.simplefilter("ignore")
    faults = 0
    for name, seconds, first in plan:
        outcome = run(attack(name), options.seed, seconds=seconds, first=first)
        print(f"{name}: {outcome}", flush=True)
        for number, text in list(outcome.faults.items())[:10]:
            print(f"\n{name}:{number} of seed {options.seed}\n{text}", flush=True)
        faults += len(outcome.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
