"""Errors cross from one process to another whole."""

from __future__ import annotations

import pickle
from importlib.util import find_spec

import pytest

from reelscribe.errors import FailedSamplesError, MissingExtraError, ReelscribeError, SettingsError, needing


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


def test_a_package_of_an_extra_that_is_missing_is_named_with_it():
    with pytest.raises(MissingExtraError) as caught, needing("hf", purpose="a model"):
        import no_such_package.inner  # noqa: F401
    assert str(caught.value) == "a model needs the package 'no_such_package': pip install 'reelscribe[hf]'"


def test_a_package_that_is_broken_is_not_called_missing():
    with pytest.raises(ImportError, match="cannot import name") as caught, needing("hf", purpose="a model"):
        from json import no_such_name  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)
