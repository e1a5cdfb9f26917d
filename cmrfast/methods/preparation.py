"""Training sets with gaps: what cases can give, and the names of those that cannot."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from cmrfast.data.datasets.case import Case
from cmrfast.errors import FileError

Prepared = TypeVar("Prepared")

_log = logging.getLogger(__name__)


def prepared_cases(
    who: str, cases: Sequence[Case], prepare: Callable[[Case], Prepared]
) -> list[Prepared]:
    """What each case's preparation gives; a case whose files do not serve is left out and logged.

    Args:
        who: of the messages.
        cases: to prepare.
        prepare: raises ``FileError`` where a case lacks something.

    Raises:
        FileError: no case is left; names why.
    """
    found, refused = [], []
    for case in cases:
        try:
            found.append(prepare(case))
        except FileError as error:
            refused.append(str(error))
            _log.warning("%s: %s is left out: %s", who, case.name, error)
    if not found:
        why = "; ".join(refused[:3]) or "there are no cases"
        more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise FileError(f"{who}: none of {len(cases)} cases can be used: {why}{more}")
    return found
