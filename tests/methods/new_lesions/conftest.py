"""Phantoms of two data sets, and a task fitted to one of them."""

import pytest

from cmrfast.data.cache import Cache
from tests.support.cases import phantoms
from tests.support.new_lesions_cases import fitted


@pytest.fixture(scope="package")
def cases(tmp_path_factory):
    """Three patients; the last has no new lesion."""
    folder = tmp_path_factory.mktemp("msseg2")
    return phantoms("msseg2", folder, cases=3, shrink=4)


@pytest.fixture(scope="package")
def ljubljana(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_ms")
    return phantoms("open_ms", folder, cases=1, shrink=4)


@pytest.fixture(scope="package")
def task(cases, tmp_path_factory):
    """Prepares each patient once."""
    return fitted(cases, cache=Cache(tmp_path_factory.mktemp("cache")))
