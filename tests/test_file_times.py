"""Files whose times are odd, and what a plain look at their packets says is right: nothing lost, nothing invented."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clips
import remuxed
from reelscribe.types import Clip, Failure, TimeWindow
from reelscribe.video.decode.partial_times import apart, filled
from reelscribe.video.frames.moments import frame_metadata
from reelscribe.video.frames.policy import FramePolicy
from reelscribe.video.reader import read_clip
from remuxed import MPEG_CLOCK

EVERY_FRAME = FramePolicy(fps=None, max_frames=1000, temporal_patch=1)
TWO_A_SECOND = FramePolicy(temporal_patch=1)
STRIDE = FramePolicy(sampler="stride", sizer="frame_budget", multiple=28, min_pixels=100352, max_pixels=602112)

Packets = Callable[..., Path]


@pytest.fixture(scope="module")
def packets(tmp_path_factory: pytest.TempPathFactory) -> Packets:
    """Encoded numbered frames; each kind is encoded once."""
    folder, made = tmp_path_factory.mktemp("packets"), dict[tuple[int, str], Path]()

    def give(total: int, codec: str = "libx264") -> Path:
        if (total, codec) not in made:
            made[total, codec] = remuxed.numbered_packets(folder, total, codec=codec)
        return made[total, codec]

    return give


def clip_of(path: Path, policy: FramePolicy = EVERY_FRAME, **window: float) -> Clip:
    clip = read_clip(str(path), policy, window=TimeWindow(**window))
    assert isinstance(clip, Clip), clip
    return clip


def burst(*, still: int = 10_000, frames: int = 30) -> list[int]:
    """Milliseconds of a picture that stays, and frames in quick succession, twice."""
    once = [0, *(still + 33 * n for n in range(frames))]
    return once + [time + 2 * still for time in once]


# equal and missing times


def zero_length(path: Path, sample: int) -> int:
    """Let a sample of an mp4 or mov file last no time; returns the ticks that all later ones come earlier."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 8
    (entries,) = struct.unpack_from(">I", data, at)
    table = [struct.unpack_from(">II", data, at + 4 + 8 * n) for n in range(entries)]
    assert table[sample][0] == 1, "a sample with a length of its own was expected"
    struct.pack_into(">II", data, at + 4 + 8 * sample, 1, 0)
    path.write_bytes(data)
    return int(table[sample][1])


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("sample", [3, 20])
def test_a_sample_that_lasts_no_time_leaves_all_others_their_times(
    tmp_path: Path, packets: Packets, suffix: str, sample: int
) -> None:
    times = [0, *(10_000 + 33 * n + n % 2 for n in range(30)), 40_000, 45_000]
    path = remuxed.retimed(packets(33), tmp_path / f"x.{suffix}", times)
    before = clip_of(path)
    lost = zero_length(path, sample)
    clip = clip_of(path)
    ticks = (before.pts_seconds[sample + 1] - before.pts_seconds[sample]) / lost
    assert clips.numbers_of(clip.frames) == list(range(33))
    expected = before.pts_seconds.copy()
    expected[sample + 1 :] -= lost * ticks
    others = np.arange(33) != sample + 1
    assert clip.pts_seconds[others] == pytest.approx(expected[others], abs=1e-6)
    assert expected[sample] < clip.pts_seconds[sample + 1] < expected[sample + 2]
    assert len(clip_of(path, start_seconds=39.9, end_seconds=40.1).pts_seconds) == 1


@pytest.mark.parametrize("name", ["mkv", "webm", "flv"])
@pytest.mark.parametrize("twice", [[5], [5, 40], list(range(0, 62, 2))])
def test_a_millisecond_that_comes_twice_moves_one_frame(
    tmp_path: Path, packets: Packets, name: str, twice: list[int]
) -> None:
    times = burst()
    source = packets(len(times), "libvpx-vp9" if name == "webm" else "libx264")
    right = clip_of(remuxed.retimed(source, tmp_path / f"right.{name}", times)).pts_seconds
    for place in twice:
        times[place + 1] = times[place]
    clip = clip_of(remuxed.retimed(source, tmp_path / f"x.{name}", times))
    assert clips.numbers_of(clip.frames) == list(range(len(times)))
    moved = np.isin(np.arange(len(times)), np.array(twice) + 1)
    assert clip.pts_seconds[~moved] == pytest.approx(right[~moved], abs=1e-6)
    assert (np.diff(clip.pts_seconds) > 0).all()
    assert (clip.pts_seconds[moved] - clip.pts_seconds[np.flatnonzero(moved) - 1] <= 0.034).all()


