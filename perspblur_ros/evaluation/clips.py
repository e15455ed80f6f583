"""A clip folder → a bag.

A clip is ``frames.csv`` (``file,t_s[,exposure_s]``), the pictures it names, ``meta.json`` (intrinsics and what is known
of the shutter) and optionally ``gyro_cam.csv`` (``t_s,wx_rad_s,wy_rad_s,wz_rad_s``, optical axes). What the folder does
not state stays out of the bag's params.yaml, so that the pipeline estimates it.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..camera import STAMP_REFERENCES, Camera
from ..errors import BagError, FrameError
from .bags import BagWriter

if TYPE_CHECKING:
    from ..sim.clips import SimulatedClip

FloatArray = NDArray[np.float64]

EPOCH_S = 1000  # added to a clip's times, which start near zero and may be negative for the gyro

_GYRO_COLUMNS = ("t_s", "wx_rad_s", "wy_rad_s", "wz_rad_s")


@dataclass(frozen=True)
class Clip:
    """A clip folder as it was read: file names with their times, and what is known of camera and shutter."""

    files: list[Path]
    stamp_ns: NDArray[np.int64]
    camera: Camera
    parameters: dict[str, Any]
    gyro_ns: NDArray[np.int64]
    omega: FloatArray


def convert(
    folder: Path, out: Path, compressed: bool = False, on_frame: Callable[[int, int], None] | None = None
) -> Clip:
    """Write the clip as a bag: pictures as raw messages, or (``compressed``) the files' own bytes.

    ``on_frame`` is called with the number of written frames and of all frames.
    """
    clip = read_clip(folder)
    with BagWriter(out, clip.camera, clip.parameters) as writer:
        if len(clip.gyro_ns):
            writer.write_motion(clip.gyro_ns, clip.omega)
        for k, (file, stamp) in enumerate(zip(clip.files, clip.stamp_ns.tolist())):
            if compressed:
                writer.write_compressed(stamp, file.read_bytes(), "png" if file.suffix == ".png" else "jpeg")
            else:
                writer.write_image(stamp, _picture(file, clip.camera))
            if on_frame:
                on_frame(k + 1, len(clip.files))
    return clip


def write_simulated(clip: SimulatedClip, out: Path) -> None:
    """A rendered clip as a bag: pictures, dense truth, the first frame's depth, and what messages cannot carry."""
    parameters = {"exposure_s": clip.exposure_s, "readout_s": clip.readout_s, "stamp_reference": "exposure_start"}
    parameters["lever_arm"] = list(clip.lever_arm_m)
    with BagWriter(out, clip.camera, parameters) as writer:
        writer.write_motion(clip.truth_ns, clip.omega, clip.q_start_from_cam)
        writer.write_depth(int(clip.stamps_ns[0]), clip.depth_m)
        for stamp, image in zip(clip.stamps_ns.tolist(), clip.frames):
            writer.write_image(stamp, image)


