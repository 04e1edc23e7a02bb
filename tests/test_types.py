"""What values mean that every back end makes."""

from __future__ import annotations

import pytest

from reelscribe.types import Candidate


@pytest.mark.parametrize("reason", ["length", "stop"])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("一只猫\ufffd", "一只猫"),
        ("a cat \ufffd\ufffd\ufffd", "a cat "),
        ("\ufffd", ""),
        ("a \ufffd b", "a \ufffd b"),
        ("\ufffd a", "\ufffd a"),
        ("", ""),
    ],
)
def test_a_character_that_is_not_whole_is_no_part_of_the_end(text, kept, reason):
    assert Candidate(text, reason).text == kept