def test_frames_on_a_clock_of_half_their_rate_lie_between_its_ticks(tmp_path: Path, packets: Packets) -> None:
    path = remuxed.retimed(packets(40), tmp_path / "x.mkv", [n // 2 * 40 for n in range(40)])
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == list(range(40))
    assert clip.pts_seconds == pytest.approx(np.arange(40) / 50, abs=1e-6)
    assert clip.source_fps == pytest.approx(50)


def test_a_wanted_frame_is_the_second_of_two_with_one_time(tmp_path: Path, packets: Packets) -> None:
    times = [40 * n for n in range(100)]
    times[51] = times[50]
    path = remuxed.retimed(packets(100), tmp_path / "x.mkv", times)
    clip = clip_of(path, start_seconds=2.01, end_seconds=2.03)
    assert clips.numbers_of(clip.frames) == [51]


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
@pytest.mark.parametrize("wanted", [49, 50])
def test_a_key_frame_with_the_time_of_the_frame_before_it_is_not_taken_for_that(
    tmp_path: Path, packets: Packets, suffix: str, wanted: int
) -> None:
    times = [40 * n for n in range(100)]
    times[50] = times[49]
    path = remuxed.retimed(packets(100), tmp_path / f"x.{suffix}", times)
    begin = 1.95 if wanted == 49 else 1.97
    clip = clip_of(path, start_seconds=begin, end_seconds=begin + 0.02)
    assert clips.numbers_of(clip.frames) == [wanted]


ticks = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=60)


@given(ticks, st.data())
def test_equal_times_are_moved_apart_and_nothing_else(times: list[int], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(times), max_size=20))
    given = np.array(sorted(times + again), np.int64)
    moments = apart(given)
    assert (np.diff(moments) > 0).all()
    first = np.concatenate([[True], np.diff(given) > 0])
    assert (moments[first] == given[first]).all()


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=60), st.data())
def test_missing_and_wrong_times_come_from_their_neighbours(steps: list[int], data: st.DataObject) -> None:
    right = np.cumsum(steps)
    given: list[int | None] = right.tolist()
    hidden = data.draw(st.sets(st.integers(0, len(steps) - 1), max_size=len(steps) - 2))
    for place in hidden:
        given[place] = None
    found = filled(given, step=10)
    assert found is not None
    known = np.setdiff1d(np.arange(len(steps)), list(hidden))
    assert (found[known] == right[known]).all()
    assert (np.diff(found) >= 0).all()


def test_one_absurd_time_among_many_is_not_believed() -> None:
    times: list[int | None] = [0, 10, 20, 9_000_000, 40, None, 60, 0, 80]
    assert filled(times, step=10).tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert filled([None, None], step=10) is None
    assert filled([None, 50, None, None], step=10).tolist() == [40, 50, 60, 70]


