"""Phantoms of hearts, and their pairs of slices."""

import pytest

from cmrfast.methods.joint_registration.task import JointRegistrationTask
from tests.support.cases import phantoms
from tests.support.joint_registration_cases import NARROW, SMALL


@pytest.fixture(scope="package")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearts")
    return phantoms("mscmrseg", folder, cases=4, shrink=4, seed=3)


@pytest.fixture(scope="package")
def feed(cases):
    return JointRegistrationTask(NARROW, SMALL).feed(cases, seed=5)
