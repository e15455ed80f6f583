"""The parts of the node that need no graph: queue, pacing, message layout, counting."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Imu

from perspblur_ros import so3
from perspblur_ros.errors import FrameError
from perspblur_ros.ros import conversions
from perspblur_ros.ros.calibration import MAX_SIZES, Calibration
from perspblur_ros.ros.conversions import ImuSerializer, camera_info_message, sparse_message, to_camera, to_ns, to_time
from perspblur_ros.ros.log import QUIET_S, LogForwarder, Reporter
from perspblur_ros.ros.pacing import MAX_WAITING, Pacer
from perspblur_ros.ros.stream import Stream
from perspblur_ros.ros.worker import Worker
from perspblur_ros.types import DenseSamples, SparsePose

from .rig import CAMERA, wait_until

# --- worker ---


class Log:
    """Stands for a ROS logger."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str):
        return lambda text, **_: self.lines.append((level, text))


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


def test_the_worker_drops_the_oldest_and_says_how_many(gate):
    done: list[int] = []
    worker = Worker(lambda item: (gate.wait(10), done.append(item)), 2, lambda: None, 60.0, "test")
    worker.start()
    worker.submit(0)
    wait_until(lambda: worker.backlog == 1 and not worker._waiting, "the first item to be taken")
    assert [worker.submit(k) for k in (1, 2, 3, 4)] == [0, 0, 1, 1]
    gate.set()
    wait_until(lambda: worker.backlog == 0)
    assert done == [0, 3, 4]
    assert worker.stop(5.0) == 0
    assert not worker.alive


def test_requests_come_first_and_replace_their_namesakes(gate):
    done: list[str] = []
    worker = Worker(lambda item: (gate.wait(10), done.append(item)), 4, lambda: None, 60.0, "test")
    worker.start()
    worker.submit("first")
    wait_until(lambda: not worker._waiting)
    worker.submit("second")
    assert worker.request("reset", lambda: done.append("never"))
    assert not worker.request("reset", lambda: done.append("reset"))
    gate.set()
    wait_until(lambda: worker.backlog == 0)
    assert done == ["first", "reset", "second"]
    worker.stop(5.0)


def test_idle_comes_once_after_the_last_item():
    idle: list[int] = []
    worker = Worker(lambda item: None, 2, lambda: idle.append(1), 0.01, "test")
    worker.start()
    assert not idle
    worker.submit(0)
    wait_until(lambda: idle == [1], "idle")
    worker.submit(1)
    wait_until(lambda: idle == [1, 1], "idle again")
    worker.stop(5.0)


def test_stopping_counts_what_is_left(gate):
    worker = Worker(lambda item: gate.wait(10), 4, lambda: None, 60.0, "test")
    worker.start()
    for k in range(3):
        worker.submit(k)
    wait_until(lambda: len(worker._waiting) == 2)
    threading.Timer(0.01, gate.set).start()
    assert worker.stop(5.0) == 2


# --- pacing ---


def paced(frames: int, samples: int, span_s: float, every_s: float) -> list[tuple[float, bytes]]:
    """Send ``frames`` of ``samples`` messages through a pacer; when each was published."""
    sent: list[tuple[float, bytes]] = []
    pacer = Pacer(lambda message: sent.append((time.monotonic(), message)))
    pacer.start()
    start_s = time.monotonic()
    for k in range(frames):
        wait_until(lambda k=k: time.monotonic() >= start_s + k * every_s)
        pacer.put([f"{k}.{i}".encode() for i in range(samples)], span_s)
    wait_until(lambda: pacer.backlog == 0)
    pacer.stop()
    assert pacer.dropped == 0
    assert [message for _, message in sent] == [f"{k}.{i}".encode() for k in range(frames) for i in range(samples)]
    return sent


def test_samples_are_spread_over_the_frame():
    sent = paced(frames=4, samples=15, span_s=0.06, every_s=0.06)
    times = np.array([t for t, _ in sent])
    assert times[-1] - times[0] > 0.8 * 4 * 0.06 * 59 / 60
    within_5_ms = [np.count_nonzero((times >= t) & (times < t + 0.005)) for t in times]
    assert np.median(within_5_ms) <= 4


def test_frames_that_come_faster_than_their_span_are_sent_faster():
    """Played at twice the rate: the backlog settles at a few frames."""
    took_s: list[float] = []
    while len(took_s) < 5 and min(took_s, default=9.0) > 40 * 0.02 + 0.25:  # a busy machine is not late every time
        start_s = time.monotonic()
        paced(frames=40, samples=10, span_s=0.04, every_s=0.02)
        took_s.append(time.monotonic() - start_s)
    assert min(took_s) < 40 * 0.02 + 0.25


