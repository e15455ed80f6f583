"""Frames through the node: what is judged, dropped, reset and counted (faults 1 to 8, 10, 11, 13 to 15, 20, 23, 25)."""

from __future__ import annotations

import array
import itertools
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import Image

from perspblur_ros.camera import Camera
from perspblur_ros.image_codec import ENCODINGS
from perspblur_ros.ros.conversions import to_ns

from .rig import CAMERA, FRAME_ID, HEIGHT, PERIOD_NS, WIDTH, FakePipeline, image_message, wait_until

REPEATED_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def published(rig, frames: int) -> None:
    wait_until(lambda: len(rig.paths) >= frames, f"{frames} paths")


def assert_increasing(stamps: list[int]) -> None:
    assert all(later > earlier for earlier, later in itertools.pairwise(stamps))


def test_every_frame_becomes_a_path_and_its_samples(rig):
    rig.start(samples_per_frame=15)
    for _ in range(10):
        rig.send()
    published(rig, 10)
    wait_until(lambda: len(rig.imu) == 150, "all samples")
    assert rig.dense_stamps() == rig.path_stamps()
    assert_increasing(rig.dense_stamps())
    assert rig.counts()["published"] == 10
    assert {m.header.frame_id for m in (*rig.imu, *rig.paths, *rig.sparse)} == {FRAME_ID}
    assert len(rig.sparse) == 10


def test_dropped_frames_leave_the_order_intact(rig):
    rig.start()
    for k in range(12):
        if k not in (4, 7, 8):
            rig.send()
        else:
            rig.stamp_ns += PERIOD_NS
    published(rig, 9)
    assert_increasing(rig.path_stamps())
    assert rig.counts()["reset.gap"] == 0


def test_a_long_gap_starts_a_new_segment(rig):
    rig.start()
    for _ in range(3):
        rig.send()
    gap_start = rig.stamp_ns + PERIOD_NS
    rig.stamp_ns += 500_000_000
    for _ in range(3):
        rig.send()
    published(rig, 6)
    assert rig.counts()["reset.gap"] == 1
    inside = [t for t in rig.path_stamps() if gap_start + PERIOD_NS < t < gap_start + 400_000_000]
    assert inside == []


def test_a_duplicate_stamp_is_dropped(rig):
    rig.start()
    stamp = rig.send()
    rig.send(stamp_ns=stamp)
    rig.send()
    published(rig, 2)
    assert rig.counts()["drop.duplicate"] == 1


