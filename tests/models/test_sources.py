"""Where the default of every field comes from, as ``train METHOD --help`` says it."""

import re
from dataclasses import dataclass, fields

import pytest

from cmrfast import methods
from cmrfast.models import MODELS
from cmrfast.models._sources import field_texts


@pytest.mark.parametrize("name", MODELS)
def test_every_default_of_a_method_has_a_source(name):
    method = methods.get(name)
    for values in (method.config(), method.recipe()):
        texts = [text for each in field_texts(values).values() for text in each]
        assert sorted(text.name for text in texts) == sorted(f.name for f in fields(values))
        for text in texts:
            # The letters that the docstrings explain: paper, code, SigNet, decision.
            assert re.match(r"[PCSD]\b", text.source), text


@dataclass(frozen=True)
class Base:
    """D: ours.

    Args:
        rate: of learning,
            per step.
        low, high: the ends of a range.
    """

    rate: float = 0.5  # D
    low: int = 0
    high: int | None = None


@dataclass(frozen=True)
class Derived(Base):
    """P: the paper."""

    # P 3: said above
    rate: float = 0.25
    sizes: tuple[int, ...] = (3, 4)  # P 2
    flag: bool = True


def test_fields_belong_to_the_class_that_sets_them():
    texts = field_texts(Derived())
    assert [(owner, [text.name for text in each]) for owner, each in texts.items()] == [
        (Base, ["low", "high"]),
        (Derived, ["rate", "sizes", "flag"]),
    ]
    low, high = texts[Base]
    assert (high.kind, high.default, high.source) == ("a whole number or none", "none", "")
    assert low.meaning == high.meaning == "the ends of a range."
    rate, sizes, flag = texts[Derived]
    assert (rate.source, rate.meaning) == ("P 3: said above", "of learning, per step.")
    assert (sizes.kind, sizes.default, sizes.source) == ("whole numbers", "3,4", "P 2")
    assert (flag.default, flag.source) == ("true", "")


def test_a_class_without_a_file_has_no_sources():
    namespace = {"dataclass": dataclass, "__name__": "nowhere"}
    exec("@dataclass\nclass Made:\n    size: int = 3  # D\n", namespace)
    ((text,),) = field_texts(namespace["Made"]()).values()
    assert (text.name, text.kind, text.source) == ("size", "a whole number", "")