# one time that is wrong


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mkv", "libx264"), ("mp4", "libx264"), ("webm", "libvpx-vp9"), ("flv", "libx264")]
)
@pytest.mark.parametrize("ahead", [100, 5_000, 100_000])
def test_one_time_far_ahead_moves_that_frame_alone(
    tmp_path: Path, packets: Packets, suffix: str, codec: str, ahead: int
) -> None:
    times = [40 * n for n in range(50)]
    with av.open(str(packets(50, codec))) as given, av.open(str(tmp_path / f"x.{suffix}"), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for n, packet in enumerate(one for one in given.demux(video=0) if one.size):
            packet.stream, packet.time_base = stream, remuxed.MILLISECOND
            packet.dts, packet.pts = times[n], times[n] + (ahead if n == 20 else 0)
            made.mux(packet)
    clip = clip_of(tmp_path / f"x.{suffix}")
    assert clips.numbers_of(clip.frames) == list(range(50))
    assert np.delete(clip.pts_seconds, 20) == pytest.approx(np.delete(times, 20) / 1000, abs=1e-3)
    assert times[19] / 1000 < clip.pts_seconds[20] < times[21] / 1000


# two fields a frame


def test_frames_of_two_packets_are_counted_as_frames(tmp_path: Path) -> None:
    clip = clip_of(remuxed.field_coded(tmp_path / "x.ts"))
    assert clip.pts_seconds == pytest.approx(np.arange(40) / 25, abs=1e-4)
    assert clip.source_fps == pytest.approx(25)


@pytest.mark.parametrize("lost", [[0], [0, 20], [3, 7, 8, 30], list(range(0, 36, 2))])
def test_a_field_coded_file_with_some_loss_gives_the_frames_that_are_there(tmp_path: Path, lost: list[int]) -> None:
    clip = clip_of(remuxed.field_coded(tmp_path / "x.ts", lost=lost))
    there = np.setdiff1d(np.arange(40), lost)
    assert clip.pts_seconds == pytest.approx(there / 25, abs=1e-4)
    greys = clip.frames.mean(axis=(1, 2, 3))
    assert greys == pytest.approx([(5 * n % 220) * 255 / 219 for n in there], abs=3)


def test_a_field_coded_file_that_is_mostly_lost_is_refused(tmp_path: Path) -> None:
    made = read_clip(str(remuxed.field_coded(tmp_path / "x.ts", lost=range(30))), EVERY_FRAME)
    assert isinstance(made, Failure)
    assert made.kind == "unreadable"


def test_fields_without_their_partners_keep_the_true_times_of_all_others(tmp_path: Path) -> None:
    clip = clip_of(remuxed.field_coded(tmp_path / "x.ts", dropped=[5, 20]))
    times = clip.pts_seconds.tolist()
    assert (np.diff(times) > 0).all()
    missing = [n for n in range(40) if n not in (5, 6, 20, 21) and min(abs(t - n / 25) for t in times) > 1e-3]
    assert not missing


# a picture that stays, begins late or ends early


STAYING = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "flv": "libx264", "webm": "libvpx-vp9"}


@pytest.mark.parametrize("suffix", STAYING)
def test_a_last_picture_that_stays_counts_and_moments_go_by_time(tmp_path: Path, packets: Packets, suffix: str) -> None:
    times = [40 * n for n in range(50)]
    source = packets(50, STAYING[suffix])
    path = remuxed.retimed(source, tmp_path / f"x.{suffix}", times, lengths=[40] * 49 + [60_000])
    clip = clip_of(path, TWO_A_SECOND)
    assert clip.duration_seconds == pytest.approx(61.96, abs=0.05)
    assert clip.pts_seconds == pytest.approx([0, 0.48, 1.0, 1.48, 1.96], abs=0.05)
    assert clips.numbers_of(clip.frames)[-1] == 49
    late = clip_of(path, TWO_A_SECOND, start_seconds=30.0, end_seconds=40.0)
    assert clips.numbers_of(late.frames) == [49]
    assert late.window_seconds == pytest.approx(38.04, abs=0.05)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mkv", "libx264"), ("webm", "libvpx-vp9"), ("ts", "libx264"), ("nut", "libx264"), ("fragments.mp4", "libx264")],
)
def test_pictures_shorter_than_the_sound_are_no_damage(
    tmp_path: Path, packets: Packets, suffix: str, codec: str
) -> None:
    times = [8_000 + 40 * n for n in range(250)]
    options = {"ts": {"mpegts_copyts": "1"}, "fragments.mp4": {"movflags": "frag_keyframe+delay_moov"}}
    muxer = options.get(suffix)
    path = remuxed.retimed(packets(250, codec), tmp_path / f"x.{suffix}", times, sound=(0.0, 30.0), options=muxer)
    clip = clip_of(path, TWO_A_SECOND)
    assert clip.duration_seconds == pytest.approx(10, abs=0.05)
    assert clip.pts_seconds[0] == pytest.approx(8, abs=0.2)
    assert clip.source_fps == 25
    assert len(clip.pts_seconds) == 20


@pytest.mark.parametrize(("suffix", "codec"), [("wmv", "wmv2"), ("nut", "libx264"), ("wtv", "mpeg2video")])
def test_a_file_that_starts_late_ends_with_its_last_frame(
    tmp_path: Path, packets: Packets, suffix: str, codec: str
) -> None:
    path = remuxed.retimed(packets(50, codec), tmp_path / f"x.{suffix}", [6_000 + 40 * n for n in range(50)])
    clip = clip_of(path)
    assert clip.pts_seconds == pytest.approx(6 + np.arange(50) / 25, abs=1e-3)
    assert clip.duration_seconds == pytest.approx(2, abs=0.05)