def test_a_late_frame_is_dropped(rig):
    rig.start()
    stamps = [rig.send() for _ in range(3)]
    rig.send(stamp_ns=stamps[0] + PERIOD_NS // 2)
    rig.send(stamp_ns=stamps[-1] + PERIOD_NS)
    published(rig, 4)
    assert rig.counts()["drop.late"] == 1
    assert_increasing(rig.path_stamps())


def test_any_order_of_arrival_gives_increasing_stamps(rig):
    rig.start()

    @REPEATED_FIXTURE
    @given(st.permutations(range(6)))
    def permuted(order):
        rig.paths.clear()
        base = rig.stamp_ns = rig.stamp_ns + 10_000_000_000
        before = rig.counts()
        for k in order:
            rig.send(stamp_ns=base + k * PERIOD_NS)
        rig.stamp_ns = base + 10 * PERIOD_NS
        counts = rig.counts() - before
        assert counts["processed"] == 6
        assert counts["frames"] == 6
        assert_increasing(rig.path_stamps())

    permuted()


def test_the_clock_may_jump_back(rig):
    """A bag that loops: the old stream is finished, the new one starts at once."""
    rig.start()
    first = [rig.send() for _ in range(4)]
    rig.stamp_ns = first[0] - 100_000_000_000
    second = [rig.send() for _ in range(4)]
    published(rig, 8)
    assert rig.counts()["reset.jump_back"] == 1
    before, after = ([to_ns(pose.header.stamp) for path in part for pose in path.poses]
                     for part in (rig.paths[:4], rig.paths[4:]))
    assert len(before) == len(after) == 4 * 30
    assert_increasing(before)
    assert_increasing(after)
    assert after[0] >= second[0]
    wait_until(lambda: rig.dense_stamps() == before + after, "every sample")


def test_the_clock_may_jump_forward(rig):
    rig.start()
    rig.send()
    rig.stamp_ns += 3600 * 10**9
    rig.send()
    published(rig, 2)
    assert rig.counts()["reset.gap"] == 1


@pytest.mark.parametrize("stamp_ns", [0, -1_000_000_000])
def test_a_stamp_that_is_no_time_is_dropped(rig, stamp_ns):
    rig.start()
    rig.send(stamp_ns=stamp_ns)
    assert rig.counts()["drop.zero_stamp"] == 1
    rig.send(stamp_ns=5_000_000_000)
    published(rig, 1)


def test_huge_and_malformed_stamps(rig):
    rig.start()
    rig.send(stamp_ns=(2**31 - 1) * 10**9)
    message = image_message(rig.image, "mono8", 10**12, FRAME_ID)
    message.header.stamp.nanosec = 2**32 - 1
    rig.send_message(message)
    assert rig.counts()["drop.stamp"] == 1
    rig.send(stamp_ns=10**12)
    published(rig, 2)


def test_jitter_of_the_transport_changes_nothing(rig):
    """Fault 5: what comes out depends on the stamps alone, not on when the frames arrive."""
    rig.start(queue_frames=64)
    for _ in range(8):
        rig.send()
    published(rig, 8)
    evenly = rig.path_stamps()
    rig.paths.clear()
    shift = 10**12
    for k in range(8):
        rig.images.publish(image_message(rig.image, "mono8", rig.stamp_ns - (7 - k) * PERIOD_NS + shift, FRAME_ID))
        wait_until(lambda k=k: rig.node._input.stream.arrived == 9 + k, "the frame")
    published(rig, 8)
    assert [t - shift for t in rig.path_stamps()] == evenly


def test_resolution_changes_without_growth(rig):
    rig.start()
    small = replace(CAMERA, width=32, height=24, cx=15.5, cy=11.5)
    rig.calibrate(small)
    images = {True: rig.image, False: rig.image[:24, :32].copy()}
    for k in range(20):
        rig.send(images[k % 2 == 0])
    assert rig.counts()["reset.size"] == 19
    published(rig, 20)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for k in range(40):
        rig.send(images[k % 2 == 0])
        rig.paths.clear()
        rig.imu.clear()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1_000_000


BAYER_AND_PACKED = [name for name in ENCODINGS if not name.startswith("nv")]
UNREADABLE = ("32FC1", "64FC2", "8SC1", "32SC3", "yuv420", "", "nonsense", "rgb8\x00")


@pytest.mark.parametrize("encoding", BAYER_AND_PACKED)
def test_every_readable_encoding_is_taken(rig, encoding):
    channels = 4 if "a8" in encoding or "a16" in encoding or encoding.endswith("C4") else 1
    if encoding.startswith(("rgb", "bgr")) or encoding.endswith("C3"):
        channels = max(channels, 3)
    if encoding.startswith(("yuv", "uyvy", "yuyv")):
        channels = 2
    bytes_each = 2 if "16" in encoding else 1
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH * channels * bytes_each), dtype=np.uint8)
    rig.start()
    message = image_message(pixels, encoding, rig.stamp_ns, FRAME_ID)
    message.width = WIDTH
    rig.send_message(message)
    assert rig.counts()["processed"] == 1


def test_unreadable_encodings_are_refused_and_the_stream_goes_on(rig):
    rig.start()
    for encoding in UNREADABLE:
        rig.send(encoding=encoding.rstrip("\x00") + ("?" if "\x00" in encoding else ""))
    assert rig.counts()["drop.image"] == len(UNREADABLE)
    rig.send()
    published(rig, 1)


def broken(height=HEIGHT, width=WIDTH, step=WIDTH, n_bytes=HEIGHT * WIDTH) -> Image:
    data = array.array("B", bytes(n_bytes))
    return Image(height=height, width=width, step=step, encoding="mono8", data=data)


@pytest.mark.parametrize(
    "message",
    [
        broken(height=0),
        broken(width=0),
        broken(height=0, width=0, step=0, n_bytes=0),
        broken(height=2**32 - 1),
        broken(width=2**32 - 1),
        broken(height=2**32 - 1, width=2**32 - 1, step=2**32 - 1),
        broken(step=WIDTH - 1),
        broken(step=0),
        broken(n_bytes=HEIGHT * WIDTH - 1),
        broken(n_bytes=HEIGHT * WIDTH + 1),
        broken(n_bytes=0),
        broken(height=2**16, width=2**16, step=2**16),
    ],
)
def test_sizes_that_do_not_fit_are_refused(rig, message):
    rig.start()
    message.header.stamp.sec = 1000
    rig.send_message(message)
    assert rig.counts()["drop.image"] == 1
    rig.send()
    published(rig, 1)


def test_no_size_fields_break_the_node(rig):
    rig.start()
    sizes = st.one_of(st.integers(0, 100), st.integers(0, 2**32 - 1))

    @REPEATED_FIXTURE
    @given(sizes, sizes, sizes, st.integers(0, 5000))
    def any_sizes(height, width, step, n_bytes):
        message = broken(height, width, step, n_bytes)
        message.header.stamp.sec = 1000
        rig.send_message(message)

    any_sizes()
    assert rig.counts()["error.callback"] == 0
    rig.send(stamp_ns=2000 * 10**9)
    wait_until(lambda: rig.counts()["published"] >= 1, "a result")


