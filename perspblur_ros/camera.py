"""The camera: pinhole intrinsics with lens distortion, and when each row is exposed.

Pixels are (u, v) = (column, row) with the centre of the first pixel at (0, 0). "Ideal" pixels are those of the same
pinhole without distortion; geometry is done there, while row times and image patches use the raw pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import FrameError

FloatArray = NDArray[np.float64]

STAMP_REFERENCES = ("exposure_start", "mid", "end", "readout_end")


@dataclass(frozen=True)
class Camera:
    """Pinhole intrinsics, pixels. ``distortion``: OpenCV order (plumb_bob 4/5, rational 8, …), empty for none."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    fisheye: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise FrameError(f"the camera's size {self.width} x {self.height} has no pixels")
        values = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.all(np.isfinite(values)):
            raise FrameError(f"the camera's intrinsics {values} are not all finite")
        if self.fx <= 0 or self.fy <= 0:
            raise FrameError(f"the focal length ({self.fx}, {self.fy}) px is not positive")
        if self.fisheye and len(self.distortion) not in (0, 4):
            raise FrameError(f"a fisheye (equidistant) model takes 4 coefficients, not {len(self.distortion)}")
        if not self.fisheye and len(self.distortion) not in (0, 4, 5, 8, 12, 14):
            raise FrameError(f"{len(self.distortion)} distortion coefficients fit no known model (0, 4, 5, 8, 12, 14)")

    @property
    def K(self) -> FloatArray:
        """3 × 3 intrinsic matrix."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def focal_px(self) -> float:
        """Geometric mean of fx and fy: what "pixels of rotation" means."""
        return float(np.sqrt(self.fx * self.fy))

    def scaled(self, scale: float) -> Camera:
        """The same camera after resizing the image by ``scale``, to whole pixels (pixel centres kept consistent)."""
        width, height = round(self.width * scale), round(self.height * scale)
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )

    def undistort(self, pixels: ArrayLike) -> FloatArray:
        """Raw pixels → ideal pixels, (N, 2) → (N, 2)."""
        pixels = np.asarray(pixels, float).reshape(-1, 2)
        if not any(self.distortion) or len(pixels) == 0:
            return pixels
        undistort = cv2.fisheye.undistortPoints if self.fisheye else cv2.undistortPoints
        return undistort(pixels[:, None], self.K, np.array(self.distortion), P=self.K)[:, 0].astype(float)

    def distort(self, ideal: ArrayLike) -> FloatArray:
        """Ideal pixels → raw pixels, (N, 2) → (N, 2); NaN where the lens model folds over, far outside the picture."""
        ideal = np.asarray(ideal, float).reshape(-1, 2)
        if not any(self.distortion) or len(ideal) == 0:
            return ideal
        rays, coefficients = self.rays(ideal), np.array(self.distortion)
        if self.fisheye:
            raw = cv2.fisheye.distortPoints(rays[:, None, :2], self.K, coefficients)[:, 0]
        else:
            raw = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), self.K, coefficients)[0][:, 0]
        unique = np.linalg.norm(self.undistort(raw) - ideal, axis=1) < 0.5
        return np.where(unique[:, None], raw.astype(float), np.nan)

    def rays(self, ideal: ArrayLike) -> FloatArray:
        """Ideal pixels (..., 2) → rays (x, y, 1), (..., 3)."""
        ideal = np.asarray(ideal, float)
        ones = np.ones(ideal.shape[:-1])
        return np.stack([(ideal[..., 0] - self.cx) / self.fx, (ideal[..., 1] - self.cy) / self.fy, ones], axis=-1)

    def project(self, points: ArrayLike) -> FloatArray:
        """Points in the camera frame (..., 3) → ideal pixels (..., 2)."""
        points = np.asarray(points, float)
        xy = points[..., :2] / points[..., 2:]
        return xy * (self.fx, self.fy) + (self.cx, self.cy)


@dataclass(frozen=True)
class Shutter:
    """When the rows are exposed.

    Row y of a frame is exposed over [t0 + y·t_row, t0 + y·t_row + exposure]; ``readout_ns`` is the time between the
    starts of the first and the last row, so t_row = readout / (H − 1). ``stamp_reference`` says which instant the
    driver's stamp (after adding ``stamp_offset_ns``) means:

    exposure_start  t0, the start of the first row's exposure
    mid             mid-exposure of the middle row, t0 + (readout + exposure) / 2
    end             the end of the first row's exposure, t0 + exposure
    readout_end     the end of the last row's exposure, t0 + readout + exposure
    """

    exposure_ns: int
    readout_ns: int
    stamp_reference: str = "exposure_start"
    stamp_offset_ns: int = 0

    def mid_ns(self, stamp_ns: int) -> int:
        """Mid-exposure of the middle row of the frame stamped ``stamp_ns``."""
        half = (self.exposure_ns + self.readout_ns) // 2
        from_reference = {
            "exposure_start": half,
            "mid": 0,
            "end": half - self.exposure_ns,
            "readout_end": half - self.exposure_ns - self.readout_ns,
        }
        return stamp_ns + self.stamp_offset_ns + from_reference[self.stamp_reference]

    def row_offset_s(self, rows: ArrayLike, height: int) -> FloatArray:
        """Mid-exposure of a row relative to that of the middle row, seconds."""
        t_row_s = self.readout_ns * 1e-9 / max(height - 1, 1)
        return (np.asarray(rows, float) - (height - 1) / 2.0) * t_row_s