def test_a_stall_is_not_made_up_for_with_a_burst():
    sent: list[float] = []
    pacer = Pacer(lambda message: (time.sleep(0.15) if len(sent) == 10 else None, sent.append(time.monotonic())))
    pacer.start()
    start_s = time.monotonic()
    for k in range(8):
        wait_until(lambda k=k: time.monotonic() >= start_s + k * 0.03)
        pacer.put([b""] * 30, 0.03)
    wait_until(lambda: len(sent) == 240)
    pacer.stop()
    times = np.array(sent)
    in_10_ms = [np.count_nonzero((times >= t) & (times < t + 0.01)) for t in times]
    assert np.percentile(in_10_ms, 95) < 24, "10 are the nominal rate, 90 waited after the stall"


def test_a_burst_is_sent_at_once():
    sent = paced(frames=1, samples=30, span_s=0.0, every_s=0.0)
    assert sent[-1][0] - sent[0][0] < 0.05


def test_what_cannot_be_sent_is_bounded_and_counted():
    pacer = Pacer(lambda message: None)  # its thread never starts
    for _ in range(5):
        pacer.put([b""] * 1000, 0.1)
    assert pacer.backlog == MAX_WAITING
    assert pacer.dropped == 1000
    pacer.stop()
    assert pacer.dropped == 5000


def test_stopping_sends_what_is_waiting():
    sent: list[bytes] = []
    pacer = Pacer(sent.append)
    pacer.start()
    pacer.put([b"x"] * 20, 0.05)
    pacer.stop()
    assert len(sent) == 20


# --- messages ---


@given(st.integers(-(2**31) * 10**9, (2**31 - 1) * 10**9))
def test_times_survive_the_message(stamp_ns):
    assert to_ns(to_time(stamp_ns)) == stamp_ns


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=40), st.integers(1, 40))
def test_serialised_samples_are_imu_messages(frame_id, n):
    rng = np.random.default_rng(n)
    samples = DenseSamples(
        0,
        1_795_170_435_968_594_906 + np.cumsum(rng.integers(1, 10**9, n)),
        rng.normal(size=(n, 4)),
        rng.normal(size=(n, 3)),
        rng.normal(size=(n, 3, 3)),
        rng.normal(size=(n, 3, 3)),
        "spline",
    )
    messages = [deserialize_message(data, Imu) for data in ImuSerializer(frame_id)(samples)]
    assert [to_ns(m.header.stamp) for m in messages] == samples.stamp_ns.tolist()
    assert {m.header.frame_id for m in messages} == {frame_id}
    for k, m in enumerate(messages):
        q, w = m.orientation, m.angular_velocity
        np.testing.assert_array_equal([q.x, q.y, q.z, q.w], samples.q_start_from_cam[k])
        np.testing.assert_array_equal([w.x, w.y, w.z], samples.omega[k])
        np.testing.assert_array_equal(m.orientation_covariance, samples.cov_rotation[k].ravel())
        np.testing.assert_array_equal(m.angular_velocity_covariance, samples.cov_omega[k].ravel())
        np.testing.assert_array_equal(m.linear_acceleration_covariance, [-1.0] + [0.0] * 8)


def test_the_sparse_covariance_is_turned_into_fixed_axes():
    """A camera turned a quarter about its optical axis: its uncertain x axis is the fixed y axis."""
    pose = SparsePose(0, 0, so3.exp(np.array([0.0, 0.0, np.pi / 2])), np.diag([1e-2, 1e-4, 1e-6]))
    covariance = np.reshape(sparse_message(pose, "cam").pose.covariance, (6, 6))
    np.testing.assert_allclose(np.diagonal(covariance)[3:], [1e-4, 1e-2, 1e-6], atol=1e-12)


def test_an_image_survives_the_message():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    message = conversions.image_message(pixels[:, ::2], "mono8", 5, "cam")
    np.testing.assert_array_equal(conversions.to_image(message), pixels[:, ::2])