def read_clip(folder: Path) -> Clip:
    """Everything of a clip but the pictures themselves; BagError names what is missing or wrong."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BagError(f"clip folder {folder} does not exist")
    meta = _meta(folder / "meta.json")
    files, t_s, exposures_s = _frames(folder)
    gyro = folder / "gyro_cam.csv"
    table = _table(gyro, _GYRO_COLUMNS) if gyro.is_file() else np.empty((0, 4))
    if np.any(np.diff(table[:, 0]) <= 0):
        raise BagError(f"{gyro}: t_s goes back in line {int(np.argmax(np.diff(table[:, 0]) <= 0)) + 3}")
    return Clip(
        files, _stamps(t_s), _camera(meta, files[0]), _parameters(meta, exposures_s), _stamps(table[:, 0]), table[:, 1:]
    )


def _meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BagError(f"{path} does not exist; it has to state the camera's intrinsics")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BagError(f"{path} is not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(meta, dict):
        raise BagError(f"{path} does not hold a JSON object")
    return meta


def _frames(folder: Path) -> tuple[list[Path], FloatArray, FloatArray]:
    """Files, times and exposures (NaN where not stated), seconds."""
    path = folder / "frames.csv"
    lines = _lines(path, ("file", "t_s"))
    files = [_inside(folder, line["file"], path) for line in lines]
    t_s = np.array([_number(line["t_s"], path, k) for k, line in enumerate(lines)])
    if np.any(np.diff(t_s) <= 0):
        raise BagError(f"{path}: t_s goes back in line {int(np.argmax(np.diff(t_s) <= 0)) + 3}")
    exposures_s = np.array(
        [_number(line["exposure_s"], path, k) if line.get("exposure_s") else math.nan for k, line in enumerate(lines)]
    )
    return files, t_s, exposures_s


def _inside(folder: Path, name: str, path: Path) -> Path:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BagError(f"{path} names {name}, which is not inside the clip folder")
    if not file.is_file():
        raise BagError(f"{path} names {name}, which does not exist")
    return file


def _table(path: Path, columns: tuple[str, ...]) -> FloatArray:
    lines = _lines(path, columns)
    return np.array([[_number(line[name], path, k) for name in columns] for k, line in enumerate(lines)])


def _lines(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise BagError(f"{path} does not exist")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise BagError(f"{path} is not a CSV file: {error}") from None
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise BagError(f"{path} has no column {', '.join(missing)}")
    if not lines:
        raise BagError(f"{path} has no lines")
    return lines


def _number(text: str | None, path: Path, k: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BagError(f"{path}, line {k + 2}: '{text or ''}' is not a finite number")
    return value


def _stamps(t_s: FloatArray) -> NDArray[np.int64]:
    if len(t_s) and t_s[0] < -EPOCH_S:
        raise BagError(f"the clip's time {t_s[0]:g} s lies more than {EPOCH_S} s before its start")
    return np.round((t_s + EPOCH_S) * 1e9).astype(np.int64)


def _camera(meta: dict[str, Any], first: Path) -> Camera:
    """Intrinsics from ``K``, or from a focal length in pixels (``f_px…``) with the principal point at the centre."""
    width, height = _size(meta, first)
    K = _matrix(meta.get("K"))
    focal = [value for name, value in meta.items() if name.startswith(("f_px", "focal_px")) and _is_number(value)]
    if K is None and not focal:
        raise BagError("meta.json states neither K nor a focal length in pixels (f_px)")
    if K is None:
        K = np.array([[focal[0], 0, (width - 1) / 2], [0, focal[0], (height - 1) / 2], [0, 0, 1]])
    distortion = meta.get("distortion") or ()
    if not isinstance(distortion, (list, tuple)) or not all(map(_is_number, distortion)):
        raise BagError("meta.json: distortion is neither null nor a list of numbers")
    try:
        return Camera(width, height, K[0, 0], K[1, 1], K[0, 2], K[1, 2], tuple(map(float, distortion)))
    except FrameError as error:
        raise BagError(f"meta.json: {error}") from None


def _size(meta: dict[str, Any], first: Path) -> tuple[int, int]:
    size = meta.get("size")
    if isinstance(size, list) and len(size) == 2 and all(map(_is_number, size)):
        return int(size[0]), int(size[1])
    height, width = _read(first).shape[:2]
    return width, height


def _matrix(value: Any) -> FloatArray | None:
    if value is None:
        return None
    try:
        K = np.array(value, float)
    except (ValueError, TypeError):
        K = np.empty(0)
    if K.shape != (3, 3):
        raise BagError("meta.json: K is not a 3 x 3 matrix")
    return K


def _parameters(meta: dict[str, Any], exposures_s: FloatArray) -> dict[str, Any]:
    """Of params.yaml, what the folder states: the median exposure, the readout, the stamp's meaning."""
    stated = {
        "exposure_s": float(np.nanmedian(exposures_s))
        if np.isfinite(exposures_s).any()
        else _seconds(meta.get("exposure_s")),
        "readout_s": _seconds(meta.get("readout_s")),
        "stamp_offset_s": _seconds(meta.get("stamp_offset_s")),
        "stamp_reference": meta.get("stamp_reference") if meta.get("stamp_reference") in STAMP_REFERENCES else None,
        "lever_arm": meta.get("lever_arm"),
    }
    return {name: value for name, value in stated.items() if value is not None}


def _seconds(value: Any) -> float | None:
    """A number, or the middle of a text that starts with one or with a range ("0.0049-0.0059 (from the log)")."""
    if _is_number(value):
        return float(value)
    if not isinstance(value, str):
        return None
    found = re.match(r"\s*(\d*\.?\d+)(?:\s*-\s*(\d*\.?\d+))?", value)
    if not found:
        return None
    low, high = float(found[1]), float(found[2] or found[1])
    return (low + high) / 2


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _picture(file: Path, camera: Camera) -> NDArray[np.uint8]:
    picture = _read(file)
    height, width = picture.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise BagError(f"{file} is {width} x {height} pixels, but meta.json says {camera.width} x {camera.height}")
    return picture


def _read(file: Path) -> NDArray[np.uint8]:
    """uint8, H × W grey or H × W × 3 RGB, as the file has it."""
    picture = cv2.imread(str(file), cv2.IMREAD_ANYCOLOR)
    if picture is None:
        raise BagError(f"{file} is not a picture that can be read")
    return np.asarray(picture if picture.ndim == 2 else picture[..., ::-1], np.uint8)
