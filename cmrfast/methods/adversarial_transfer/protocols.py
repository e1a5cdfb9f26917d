"""Whose images and masks train, and whose are tested, in the tables of the paper.

Of its 45 patients, 1-5 have masks of all sequences, 6-35 of C0 (bSSFP) and T2, and 36-45 of none.
In table 1 patients 4 and 5 are held out. In tables 2 and 3, means and medians of the same
predictions, LGE of 6-45 is tested, while C0 and T2 of 6-35 train. Variant ``u_a_t`` puts these
masks on the LGE slices of 6-35 as well. So it trains on LGE images that tables 2 and 3 test, though
without their masks: its results there are not those of patients whom the network has never seen.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

from cmrfast.data.datasets import Part, Split
from cmrfast.data.datasets.layout import natural_key
from cmrfast.data.datasets.split import apportion
from cmrfast.models._check import require_option

_LENT = "LGE masks of patients 1 to 5 to train"
#: Name → on whom and how it was measured; ``protocol_split`` makes the split.
PROTOCOLS: Mapping[str, str] = {
    "table 1": "patients 4 and 5 held out of training, mean over these two",
    "table 2": f"{_LENT}, mean over the challenge's patients 6 to 45",
    "table 3": f"{_LENT}, median over the challenge's patients 6 to 45",
}
_GROUPS = (3, 2, 30, 10)  # patients 1-3, 4-5, 6-35 and 36-45
_LGE, _OTHERS = "LGE", ("C0", "T2")


def protocol_split(name: str, names: Iterable[str]) -> Split:
    """The split of one of the paper's tables, sequence by sequence.

    The paper names no validation patients, so that part is empty; choose nothing by the test part.

    Args:
        name: ``table 1``, ``table 2`` or ``table 3``; the latter two have the same split.
        names: of all patients, whose order by number is that of the paper. If they are not 45, its
            groups of patients are apportioned, with at least one in each.

    Example:
        >>> split = protocol_split("table 2", ["p1", "p2", "p3", "p4", "p5", "p6"])
        >>> split.train.sequences["p3"], split.train.unlabelled["p3"], split.test.sequences["p3"]
        (('C0', 'T2'), ('LGE',), ('LGE',))
    """
    require_option("protocol_split", "name", name, list(PROTOCOLS))
    patients = sorted(set(names), key=natural_key)
    if len(patients) < len(_GROUPS):
        raise ValueError(f"protocol_split: {len(_GROUPS)} patients are needed; got {len(patients)}")
    rest = iter(patients)
    always, held_out, without_lge, unannotated = (
        tuple(islice(rest, count)) for count in apportion(len(patients), _GROUPS)
    )
    if name == "table 1":
        return lending_split(always, without_lge, test=held_out)
    return lending_split(always + held_out, without_lge, test=without_lge + unannotated)


def lending_split(
    annotated: Iterable[str], lenders: Iterable[str], *, test: Iterable[str]
) -> Split:
    """All sequences of some patients train, of others C0 and T2, whose masks their LGE borrows.

    Args:
        annotated: whose LGE masks are used too.
        lenders: whose LGE trains without its masks; they may be tested by these.
        test: whose LGE is tested.
    """
    lending = tuple(lenders)
    return Split(
        train=Part(
            {
                **dict.fromkeys(annotated, (*_OTHERS, _LGE)),
                **dict.fromkeys(lending, _OTHERS),
            },
            unlabelled=dict.fromkeys(lending, (_LGE,)),
        ),
        validate=(),
        test=Part(dict.fromkeys(test, (_LGE,))),
    )
