"""Ray itself, and this process's connection to a cluster."""

from __future__ import annotations

from typing import Any

from ...errors import MissingExtraError, SettingsError
from ...video.processes.pool import usable_processors
from .settings import LOCAL, RaySettings

LEAST_LOCAL_CPUS = 4
"""Fewest cores declared for a cluster on this machine, so that no stage waits for another."""


def ray_library() -> Any:
    """Import Ray, with Ray Data.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise MissingExtraError("ray", extra="ray", purpose="captioning on a cluster") from exc
    return ray


def connect(settings: RaySettings) -> bool:
    """Connect this process to the cluster, unless it is connected.

    Returns:
        Whether a connection was made, so that `disconnect` is due.

    Raises:
        SettingsError: no cluster responds at that address.
    """
    ray = ray_library()
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if settings.address == LOCAL:
        cpus = max(LEAST_LOCAL_CPUS, usable_processors())
        ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=False, **quiet)
        return True
    try:
        ray.init(address=settings.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        raise SettingsError(f"no Ray cluster responds at {settings.address!r}: {last_line(exc)}") from exc
    return True


def disconnect() -> None:
    """Disconnect from the cluster; one that was started here ends."""
    ray_library().shutdown()


def last_line(exc: Exception) -> str:
    """The last line of an error's text, where Ray puts the cause."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else ""
