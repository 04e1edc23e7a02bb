"""Seeds from content: the same in every version, since runs of earlier ones resume."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reelscribe.seeds import content_seed

VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(["\ud800"])
)


@given(st.lists(VALUES | st.lists(VALUES)))
def test_a_seed_is_that_of_the_parts_as_json(parts: list[Any]) -> None:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    assert content_seed(*parts) == int.from_bytes(digest.digest(), "big") >> 1


def test_seeds_of_bytes_and_of_dicts_stay_as_they_are() -> None:
    assert content_seed(b"bytes") == SEEDS[0]
    assert content_seed({"path": None, "bytes": b"x"}, 1) == SEEDS[1]


SEEDS = (590_269_796_674_603_689, 419_700_336_883_124_253)