def test_messages_stay_fast_when_the_message_classes_check_every_field():
    """ROS_PYTHON_CHECK_FIELDS=1 looks at each byte of what is not an array: 60 ms and more per image."""
    program = (
        "import time\n"
        "import numpy as np\n"
        "from perspblur_ros.ros.conversions import image_message, to_image\n"
        "pixels = np.zeros((480, 640, 3), np.uint8)\n"
        "image_message(pixels, 'rgb8', 1, 'cam')\n"
        "start = time.process_time()\n"
        "for _ in range(10):\n"
        "    to_image(image_message(pixels, 'rgb8', 1, 'cam'))\n"
        "print((time.process_time() - start) / 10)\n"
    )
    environment = {**os.environ, "ROS_PYTHON_CHECK_FIELDS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.02


def test_binning_and_region_of_interest_are_applied():
    info = camera_info_message(CAMERA, 0, "cam")
    info.binning_x = info.binning_y = 2
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 8, 4, 40, 32
    camera = to_camera(info)
    assert (camera.width, camera.height) == (20, 16)
    # the centre of a binned pixel lies between the two pixels that it holds
    full_u, full_v = 8 + 2 * 5 + 0.5, 4 + 2 * 6 + 0.5
    ray = CAMERA.rays([full_u, full_v])
    np.testing.assert_allclose(camera.rays([5, 6]), ray)


# --- calibration ---


def bad_infos() -> dict[str, CameraInfo]:
    def info(**fields) -> CameraInfo:
        message = camera_info_message(CAMERA, 0, "cam")
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    k = CAMERA.K.ravel()
    return {
        "zeros": info(k=np.zeros(9)),
        "NaN": info(k=np.where(np.arange(9) == 2, np.nan, k)),
        "negative focal length": info(k=-k),
        "no size": info(width=0, height=0),
        "odd distortion": info(d=[0.1, 0.2, 0.3]),
        "NaN distortion": info(d=[0.1, float("nan"), 0.0, 0.0, 0.0]),
        "unknown model": info(distortion_model="magic"),
    }


@pytest.mark.parametrize("fault", bad_infos())
def test_a_bad_calibration_is_refused_and_the_last_good_one_held(fault):
    calibration = Calibration()
    calibration.update(camera_info_message(CAMERA, 0, "cam"))
    with pytest.raises(FrameError):
        calibration.update(bad_infos()[fault])
    assert calibration.refusal
    assert calibration.camera(CAMERA.width, CAMERA.height) == CAMERA
    calibration.update(camera_info_message(CAMERA, 0, "cam"))
    assert not calibration.refusal


def test_calibrations_are_kept_by_size_and_bounded():
    calibration = Calibration()
    for width in range(10, 10 + 3 * MAX_SIZES):
        calibration.update(camera_info_message(CAMERA.scaled(width / CAMERA.width), 0, "cam"))
    assert len(calibration._cameras) == MAX_SIZES
    with pytest.raises(FrameError, match="the image is 1 x 1, but the calibration is for"):
        calibration.camera(1, 1)


# --- counting ---


def info(gid: int, sequence: int | None) -> dict:
    return {"publisher_gid": {"data": bytes([gid])}, "publication_sequence_number": sequence}


def test_gaps_in_the_sequence_are_losses():
    clock = itertools.count()
    stream = Stream(0.2, lambda: next(clock) * 0.01)
    for sequence in (7, 8, 11, 12, 20):
        assert stream.accept(info(1, sequence))
    assert (stream.arrived, stream.missing) == (5, 9)
    stream.middleware_lost = 4
    assert stream.overwritten == 5


def test_a_second_publisher_is_followed_only_when_the_first_is_gone():
    now_s = [0.0]
    stream = Stream(0.2, lambda: now_s[0])
    assert stream.accept(info(1, 1))
    assert not stream.accept(info(2, 1))
    assert stream.accept(info(1, 2))
    now_s[0] = 0.5
    assert stream.accept(info(2, 90))
    assert stream.missing == 0
    assert not stream.accept(info(1, 3))


def test_a_middleware_without_message_info_is_enough():
    stream = Stream(0.2)
    assert stream.accept({"source_timestamp": 1})
    assert stream.accept({"source_timestamp": 2})
    assert (stream.arrived, stream.missing) == (2, 0)


def test_causes_are_counted_always_and_told_rarely():
    now_s, log = [0.0], Log()
    report = Reporter(log, lambda: now_s[0])
    for _ in range(5):
        report.warn("drop.image", "the image is broken")
    report.error("drop.image", "the image is worse")
    assert report.counts["drop.image"] == 6
    assert log.lines == [("warning", "drop.image: the image is broken")]
    now_s[0] = QUIET_S
    report.warn("drop.image", "the image is broken")
    assert log.lines[-1] == (
        "warning",
        "drop.image: the image is broken (5 more since it was last said)",
    )


def test_the_librarys_log_reaches_the_node_with_its_arguments():
    log = Log()
    logger = logging.getLogger("test_forwarding")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(LogForwarder(log))
    logger.debug("d")
    logger.info("%d frames", 3)
    logger.warning("w")
    logger.error("e")
    assert log.lines == [("debug", "d"), ("info", "3 frames"), ("warning", "w"), ("error", "e")]
