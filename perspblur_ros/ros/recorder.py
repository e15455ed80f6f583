"""Writes what the node publishes into the files that ``replay`` writes, so that ``evaluate`` can judge a live run."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped, Quaternion
from nav_msgs.msg import Path as PathMessage
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Imu

from .. import so3
from ..errors import BagError
from ..evaluation.replay import FRAME_COLUMNS, FRAMES_FILE, PARAMETERS_FILE, TIMING_FILE
from ..evaluation.writers import (
    DENSE_COLUMNS,
    DENSE_FILE,
    SPARSE_COLUMNS,
    SPARSE_FILE,
    CsvStream,
    DenseTrajectory,
    SparseTrajectory,
    atomic_file,
    write_text,
)
from . import graph
from .conversions import to_ns

DEEP = 20_000  # a recorder must not lose anything while it is busy
QUIET_S = 1.0  # more than the node waits before it finishes the last frames


@dataclass
class Recording:
    """Messages as they came, by topic."""

    imu: list[Imu] = field(default_factory=list)
    paths: list[PathMessage] = field(default_factory=list)
    sparse: list[PoseWithCovarianceStamped] = field(default_factory=list)
    status: list[DiagnosticArray] = field(default_factory=list)
    camera_stamps_ns: list[int] = field(default_factory=list)
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)  # newest values by part

    @property
    def samples_in_paths(self) -> int:
        return sum(len(path.poses) for path in self.paths)


class Recorder(Node):
    """Subscribes to everything; ``recording`` grows while it is spun."""

    def __init__(self, **options: Any) -> None:
        super().__init__("recorder", **options)
        self.recording = r = Recording()
        latched = QoSProfile(depth=DEEP, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._last_path_s = time.monotonic()
        self._from_node = [
            self.create_subscription(Imu, graph.DENSE, r.imu.append, DEEP),
            self.create_subscription(PathMessage, graph.DENSE_PATH, self._take_path, DEEP),
            self.create_subscription(PoseWithCovarianceStamped, graph.SPARSE, r.sparse.append, DEEP),
            self.create_subscription(DiagnosticArray, graph.DENSE_STATUS, r.status.append, DEEP),
        ]
        self.create_subscription(CameraInfo, graph.CAMERA_INFO, self._take_info, latched)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, DEEP)

    def matched(self) -> bool:
        """Whether the node's publishers are connected, so that nothing it sends from now on is missed."""
        return all(subscription.get_publisher_count() for subscription in self._from_node)

    def quiet(self) -> bool:
        """Whether the node has nothing left to say: its queue is empty, and it has been silent for a second."""
        queue = self.recording.diagnostics.get("processing", {}).get("queue")
        return queue == "0" and time.monotonic() - self._last_path_s > QUIET_S

    def _take_path(self, message: PathMessage) -> None:
        self.recording.paths.append(message)
        self._last_path_s = time.monotonic()

    def _take_info(self, message: CameraInfo) -> None:
        self.recording.camera_stamps_ns.append(to_ns(message.header.stamp))

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            part = status.name.rpartition(": ")[2]
            values = {item.key: item.value for item in status.values}
            self.recording.diagnostics[part] = {**values, "message": status.message}


def write_recording(recording: Recording, out: Path, parameters: dict[str, Any], shift_ns: int, command: str) -> None:
    """Write the files of a run into ``out``. ``shift_ns`` is taken off every stamp; BagError when nothing came."""
    frames = _frames(recording)
    if not frames:
        raise BagError("the node published no trajectory; its log says why")
    reference = _R(frames[0].samples[0].orientation).T
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        dense = CsvStream(stack.enter_context(atomic_file(out / DENSE_FILE)), DENSE_COLUMNS)
        sparse = CsvStream(stack.enter_context(atomic_file(out / SPARSE_FILE)), SPARSE_COLUMNS)
        for frame in frames:
            dense.write(_dense(frame, reference, shift_ns).rows())
            sparse.write(_sparse(frame, reference, shift_ns).rows())
    rows = [_frame_row(frame, shift_ns) for frame in frames]
    write_text(out / FRAMES_FILE, "\n".join([",".join(FRAME_COLUMNS), *rows]) + "\n")
    write_text(out / PARAMETERS_FILE, yaml.safe_dump(parameters, sort_keys=False))
    write_text(out / TIMING_FILE, json.dumps(_timing(recording, len(frames), command), indent=1) + "\n")


