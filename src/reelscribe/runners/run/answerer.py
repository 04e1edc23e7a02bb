"""Who answers the requests of a run: the model on this machine, or somebody whose answers are in the journal then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...data.input import Input
from ...models import server_addresses
from ...models.captioner import captioner_notes
from ...operator import VideoCaptioningFromVLMMapper
from ...pipeline import Operator
from ...rows.plan import Planner
from ...settings import RunSettings
from ...stores import AnyPath
from ...types import CaptionRequest, CaptionResult, Sample
from ..report.progress import Progress
from ..report.summary import RunSummary
from .identity import RunIdentity
from .journal import Journal
from .own_files import OwnFiles

Known = Callable[[CaptionRequest, Sample], CaptionResult | None]
"""Gives what a request about a row was answered before; None: it was not."""

SHOWN_SERVERS = 3
"""Addresses that the line at the start names."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be answered, and where the answers go."""

    operator: VideoCaptioningFromVLMMapper
    """The model, and how videos are read."""
    planner: Planner
    """What is asked about a row."""
    root: AnyPath
    """What relative video paths are relative to."""
    input: Input
    """The rows, and what is known of them."""
    journal: Journal
    """Where answers are kept."""
    settings: RunSettings
    """How input and output are treated."""
    progress: Progress
    """What is told about the run."""
    summary: RunSummary
    """What is told at its end."""
    leave_out: OwnFiles | None = None
    """Files in the input's folder that are the run's own."""


class Answerer(Protocol):
    """Who answers, in the order of its calls."""

    loads_model: bool
    """Whether the model is loaded in this process, which may show its version only then."""

    def recover(self) -> None:
        """Bring answers of an earlier go into the journal, before anything in it is set aside."""

    def settle(self) -> None:
        """The journal has what still counts of earlier goes."""

    def make_ready(self, identity: RunIdentity, known: Known) -> Operator:
        """Get ready to answer.

        Args:
            identity: what an answer is an answer to.
            known: gives the answers of earlier goes.

        Returns:
            Who the pipe asks about what has no answer then.
        """

    def report(self) -> None:
        """Write into the summary what answering took, once the rows are through the pipe."""

    def progress_made(self) -> str | None:
        """What is done where no row is, of a run that ends early; None: nothing."""

    def end(self) -> None:
        """The output has its final name."""


MakeAnswerer = Callable[[Work], Answerer]


class LocalAnswerer:
    """The operator's own model, in this process."""

    loads_model = True

    def __init__(self, work: Work) -> None:
        self._work = work

    def recover(self) -> None:
        """Everything is in the journal."""

    def settle(self) -> None:
        """See `recover`."""

    def make_ready(self, identity: RunIdentity, known: Known) -> Operator:  # noqa: ARG002
        """Load the model now, so that its time is not counted as captioning."""
        operator, summary = self._work.operator, self._work.summary
        began = time.monotonic()
        servers = operator_servers(operator)
        self._work.progress.say(f"connecting to {servers}" if servers else f"loading {summary.model or 'the model'}")
        operator.start()
        summary.model = model_name(operator)
        summary.load_seconds = time.monotonic() - began
        return operator

    def report(self) -> None:
        """What the model says of itself."""
        self._work.summary.engine = captioner_notes(self._work.operator.captioner)

    def progress_made(self) -> None:
        """Rows tell it."""

    def end(self) -> None:
        """Nothing is left behind."""


def model_name(operator: VideoCaptioningFromVLMMapper) -> str | None:
    """The model that will be loaded; None where the operator was given a living captioner, or its server's model is
    not known yet."""
    return operator.served_model or (operator.spec.model or None if operator.spec is not None else None)


def operator_servers(operator: VideoCaptioningFromVLMMapper) -> str:
    """Addresses of the servers that run the model, for a message; empty where none does."""
    addresses = server_addresses(operator.spec) if operator.spec is not None else []
    return ", ".join(addresses[:SHOWN_SERVERS]) + (
        f" and {len(addresses) - SHOWN_SERVERS} more" if len(addresses) > SHOWN_SERVERS else ""
    )
