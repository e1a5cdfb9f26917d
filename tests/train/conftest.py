"""A made-up method on patients without files."""

import pytest

from tests.support import training_task


@pytest.fixture
def made_up_cohort(monkeypatch):
    """Training finds the method and the patients of ``tests.support.training_task``."""
    training_task.install(monkeypatch.setattr)
