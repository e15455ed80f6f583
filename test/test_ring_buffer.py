"""The ring buffer: what is kept, what is dropped, where a new segment starts, and that pixels stay put."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros.camera import Camera, Shutter
from perspblur_ros.ring_buffer import CAUSES, Rejected, RingBuffer
from perspblur_ros.types import Frame

CAMERA = Camera(width=8, height=6, fx=10.0, fy=10.0, cx=3.5, cy=2.5)
SHUTTER = Shutter(exposure_ns=10_000_000, readout_ns=4_000_000)
MS = 1_000_000
START = 1_700_000_000_000_000_000  # ns, the size of real stamps: float64 could not tell neighbours apart
PERIOD = 33 * MS


def picture(value: int, camera: Camera = CAMERA) -> np.ndarray:
    return np.full((camera.height, camera.width), value % 256, np.uint8)


def buffer(clip_frames: int = 4, window_frames: int = 2) -> RingBuffer:
    return RingBuffer(clip_frames, window_frames, max_gap_ns=200 * MS)


def feed(ring: RingBuffer, *steps_ms: float, camera: Camera = CAMERA) -> list[Frame | Rejected]:
    return [ring.add(START + round(ms * MS), picture(i, camera), camera, SHUTTER) for i, ms in enumerate(steps_ms)]


def dropped(ring: RingBuffer) -> int:
    return sum(n for cause, n in ring.counts.items() if cause.startswith("drop."))


def causes(ring: RingBuffer) -> dict[str, int]:
    return {cause: n for cause, n in ring.counts.items() if n and cause != "frames"}


def test_a_plain_stream_is_one_segment():
    ring = buffer()
    frames = feed(ring, 0, 33, 66)
    assert [(f.index, f.segment) for f in frames] == [(0, 0), (1, 0), (2, 0)]
    assert frames[1].mid_ns == frames[1].stamp_ns + 7 * MS
    assert causes(ring) == {}
    assert set(ring.counts) == {"frames", *CAUSES}


@pytest.mark.parametrize(
    ("stamps_ms", "cause", "segments"),
    [
        ((0, 33, 33, 66), "drop.duplicate", [0, 0, None, 0]),
        ((0, 66, 33, 99), "drop.late", [0, 0, None, 0]),
        ((0, 33, 233, 433), None, [0, 0, 0, 0]),
        ((0, 33, 234, 267), "reset.gap", [0, 0, 1, 1]),
        ((0, 33, 3.2e11, 3.2e11 + 33), "reset.gap", [0, 0, 1, 1]),
        ((1000, 1033, 0, 33), "reset.jump_back", [0, 0, 1, 1]),
    ],
)
def test_the_clock_is_judged(stamps_ms, cause, segments):
    ring = buffer()
    assert [getattr(f, "segment", None) for f in feed(ring, *stamps_ms)] == segments
    assert causes(ring) == ({cause: 1} if cause else {})


@pytest.mark.parametrize("stamp_ns", [0, -5])
def test_a_stamp_that_is_no_time_is_dropped(stamp_ns):
    ring = buffer()
    answer = ring.add(stamp_ns, picture(0), CAMERA, SHUTTER)
    assert isinstance(answer, Rejected)
    assert (answer.cause, answer.index) == ("drop.zero_stamp", 0)
    assert str(stamp_ns) in answer.reason


def test_a_far_future_stamp_costs_one_frame_and_two_segments():
    ring = buffer()
    answers = feed(ring, 0, 33, 1e9, 66, 99)
    assert [f.segment for f in answers] == [0, 0, 1, 2, 2]
    assert causes(ring) == {"reset.gap": 1, "reset.jump_back": 1}


def test_a_shorter_exposure_never_turns_time_back():
    ring = buffer()
    ring.add(START, picture(0), CAMERA, Shutter(exposure_ns=100 * MS, readout_ns=0))
    answer = ring.add(START + 33 * MS, picture(1), CAMERA, Shutter(exposure_ns=10 * MS, readout_ns=0))
    assert isinstance(answer, Rejected)
    assert answer.cause == "drop.late"


def test_stamps_that_turn_out_to_mean_something_else():
    """Exposures of 100 ms were assumed, 10 ms are true: what is kept moves, and what comes is judged by the truth."""
    ring, assumed, true = buffer(), Shutter(100 * MS, 0), Shutter(10 * MS, 4 * MS)
    before = [ring.add(START + k * PERIOD, picture(k), CAMERA, assumed) for k in range(3)]
    ring.retime(true)
    assert [f.mid_ns for f in ring.frames()] == [f.stamp_ns + 7 * MS for f in before]
    for kept, frame in zip(ring.frames(), before):
        assert replace(kept, mid_ns=frame.mid_ns) == frame
    assert isinstance(ring.add(START + 3 * PERIOD, picture(3), CAMERA, true), Frame)
    assert causes(ring) == {}


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (replace(CAMERA, fx=11.0), "reset.intrinsics"),
        (replace(CAMERA, distortion=(0.1, 0.0, 0.0, 0.0)), "reset.intrinsics"),
        (replace(CAMERA, width=10), "reset.size"),
    ],
)
def test_a_changed_camera_starts_a_segment(changed, cause):
    ring = buffer()
    feed(ring, 0, 33)
    frame = ring.add(START + 66 * MS, picture(9, changed), changed, SHUTTER)
    assert frame.segment == 1
    assert frame.image.shape == (changed.height, changed.width)
    assert ring.frames() == (frame,)
    assert causes(ring) == {cause: 1}


def test_colour_becomes_grey_and_a_new_encoding_a_new_segment():
    ring = buffer()
    feed(ring, 0)
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    frame = ring.add(START + 33 * MS, colour, CAMERA, SHUTTER)
    np.testing.assert_array_equal(frame.image, cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))
    assert causes(ring) == {"reset.encoding": 1}


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (np.zeros((6, 9), np.uint8), "drop.size"),
        (np.zeros((0, 0), np.uint8), "drop.size"),
        (np.zeros((6, 8), np.uint16), "drop.encoding"),
        (np.zeros((6, 8, 4), np.uint8), "drop.encoding"),
        (np.zeros(48, np.uint8), "drop.encoding"),
    ],
)
def test_an_image_that_does_not_fit_is_dropped_and_the_stream_goes_on(image, cause):
    ring = buffer()
    feed(ring, 0)
    assert ring.add(START + 33 * MS, image, CAMERA, SHUTTER).cause == cause
    assert ring.add(START + 66 * MS, picture(2), CAMERA, SHUTTER).segment == 0
    assert causes(ring) == {cause: 1}


def test_windows_end_at_the_newest_frame_and_never_cross_a_segment():
    ring = buffer(clip_frames=5, window_frames=2)
    feed(ring, *range(0, 7 * 33, 33))
    assert [f.index for f in ring.window()] == [5, 6]
    assert [f.index for f in ring.window(1)] == [3, 4]
    assert ring.window(2) == ()
    assert ring.window(-1) == ()
    ring.add(START + 10_000 * MS, picture(0), CAMERA, SHUTTER)
    assert ring.window() == ()
    assert len(ring) == 1


def test_reset_on_request_starts_a_segment_once():
    ring = buffer()
    feed(ring, 0)
    ring.reset()
    ring.reset()
    assert ring.add(START, picture(0), CAMERA, SHUTTER).segment == 1
    assert causes(ring) == {"reset.request": 1}


def test_pixels_cannot_be_overwritten_through_a_frame():
    ring = buffer()
    (frame,) = feed(ring, 0)
    with pytest.raises(ValueError, match="read-only"):
        frame.image[0, 0] = 1


steps = st.lists(
    st.one_of(st.just(PERIOD), st.integers(-3 * PERIOD, 3 * PERIOD), st.integers(-(10**12), 10**12)), max_size=60
)


@given(steps, st.integers(1, 7))
def test_any_clock_gives_increasing_segments_and_nothing_is_lost_uncounted(steps_ns, clip_frames):
    ring = buffer(clip_frames=clip_frames)
    stamps = START + np.cumsum([0, *steps_ns])
    answers = [ring.add(int(t), picture(i), CAMERA, SHUTTER) for i, t in enumerate(stamps)]
    accepted = [a for a in answers if isinstance(a, Frame)]
    assert [a.index for a in answers] == list(range(len(stamps)))
    assert len(stamps) == ring.counts["frames"] == len(accepted) + dropped(ring)
    for before, after in pairwise(accepted):
        if before.segment == after.segment:
            assert 0 < after.stamp_ns - before.stamp_ns <= ring.max_gap_ns
            assert after.mid_ns > before.mid_ns
        else:
            assert after.segment == before.segment + 1
    assert accepted[-1].segment == sum(n for cause, n in ring.counts.items() if cause.startswith("reset."))


@given(st.permutations(range(12)))
def test_shuffled_frames_come_out_sorted(order):
    ring = buffer(clip_frames=12)
    for i in order:
        ring.add(START + i * 15 * MS, picture(i), CAMERA, SHUTTER)
    kept = [f.stamp_ns for f in ring.frames()]
    assert kept == sorted(kept)
    assert len(kept) == 12 - dropped(ring)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.integers(1, 6))
def test_images_stay_unchanged_inside_the_ring_and_memory_is_not_allocated_again(values, clip_frames):
    ring = buffer(clip_frames=clip_frames)
    bases = set()
    for i, value in enumerate(values):
        source = picture(value)
        frame = ring.add(START + i * PERIOD, source, CAMERA, SHUTTER)
        source[:] = 77  # the caller may reuse its array at once
        bases.add(frame.image.__array_interface__["data"][0])
        assert [int(f.image[0, 0]) for f in ring.frames()] == values[max(0, i + 1 - clip_frames) : i + 1]
        assert all((f.image == f.image[0, 0]).all() for f in ring.frames())
    assert len(bases) == min(clip_frames, len(values))
