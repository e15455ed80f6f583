"""Trajectory files: the CSVs that ``replay`` writes and ``evaluate`` reads, TUM (evo) and .gcsv (Gyroflow).

dense_trajectory.csv   t_ns, orientation relative to the first sample (x y z w, optical axes), body rate in rad/s, their
                       standard deviations, 0-based number of the input frame, the densifier that won
sparse_trajectory.csv  t_ns (mid-exposure of the middle row), orientation on the same reference, deviations, frame
Files appear under their name only when complete. Numbers are written so that equal runs give equal bytes.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..camera import Shutter
from ..errors import BagError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DENSE_FILE = "dense_trajectory.csv"
SPARSE_FILE = "sparse_trajectory.csv"

DENSE_COLUMNS = (
    *("t_ns", "qx", "qy", "qz", "qw", "wx", "wy", "wz"),
    *("sd_rx", "sd_ry", "sd_rz", "sd_wx", "sd_wy", "sd_wz", "frame", "source"),
)
SPARSE_COLUMNS = ("t_ns", "qx", "qy", "qz", "qw", "sd_x", "sd_y", "sd_z", "frame")


@dataclass(frozen=True)
class DenseTrajectory:
    """Rotation samples in time order.

    stamp_ns N · q_start_from_cam N × 4 (x y z w) · omega N × 3 rad/s · sd_rotation N × 3 rad · sd_omega N × 3 rad/s ·
    frame N · source N names
    """

    stamp_ns: IntArray
    q_start_from_cam: FloatArray
    omega: FloatArray
    sd_rotation: FloatArray
    sd_omega: FloatArray
    frame: IntArray
    source: NDArray[np.str_]

    def rows(self) -> Iterator[str]:
        numbers = np.hstack([self.q_start_from_cam, self.omega, self.sd_rotation, self.sd_omega]).tolist()
        for t, row, frame, source in zip(self.stamp_ns.tolist(), numbers, self.frame.tolist(), self.source.tolist()):
            yield ",".join([str(t), *map(_quaternion, row[:4]), *map(_number, row[4:]), str(frame), source])


@dataclass(frozen=True)
class SparseTrajectory:
    """One rotation per frame: stamp_ns N · q_start_from_cam N × 4 · sd_rotation N × 3 rad · frame N."""

    stamp_ns: IntArray
    q_start_from_cam: FloatArray
    sd_rotation: FloatArray
    frame: IntArray

    def rows(self) -> Iterator[str]:
        numbers = np.hstack([self.q_start_from_cam, self.sd_rotation]).tolist()
        for t, row, frame in zip(self.stamp_ns.tolist(), numbers, self.frame.tolist()):
            yield ",".join([str(t), *map(_quaternion, row[:4]), *map(_number, row[4:]), str(frame)])


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that gets its name when the block ends well, and never exists in part."""
    part = path.with_name(f".{path.name}.partial")
    try:
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise BagError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


class CsvStream:
    """Rows of a CSV, written as they come, in the context of an ``atomic_file``."""

    def __init__(self, file: IO[bytes], columns: Iterable[str]) -> None:
        self._file = file
        self._file.write((",".join(columns) + "\n").encode())

    def write(self, rows: Iterable[str]) -> None:
        self._file.write("".join(row + "\n" for row in rows).encode())


def read_dense(path: Path) -> DenseTrajectory:
    """Read a dense CSV; BagError names the line of a value that cannot be."""
    stamps, values, frames, sources = _read(path, DENSE_COLUMNS, "source")
    return DenseTrajectory(
        stamps, _unit(path, values[:, :4]), values[:, 4:7], values[:, 7:10], values[:, 10:13], frames, sources
    )


def read_sparse(path: Path) -> SparseTrajectory:
    """Read a sparse CSV; BagError names the line of a value that cannot be."""
    stamps, values, frames, _ = _read(path, SPARSE_COLUMNS, "")
    return SparseTrajectory(stamps, _unit(path, values[:, :4]), values[:, 4:7], frames)


def write_tum(path: Path, stamp_ns: IntArray, q_start_from_cam: FloatArray) -> None:
    """TUM: ``timestamp tx ty tz qx qy qz qw`` with zero translation; evo compares rotations with it."""
    lines = [
        f"{_seconds(t)} 0 0 0 {' '.join(map(_quaternion, q))}\n"
        for t, q in zip(stamp_ns.tolist(), q_start_from_cam.tolist())
    ]
    write_text(path, "".join(lines))


def write_gcsv(path: Path, dense: DenseTrajectory, shutter: Shutter) -> None:
    """Gyroflow's text log, version 1.3; time runs from the first sample.

    The rates stay in the optical frame; orientation ``yxz`` is what Gyroflow calls a gyro mounted that way (its frame
    is x up, y left, z back).
    """
    header = [
        "GYROFLOW IMU LOG",
        "version,1.3",
        "id,perspblur_ros",
        "orientation,yxz",
        "note,camera rotation read from motion blur",
        f"frame_readout_time,{shutter.readout_ns * 1e-6:.4f}",
        "frame_readout_direction,0",
        "tscale,0.000001",
        "gscale,1.0",
        "t,gx,gy,gz",
    ]
    start = int(dense.stamp_ns[0])
    rows = [
        f"{(t - start) // 1000},{','.join(map(_number, w))}"
        for t, w in zip(dense.stamp_ns.tolist(), dense.omega.tolist())
    ]
    write_text(path, "\n".join([*header, *rows]) + "\n")


def _read(path: Path, columns: tuple[str, ...], text: str) -> tuple[IntArray, FloatArray, IntArray, NDArray[np.str_]]:
    """Stamps, the floating-point columns in order, frames, and the ``text`` column."""
    if not path.is_file():
        raise BagError(f"{path} does not exist")
    stamps: list[int] = []
    frames: list[int] = []
    values: list[list[float]] = []
    texts: list[str] = []
    numeric = [name for name in columns if name not in ("t_ns", "frame", text)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            missing = [name for name in columns if name not in (lines.fieldnames or ())]
            if missing:
                raise BagError(f"{path} has no column {', '.join(missing)}")
            for line in lines:
                stamps.append(_integer(line["t_ns"]))
                frames.append(_integer(line["frame"]))
                values.append([_finite(line[name]) for name in numeric])
                texts.append(line[text] or "" if text else "")
                if len(stamps) > 1 and stamps[-1] <= stamps[-2]:
                    raise ValueError(f"t_ns {stamps[-1]} does not come after {stamps[-2]}")
    except (ValueError, TypeError, csv.Error, OSError) as error:
        raise BagError(f"{path}, line {len(values) + 2}: {error}") from None
    if not stamps:
        raise BagError(f"{path} has no samples")
    return np.array(stamps, np.int64), np.array(values), np.array(frames, np.int64), np.array(texts)


def _integer(text: str) -> int:
    number = int(text)
    if abs(number) >= 2**63:
        raise ValueError(f"{text[:30]} is beyond 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _unit(path: Path, q: FloatArray) -> FloatArray:
    norm = np.linalg.norm(q, axis=1)
    wrong = np.abs(norm - 1) > 1e-3
    if wrong.any():
        line = int(np.argmax(wrong))
        raise BagError(f"{path}, line {line + 2}: the quaternion's length is {norm[line]:.4f} instead of 1")
    return q / norm[:, None]


def _quaternion(x: float) -> str:
    return f"{x:.10f}"


def _number(x: float) -> str:
    return f"{x:.8g}"


def _seconds(t_ns: int) -> str:
    whole, fraction = divmod(t_ns, 1_000_000_000)
    return f"{whole}.{fraction:09d}"