def test_row_padding_and_the_big_endian_flag(rig):
    seen = []

    class Keeps(FakePipeline):
        def add_frame(self, stamp_ns, image, camera):
            seen.append(image.copy())
            return super().add_frame(stamp_ns, image, camera)

    rig.start(Keeps)
    padded = np.full((HEIGHT, WIDTH + 16), 255, np.uint8)
    padded[:, :WIDTH] = rig.image
    message = image_message(padded, "mono8", rig.stamp_ns, FRAME_ID)
    message.width, message.is_bigendian = WIDTH, 1
    rig.send_message(message)
    np.testing.assert_array_equal(seen[0], rig.image)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blind_frames_have_a_large_covariance(rig, level):
    rig.start()
    for _ in range(3):
        rig.send(np.full((HEIGHT, WIDTH), level, np.uint8))
    published(rig, 3)
    wait_until(lambda: len(rig.sparse) == 3, "sparse poses")
    assert all(m.pose.covariance[35] > 1.0 for m in rig.sparse)
    wait_until(lambda: rig.status("trajectory").message.startswith("blind"), "the blind status")


def test_blind_frames_can_be_left_out(rig):
    rig.start(publish_blind=False)
    for image in (rig.image, np.zeros_like(rig.image), rig.image):
        rig.send(image)
    published(rig, 2)
    assert rig.counts()["drop.blind"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["omega", "q_start_from_cam", "cov_rotation", "cov_omega"])
def test_what_is_not_finite_is_never_published(rig, bad, field):
    class Spoilt(FakePipeline):
        spoil = False

        def _result(self, frame):
            result = super()._result(frame)
            if self.spoil:
                values = getattr(result.dense, field).copy()
                values.flat[3] = bad
                result = replace(result, dense=replace(result.dense, **{field: values}))
            return result

    rig.start(Spoilt)
    rig.send()
    rig.send()
    published(rig, 1)
    rig.pipeline.spoil = True
    rig.send()
    wait_until(lambda: rig.counts()["drop.not_finite"] == 1, "the gate")
    wait_until(lambda: rig.counts()["reset.request"] == 1, "the reset")
    rig.pipeline.spoil = False
    for _ in range(3):
        rig.send()
    published(rig, 3)
    assert np.isfinite([[m.angular_velocity.x, m.orientation.w] for m in rig.imu]).all()


def test_samples_that_go_back_are_withheld(rig):
    class Backwards(FakePipeline):
        def _result(self, frame):
            result = super()._result(frame)
            stamps = result.dense.stamp_ns.copy()
            stamps[5] = stamps[3]
            return replace(result, dense=replace(result.dense, stamp_ns=stamps))

    rig.start(Backwards)
    rig.send()
    rig.send()
    published(rig, 2)
    assert rig.counts()["imu.not_increasing"] == 2
    assert_increasing(rig.path_stamps())


def test_a_failing_pipeline_costs_the_frame_not_the_node(rig):
    rig.start()
    faults = iter([RuntimeError("broken"), MemoryError(), ValueError("bad")])

    def fail(stamp_ns):
        fault = next(faults, None)
        if fault:
            raise fault

    rig.pipeline.work = fail
    for _ in range(6):
        rig.send()
    published(rig, 3)
    assert rig.counts()["drop.error"] == 2
    assert rig.counts()["drop.memory"] == 1


def test_a_slow_pipeline_gets_the_newest_and_the_rest_is_counted(rig):
    """Fault 23: the age stays bounded, and nothing is lost without a count."""
    gate = threading.Event()
    rig.start(queue_frames=2)
    rig.pipeline.work = lambda stamp_ns: gate.wait(10.0)
    source = rig.node._input.stream
    for k in range(50):
        rig.stamp_ns += PERIOD_NS
        rig.images.publish(image_message(rig.image, "mono8", rig.stamp_ns, FRAME_ID))
        wait_until(lambda k=k: source.arrived + source.missing == k + 1, "the frame")
    gate.set()
    wait_until(lambda: rig.node.snapshot().backlog == 0, "the queue")
    counts = rig.counts()
    assert counts["received"] + counts["lost.overwritten"] == 50
    assert counts["received"] == counts["processed"] + counts["drop.queue"]
    assert counts["processed"] == 3  # the one being worked on and the two that could wait
    wait_until(lambda: rig.path_stamps()[-1] >= rig.stamp_ns, "the newest frame")


def test_memory_stays_flat(rig):
    """Fault 25: a thousand frames with changes of size, and nothing accumulates."""
    rig.start()
    small = Camera(32, 24, 60.0, 60.0, 15.5, 11.5)
    rig.calibrate(small)
    process = psutil.Process()

    def run(frames: int) -> int:
        for k in range(frames):
            rig.send(rig.image[:24, :32].copy() if k % 50 == 49 else rig.image)
            for log in (rig.paths, rig.imu, rig.sparse, rig.diagnostics):
                log.clear()
        return process.memory_info().rss

    settled = run(300)
    assert run(700) - settled < 12_000_000
