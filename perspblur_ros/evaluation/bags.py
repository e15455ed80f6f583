"""Bags: rosbag2 folders of camera frames with what is known of the motion.

A bag holds /camera/image_raw (or …/compressed) and /camera/camera_info, optionally /imu/data_raw (a gyro, optical
axes) or /ground_truth/imu (orientation and rate), and /ground_truth/depth. What messages cannot say stands in its
``params.yaml``. A bag is untrusted input: whatever is wrong with it becomes one BagError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from .. import config
from ..camera import Camera
from ..errors import BagError, FrameError, PerspBlurError
from ..image_codec import DEPTH_ENCODINGS, decode, decode_camera, decode_compressed, decode_depth_m

FloatArray = NDArray[np.float64]

IMAGE_TOPIC = "/camera/image_raw"
INFO_TOPIC = "/camera/camera_info"
GYRO_TOPIC = "/imu/data_raw"
TRUTH_TOPIC = "/ground_truth/imu"
TRUTH_DEPTH_TOPIC = "/ground_truth/depth"
OPTICAL_FRAME = "camera_optical_frame"
PARAMETERS_FILE = "params.yaml"

_IMAGE = "sensor_msgs/msg/Image"
_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_INFO = "sensor_msgs/msg/CameraInfo"
_IMU = "sensor_msgs/msg/Imu"

_METADATA_BYTES = 1_000_000  # a real one has a few hundred bytes per topic


@dataclass(frozen=True)
class CameraFrame:
    """One image message: stamp, uint8 H × W grey (or H × W × 3 RGB), and the calibration in force."""

    stamp_ns: int
    image: NDArray[np.uint8]
    camera: Camera


@dataclass(frozen=True)
class DepthFrame:
    """One depth message: stamp, float32 H × W metres, NaN invalid."""

    stamp_ns: int
    depth_m: NDArray[np.float32]


@dataclass(frozen=True)
class ImuLog:
    """A recorded motion, in time order.

    stamp_ns        N, strictly increasing
    omega           N × 3 body rate, rad/s, optical axes
    q_ref_from_cam  N × 4, x y z w, or None where only a gyro was recorded
    """

    topic: str
    stamp_ns: NDArray[np.int64]
    omega: FloatArray
    q_ref_from_cam: FloatArray | None


@lru_cache(maxsize=1)
def _types() -> Typestore:
    """Standard messages, the same in every ROS 2 distribution. Definitions embedded in a bag are never compiled."""
    return get_typestore(Stores.ROS2_JAZZY)


class BagReader:
    """Reads one bag; a context manager. ``refused`` counts messages that were left out, by sentence."""

    def __init__(self, path: Path, image_topic: str = "") -> None:
        self.path = Path(path)
        self.refused: Counter[str] = Counter()
        _check_folder(self.path)
        folder = self.path if self.path.is_dir() else self.path.parent
        parameters = folder / PARAMETERS_FILE
        self.parameters: dict[str, Any] = config.read_parameters(parameters) if parameters.is_file() else {}
        with _reading(self.path):
            self._reader = Reader(self.path)
            self._reader.open()
        self._image_topic = image_topic

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._reader.is_open:
            self._reader.close()

    def topics(self, *types: str) -> list[str]:
        """Names of the topics of these message types, sorted."""
        return sorted({c.topic for c in self._reader.connections if c.msgtype in types})

    def count(self, topic: str) -> int:
        """Number of messages of a topic according to the bag's index."""
        return sum(max(c.msgcount, 0) for c in self._reader.connections if c.topic == topic)

    @property
    def image_topic(self) -> str:
        """The one asked for, the usual one, or the only one there is."""
        names = [t for t in self.topics(_IMAGE, _COMPRESSED) if "depth" not in t]
        if self._image_topic:
            if self._image_topic not in self.topics(_IMAGE, _COMPRESSED):
                raise BagError(f"bag {self.path} has no image topic '{self._image_topic}'{_listed(names)}")
            return self._image_topic
        for usual in (IMAGE_TOPIC, f"{IMAGE_TOPIC}/compressed"):
            if usual in names:
                return usual
        if len(names) != 1:
            raise BagError(
                f"bag {self.path} has {len(names)} image topics{_listed(names)}; name one with --image-topic"
            )
        return names[0]

    def frames(self, rgb: bool = False, wanted: Callable[[int], bool] = lambda stamp_ns: True) -> Iterator[CameraFrame]:
        """Camera frames in recorded order; those whose message cannot be used are counted in ``refused``.

        Only frames whose stamp is ``wanted`` are decoded.
        """
        topic = self.image_topic
        cameras = self._cameras(topic)
        for message in self._messages(topic):
            if not wanted(_stamp_ns(message)):
                continue
            try:
                yield CameraFrame(_stamp_ns(message), _picture(message, rgb), cameras.at(_stamp_ns(message)))
            except FrameError as error:
                self.refused[str(error)] += 1

    def depth_frames(self, topic: str) -> Iterator[DepthFrame]:
        """Depth maps of a topic in recorded order."""
        if topic not in self.topics(_IMAGE):
            raise BagError(f"bag {self.path} has no depth topic '{topic}'{_listed(self.topics(_IMAGE))}")
        for message in self._messages(topic):
            try:
                yield DepthFrame(_stamp_ns(message), _depth(message))
            except FrameError as error:
                self.refused[str(error)] += 1

    def truth(self) -> ImuLog:
        """Dense truth if the bag has it, else its gyro."""
        for topic in (TRUTH_TOPIC, GYRO_TOPIC):
            if topic in self.topics(_IMU):
                return self._imu(topic)
        raise BagError(f"bag {self.path} has neither {TRUTH_TOPIC} nor {GYRO_TOPIC} to compare with")

    def gyro(self) -> ImuLog | None:
        """The recorded gyro, or None where the bag has none."""
        return self._imu(GYRO_TOPIC) if GYRO_TOPIC in self.topics(_IMU) else None

    def _imu(self, topic: str) -> ImuLog:
        rows = [
            (
                _stamp_ns(m),
                *_xyz(m.angular_velocity),
                *_xyz(m.orientation),
                m.orientation.w,
                m.orientation_covariance[0],
            )
            for m in self._messages(topic)
        ]
        if len(rows) < 2:
            raise BagError(f"topic {topic} of bag {self.path} has {len(rows)} messages, too few for a motion")
        stamps = np.array([row[0] for row in rows], np.int64)
        values = np.array([row[1:] for row in rows], float)
        if not np.all(np.isfinite(values)):
            raise BagError(f"topic {topic} of bag {self.path} has values that are not finite")
        order = np.unique(stamps, return_index=True)[1]  # sorted, first of equal stamps
        stamps, values = stamps[order], values[order]
        q = values[:, 3:7]
        with np.errstate(over="ignore"):  # a damaged message may hold 1e300
            has_orientation = np.all(values[:, 7] != -1) and np.allclose(np.linalg.norm(q, axis=1), 1, atol=1e-2)
        return ImuLog(topic, stamps, values[:, :3], q if has_orientation else None)

    def _cameras(self, image_topic: str) -> _Cameras:
        names = self.topics(_INFO)
        beside = image_topic.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
        topic = beside if beside in names else names[0] if len(names) == 1 else ""
        if not topic:
            raise BagError(f"bag {self.path} has no {beside}: without the camera's intrinsics nothing can be measured")
        cameras = _Cameras()
        for message in self._messages(topic):
            try:
                camera = decode_camera(message.width, message.height, message.distortion_model, message.d, message.k)
            except FrameError as error:
                self.refused[str(error)] += 1
            else:
                cameras.add(_stamp_ns(message), camera)
        if not cameras:
            reason = next(iter(self.refused), "it has no messages")
            raise BagError(f"{topic} of bag {self.path} cannot be used: {reason}")
        return cameras

    def _messages(self, topic: str) -> Iterator[Any]:
        connections = [c for c in self._reader.connections if c.topic == topic]
        with _reading(self.path):
            raw = iter(self._reader.messages(connections))
        while True:
            with _reading(self.path):
                item = next(raw, None)
                if item is None:
                    return
                message = _types().deserialize_cdr(item[2], item[0].msgtype)
            yield message


