"""Text for a terminal: nothing in it that a terminal would obey."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from cmrfast.printable import printable


def test_what_is_printable_stays():
    assert printable("Patient 7, Größe 3 x 3 脳.nii.gz") == "Patient 7, Größe 3 x 3 脳.nii.gz"


def test_what_a_terminal_would_obey_is_escaped():
    name = "\x1b]0;owned\x07\n\r\x9b31m\u202egnp.exe\u2028\udcff\x00"
    assert printable(name) == (r"\x1b]0;owned\x07\n\r\x9b31m\u202egnp.exe\u2028\udcff\x00")


@given(st.text(st.characters()))
def test_any_text_is_one_line_of_visible_characters(text):
    shown = printable(text)
    assert all(unicodedata.category(mark)[0] not in "C" for mark in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    assert printable(shown) == shown
