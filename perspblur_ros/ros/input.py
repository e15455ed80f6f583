"""Images and calibration in: callbacks that validate, convert, hand on, and count whatever they leave out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..camera import Camera
from ..config import Config
from ..errors import FrameError
from . import graph
from .calibration import Calibration
from .conversions import to_depth_m, to_image, to_ns
from .log import Reporter
from .middleware import remedy
from .stream import Stream

OTHER_CLOCK_S = 3600.0  # stamps further from this machine's clock come from another clock, or from a bag

RECEIVED = "received"  # images of the followed publisher
DROP_CALLBACK = "error.callback"
DROP_STAMP, DROP_IMAGE, DROP_DEPTH = "drop.stamp", "drop.image", "drop.depth"
DROP_PUBLISHER, DROP_NO_INFO, DROP_INFO_SIZE = "drop.other_publisher", "drop.no_camera_info", "drop.camera_info_size"
REFUSED_INFO = "refused.camera_info"
LOST = "lost.middleware"


@dataclass(frozen=True)
class Picture:
    """A received image, uint8 H × W, with its calibration and when it was received (monotonic)."""

    stamp_ns: int
    image: NDArray[np.uint8]
    camera: Camera
    frame_id: str
    arrival_s: float


class CameraInput:
    """The subscriptions, alive from construction to ``destroy``.

    ``on_picture`` and ``on_depth(stamp_ns, depth_m)`` are called from the executor's thread and must be quick.
    """

    def __init__(
        self,
        node: Node,
        config: Config,
        report: Reporter,
        on_picture: Callable[[Picture], None],
        on_depth: Callable[[int, NDArray[np.float32]], None],
    ) -> None:
        self._node = node
        self._report = report
        self._on_picture = on_picture
        self._on_depth = on_depth
        self.calibration = Calibration()
        self.stream = Stream(config.max_gap_s)
        self.last_stamp_ns: int | None = None
        self.reliability = config.image_reliability
        compressed = config.image_transport == "compressed"
        # the transport's suffix goes behind the remapped name, as image_transport does it
        self.topic = node.resolve_topic_name(graph.IMAGE) + ("/compressed" if compressed else "")
        self.info_topic = node.resolve_topic_name(graph.CAMERA_INFO)
        self._clock_checked = False
        self._subscriptions = [
            self._subscribe(CameraInfo, self.info_topic, self._take_info, qos_profile_sensor_data),
            self._subscribe(
                CompressedImage if compressed else Image,
                self.topic,
                self._take_image,
                image_qos(config.image_reliability),
                SubscriptionEventCallbacks(message_lost=self._lost, incompatible_qos=self._incompatible),
            ),
        ]
        if config.depth_topic:
            depth_qos = image_qos("best_effort")
            self._subscriptions.append(self._subscribe(Image, config.depth_topic, self._take_depth, depth_qos))

    def destroy(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def publisher_count(self) -> int:
        return int(self._node.count_publishers(self.topic))

    def _subscribe(
        self,
        kind: Any,
        topic: str,
        callback: Callable[..., None],
        qos: QoSProfile,
        events: SubscriptionEventCallbacks | None = None,
    ) -> Any:
        def guarded(message: Any, info: Any) -> None:
            """A fault in one message must not end the node: every executor passes exceptions on and stops."""
            try:
                callback(message, info)
            except Exception as error:
                self._report.error(DROP_CALLBACK, f"a message on {topic} could not be handled: {error!r}")

        return self._node.create_subscription(
            kind,
            topic,
            guarded,
            qos,
            event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _take_image(self, message: Any, info: Any) -> None:
        arrival_s = time.monotonic()
        if not self.stream.accept(info):
            self._report.warn(DROP_PUBLISHER, f"{self.topic} has a second publisher; the first one is followed")
            return
        self._report.count(RECEIVED)
        try:
            stamp_ns = to_ns(message.header.stamp)
        except FrameError as error:
            return self._report.warn(DROP_STAMP, str(error))
        self.last_stamp_ns = stamp_ns
        self._check_clock(stamp_ns)
        if not self.calibration:
            return self._report.warn(DROP_NO_INFO, self._no_info_sentence())
        try:
            image = to_image(message)
        except FrameError as error:
            return self._report.warn(DROP_IMAGE, str(error))
        try:
            camera = self.calibration.camera(image.shape[1], image.shape[0])
        except FrameError as error:
            return self._report.warn(DROP_INFO_SIZE, f"{error} ({self.info_topic})")
        self._on_picture(Picture(stamp_ns, image, camera, message.header.frame_id, arrival_s))

    def _take_info(self, message: CameraInfo, info: Any) -> None:
        try:
            self.calibration.update(message)
        except FrameError as error:
            held = "; the last good one is kept" if self.calibration else ""
            self._report.warn(REFUSED_INFO, f"{self.info_topic}: {error}{held}")

    def _take_depth(self, message: Image, info: Any) -> None:
        try:
            self._on_depth(to_ns(message.header.stamp), to_depth_m(message))
        except FrameError as error:
            self._report.warn(DROP_DEPTH, str(error))

    def _lost(self, event: Any) -> None:
        """The middleware threw images away before they reached this process."""
        new = event.total_count - self.stream.middleware_lost
        if new <= 0:
            return
        self.stream.middleware_lost = event.total_count
        self._report.warn(LOST, f"images on {self.topic} are lost by the middleware; {remedy()}", new)

    def _incompatible(self, event: Any) -> None:
        self._report.error(
            "error.qos",
            f"a publisher of {self.topic} does not offer what is asked for (reliability {self.reliability}); "
            "set image_reliability to best_effort",
        )

    def _check_clock(self, stamp_ns: int) -> None:
        """Once per activation: stamps of another clock are used as they are, but ages cannot be told."""
        if self._clock_checked or stamp_ns <= 0:
            return
        now_ns = self._node.get_clock().now().nanoseconds
        if now_ns == 0:  # simulated time that has not started
            return
        self._clock_checked = True
        difference_s = (now_ns - stamp_ns) * 1e-9
        if abs(difference_s) > OTHER_CLOCK_S:
            self._report.warn(
                "stamps.other_clock",
                f"stamps on {self.topic} are {difference_s / 3600:.1f} h from this machine's clock "
                "(another clock, or a bag without use_sim_time); the stream is used, its age is not known",
            )

    def _no_info_sentence(self) -> str:
        publishers = self._node.count_publishers(self.info_topic)
        if self.calibration.refusal:
            return f"images wait for a usable calibration: {self.info_topic} says {self.calibration.refusal}"
        if publishers:
            return f"images wait for the first message on {self.info_topic}, which has {publishers} publisher(s)"
        return (
            f"images arrive on {self.topic}, but nobody publishes {self.info_topic}; "
            f"start the driver's camera_info or remap it: -r {graph.CAMERA_INFO}:=/your/camera_info"
        )


def image_qos(reliability: str) -> QoSProfile:
    """Only the newest image: an older one in the queue is nothing but latency."""
    kind = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(depth=1, reliability=kind)