@dataclass(frozen=True)
class _Frame:
    """What was published about one frame; ``values`` as in dense_trajectory/status."""

    pose: PoseWithCovarianceStamped
    samples: list[Imu]
    values: dict[str, str]

    @property
    def number(self) -> int:
        return int(self.values["frame"])


def _frames(recording: Recording) -> list[_Frame]:
    """The frames of which everything arrived, in order of time; a path names the samples of its frame."""
    imu = {to_ns(m.header.stamp): m for m in recording.imu}
    poses = {to_ns(m.header.stamp): m for m in recording.sparse}
    values = {to_ns(m.header.stamp): {v.key: v.value for v in m.status[0].values} for m in recording.status}
    frames = {}
    for path in recording.paths:
        stamp_ns = to_ns(path.header.stamp)
        samples = [imu[t] for t in (to_ns(p.header.stamp) for p in path.poses) if t in imu]
        if samples and stamp_ns in poses and stamp_ns in values:
            frames[stamp_ns] = _Frame(poses[stamp_ns], samples, values[stamp_ns])
    return [frames[stamp_ns] for stamp_ns in sorted(frames)]


def _dense(frame: _Frame, R_ref_from_start: NDArray[np.float64], shift_ns: int) -> DenseTrajectory:
    n = len(frame.samples)
    return DenseTrajectory(
        np.array([to_ns(m.header.stamp) for m in frame.samples], np.int64) - shift_ns,
        so3.to_quat_xyzw(np.array([R_ref_from_start @ _R(m.orientation) for m in frame.samples])),
        np.array([[m.angular_velocity.x, m.angular_velocity.y, m.angular_velocity.z] for m in frame.samples]),
        _deviations([m.orientation_covariance for m in frame.samples]),
        _deviations([m.angular_velocity_covariance for m in frame.samples]),
        np.full(n, frame.number),
        np.full(n, frame.values["source"]),
    )


def _sparse(frame: _Frame, R_ref_from_start: NDArray[np.float64], shift_ns: int) -> SparseTrajectory:
    R_start_from_cam = _R(frame.pose.pose.pose.orientation)
    fixed_axes = np.reshape(frame.pose.pose.covariance, (6, 6))[3:, 3:]
    body_axes = R_start_from_cam.T @ fixed_axes @ R_start_from_cam
    return SparseTrajectory(
        np.array([to_ns(frame.pose.header.stamp) - shift_ns]),
        so3.to_quat_xyzw(R_ref_from_start @ R_start_from_cam)[None],
        _deviations([body_axes]),
        np.array([frame.number]),
    )


def _frame_row(frame: _Frame, shift_ns: int) -> str:
    values = {**frame.values, "t_ns": to_ns(frame.pose.header.stamp) - shift_ns}
    return ",".join(str(values[column]) for column in FRAME_COLUMNS)


def _timing(recording: Recording, frames_out: int, command: str) -> dict[str, Any]:
    """Frames, and the node's own percentiles and counts, as /diagnostics gave them last."""
    sent = len(recording.camera_stamps_ns)
    stages: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for part in ("input", "processing", "trajectory"):
        for key, value in recording.diagnostics.get(part, {}).items():
            stage, _, percentile = key.removesuffix("_ms").rpartition(".")
            if part == "processing" and key.endswith("_ms"):
                stages.setdefault(stage, {})[percentile] = float(value)
            elif value.isdigit():
                counts[key] = int(value)
    return {
        "command": command,
        "frames": {"in": sent, "out": frames_out, "dropped": sent - frames_out},
        "stages_ms": stages,
        "counts": counts,
    }


def _deviations(covariances: list[Any]) -> NDArray[np.float64]:
    diagonals = np.array([np.diagonal(np.reshape(c, (3, 3))) for c in covariances])
    return np.sqrt(np.maximum(diagonals, 0.0))


def _R(q: Quaternion) -> NDArray[np.float64]:
    return so3.from_quat_xyzw(np.array([q.x, q.y, q.z, q.w]))
