"""Frames of the bag with the estimated blur path drawn on them: does the path look like the streaks?

The path of a point is where the point moved on the sensor while its own row was exposed, by the exact projection
through the estimated rotation (with lever arm and depth where both are known).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..camera import Camera, Shutter
from ..displacement import moved_pixels
from .bags import BagReader
from .evaluate import ESTIMATE, Comparison

FloatArray = NDArray[np.float64]
Picture = NDArray[np.uint8]

_IMAGE = "sensor_msgs/msg/Image"

N_FRAMES = 3
N_PATCHES = 3
PATCH_PX = 64  # side of a magnified detail, picture pixels, for blur up to half of it
MAGNIFIED = 288  # its side in the report
FRAME_WIDTH = 960
PATH_STEPS = 41
_OURS, _TRUTH, _SHADOW = (255, 150, 30), (90, 220, 120), (0, 0, 0)  # RGB


@dataclass(frozen=True)
class BlurPicture:
    """One frame for the report: the picture with paths, magnified details with the path beside the streak."""

    caption: str
    aspect: float
    frame: str
    details: list[str]


@dataclass(frozen=True)
class _View:
    """What is needed to draw a frame's paths."""

    camera: Camera
    shutter: Shutter
    mid_s: float
    lever_arm_m: tuple[float, ...]
    depth_m: FloatArray | None


def blur_pictures(c: Comparison, bag: Path) -> list[BlurPicture]:
    """Three frames of different blur, from the bag that the truth is in; empty when it has no pictures."""
    wanted = _choose(c)
    shutter = _shutter(c.run.parameters)
    if not wanted or shutter is None:
        return []
    with BagReader(bag) as reader:
        if not reader.topics(_IMAGE, "sensor_msgs/msg/CompressedImage"):
            return []
        depth_topic = c.run.parameters.get("depth_topic", "")
        depth = next(reader.depth_frames(depth_topic), None) if depth_topic in reader.topics(_IMAGE) else None
        arm = tuple(c.run.parameters.get("lever_arm") or ())
        depth_m = None if depth is None or not arm else np.asarray(depth.depth_m, float)
        pictures = {}
        for frame in reader.frames(
            rgb=True, wanted=lambda stamp_ns: _row(wanted, shutter.mid_ns(stamp_ns)) is not None
        ):
            mid_ns = shutter.mid_ns(frame.stamp_ns)
            row = _row(wanted, mid_ns)
            assert row is not None
            view = _View(frame.camera, shutter, (mid_ns - c.epoch_ns) * 1e-9, arm, depth_m)
            pictures[row["frame"]] = _draw(c, frame.image, view, row)
    return [pictures[row["frame"]] for row in wanted if row["frame"] in pictures]


def _choose(c: Comparison) -> list[dict[str, str]]:
    """Frames from the strongest blur to a weak one, in order of time."""
    rows = sorted((row for row in c.run.frames if row["status"] == "ok"), key=lambda row: -float(row["blur_px"]))
    if not rows:
        return []
    picks = {round(share * (len(rows) - 1)) for share in np.linspace(0.0, 0.7, N_FRAMES)}
    return sorted((rows[k] for k in picks), key=lambda row: int(row["frame"]))


def _row(rows: list[dict[str, str]], mid_ns: int) -> dict[str, str] | None:
    """The row of the frame whose middle this is; a timing that was estimated on the way may have moved a little."""
    return next((row for row in rows if abs(int(row["t_ns"]) - mid_ns) < 8_000_000), None)


def _shutter(parameters: dict[str, Any]) -> Shutter | None:
    try:
        return Shutter(
            round(parameters["exposure_s"] * 1e9),
            round(parameters["readout_s"] * 1e9),
            parameters.get("stamp_reference", "exposure_start"),
            round(parameters.get("stamp_offset_s", 0.0) * 1e9),
        )
    except (KeyError, TypeError):
        return None


def _draw(c: Comparison, image: Picture, view: _View, row: dict[str, str]) -> BlurPicture:
    own = c.estimates[ESTIMATE]
    anchors = _grid(view.camera)
    scale = FRAME_WIDTH / view.camera.width
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how), np.uint8)
    for path in _paths(anchors, own.t_s, own.R, view, 0.0):
        _polyline(canvas, (path + 0.5) * scale - 0.5, _OURS, 3)
    details = [_detail(c, image, view, anchor) for anchor in _textured(image)]
    caption = f"frame {row['frame']} · blur {float(row['blur_px']):.1f} px · {row['source']} · {row['gate']}"
    aspect = round(view.camera.width / view.camera.height, 3)
    return BlurPicture(caption, aspect, _jpeg(canvas), [_jpeg(detail) for detail in details])


