"""One frame of a moving camera: what the sensor's rows collect while the view turns.

Output row y is exposed over [t0 + y·t_row, t0 + y·t_row + E]. At an instant the camera stands at
c = (R − I) r + p and looks along n = R m, everything in the reference frame of the scene's picture (r the lever arm,
p the pivot's displacement). The point seen is c + λ n with λ its depth in the moving camera; μ = 1/λ follows from the
picture's inverse depth ρ at the picture pixel π(K(n + μ c)): μ = ρ n_z / (1 − ρ c_z). This is the inverse of
``displacement.moved_pixels`` and is solved by fixed-point iteration from the pure rotation.

Approximations: surfaces are a rubber sheet over the picture (what a depth edge uncovers is filled with the stretched
edge); two iterations, which over the evaluation set's depth maps leave less than 0.003 px on 95 % of the pixels and
0.15 px on 99 %, the rest at depth edges; bilinear sampling of a picture blurred to the pixel's own aperture, on
OpenCV's 1/32-pixel grid of an oversampled source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..camera import Camera
from ..displacement import moved_pixels
from .motion import MotionPath
from .scene import Scene
from .sensor import FloatImage

FloatArray = NDArray[np.float64]

MIN_SUBFRAMES = 30
OVERSAMPLING = 1.5  # picture pixels per frame pixel
APERTURE_SD_PX = 0.6  # lens and pixel together, in frame pixels: a box of one pixel (0.29) and a lens of about 0.5
DEPTH_ITERATIONS = 2


@dataclass(frozen=True)
class View:
    """A scene made ready for one output camera: resampled, blurred to its aperture, with the camera's rays.

    rays      H × W × 2 float32, x and y of the ideal ray (x, y, 1) of every output pixel
    inv_depth of the source picture, 1/m
    """

    camera: Camera
    source: Camera
    image: FloatImage
    inv_depth: FloatImage
    rays: FloatImage


def prepare(scene: Scene, camera: Camera) -> View:
    """Resample the scene to ``OVERSAMPLING`` times the camera's resolution and blur it to the pixel's aperture."""
    scale = OVERSAMPLING * camera.focal_px / scene.camera.focal_px
    source = scene.resized(scale)
    sd = OVERSAMPLING * APERTURE_SD_PX
    image = np.asarray(cv2.GaussianBlur(source.image, (0, 0), sd, borderType=cv2.BORDER_REFLECT), np.float32)
    u, v = np.meshgrid(np.arange(camera.width, dtype=float), np.arange(camera.height, dtype=float))
    pixels = camera.undistort(np.stack([u, v], axis=-1).reshape(-1, 2))
    rays = camera.rays(pixels)[:, :2].reshape(camera.height, camera.width, 2).astype(np.float32)
    return View(camera, source.camera, image, 1.0 / source.depth_m, rays)


def row_times(t0_s: float, readout_s: float, height: int) -> FloatArray:
    """Start of every row's exposure (H,), seconds."""
    return t0_s + readout_s * np.arange(height) / max(height - 1, 1)


def camera_centre(R_ref_from_cam: FloatArray, pivot_m: FloatArray, lever_arm_m: ArrayLike) -> FloatArray:
    """Optical centre in the reference frame, c = (R − I) r + p; (..., 3, 3) → (..., 3) metres."""
    r = np.asarray(lever_arm_m, float)
    return R_ref_from_cam @ r - r + pivot_m


