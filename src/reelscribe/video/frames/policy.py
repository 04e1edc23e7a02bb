"""A model's frame policy, and the user's changes to it. Plain values; the formulas are elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ...errors import SettingsError
from .library_rules import FrameRule

Size = tuple[int, int]
"""Height and width in pixels."""

PIXEL_ASPECTS = ("stored", "display")
"""Values of `pixel_aspect`."""


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """The user's changes to a model's frame policy; None leaves the model's own value."""

    fps: float | None = None
    """Frames per second to show; excludes `num_frames`."""
    num_frames: int | None = None
    """Frames to show, whatever the length; excludes `fps`."""
    min_frames: int | None = None
    """Fewest frames to show, where the video has as many."""
    max_frames: int | None = None
    """Most frames to show."""
    min_pixels: int | None = None
    """Smallest size of one frame, height x width, in pixels."""
    max_pixels: int | None = None
    """Largest size of one frame, height x width, in pixels."""
    time_tolerance_seconds: float | None = None
    """How far a shown frame may be from its moment if it is cheaper to decode."""
    pixel_aspect: str | None = None
    """`stored`: every stored pixel is shown as a square; `display`: in its true shape, as players show it."""
    tone_map: bool | None = None
    """Whether HDR (PQ and HLG) is shown as SDR."""
    deinterlace: bool | None = None
    """Whether one field of an interlaced frame is shown instead of both."""
    fit: bool | None = None
    """Whether a clip whose prompt exceeds the model's context is shown with as many frames as fit."""

    def __post_init__(self) -> None:
        _check_positive("fps", self.fps, kind=float)
        _check_tolerance(self.time_tolerance_seconds)
        _check_look(self)
        for name in ("num_frames", "min_frames", "max_frames", "min_pixels", "max_pixels"):
            _check_positive(name, getattr(self, name), kind=int)
        if self.fps is not None and self.num_frames is not None:
            raise SettingsError(
                f"fps and num_frames exclude each other; got fps={self.fps} and num_frames={self.num_frames}: drop one"
            )
        _check_order("min_frames", self.min_frames, "max_frames", self.max_frames)
        _check_order("min_frames", self.min_frames, "num_frames", self.num_frames)
        _check_order("num_frames", self.num_frames, "max_frames", self.max_frames)
        _check_order("min_pixels", self.min_pixels, "max_pixels", self.max_pixels)


def _check_positive(name: str, value: Any, *, kind: type[int] | type[float]) -> None:
    if value is None:
        return
    what = "a number" if kind is float else "a whole number"
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise SettingsError(f"{name} must be {what}; got {value!r}: give {what} above 0, or leave it out")
    if not (value > 0 and math.isfinite(value)):
        raise SettingsError(f"{name} must be above 0 and finite; got {value!r}: raise it, or leave it out")


def _check_tolerance(value: Any) -> None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf):
        return
    raise SettingsError(
        f"time_tolerance_seconds must be a number of seconds, 0 or more; got {value!r}: raise it, or leave it out"
    )


def _check_look(settings: FrameSettings) -> None:
    if settings.pixel_aspect not in (None, *PIXEL_ASPECTS):
        raise SettingsError(
            f"pixel_aspect must be one of {', '.join(PIXEL_ASPECTS)}; got {settings.pixel_aspect!r}: choose one, or "
            f"leave it out"
        )
    for name in ("tone_map", "deinterlace", "fit"):
        value = getattr(settings, name)
        if value is not None and not isinstance(value, bool):
            raise SettingsError(f"{name} must be true or false; got {value!r}: give one, or leave it out")


def _check_order(low_name: str, low: int | None, high_name: str, high: int | None) -> None:
    if low is not None and high is not None and low > high:
        raise SettingsError(
            f"{low_name} must not be above {high_name}; got {low_name}={low} and {high_name}={high}: "
            f"lower {low_name} or raise {high_name}"
        )


