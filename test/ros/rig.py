"""A ROS graph per test: its own context and domain, a camera to publish with, the node on a thread of its own.

Tests wait for conditions with a deadline, never for a time.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image, Imu

from perspblur_ros.camera import Camera, Shutter
from perspblur_ros.config import Config
from perspblur_ros.ring_buffer import Rejected, RingBuffer
from perspblur_ros.ros.conversions import camera_info_message, image_message, to_ns
from perspblur_ros.ros.node import PerspBlurNode
from perspblur_ros.types import DenseSamples, FrameResult, SparsePose, Status

DEADLINE_S = 20.0
WIDTH, HEIGHT = 64, 48
CAMERA = Camera(WIDTH, HEIGHT, 60.0, 60.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
PERIOD_NS = 33_000_000
SPAN_NS = 30_000_000  # of the samples of a frame; less than any period, so that frames never overlap
FRAME_ID = "camera_optical_frame"

_domains = itertools.count(os.getpid() * 31)


def wait_until(condition: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end_s:
            raise AssertionError(f"waited {deadline_s} s in vain for {what or condition}")
        time.sleep(0.002)


def next_domain() -> int:
    """A domain that no other test of this run uses, nor any other process of this machine."""
    return next(domain for domain in (1 + k % 200 for k in _domains) if _is_free(domain))


def _is_free(domain: int) -> bool:
    """Whether the port is free that RTPS gives to a domain's first participant."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", 7410 + 250 * domain))
        except OSError:
            return False
    return True


class FakePipeline:
    """Judges frames with the real ring buffer and answers each with a rotation that does not move, one frame late."""

    samples = 15
    engine_name = "none"
    engine_failure = ""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.shutter = Shutter(config.exposure_ns or 20_000_000, config.readout_ns or 0, config.stamp_reference)
        self.ring = RingBuffer(config.clip_frames, config.window_frames, round(config.max_gap_s * 1e9))
        self.stage_ms: dict[str, deque[float]] = {"buffer": deque(maxlen=100)}
        self.depths: list[int] = []
        self.work: Callable[[int], None] = lambda stamp_ns: None
        self._pending: list[Any] = []
        self._samples = config.samples_per_frame

    @property
    def counts(self) -> Counter[str]:
        return self.ring.counts

    def add_frame(self, stamp_ns: int, image: Any, camera: Camera) -> list[FrameResult]:
        started_s = time.perf_counter()
        self.work(stamp_ns)
        segment = self._pending[0].segment if self._pending else None
        frame = self.ring.add(stamp_ns, image, camera, self.shutter)
        if isinstance(frame, Rejected):
            return []
        results = self.flush() if segment is not None and frame.segment != segment else []
        self._pending.append(frame)
        if len(self._pending) > self.config.lag_frames:
            results += [self._result(self._pending.pop(0))]
        self.stage_ms["buffer"].append(1e3 * (time.perf_counter() - started_s))
        return results

    def add_depth(self, stamp_ns: int, depth_m: Any) -> None:
        self.depths.append(stamp_ns)

    def flush(self) -> list[FrameResult]:
        frames, self._pending = self._pending, []
        return [self._result(frame) for frame in frames]

    def reset(self) -> None:
        self._pending.clear()
        self.ring.reset()

    def _result(self, frame: Any) -> FrameResult:
        n = self._samples
        stamps = frame.mid_ns + (np.arange(n) * SPAN_NS) // n
        blind = frame.image.std() < 1
        variance = 1e4 if blind else 1e-4
        return FrameResult(
            SparsePose(
                frame.index, frame.mid_ns, np.eye(3), variance * np.eye(3), Status.BLIND if blind else Status.OK, 100
            ),
            DenseSamples(
                frame.index,
                stamps,
                np.tile([0.0, 0.0, 0.0, 1.0], (n, 1)),
                np.zeros((n, 3)),
                np.tile(variance * np.eye(3), (n, 1, 1)),
                np.tile(variance * np.eye(3), (n, 1, 1)),
                "interpolation",
            ),
            gate="off",
        )


class Spinner:
    """One executor on one thread."""

    def __init__(self, context: Any, node: Any) -> None:
        self._node = node
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.02)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)
        self._executor.remove_node(self._node)
        self._executor.shutdown(timeout_sec=1.0)