def test_slides_whose_lengths_are_told_as_a_tick_each_stay(tmp_path: Path, packets: Packets) -> None:
    times = np.cumsum([0, *np.random.default_rng(0).integers(500, 9000, 29)]).tolist()
    source = packets(30, "libvpx")
    clip = clip_of(remuxed.retimed(source, tmp_path / "x.mkv", times, lengths=[*np.diff(times).tolist(), 4_000]))
    assert clip.duration_seconds - clip.pts_seconds[-1] > 1


@pytest.mark.parametrize("share", [0.35, 0.8])
def test_a_cut_mxf_file_ends_where_it_was_cut(tmp_path: Path, share: float) -> None:
    noisy = [np.random.default_rng(n).integers(0, 255, (64, 96, 3), dtype=np.uint8) for n in range(60)]
    options = {"g": "10", "bf": "0", "q:v": "2"}
    whole = clips.render_video(tmp_path / "whole.mxf", codec="mpeg2video", fps=25, frames=noisy, options=options)
    assert clip_of(whole).duration_seconds == pytest.approx(2.4)
    made = read_clip(str(clips.cut(whole, tmp_path / "x.mxf", share=share)), EVERY_FRAME)
    if share < 0.5:
        assert isinstance(made, Failure)
        assert "cut short" in made.message
    else:
        assert isinstance(made, Clip)
        assert made.duration_seconds == pytest.approx(len(made.frames) / 25, abs=0.01)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize(
    "entries",
    [[(1000, -1), (1400, 600)], [(1400, 600)], [(2000, -1), (960, 1040)], [(500, -1), (2000, 0)]],
    ids=["empty and skipped", "skipped", "to a key frame", "empty"],
)
def test_what_an_edit_list_leaves_out_does_not_count(
    tmp_path: Path, packets: Packets, suffix: str, entries: list[tuple[int, int]]
) -> None:
    path = remuxed.retimed(packets(50), tmp_path / f"x.{suffix}", [40 * n for n in range(50)])
    remuxed.edited(path, entries)
    clip = clip_of(path)
    first = entries[-1][1] // 40
    assert clips.numbers_of(clip.frames) == list(range(first, 50))
    begin = entries[0][0] / 1000 if len(entries) == 2 else 0.0
    assert clip.pts_seconds == pytest.approx(begin + np.arange(50 - first) / 25, abs=1e-3)
    assert clip.duration_seconds == pytest.approx((50 - first) / 25, abs=0.01)


@pytest.mark.parametrize(
    ("suffix", "codec", "sound"),
    [("mov", "libx264", None), ("nut", "libx264", (0.0, 30.0)), ("mp4", "libx264", (0.0, 30.0))],
)
def test_a_picture_that_begins_late_does_not_stay_longer_for_it(
    tmp_path: Path, packets: Packets, suffix: str, codec: str, sound: tuple[float, float] | None
) -> None:
    times = [8_000 + 40 * n for n in range(50)]
    clip = clip_of(remuxed.retimed(packets(50, codec), tmp_path / f"x.{suffix}", times, sound=sound), TWO_A_SECOND)
    assert clip.duration_seconds == pytest.approx(2, abs=0.05)
    assert clip.pts_seconds == pytest.approx([8, 8.64, 9.32, 9.96], abs=0.05)


@pytest.mark.parametrize("tag", ["00:00:09.000000000", "11:00:00.000000000", "00:00:nan", "00:00:inf", "?"])
def test_a_tag_of_matroska_that_goes_beyond_the_file_is_not_believed(
    tmp_path: Path, packets: Packets, tag: str
) -> None:
    path = remuxed.retimed(packets(50), tmp_path / "x.mkv", [40 * n for n in range(50)])
    right = b"00:00:02.000000000"
    data = path.read_bytes()
    assert data.count(right) == 1
    path.write_bytes(data.replace(right, tag.encode().ljust(len(right), b"\0")))
    clip = clip_of(path, TWO_A_SECOND)
    assert clip.duration_seconds == pytest.approx(2)
    assert clip.pts_seconds == pytest.approx([0, 0.64, 1.32, 1.96], abs=0.05)


def test_a_length_that_is_a_guess_from_a_rate_of_bits_is_not_believed(tmp_path: Path) -> None:
    path = clips.render_video(tmp_path / "x.m1v", codec="mpeg1video", count=50, fps=25, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"\0\0\1\xb3") + 8
    data[at : at + 3] = (int.from_bytes(data[at : at + 3], "big") & 0x3F | 1 << 6).to_bytes(3, "big")  # 400 bit/s
    path.write_bytes(data)
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == list(range(50))
    assert clip.duration_seconds == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "flv", "avi"])
