"""Errors cross from one process to another whole."""

from __future__ import annotations

import pickle
from importlib.util import find_spec

import pytest

from reelscribe.errors import FailedSamplesError, MissingExtraError, ReelscribeError, SettingsError


@pytest.mark.parametrize(
    "error",
    [
        SettingsError("a setting"),
        FailedSamplesError("two failed", batch={"text": ["a"]}),
        MissingExtraError("vllm", extra="vllm", purpose="this"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: ReelscribeError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.skipif(find_spec("data_juicer") is not None, reason="Data-Juicer is installed")
def test_without_data_juicer_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"reelscribe\[data-juicer\]"):
        import reelscribe.data_juicer  # noqa: F401
