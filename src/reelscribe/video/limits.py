"""Limits on reading a video, and on which videos may be read. Nothing here opens a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingsError

_ABOVE_ZERO = (
    "max_source_pixels",
    "max_source_seconds",
    "max_source_frames",
    "max_source_bytes",
    "max_read_seconds",
    "max_read_memory_mib",
    "video_cache_mib",
)


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What is refused, from the header if possible, and what ends a read that costs too much."""

    max_source_pixels: int = 8192 * 8192
    """Largest frame of the source, height x width."""
    max_source_seconds: float = 24 * 3600.0
    """Longest video."""
    max_source_frames: int = 10_000_000
    """Most frames of the source: a day at 100 per second has 8.6 million."""
    max_source_bytes: int | None = None
    """Largest file; None: any, but see `remote.MAX_BYTES`."""
    max_read_seconds: float = 300.0
    """Wall-clock time for one try at reading a video, in a reading process."""
    max_read_memory_mib: int = 4096
    """Private memory (MiB) for reading a video, beyond what the reading process starts with; Linux only."""
    allow_remote: bool = False
    """Whether videos at addresses are read: `https://`, `s3://`, `gs://`, `hf://`."""
    allow_images: bool = False
    """Whether a still picture is read, as a clip of one frame."""
    video_cache: Path | None = None
    """Folder in which whole videos from addresses are cached; None: they are not cached."""
    video_cache_mib: int = 10240
    """Most MiB of that cache."""
    media_root: Path | None = None
    """An absolute folder outside of which no file is read, links resolved; None: anywhere."""

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name} must be above 0; got {value!r}: raise it")
        if self.media_root is not None and not (self.media_root.is_absolute() and self.media_root.is_dir()):
            raise SettingsError(f"media_root must be an absolute path of a folder; got {str(self.media_root)!r}")

    @property
    def memory_text(self) -> str:
        """The memory limit as messages name it."""
        return f"the limit of {self.max_read_memory_mib:g} MiB of memory (max_read_memory_mib)"


DEFAULT_LIMITS = ReadLimits()
