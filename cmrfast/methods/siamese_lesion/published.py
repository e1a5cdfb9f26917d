"""Table 1 of the paper."""

from cmrfast.methods.method import Published

_SCORES = ("balanced", "sensitivity", "specificity", "classification_loss", "pairing_loss")
_PROTOCOL = "13 subjects to train, 2 to test, over all 222 patches of the latter"


def _row(title: str, cells: str) -> Published:
    return Published(title, _PROTOCOL, dict(zip(_SCORES, cells.split(), strict=False)))


PUBLISHED = {
    "pure": _row("T1 alone (pure)", "50 100 0 5.11"),
    "siamese": _row("shared weights (siamese)", "69.51 41.88 97.14 1.31 1.63"),
    "partial": _row("partly shared weights (partial)", "78.96 59.83 98.1 0.91 1.82"),
    "decoupled": _row("separate weights (decoupled)", "81.61 71.79 91.43 0.51 1.78"),
}
