"""How much of a cluster a run uses: plain values for the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import SettingsError
from ...models import BACKENDS

LOCAL = "local"
"""Address of a cluster that is started on this machine and ends with the run."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """How a run is distributed over a Ray cluster."""

    address: str = LOCAL
    """Address of the cluster; `local` starts one on this machine, `auto` finds the one this machine belongs to."""
    gpus: float | None = None
    """GPUs per captioner, a fraction or several; None: as many as its model needs (`gpus_for`)."""
    min_captioners: int = 1
    """Captioners to start with."""
    max_captioners: int | None = None
    """Most captioners; None: with GPUs as many as fit, without `min_captioners`."""
    reader_cpus: float = 1.0
    """Cores per reading task, in which one process decodes."""
    rows_per_block: int = 16
    """Rows read by one task and sent together."""
    blocks_in_flight: int = 4
    """Blocks that a captioner's model processes concurrently; two more wait at it."""
    rows_per_file: int = 1024
    """Rows whose answers are written, and thus durable, together."""

    def __post_init__(self) -> None:
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus % 1)):
            raise SettingsError(f"gpus must be a fraction below 1 or a whole number; got {self.gpus:g}")
        for name in ("min_captioners", "rows_per_block", "blocks_in_flight", "rows_per_file"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.max_captioners is not None and self.max_captioners < self.min_captioners:
            raise SettingsError(
                f"max_captioners must not be below min_captioners ({self.min_captioners}); got {self.max_captioners}"
            )
        if self.reader_cpus <= 0:
            raise SettingsError(f"reader_cpus must be above 0; got {self.reader_cpus:g}")

    def gpus_for(self, backend: str | None, options: dict[str, Any], *, available: float | None) -> float:
        """GPUs per captioner.

        Args:
            backend: the captioner's back end; None: a captioner object.
            options: parameters of its model.
            available: GPUs of a cluster that cannot grow; None: any number.
        """
        if self.gpus is not None:
            return self.gpus
        return 0 if backend is None or available == 0 else BACKENDS[backend].gpus(options)

    def pool(self, gpus: float) -> tuple[int, int | None]:
        """Fewest and most captioners; None: as many as fit."""
        most = self.max_captioners
        return self.min_captioners, self.min_captioners if most is None and not gpus else most