class _Cameras:
    """The calibrations of a bag; only changes are kept."""

    def __init__(self) -> None:
        self._from: list[tuple[int, Camera]] = []

    def __bool__(self) -> bool:
        return bool(self._from)

    def add(self, stamp_ns: int, camera: Camera) -> None:
        if not self._from or self._from[-1][1] != camera:
            self._from.append((stamp_ns, camera))

    def at(self, stamp_ns: int) -> Camera:
        """The latest one not after the stamp, or the first."""
        return next((camera for since, camera in reversed(self._from) if since <= stamp_ns), self._from[0][1])


class BagWriter:
    """Writes one MCAP bag; a context manager. The bag appears under its name only when it is complete."""

    def __init__(self, path: Path, camera: Camera, parameters: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self._camera = camera
        self._parameters = config_values(parameters or {})
        self._connections: dict[str, Connection] = {}
        if self.path.exists():
            raise BagError(f"{self.path} exists already and is not overwritten")
        # the folder's name is part of the files' names, so the unfinished bag lies one level deeper
        self._unfinished = self.path.parent / f".{self.path.name}.partial"
        rmtree(self._unfinished, ignore_errors=True)
        self._writer = Writer(
            self._unfinished / self.path.name, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP
        )
        with _writing(self.path):
            self._writer.open()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with ExitStack() as stack:
            stack.callback(rmtree, self._unfinished, ignore_errors=True)
            if kind is not None:
                self._writer.abort()
                return
            with _writing(self.path):
                self._writer.close()
                if self._parameters:
                    text = yaml.safe_dump(self._parameters, sort_keys=False)
                    (self._writer.path / PARAMETERS_FILE).write_text(text, encoding="utf-8")
                self._writer.path.rename(self.path)

    def write_image(self, stamp_ns: int, image: NDArray[np.uint8]) -> None:
        """A picture, uint8 H × W (mono8) or H × W × 3 RGB (rgb8), and its camera_info."""
        encoding = "mono8" if image.ndim == 2 else "rgb8"
        self._write_camera_info(stamp_ns)
        self._write_pixels(IMAGE_TOPIC, stamp_ns, encoding, np.asarray(image, np.uint8))

    def write_compressed(self, stamp_ns: int, blob: bytes, kind: str) -> None:
        """A picture file as it is (``kind`` jpeg or png), and its camera_info."""
        self._write_camera_info(stamp_ns)
        data = np.frombuffer(blob, np.uint8)
        self._write(
            f"{IMAGE_TOPIC}/compressed", _COMPRESSED, stamp_ns, header=_header(stamp_ns), format=kind, data=data
        )

    def write_depth(self, stamp_ns: int, depth_m: NDArray[np.float32], topic: str = TRUTH_DEPTH_TOPIC) -> None:
        """A depth map, H × W metres, NaN invalid."""
        self._write_pixels(topic, stamp_ns, "32FC1", np.asarray(depth_m, "<f4"))

    def write_motion(
        self, stamp_ns: ArrayLike, omega: ArrayLike, q_ref_from_cam: ArrayLike | None = None, topic: str = ""
    ) -> None:
        """Rates N × 3 rad/s as /imu/data_raw, or with orientations (N × 4, x y z w) as /ground_truth/imu."""
        known = q_ref_from_cam is not None
        orientations = (
            np.asarray(q_ref_from_cam) if known else np.tile([0.0, 0.0, 0.0, 1.0], (len(np.asarray(omega)), 1))
        )
        topic = topic or (TRUTH_TOPIC if known else GYRO_TOPIC)
        for stamp, w, q in zip(np.asarray(stamp_ns).tolist(), np.asarray(omega).tolist(), orientations.tolist()):
            self._write(
                topic,
                _IMU,
                stamp,
                header=_header(stamp),
                orientation=_message("geometry_msgs/msg/Quaternion", x=q[0], y=q[1], z=q[2], w=q[3]),
                orientation_covariance=_covariance(known),
                angular_velocity=_vector(w),
                angular_velocity_covariance=_covariance(True),
                linear_acceleration=_vector((0.0, 0.0, 0.0)),
                linear_acceleration_covariance=_covariance(False),
            )

    def _write_camera_info(self, stamp_ns: int) -> None:
        c = self._camera
        roi = _message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        self._write(
            INFO_TOPIC,
            _INFO,
            stamp_ns,
            header=_header(stamp_ns),
            height=c.height,
            width=c.width,
            distortion_model=_distortion_model(c),
            d=np.array(c.distortion, float),
            k=c.K.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([c.K, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=roi,
        )

    def _write_pixels(self, topic: str, stamp_ns: int, encoding: str, pixels: NDArray[Any]) -> None:
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).view(np.uint8).ravel()
        self._write(
            topic,
            _IMAGE,
            stamp_ns,
            header=_header(stamp_ns),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=len(data) // height,
            data=data,
        )

    def _write(self, topic: str, kind: str, stamp_ns: int, **fields: Any) -> None:
        if stamp_ns < 0:
            raise BagError(f"stamp {stamp_ns} ns is negative, which a bag cannot hold")
        with _writing(self.path):
            if topic not in self._connections:
                self._connections[topic] = self._writer.add_connection(topic, kind, typestore=_types())
            self._writer.write(
                self._connections[topic], stamp_ns, _types().serialize_cdr(_message(kind, **fields), kind)
            )


def config_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain YAML values, each checked against its own range."""
    checked = {name: config.check(name, value) for name, value in parameters.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in checked.items()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged bag makes the reader raise (struct, YAML, Unicode, MemoryError, …) is one sentence here."""
    try:
        yield
    except PerspBlurError:
        raise
    except Exception as error:
        raise BagError(f"bag {path} cannot be read: {_first_line(error)}") from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BagError(f"bag {path} cannot be written: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise BagError(f"bag {path} does not exist")
    if not path.is_dir():
        return
    metadata = path / "metadata.yaml"
    if not metadata.is_file():
        raise BagError(f"{path} is not a bag: it has no metadata.yaml (`ros2 bag reindex` makes one)")
    if metadata.stat().st_size > _METADATA_BYTES:
        raise BagError(f"{metadata} is larger than {_METADATA_BYTES} bytes and is not read")


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _picture(message: Any, rgb: bool) -> NDArray[np.uint8]:
    if message.__msgtype__ == _COMPRESSED:
        return decode_compressed(message.data, rgb)
    return decode(
        message.encoding, message.height, message.width, message.step, message.is_bigendian, message.data, rgb
    )


def _depth(message: Any) -> NDArray[np.float32]:
    if message.encoding not in DEPTH_ENCODINGS:
        raise FrameError(f"depth encoding '{message.encoding}' is none of {', '.join(DEPTH_ENCODINGS)}")
    return decode_depth_m(
        message.encoding, message.height, message.width, message.step, message.is_bigendian, message.data
    )


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def _xyz(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def _message(kind: str, **fields: Any) -> Any:
    return _types().types[kind](**fields)


def _header(stamp_ns: int) -> Any:
    seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
    stamp = _message("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    return _message("std_msgs/msg/Header", stamp=stamp, frame_id=OPTICAL_FRAME)


def _vector(v: Any) -> Any:
    return _message("geometry_msgs/msg/Vector3", x=v[0], y=v[1], z=v[2])


def _covariance(known: bool) -> FloatArray:
    """REP 145: all zero is "known, covariance not"; −1 first is "not reported"."""
    covariance = np.zeros(9)
    covariance[0] = 0.0 if known else -1.0
    return covariance


def _distortion_model(camera: Camera) -> str:
    if camera.fisheye:
        return "equidistant"
    return "rational_polynomial" if len(camera.distortion) > 5 else "plumb_bob"
