"""The two published ways to train: as the paper describes it, and as the authors' code does it."""

from collections.abc import Mapping
from typing import Any

#: Name → changes of Config and Recipe, whose defaults are the paper's for data and losses.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "code": {
        "g_steps": 2,
        "optimizer_g": "rmsprop",
        "slice_map": "code",
        "individual_weight": 0.5,  # D: the code puts pairs with pseudo masks among the others
    },
}