def test_a_file_of_which_a_third_is_there_is_cut_short(tmp_path: Path, suffix: str) -> None:
    options = {"movflags": "faststart"} if suffix == "mp4" else None
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    noisy = [np.random.default_rng(n).integers(0, 255, (64, 96, 3), dtype=np.uint8) for n in range(60)]
    whole = clips.render_video(
        tmp_path / f"whole.{suffix}", codec=codec, fps=25, frames=noisy, container_options=options, options={"g": "10"}
    )
    assert len(clip_of(whole).frames) == 60
    made = read_clip(str(clips.cut(whole, tmp_path / f"x.{suffix}", share=0.35)), EVERY_FRAME)
    assert isinstance(made, Failure), made
    assert made.kind == "unreadable"
    assert "cut short" in made.message


# clocks that jump


def part(
    source: Path, path: Path, start_seconds: float, *, rate: int = 25, options: dict[str, str] | None = None
) -> Path:
    """Frames at a constant rate in a container of MPEG, from a time on its clock."""
    count = int(source.stem.split("_")[1])
    begin = round(start_seconds * 90_000)
    times = [begin + 90_000 * n // rate for n in range(count)]
    kept = {"mpegts_copyts": "1"} if path.suffix == ".ts" else {}
    return remuxed.retimed(
        source, path, times, base=MPEG_CLOCK, options={**kept, "muxdelay": "0", "muxpreload": "0"} | (options or {})
    )


JUMPS = {
    "the same clock twice": 100.0,
    "back to an earlier clock": 20.0,
    "overlapping clocks": 101.0131,
    "ahead by eleven seconds": 115.0,
    "ahead by 81 minutes": 5_000.0,
    "ahead by 25 hours": 90_000.0,
    "back by 25 hours": None,
}


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("jump", JUMPS)
def test_streams_that_were_joined_go_on_by_the_order_of_the_file(
    tmp_path: Path, packets: Packets, suffix: str, jump: str
) -> None:
    codec = "libx264" if suffix == "ts" else "mpeg2video"
    one, two = packets(50, codec), packets(75, codec)
    starts = (100.0, JUMPS[jump]) if JUMPS[jump] is not None else (90_000.0, 100.0)
    parts = [part(source, tmp_path / f"{n}.{suffix}", starts[n]) for n, source in enumerate((one, two))]
    clip = clip_of(remuxed.joined(tmp_path / f"x.{suffix}", parts))
    assert clips.numbers_of(clip.frames) == [*range(50), *range(75)]
    assert clip.pts_seconds == pytest.approx(np.arange(125) / 25, abs=0.002)
    assert clip.duration_seconds == pytest.approx(5, abs=0.002)
    late = clip_of(tmp_path / f"x.{suffix}", start_seconds=3.0, end_seconds=3.1)
    assert clips.numbers_of(late.frames) == [25, 26, 27]


@pytest.mark.parametrize("options", [{}, {"live": "1"}], ids=["with an index", "live"])
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_matroska_files_that_were_joined_go_on_by_the_order_of_the_file(
    tmp_path: Path, packets: Packets, suffix: str, codec: str, options: dict[str, str]
) -> None:
    source = packets(50, codec)
    one = remuxed.retimed(source, tmp_path / f"1.{suffix}", [40 * n for n in range(50)], options=options)
    path = remuxed.joined(tmp_path / f"x.{suffix}", [one, one])
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == [*range(50)] * 2
    assert clip.pts_seconds == pytest.approx(np.arange(100) / 25, abs=0.002)
    assert clip.duration_seconds == pytest.approx(4, abs=0.01)
    assert clips.numbers_of(clip_of(path, start_seconds=3.0, end_seconds=3.1).frames) == [25, 26, 27]


def test_three_parts_with_rates_and_sizes_of_their_own(tmp_path: Path, packets: Packets) -> None:
    large = remuxed.numbered_packets(tmp_path, 60, height=128, width=192)
    parts = [
        part(packets(50), tmp_path / "0.ts", 100),
        part(large, tmp_path / "1.ts", 3, rate=30),
        part(packets(50), tmp_path / "2.ts", 7_000),
    ]
    clip = clip_of(remuxed.joined(tmp_path / "x.ts", parts))
    assert clips.numbers_of(clip.frames) == [*range(50), *range(60), *range(50)]
    expected = [*np.arange(50) / 25, *(2 + np.arange(60) / 30), *(4 + np.arange(50) / 25)]
    assert clip.pts_seconds == pytest.approx(expected, abs=0.01)
    assert len(clip_of(tmp_path / "x.ts", TWO_A_SECOND).frames) == 12
    assert (clip.source_height, clip.source_width) == (64, 96)


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_a_clock_that_starts_again_after_26_hours_is_no_jump(tmp_path: Path, packets: Packets, suffix: str) -> None:
    codec = "libx264" if suffix == "ts" else "mpeg2video"
    path = part(packets(75, codec), tmp_path / f"x.{suffix}", (1 << 33) / 90_000 - 1)
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == list(range(75))
    told_twice = 0.04 if suffix == "mpg" else 0.0  # FFmpeg reads a time of zero as the next one
    assert clip.pts_seconds - clip.pts_seconds[0] == pytest.approx(np.arange(75) / 25, abs=told_twice + 0.002)


def test_a_pause_of_some_seconds_is_a_pause(tmp_path: Path, packets: Packets) -> None:
    parts = [part(packets(50), tmp_path / f"{n}.ts", start) for n, start in enumerate((100, 108))]
    clip = clip_of(remuxed.joined(tmp_path / "x.ts", parts))
    assert clip.pts_seconds[50] == pytest.approx(8, abs=0.01)


def test_damaged_packets_of_a_transport_stream_keep_the_others_on_its_clock(tmp_path: Path) -> None:
    clip = clip_of(remuxed.field_coded(tmp_path / "x.ts", dropped=[1]))
    assert clip.pts_seconds[0] == pytest.approx(0, abs=1e-3)
    assert clip.pts_seconds[-1] == pytest.approx(39 / 25, abs=1e-3)


# windows of files with several rates


@pytest.fixture(scope="module")
def two_rates(tmp_path_factory: pytest.TempPathFactory, packets: Packets) -> Callable[[str], Path]:
    """Five seconds at 20 frames a second, then 30 seconds at 2."""
    folder = tmp_path_factory.mktemp("rates")
    times = [50 * n for n in range(100)] + [5_000 + 500 * n for n in range(60)]

    def give(suffix: str) -> Path:
        path = folder / f"x.{suffix}"
        codec = "libvpx-vp9" if suffix == "webm" else "libx264"
        return path if path.exists() else remuxed.retimed(packets(160, codec), path, times)

    return give


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "webm", "flv"])
@pytest.mark.parametrize("policy", [TWO_A_SECOND, STRIDE], ids=["linspace", "stride"])
@pytest.mark.parametrize("window", [(10.0, 30.0), (1.0, 4.0), (3.0, 9.0)])
def test_a_window_goes_by_the_rate_of_its_own_frames(
    two_rates: Callable[[str], Path], suffix: str, policy: FramePolicy, window: tuple[float, float]
) -> None:
    clip = clip_of(two_rates(suffix), policy, start_seconds=window[0], end_seconds=window[1])
    wanted = round(2 * (window[1] - window[0]))
    assert abs(len(clip.pts_seconds) - wanted) <= 1
    assert np.median(np.diff(np.unique(clip.pts_seconds))) == pytest.approx(0.5, abs=0.11)
    assert clip.window_seconds == pytest.approx(window[1] - window[0], abs=0.06)
    told = frame_metadata(clip)
    between = told["total_num_frames"] / told["fps"] / len(told["frames_indices"])
    assert between == pytest.approx(0.5, abs=0.05)


# what most frames have


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize(("first", "second", "shown"), [(5, 35, 1), (35, 5, 0), (20, 20, 1)])
def test_the_size_of_most_frames_is_the_size_of_all(
    tmp_path: Path, codec: str, first: int, second: int, shown: int
) -> None:
    sizes = [(48, 64), (96, 128)]
    options = {"deadline": "realtime", "auto-alt-ref": "0", "lag-in-frames": "0"}
    parts = [
        remuxed.numbered_packets(tmp_path, count, codec=codec, height=h, width=w, options=options)
        for count, (h, w) in zip((first, second), sizes, strict=True)
    ]
    path = remuxed.appended(tmp_path / "x.webm", parts)
    clip = clip_of(path)
    assert clips.numbers_of(clip.frames) == [*range(first), *range(second)]
    assert (clip.source_height, clip.source_width) == sizes[shown]