def _detail(c: Comparison, image: Picture, view: _View, anchor: FloatArray) -> Picture:
    """A magnified patch; the estimated path (and the true one) runs beside its middle."""
    own, offset = c.estimates[ESTIMATE], c.offsets_s[ESTIMATE]
    corner = np.clip(anchor - PATCH_PX / 2, 0, [view.camera.width - PATCH_PX, view.camera.height - PATCH_PX]).astype(
        int
    )
    patch = image[corner[1] : corner[1] + PATCH_PX, corner[0] : corner[0] + PATCH_PX]
    scale = MAGNIFIED / PATCH_PX
    canvas = np.asarray(cv2.resize(patch, (MAGNIFIED, MAGNIFIED), interpolation=cv2.INTER_CUBIC), np.uint8)
    near = (own.t_s > view.mid_s - 0.5) & (own.t_s < view.mid_s + 0.5)
    motions = [
        (own.t_s[near] + offset, c.truth.rotation(own.t_s[near] + offset), offset, _TRUTH, 7),
        (own.t_s[near], own.R[near], 0.0, _OURS, 3),
    ]
    for t_s, R, shift_s, colour, width in motions:
        (path,) = _paths(anchor[None], t_s, R, view, shift_s)
        _polyline(canvas, (path - corner + 0.5) * scale - 0.5, colour, width)
    return canvas


def _paths(anchors: FloatArray, t_s: FloatArray, R: FloatArray, view: _View, shift_s: float) -> list[FloatArray]:
    """Pixels that each anchor (N, 2) passes while its row is exposed, N × (PATH_STEPS, 2)."""
    exposure_s = view.shutter.exposure_ns * 1e-9
    mids = view.mid_s + shift_s + view.shutter.row_offset_s(anchors[:, 1], view.camera.height)
    ideal = view.camera.undistort(anchors)
    paths = []
    for anchor, pixel, mid_s in zip(anchors, ideal, mids):
        times = mid_s + exposure_s * np.linspace(-0.5, 0.5, PATH_STEPS)
        poses = so3.interpolate(np.append(times, mid_s), t_s, R)
        moved = moved_pixels(
            view.camera,
            pixel,
            poses[-1].T @ poses[:-1],
            _inverse_depth(view, anchor),
            view.lever_arm_m or (0.0, 0.0, 0.0),
        )
        paths.append(anchor + moved - pixel)
    return paths


def _inverse_depth(view: _View, anchor: FloatArray) -> float:
    if view.depth_m is None:
        return 0.0
    height, width = view.depth_m.shape
    u, v = (anchor * [width / view.camera.width, height / view.camera.height]).astype(int)
    depth = view.depth_m[min(v, height - 1), min(u, width - 1)]
    return 1.0 / float(depth) if np.isfinite(depth) and depth > 0 else 0.0


def _grid(camera: Camera) -> FloatArray:
    u, v = np.meshgrid((np.arange(6) + 0.5) / 6 * camera.width, (np.arange(4) + 0.5) / 4 * camera.height)
    return np.stack([u.ravel(), v.ravel()], axis=-1)


def _textured(image: Picture) -> list[FloatArray]:
    """Strong corners far from each other and from the border: there a streak is easy to see."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    inner = np.zeros_like(grey)
    border = PATCH_PX // 2
    inner[border : height - border, border : width - border] = 255
    found = cv2.goodFeaturesToTrack(grey, N_PATCHES, 0.01, 0.3 * min(height, width), mask=inner, blockSize=15)
    return [] if found is None else list(found[:, 0].astype(float))


def _polyline(canvas: Picture, points: FloatArray, colour: tuple[int, int, int], width: int) -> None:
    """A line with a thin dark rim, sub-pixel and antialiased."""
    fixed = np.round(points * 16).astype(np.int32)[:, None]
    for line, thickness in ((_SHADOW, width + 2), (colour, width)):
        cv2.polylines(canvas, [fixed], False, line, thickness, cv2.LINE_AA, 4)


def _jpeg(picture: Picture) -> str:
    """A data URI."""
    blob = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(blob.tobytes()).decode()
