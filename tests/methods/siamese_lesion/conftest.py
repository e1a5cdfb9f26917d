"""Three phantoms, and a task with a narrow network."""

import pytest

from cmrfast.data.cache import Cache
from cmrfast.models.siamese_lesion import RECIPE
from cmrfast.tasks.siamese_lesion import SiameseLesionTask
from tests.support.cases import phantoms
from tests.support.siamese_cases import NARROW


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siamese_lesion")
    return phantoms("siamese_lesion", folder, "t1_lge", cases=3, shrink=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def fitted(cohort):
    return SiameseLesionTask(NARROW, RECIPE).fit(cohort)


@pytest.fixture
def task(fitted, cache):
    return SiameseLesionTask(NARROW, RECIPE, fitted, cache=cache)