class Rig:
    """The node under test, and a probe: a camera to publish with and subscribers of everything that comes out."""

    def __init__(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=next_domain(), signal_handler_options=SignalHandlerOptions.NO)
        self.probe = rclpy.create_node("probe", context=self.context)
        self.images = self.probe.create_publisher(Image, "image_raw", 100)
        self.infos = self.probe.create_publisher(CameraInfo, "camera_info", 100)
        self.imu: list[Imu] = []
        self.paths: list[Path] = []
        self.sparse: list[PoseWithCovarianceStamped] = []
        self.diagnostics: list[DiagnosticArray] = []
        deep = QoSProfile(depth=10_000, reliability=ReliabilityPolicy.RELIABLE)
        kinds = {
            "dense_trajectory": (Imu, self.imu),
            "dense_trajectory/path": (Path, self.paths),
            "sparse_trajectory": (PoseWithCovarianceStamped, self.sparse),
            "/diagnostics": (DiagnosticArray, self.diagnostics),
        }
        self._subscriptions = [
            self.probe.create_subscription(kind, topic, log.append, deep) for topic, (kind, log) in kinds.items()
        ]
        self._spinners = [Spinner(self.context, self.probe)]
        self._nodes: list[Any] = []
        self.node: PerspBlurNode = None  # type: ignore[assignment]
        self.pipelines: list[Any] = []
        self.image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
        self.stamp_ns = 1_000_000_000_000

    def make(
        self, pipeline: Callable[[Config], Any] = FakePipeline, cli: tuple[str, ...] = (), **parameters: Any
    ) -> Any:
        """The node, unconfigured and spinning."""

        def build(config: Config) -> Any:
            self.pipelines.append(pipeline(config))
            return self.pipelines[-1]

        self.node = PerspBlurNode(
            make_pipeline=build,
            context=self.context,
            cli_args=["--ros-args", *cli] if cli else None,
            parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()],
        )
        self._nodes.append(self.node)
        self._spinners.append(Spinner(self.context, self.node))
        return self.node

    def start(self, pipeline: Callable[[Config], Any] = FakePipeline, **parameters: Any) -> Any:
        """The node, active and matched with the probe, calibration sent.

        Frames are answered at once and the watchdog is out of the way, unless a test asks for them.
        """
        self.make(pipeline, **{"lag_frames": 0, "watchdog_s": 60.0, **parameters})
        self.node.start_automatically()
        assert not self.node.finished, "the node did not start"
        wait_until(lambda: self.images.get_subscription_count() == 1, "the image subscription")
        wait_until(lambda: self.infos.get_subscription_count() == 1, "the camera_info subscription")
        wait_until(lambda: self.probe.count_publishers("dense_trajectory/path") == 1, "the path publisher")
        self.calibrate()
        return self.node

    @property
    def pipeline(self) -> Any:
        return self.pipelines[-1]

    def calibrate(self, camera: Camera = CAMERA) -> None:
        self.infos.publish(camera_info_message(camera, self.stamp_ns, FRAME_ID))
        size = (camera.width, camera.height)
        wait_until(lambda: size in self.node._input.calibration._cameras, "the calibration")

    def send(self, image: Any = None, stamp_ns: int | None = None, encoding: str = "mono8") -> int:
        """Publish one frame and wait until the node has dealt with it; returns its stamp."""
        if stamp_ns is None:
            self.stamp_ns += PERIOD_NS
            stamp_ns = self.stamp_ns
        else:
            self.stamp_ns = stamp_ns
        pixels = self.image if image is None else image
        self.send_message(image_message(pixels, encoding, stamp_ns, FRAME_ID))
        return stamp_ns

    def send_message(self, message: Image) -> None:
        before = self.dealt_with()
        self.images.publish(message)
        wait_until(lambda: self.dealt_with() > before, "the frame to be dealt with")

    def dealt_with(self) -> int:
        """Frames that were processed, dropped or refused."""
        counts = self.node.report.counts
        causes = [cause for cause in counts if cause.startswith("drop.") and cause not in AFTER_PROCESSING]
        return counts["processed"] + counts["error.callback"] + sum(counts[cause] for cause in causes)

    def counts(self) -> Counter[str]:
        return Counter(self.node.snapshot().counts)

    def matched(self) -> bool:
        """Whether the probe hears the node."""
        return all(subscription.get_publisher_count() for subscription in self._subscriptions)

    def value(self, part: str, key: str) -> str:
        """The newest value of a status, empty where there is none."""
        return next((item.value for item in self.status(part).values if item.key == key), "")

    def status(self, part: str) -> DiagnosticStatus:
        """The newest status of a part, an empty one before the first."""
        for array in reversed(self.diagnostics):
            for status in array.status:
                if status.name.endswith(f": {part}"):
                    return status
        return DiagnosticStatus()

    def dense_stamps(self) -> list[int]:
        return [to_ns(message.header.stamp) for message in self.imu]

    def path_stamps(self) -> list[int]:
        return [to_ns(pose.header.stamp) for path in self.paths for pose in path.poses]

    def remove_node(self) -> None:
        self._spinners.pop().close()
        self._nodes.remove(self.node)
        self.node.destroy_node()

    def close(self) -> None:
        while self._nodes:
            self.node = self._nodes[-1]
            self.remove_node()
        self._spinners.pop().close()
        self.probe.destroy_node()
        self.context.try_shutdown()
        self.context.destroy()


AFTER_PROCESSING = {"drop.not_finite", "drop.blind"}
