"""Three phantoms of siamese_lesion and a task with a narrow network, for the tests on images."""

from dataclasses import replace

import pytest

from cmrfast.data import open_dataset
from cmrfast.data.cache import Cache
from cmrfast.data.phantom import write_phantoms
from cmrfast.models.siamese_lesion import RECIPE, Config
from cmrfast.tasks.siamese_lesion import SiameseLesionTask

NARROW = Config(channels=(4, 8, 8, 8), hidden=16, features=8)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("siamese_lesion") / "phantoms"
    return open_dataset("t1_lge", write_phantoms("siamese_lesion", root, cases=3, shrink=3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def fitted(cohort):
    return SiameseLesionTask(NARROW, RECIPE).fit(cohort)


@pytest.fixture
def task(fitted, cache):
    return SiameseLesionTask(NARROW, RECIPE, fitted, cache=cache)


def without(case, *names):
    kept = [
        {k: v for k, v in files.items() if k not in names} for files in (case.images, case.labels)
    ]
    return replace(case, images=kept[0], labels=kept[1])
