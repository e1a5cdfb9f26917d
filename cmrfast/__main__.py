"""``python -m cmrfast``: the command ``cmrfast``."""

from cmrfast.cli import main

main()
