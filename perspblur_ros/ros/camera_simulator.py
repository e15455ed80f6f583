"""A camera that needs no hardware: plays a bag's frames at their true rate as a live ROS 2 camera.

Stamps are moved to the present by one constant, so that ages and clocks are those of a real camera; each frame is sent
when a real one would be, after its exposure and readout. The truth, where the bag has it, goes with it.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, Imu

from ..config import UNKNOWN
from ..errors import BagError, ConfigError, PerspBlurError
from ..evaluation.bags import OPTICAL_FRAME, TRUTH_TOPIC, BagReader, ImuLog
from ..types import DenseSamples
from . import graph
from .conversions import ImuSerializer, camera_info_message, image_message
from .main import run_node
from .params import unknown_overrides

LOOP_PAUSE_S = 0.35  # a new segment (max_gap_s), but no silence (watchdog_s)
DEMO_S = 3.0  # of the clip that is rendered when no bag is given
LINGER_S = 1.0  # shared memory goes with its process: let subscribers read the last frame
TRUTH_DEPTH = 5000


class _StoppedError(Exception):
    """The process ends while it is still rendering."""


class CameraSimulator(Node):
    """Publishes from a thread of its own; ``finished`` when the bag has ended and does not loop."""

    def __init__(self, **options: Any) -> None:
        super().__init__(graph.CAMERA_SIMULATOR, **options)
        self.finished, self.exit_status = False, 0
        bag = self._text("bag", "rosbag2 folder to play; empty renders the demo clip")
        self._loop = self._flag("loop", True, "begin again at the end")
        self._wait = self._flag("wait_for_subscriber", True, "send nothing before somebody listens")
        rate = ParameterDescriptor(
            description="playback speed, 1 = true rate",
            floating_point_range=[FloatingPointRange(from_value=0.05, to_value=20.0)],
        )
        self._rate: float = self.declare_parameter("rate", 1.0, rate).value
        for sentence in unknown_overrides(self).values():
            raise ConfigError(sentence)
        latched = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._image = self.create_publisher(Image, graph.IMAGE, 10)
        self._info = self.create_publisher(CameraInfo, graph.CAMERA_INFO, latched)
        self._truth = self.create_publisher(Imu, graph.TRUTH, TRUTH_DEPTH)
        self._serialize = ImuSerializer(OPTICAL_FRAME)
        self._last_stamp_ns = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(bag,), name="camera", daemon=True)
        self._thread.start()

    def destroy_node(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        super().destroy_node()

    def _text(self, name: str, doc: str) -> str:
        return str(self.declare_parameter(name, "", ParameterDescriptor(description=doc)).value)

    def _flag(self, name: str, default: bool, doc: str) -> bool:
        return bool(self.declare_parameter(name, default, ParameterDescriptor(description=doc)).value)

    def _run(self, bag: str) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(bag) if bag else self._rendered(Path(folder))
                if self._wait:
                    self._wait_for_subscriber()
                self._play_all(path)
        except PerspBlurError as error:
            self._fail(str(error))
        except _StoppedError:
            pass
        except Exception as error:
            if not self._stop.is_set():
                self._fail(repr(error))
        self.finished = True

    def _fail(self, sentence: str) -> None:
        self.get_logger().error(sentence)
        self.exit_status = 1

    def _rendered(self, folder: Path) -> Path:
        from .demo import render_clip

        return render_clip(folder / "demo", DEMO_S, self._tell_rendering)

    def _tell_rendering(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        if done % max(total // 4, 1) == 1:
            self.get_logger().info(f"rendering the demo clip, frame {done} of {total}")

    def _wait_for_subscriber(self) -> None:
        while not self._stop.is_set() and not self._image.get_subscription_count():
            self._stop.wait(0.02)

    def _play_all(self, path: Path) -> None:
        while not self._stop.is_set():
            with BagReader(path) as reader:
                self.get_logger().info(f"playing {path}: {reader.count(reader.image_topic)} frames")
                self._play(reader)
            if not self._loop:
                self._stop.wait(LINGER_S)
                return
            self._stop.wait(LOOP_PAUSE_S)

    def _play(self, reader: BagReader) -> None:
        truth = _truth(reader)
        delay_ns = _exposed_after_ns(reader.parameters)
        started_s, shift_ns, first_ns = 0.0, 0, 0
        for frame in reader.frames(rgb=True):
            if not started_s:
                started_s, first_ns = time.monotonic(), frame.stamp_ns
                present_ns = self.get_clock().now().nanoseconds - delay_ns
                # played faster than it was taken, a clip ends in the future: the next round comes after that
                shift_ns = max(present_ns, self._last_stamp_ns + round(LOOP_PAUSE_S * 1e9)) - first_ns
            info = camera_info_message(frame.camera, frame.stamp_ns + shift_ns, OPTICAL_FRAME)
            encoding = "mono8" if frame.image.ndim == 2 else "rgb8"
            image = image_message(frame.image, encoding, frame.stamp_ns + shift_ns, OPTICAL_FRAME)
            due_s = started_s + (frame.stamp_ns - first_ns) * 1e-9 / self._rate
            if self._stop.wait(max(due_s - time.monotonic(), 0.0)):
                return
            self._last_stamp_ns = frame.stamp_ns + shift_ns
            self._info.publish(info)
            self._image.publish(image)
            truth = self._send_truth(truth, frame.stamp_ns + delay_ns, shift_ns)
        self._send_truth(truth, sys.maxsize, shift_ns)

    def _send_truth(self, truth: DenseSamples | None, until_ns: int, shift_ns: int) -> DenseSamples | None:
        """Publish the truth up to a time; returns the rest."""
        if truth is None:
            return None
        n = int(np.searchsorted(truth.stamp_ns, until_ns))
        if n:
            head = _part(truth, slice(0, n))
            for message in self._serialize(replace(head, stamp_ns=head.stamp_ns + shift_ns)):
                self._truth.publish(message)
        return _part(truth, slice(n, None))


def _exposed_after_ns(parameters: dict[str, Any]) -> int:
    """From a stamp at the start of the exposure to the end of the readout."""
    known = [parameters.get(name, UNKNOWN) for name in ("exposure_s", "readout_s")]
    return round(sum(v for v in known if v != UNKNOWN) * 1e9)


def _truth(reader: BagReader) -> DenseSamples | None:
    try:
        log: ImuLog = reader.truth()
    except BagError:
        return None
    if log.topic != TRUTH_TOPIC or log.q_ref_from_cam is None:
        return None
    zeros = np.zeros((len(log.stamp_ns), 3, 3))
    return DenseSamples(0, log.stamp_ns, log.q_ref_from_cam, log.omega, zeros, zeros, "truth")


def _part(samples: DenseSamples, part: slice) -> DenseSamples:
    return DenseSamples(
        samples.frame,
        samples.stamp_ns[part],
        samples.q_start_from_cam[part],
        samples.omega[part],
        samples.cov_rotation[part],
        samples.cov_omega[part],
        samples.source,
    )


def load() -> Callable[[Any], CameraSimulator]:
    return lambda context: CameraSimulator(context=context)


def main(argv: Sequence[str] | None = None) -> int:
    """``ros2 run perspblur_ros camera_simulator``."""
    return run_node(load, argv)


if __name__ == "__main__":
    sys.exit(main())
