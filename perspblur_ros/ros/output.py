"""Trajectories and depth out: the last gate, the publishers, and the pacing of the dense samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, Imu

from ..config import Config
from ..types import DenseSamples, DepthMap, FrameResult, Status
from . import graph
from .conversions import (
    ImuSerializer,
    image_message,
    path_message,
    scaled_camera_info,
    sparse_message,
    status_message,
)
from .log import Reporter
from .pacing import Pacer

DROP_NOT_FINITE, DROP_BLIND = "drop.not_finite", "drop.blind"
NOT_INCREASING = "imu.not_increasing"  # samples, not frames
PUBLISHED = "published"

IMU_DEPTH = 400  # several frames of samples: a subscriber that is late may still ask for them again
FRAME_DEPTH = 10


class TrajectoryOutput:
    """Publishes frame results. Made when the node is configured, ``start``ed and ``stop``ped with its activation."""

    def __init__(self, node: LifecycleNode, report: Reporter) -> None:
        self._node = node
        self._report = report
        # reliable, so that they match every subscriber
        self._dense = node.create_lifecycle_publisher(Imu, graph.DENSE, QoSProfile(depth=IMU_DEPTH))
        self._path = node.create_lifecycle_publisher(Path, graph.DENSE_PATH, FRAME_DEPTH)
        self._sparse = node.create_lifecycle_publisher(PoseWithCovarianceStamped, graph.SPARSE, FRAME_DEPTH)
        self._status = node.create_lifecycle_publisher(DiagnosticArray, graph.DENSE_STATUS, FRAME_DEPTH)
        self._depth = node.create_lifecycle_publisher(Image, graph.DEPTH, FRAME_DEPTH)
        self._depth_variance = node.create_lifecycle_publisher(Image, graph.DEPTH_VARIANCE, FRAME_DEPTH)
        self._depth_info = node.create_lifecycle_publisher(CameraInfo, graph.DEPTH_INFO, FRAME_DEPTH)
        self._publishers = [
            *(self._dense, self._path, self._status, self._sparse),
            *(self._depth, self._depth_variance, self._depth_info),
        ]
        self._pacer: Pacer | None = None
        self._imu_before = (0, 0)  # sent and dropped by the pacers of earlier activations
        self._pacing = "paced"
        self._publish_blind = True
        self._serializer: tuple[str, ImuSerializer] | None = None
        self._last_sample_ns: int | None = None

    def start(self, config: Config) -> None:
        self.configure(config)
        self._last_sample_ns = None
        self._pacer = Pacer(self._send_imu)
        self._pacer.start()

    def configure(self, config: Config) -> None:
        """Take over what may change while running."""
        self._pacing = config.imu_pacing
        self._publish_blind = config.publish_blind

    def stop(self) -> None:
        if self._pacer is not None:
            self._pacer.stop()
            self._imu_before, self._pacer = self.imu_counts(), None

    def imu_counts(self) -> tuple[int, int]:
        """Dense samples sent and dropped."""
        sent, dropped = self._imu_before
        return (sent + self._pacer.sent, dropped + self._pacer.dropped) if self._pacer else (sent, dropped)

    def destroy(self) -> None:
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def restart(self) -> None:
        """Stamps may begin anew: the clock jumped back."""
        self._last_sample_ns = None

    def publish(self, result: FrameResult, frame_id: str, span_s: float, info: CameraInfo | None) -> bool:
        """Publish one frame; False when a value is not finite and nothing was published.

        ``span_s``: over how long its dense samples are spread. ``info``: the calibration that goes with the depth.
        """
        if not is_finite(result):
            self._report.error(DROP_NOT_FINITE, f"frame {result.sparse.frame} has values that are not finite")
            return False
        if result.sparse.status is Status.BLIND and not self._publish_blind:
            self._report.count(DROP_BLIND)
            return True
        dense = self._increasing(result.dense)
        self._sparse.publish(sparse_message(result.sparse, frame_id))
        self._path.publish(path_message(dense, result.sparse.stamp_ns, frame_id))
        self._status.publish(status_message(result, frame_id))
        self._publish_dense(dense, frame_id, span_s)
        if result.depth is not None:
            self._publish_depth(result.depth, frame_id, info)
        self._report.count(PUBLISHED)
        return True

    def _increasing(self, dense: DenseSamples) -> DenseSamples:
        """The samples that come after those already published; any other would break every consumer's integration."""
        stamps = dense.stamp_ns
        last = self._last_sample_ns if self._last_sample_ns is not None else int(stamps[0]) - 1
        newest_before = np.maximum.accumulate(np.concatenate([[last], stamps[:-1]]))
        keep = stamps > newest_before
        self._last_sample_ns = int(max(last, stamps.max()))
        if keep.all():
            return dense
        left_out = int(np.count_nonzero(~keep))
        self._report.warn(NOT_INCREASING, f"{left_out} samples are not later than those published", left_out)
        return DenseSamples(
            dense.frame,
            stamps[keep],
            dense.q_start_from_cam[keep],
            dense.omega[keep],
            dense.cov_rotation[keep],
            dense.cov_omega[keep],
            dense.source,
        )

    def _publish_dense(self, dense: DenseSamples, frame_id: str, span_s: float) -> None:
        if self._pacing == "off" or self._pacer is None:
            return
        if self._serializer is None or self._serializer[0] != frame_id:
            self._serializer = (frame_id, ImuSerializer(frame_id))
        self._pacer.put(self._serializer[1](dense), span_s if self._pacing == "paced" else 0.0)

    def _send_imu(self, message: bytes) -> None:
        self._guard(lambda: self._dense.publish(message))

    def _publish_depth(self, depth: DepthMap, frame_id: str, info: CameraInfo | None) -> None:
        self._depth.publish(image_message(depth.depth_m, "32FC1", depth.stamp_ns, frame_id))
        self._depth_variance.publish(image_message(depth.variance_m2, "32FC1", depth.stamp_ns, frame_id))
        if info is not None:
            height, width = depth.depth_m.shape
            self._depth_info.publish(scaled_camera_info(info, width, height, depth.stamp_ns, frame_id))

    def _guard(self, send: Callable[[], Any]) -> None:
        try:
            send()
        except Exception as error:  # the context may be shutting down under this thread
            self._report.error("error.publish", f"a sample could not be published: {error!r}")


def is_finite(result: FrameResult) -> bool:
    """Whether every number that would be published is one, and every quaternion a rotation."""
    dense, sparse, depth = result.dense, result.sparse, result.depth
    arrays = [
        dense.q_start_from_cam,
        dense.omega,
        dense.cov_rotation,
        dense.cov_omega,
        sparse.R_start_from_cam,
        sparse.covariance,
    ]
    if not all(np.isfinite(a).all() for a in arrays):
        return False
    if depth is not None and (np.isinf(depth.depth_m).any() or np.isinf(depth.variance_m2).any()):
        return False  # NaN is how depth says "not known"
    norms = np.linalg.norm(dense.q_start_from_cam, axis=-1)
    return bool(np.all(np.abs(norms - 1) < 1e-3) and abs(np.linalg.det(sparse.R_start_from_cam) - 1) < 1e-3)
