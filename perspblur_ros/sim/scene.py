"""Scenes: one sharp picture in linear light, a metric depth for every pixel, and the camera that saw both.

Beyond its border a scene goes on as its mirror image, picture and depth alike, so a view that turns away still sees a
consistent world.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from ..camera import Camera
from ..errors import BagError, FrameError
from .sensor import FloatImage, decode_srgb

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709, linear light


@dataclass(frozen=True)
class Scene:
    """image H × W or H × W × 3 (RGB) float32 linear light; depth_m H × W float32 along the optical axis, no holes.

    ``camera`` has no distortion: pictures are taken as ideal ones.
    """

    image: FloatImage
    depth_m: FloatImage
    camera: Camera

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        if self.image.shape[:2] != size or self.depth_m.shape != size:
            raise FrameError(
                f"picture {self.image.shape[:2]}, depth {self.depth_m.shape} and camera {size} differ in size"
            )
        if any(self.camera.distortion):
            raise FrameError("a scene's camera has no distortion, but coefficients were given")
        if not (np.all(np.isfinite(self.depth_m)) and np.all(self.depth_m > 0)):
            raise FrameError("the scene's depth has pixels that are not positive finite metres")

    def grey(self) -> Scene:
        """The scene in luminance (Rec. 709)."""
        return self if self.image.ndim == 2 else replace(self, image=self.image @ _LUMA)

    def resized(self, scale: float) -> Scene:
        """Picture and depth resampled by ``scale``, intrinsics to match."""
        camera = self.camera.scaled(scale)
        size = (camera.width, camera.height)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = np.maximum(cv2.resize(self.image, size, interpolation=how), 0, dtype=np.float32)
        depth = np.asarray(cv2.resize(self.depth_m, size, interpolation=cv2.INTER_LINEAR), np.float32)
        return Scene(image, depth, camera)

    def with_focal_scaled(self, factor: float) -> Scene:
        """The same picture as if taken through a lens ``factor`` times as long (a narrower, consistent world)."""
        camera = replace(self.camera, fx=self.camera.fx * factor, fy=self.camera.fy * factor)
        return replace(self, camera=camera)


def view_camera(scene: Scene, width: int, height: int, margin: float = 0.15) -> Camera:
    """The camera of a frame cut from the middle of the scene.

    ``margin`` is the least share of the scene's width and height kept outside the frame on each side, for the motion.
    The frame's intrinsics are the scene's, cropped and scaled, so its pixels look along the same rays.
    """
    if not 0 <= margin < 0.5:
        raise FrameError(f"margin {margin} is not between 0 and 0.5")
    source = scene.camera
    scale = max(width / (source.width * (1 - 2 * margin)), height / (source.height * (1 - 2 * margin)))
    return Camera(
        width,
        height,
        fx=source.fx * scale,
        fy=source.fy * scale,
        cx=(source.cx - (source.width - 1) / 2) * scale + (width - 1) / 2,
        cy=(source.cy - (source.height - 1) / 2) * scale + (height - 1) / 2,
    )


def load_picture(path: Path) -> FloatImage:
    """An 8-bit picture file as linear light, H × W × 3 RGB (grey files: H × W)."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if Path(path).is_file() else None
    if picture is None:
        raise BagError(f"picture {path} cannot be read")
    if picture.dtype != np.uint8:
        raise BagError(f"picture {path} has {picture.dtype} pixels instead of 8-bit ones")
    if picture.ndim == 2:
        return decode_srgb(picture.astype(np.uint8, copy=False))
    return decode_srgb(picture[..., 2::-1].astype(np.uint8))


def load_depth(path: Path, depth_scale: float) -> FloatImage:
    """A 16-bit depth PNG in metres (value / ``depth_scale``), H × W float32, NaN where the file holds 0."""
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if Path(path).is_file() else None
    if raw is None:
        raise BagError(f"depth picture {path} cannot be read")
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise BagError(f"depth picture {path} is not 16-bit with one channel")
    if not (np.isfinite(depth_scale) and depth_scale > 0):
        raise BagError(f"depth scale {depth_scale} is not positive")
    return np.where(raw > 0, raw / np.float32(depth_scale), np.nan).astype(np.float32)


def fill_holes(depth_m: FloatImage) -> FloatImage:
    """Every invalid pixel (not finite or not positive) takes the depth of the nearest valid one."""
    valid = np.isfinite(depth_m) & (depth_m > 0)
    if not valid.any():
        raise FrameError("the depth map has no valid pixel")
    if valid.all():
        return depth_m
    _, (rows, columns) = ndimage.distance_transform_edt(~valid, return_indices=True)
    return depth_m[rows, columns]


def load_rgbd(rgb_path: Path, depth_path: Path, depth_scale: float, camera: Camera) -> Scene:
    """A picture with its depth PNG. Holes are filled; a depth map of another size is resampled to the picture's."""
    image = load_picture(rgb_path)
    depth = fill_holes(load_depth(depth_path, depth_scale))
    if depth.shape != image.shape[:2]:
        size = (image.shape[1], image.shape[0])
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return Scene(image, depth, camera)


def motorcycle() -> Scene:
    """The Middlebury 2014 "Motorcycle" that ships in scikit-image: 741 × 500, indoor, depths 2.0 to 5.0 m.

    Z = f b / (disparity + doffs) with the calibration in scikit-image's docstring.
    """
    from skimage import data

    left, _, disparity = data.stereo_motorcycle()
    focal_px, baseline_m, doffs_px = 994.978, 0.193001, 31.086
    depth = focal_px * baseline_m / (np.where(np.isfinite(disparity), disparity, np.nan) + doffs_px)
    camera = Camera(741, 500, focal_px, focal_px, 311.193, 254.877)
    return Scene(decode_srgb(left), fill_holes(depth.astype(np.float32)), camera)


def textured_plane(image: FloatImage, depth_m: float, camera: Camera) -> Scene:
    """A picture on a plane parallel to the image plane."""
    return Scene(image.astype(np.float32), np.full(image.shape[:2], depth_m, np.float32), camera)


def procedural(seed: int = 0, width: int = 960, height: int = 720, focal_px: float = 600.0) -> Scene:
    """A made-up room: fractal texture with hard-edged patches on a slanted floor, a back wall and boxes, 1 to 5 m."""
    rng = np.random.default_rng(seed)
    camera = Camera(width, height, focal_px, focal_px, (width - 1) / 2, (height - 1) / 2)
    v = (np.arange(height) - camera.cy)[:, None] / focal_px
    floor = np.where(v > 0.1, 1.2 / np.maximum(v, 0.1), np.inf)
    depth = np.broadcast_to(np.minimum(floor, 5.0), (height, width)).astype(np.float32)
    image = _fractal_texture(rng, height, width)
    for _ in range(60):
        w, h = rng.integers(height // 60, height // 5, 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        image[y : y + h, x : x + w] *= rng.uniform(0.2, 1.8)
    for z in np.sort(rng.uniform(1.0, 4.0, 5))[::-1]:
        w, h = rng.integers(height // 9, height // 3, 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        depth[y : y + h, x : x + w] = np.minimum(depth[y : y + h, x : x + w], z)
        image[y : y + h, x : x + w] *= rng.uniform(0.4, 1.6)
    return Scene(np.clip(image, 0.0, 1.0).astype(np.float32), depth, camera)


def _fractal_texture(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    """Noise of equal strength per octave from 4 to 256 px about mid-grey, linear light."""
    total = np.zeros((height, width), np.float32)
    for cell in (4, 8, 16, 32, 64, 128, 256):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return 0.22 * np.exp(0.25 * total)