def subframes(
    view: View,
    path: MotionPath,
    t0_s: float,
    exposure_s: float,
    readout_s: float,
    lever_arm_m: ArrayLike,
    least: int = MIN_SUBFRAMES,
) -> int:
    """Number of sub-frames: ``least``, and one per pixel of the longest blur path in the frame."""
    starts = row_times(t0_s, readout_s, view.camera.height)[[0, view.camera.height // 2, -1]]
    t = starts[:, None] + exposure_s * np.linspace(0, 1, 25)
    R = path.rotation(t)
    R_middle_from_cam = np.swapaxes(R[:, 12:13], -1, -2) @ R
    height, width = view.rays.shape[:2]
    corners = np.array([[u, v] for u in (0.0, width - 1.0) for v in (0.0, height - 1.0)])
    nearest = float(np.percentile(view.inv_depth, 99))
    at = moved_pixels(view.camera, corners[:, None, None], R_middle_from_cam, np.full(t.shape, nearest), lever_arm_m)
    length = np.linalg.norm(np.diff(at, axis=2), axis=-1).sum(axis=2).max()
    shift = np.linalg.norm(np.diff(path.pivot(t), axis=1), axis=-1).sum(axis=1).max() * nearest * view.camera.focal_px
    return max(least, math.ceil(length + shift))


def source_map(
    view: View, R_rows: FloatArray, centre_rows: FloatArray
) -> tuple[FloatImage, FloatImage, FloatImage | None]:
    """Where every output pixel looks in the source picture.

    R_rows (H, 3, 3), centre_rows (H, 3): pose of every row, reference frame → map_x, map_y (H, W) source pixels and
    the inverse depth (H, W) in the moving camera (None where the camera's centre does not move, as depth cancels).
    """
    R = R_rows.astype(np.float32)[:, :, :, None]
    x, y = view.rays[..., 0], view.rays[..., 1]
    nx, ny, nz = (R[:, k, 0] * x + R[:, k, 1] * y + R[:, k, 2] for k in range(3))
    map_x, map_y = _project(view.source, nx, ny, nz)
    if not np.any(centre_rows):
        return map_x, map_y, None
    cx, cy, cz = centre_rows.astype(np.float32).T[:, :, None]
    for _ in range(DEPTH_ITERATIONS):
        rho = sample(view.inv_depth, map_x, map_y)
        mu = rho * nz / (1.0 - rho * cz)
        map_x, map_y = _project(view.source, nx + mu * cx, ny + mu * cy, nz + mu * cz)
    return map_x, map_y, mu


def sample(picture: FloatImage, map_x: FloatImage, map_y: FloatImage) -> FloatImage:
    """Bilinear look-up at picture pixels; beyond the border lies the mirror image."""
    return np.asarray(cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.float32)


def _project(source: Camera, x: FloatImage, y: FloatImage, z: FloatImage) -> tuple[FloatImage, FloatImage]:
    scale = np.float32(1.0) / z
    map_x = x * scale * np.float32(source.fx) + np.float32(source.cx)
    map_y = y * scale * np.float32(source.fy) + np.float32(source.cy)
    return map_x, map_y


def render_frame(
    view: View,
    path: MotionPath,
    t0_s: float,
    exposure_s: float,
    readout_s: float = 0.0,
    lever_arm_m: ArrayLike = (0.0, 0.0, 0.0),
    n_subframes: int | None = None,
) -> FloatImage:
    """The frame in linear light, H × W or H × W × 3: mean of the views at the mid-points of equal sub-intervals.

    t0_s: start of the first row's exposure, path time. No noise, no transfer curve (see ``Sensor``).
    """
    n = n_subframes or subframes(view, path, t0_s, exposure_s, readout_s, lever_arm_m)
    starts = row_times(t0_s, readout_s, view.camera.height)
    t = starts[:, None] + exposure_s * (np.arange(n) + 0.5) / n
    R = path.rotation(t)
    centre = camera_centre(R, path.pivot(t), lever_arm_m)
    total = np.zeros((view.camera.height, view.camera.width, *view.image.shape[2:]), np.float32)
    for s in range(n):
        map_x, map_y, _ = source_map(view, R[:, s], centre[:, s])
        cv2.accumulate(sample(view.image, map_x, map_y), total)
    return total / np.float32(n)


def render_depth(
    view: View, path: MotionPath, t_s: float, lever_arm_m: ArrayLike = (0.0, 0.0, 0.0)
) -> FloatImage:
    """Depth of the view at one instant (no blur, no rolling), H × W float32 metres along the moving optical axis."""
    height = view.camera.height
    R = np.broadcast_to(path.rotation(t_s), (height, 3, 3))
    centre = camera_centre(R, path.pivot(t_s), lever_arm_m)
    map_x, map_y, mu = source_map(view, R, centre)
    if mu is None:
        rho = sample(view.inv_depth, map_x, map_y)
        nz = np.einsum("hk,hwk->hw", R[:, 2, :2].astype(np.float32), view.rays) + R[:, 2, 2:].astype(np.float32)
        mu = rho * nz
    return 1.0 / mu


def margin_px(view: View, path: MotionPath, from_s: float, to_s: float) -> float:
    """Least distance (frame pixels) between the frame's border and the picture's over [from_s, to_s].

    Negative: so many pixels of the mirror image beyond the border were seen. Rotation only; the lever arm adds little.
    """
    t = np.linspace(from_s, to_s, 200)
    height, width = view.rays.shape[:2]
    rays = view.rays[[0, 0, -1, -1, 0, -1, height // 2, height // 2], [0, -1, 0, -1, width // 2, width // 2, 0, -1]]
    n = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) @ np.swapaxes(path.rotation(t), -1, -2)
    at = view.source.project(n)
    ends = np.array([view.source.width - 1.0, view.source.height - 1.0])
    return float(np.minimum(at, ends - at).min() / OVERSAMPLING)