@dataclass(frozen=True, slots=True)
class FramePolicy:
    """Which frames a model is shown and at which size."""

    sampler: str = "linspace"
    """A key of `SAMPLERS`: how moments are chosen."""
    fps: float | None = 2.0
    """Frames per second to show; None with `num_frames` None: every frame, up to `max_frames`."""
    num_frames: int | None = None
    """Frames to show whatever the length; takes precedence over `fps`, `min_frames` and `max_frames`."""
    min_frames: int = 4
    """Fewest frames, where the video has as many."""
    max_frames: int = 768
    """Most frames."""
    temporal_patch: int = 2
    """Frames the vision encoder merges into one step."""
    sizer: str = "video_budget"
    """A key of `SIZERS`: how the size is chosen."""
    multiple: int = 32
    """Height and width are multiples of this many pixels: patch x merge."""
    min_pixels: int = 4096
    """The processor's `size.shortest_edge`, in pixels, of all frames or of one, depending on the sizer."""
    max_pixels: int = 25_165_824
    """The processor's `size.longest_edge`, in pixels, of all frames or of one, depending on the sizer."""
    frame_cap_tokens: int | None = None
    """The processor's `max_video_tokens` where its `cap_pixels_per_frame` is on, else None."""
    max_frame_pixels: int | None = None
    """The user's limit for one frame, height x width."""
    min_frame_pixels: int | None = None
    """The user's lower limit for one frame, height x width; the model's own budget takes precedence."""
    time_tolerance_seconds: float = 0.0
    """How far a shown frame may be from its moment if it is cheaper to decode; 0: exact frames."""
    pixel_aspect: str = "stored"
    """One of `PIXEL_ASPECTS`."""
    tone_map: bool = False
    """Whether HDR (PQ and HLG) is shown as SDR; otherwise its values are shown as they are."""
    deinterlace: bool = False
    """Whether one field of an interlaced frame is shown instead of both."""
    fit: bool = False
    """Whether a clip whose prompt exceeds the model's context is shown with as many frames as fit."""
    rule: FrameRule | None = None
    """The model's own processor's rule, instead of `sampler`, `fps`, `num_frames` and the limits; it counts the frames
    that it repeats itself."""
    frame_multiple: int | None = None
    """The last frame is repeated until the number of frames is a multiple of this; None: of `temporal_patch`."""
    least_frames: int = 1
    """The last frame is repeated up to this number."""
    max_clip_pixels: int = 0
    """For the sizer `fit`: frames are not shrunk while together they have no more pixels."""
    fixed_size: Size | None = None
    """Height and width to which the model's processor resizes every frame; None: depends on the source's."""
    resizes_all: bool = False
    """Whether the model's processor itself decides how many pixels of a frame the model sees."""

    def override(self, settings: FrameSettings) -> FramePolicy:
        """This policy with the user's settings; `fps` and `num_frames` replace one another, and a limit the user
        sets moves the model's opposite limit where the two would cross."""
        self._check_size(settings)
        changes: dict[str, Any] = {} if self.rule is None else {"rule": self.rule.override(settings)}
        if settings.fps is not None or settings.num_frames is not None:
            changes |= {"fps": settings.fps, "num_frames": settings.num_frames}
        if settings.min_frames is not None:
            changes |= {"min_frames": settings.min_frames, "max_frames": max(self.max_frames, settings.min_frames)}
        if settings.max_frames is not None:
            low = settings.min_frames if settings.min_frames is not None else self.min_frames
            changes |= {"max_frames": settings.max_frames, "min_frames": min(low, settings.max_frames)}
        if settings.min_pixels is not None:
            changes["min_frame_pixels"] = settings.min_pixels
        if settings.max_pixels is not None:
            changes["max_frame_pixels"] = settings.max_pixels
        if settings.time_tolerance_seconds is not None:
            changes["time_tolerance_seconds"] = settings.time_tolerance_seconds
        for name in ("pixel_aspect", "tone_map", "deinterlace", "fit"):
            if getattr(settings, name) is not None:
                changes[name] = getattr(settings, name)
        return replace(self, **changes)

    def _check_size(self, settings: FrameSettings) -> None:
        if not self.resizes_all:
            return
        for name in ("min_pixels", "max_pixels"):
            if getattr(settings, name) is not None:
                size = f" to {self.fixed_size[0]} x {self.fixed_size[1]} pixels" if self.fixed_size else ""
                raise SettingsError(
                    f"{name} (--{name.replace('_', '-')}) has no effect on this model: its processor resizes every "
                    f"frame{size} itself; leave it out, or show fewer frames (max_frames)"
                )
