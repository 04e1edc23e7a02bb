"""Interrupt a model that runs in another thread, between two of its layers.

A thread cannot be interrupted from outside without breaking whatever it is doing; so the model checks by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_thread = threading.local()
_ASKS = "_asks_whether_to_stop"


class Stopped(BaseException):
    """Raised in a thread whose work is no longer needed."""


def let_stop(model: nn.Module) -> None:
    """Make each layer of a model check, before it computes, whether its thread should stop; calling it once is
    enough."""
    for layers in model.modules():
        if isinstance(layers, nn.ModuleList) and not hasattr(layers, _ASKS):
            setattr(layers, _ASKS, True)
            for layer in layers:
                layer.register_forward_pre_hook(_ask)


@contextmanager
def stops_when(told: Callable[[], bool]) -> Iterator[None]:
    """While the body runs, layers of models that this thread computes raise `Stopped` once `told` is true."""
    _thread.told = told
    try:
        yield
    finally:
        del _thread.told


def _ask(_layer: nn.Module, _arguments: Any) -> None:
    told = getattr(_thread, "told", None)
    if told is not None and told():
        raise Stopped
