"""Three phantoms, and a task with a narrow network."""

import pytest

from cmrfast.data.cache import Cache
from cmrfast.methods.siamese_lesion.task import SiameseLesionTask
from cmrfast.models.siamese_lesion import RECIPE
from tests.support.cases import phantoms
from tests.support.siamese_cases import NARROW


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siamese_lesion")
    return phantoms("t1_lge", folder, cases=3, shrink=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def fitted(cohort):
    return SiameseLesionTask(NARROW, RECIPE).fit(cohort)


@pytest.fixture
def task(fitted, cache):
    return SiameseLesionTask(NARROW, RECIPE, fitted, cache=cache)
