"""Tables 1 to 3 of the paper."""

from cmrfast.methods.adversarial_transfer.images import STRUCTURES
from cmrfast.methods.adversarial_transfer.protocols import PROTOCOLS
from cmrfast.methods.method import Published

_PROTOCOL_OF = {"": "table 2", "median": "table 3", "patients 4 and 5": "table 1"}
_NETWORKS = {
    "u": "generator alone (u)",
    "u_a": "with adversary (u_a)",
    "u_a_t": "with adversary and transfer (u_a_t)",
}
_TABLES = {
    "dice_percent": {
        "u, patients 4 and 5": "70.5 50.0 70.0",
        "u_a, patients 4 and 5": "65.1 53.9 74.7",
        "u_a_t, patients 4 and 5": "76.0 59.6 71.7",
        "u_a": "76.6 42.0 69.5",
        "u_a_t": "82.4 61.0 71.0",
        "u_a, median": "77.8 42.7 71.1",
        "u_a_t, median": "82.1 60.8 72.8",
    },
    "jaccard": {
        "u_a": "0.62 0.27 0.54",
        "u_a_t": "0.71 0.45 0.57",
        "u_a, median": "0.63 0.27 0.55",
        "u_a_t, median": "0.70 0.44 0.57",
    },
    "assd_mm": {
        "u_a": "5.5 4.7 5.5",
        "u_a_t": "3.9 4.0 5.0",
        "u_a, median": "5.3 4.3 5.0",
        "u_a_t, median": "3.8 3.9 4.6",
    },
    "hausdorff_mm": {
        "u, patients 4 and 5": "13.2 12.0 24.6",
        "u_a, patients 4 and 5": "38.0 16.1 19.4",
        "u_a_t, patients 4 and 5": "10.2 12.1 12.9",
        "u_a": "22.1 42.0 32.7",
        "u_a_t": "23.7 24.6 23.5",
        "u_a, median": "18.5 41.2 28.5",
        "u_a_t, median": "15.4 19.6 22.8",
    },
}


def _row(name: str) -> Published:
    cells = {
        f"{structure}_{metric}": cell
        for metric, rows in _TABLES.items()
        if name in rows
        for structure, cell in zip(STRUCTURES, rows[name].split(), strict=True)
    }
    variant, _, measured = name.partition(", ")
    title = ", ".join(filter(None, (_NETWORKS[variant], measured)))
    return Published(title, PROTOCOLS[_PROTOCOL_OF[measured]], cells)


PUBLISHED = {name: _row(name) for name in _TABLES["dice_percent"]}
