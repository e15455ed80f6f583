"""``render.py`` for batches of small clips on a CPU or a GPU: the same geometry and shutter in torch, for training.

Leading axes are B clips and F frames, S sub-frames, H rows. Poses are given per row, so rolling shutter costs nothing
extra. What differs from ``render.py``: a fixed number of sub-frames, float instead of 1/32-pixel sampling, and a source
picture that the caller has already resampled and blurred to the pixel's aperture. A test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DEPTH_ITERATIONS = 2  # as render.py

_SRGB_LINEAR_BELOW = 0.0031308  # IEC 61966-2-1
_JPEG_LUMA = (  # ITU-T T.81, table K.1
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@dataclass(frozen=True)
class Views:
    """Scenes made ready for their cameras.

    image      B × C × Hs × Ws, linear light, blurred to the output pixel's aperture
    inv_depth  B × 1 × Hs × Ws, 1/m
    source     B × 4, fx fy cx cy of the picture, pixels
    camera     B × 4, fx fy cx cy of the frame, pixels
    """

    image: Tensor
    inv_depth: Tensor
    source: Tensor
    camera: Tensor


@dataclass(frozen=True)
class Paths:
    """B motion paths sampled every ``step_s`` from time 0 (``motion.MotionPath``, batched).

    R_ref_from_cam B × M × 3 × 3; pivot_m B × M × 3, displacement of the pivot in the reference frame.
    """

    step_s: float
    R_ref_from_cam: Tensor
    pivot_m: Tensor

    def pose(self, t_s: Tensor, lever_arm_m: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation (B, ..., 3, 3) and optical centre (B, ..., 3) metres at times (B, ...); lever_arm_m (B, 3).

        Rotations follow the chord between samples 1 ms apart and are made orthonormal again by one Newton step.
        """
        count = self.R_ref_from_cam.shape[1]
        flat = (t_s.flatten(1) / self.step_s).clamp(0, count - 1)
        i = flat.floor().long().clamp(max=count - 2)
        alpha = (flat - i)[..., None]
        batch = torch.arange(len(i), device=i.device)[:, None]
        R = torch.lerp(self.R_ref_from_cam[batch, i], self.R_ref_from_cam[batch, i + 1], alpha[..., None])
        R = 1.5 * R - 0.5 * R @ (R.mT @ R)
        pivot = torch.lerp(self.pivot_m[batch, i], self.pivot_m[batch, i + 1], alpha)
        r = lever_arm_m[:, None]
        centre = (R @ r[..., None])[..., 0] - r + pivot
        return R.reshape(*t_s.shape, 3, 3), centre.reshape(*t_s.shape, 3)


def render_frames(
    views: Views,
    paths: Paths,
    starts_s: Tensor,
    exposure_s: Tensor,
    readout_s: Tensor,
    lever_arm_m: Tensor,
    size: tuple[int, int],
    n_subframes: int = 9,
) -> Tensor:
    """Blurred frames in linear light, B × F × C × H × W: mean of the views at the mid-points of equal sub-intervals.

    starts_s (B, F) start of the first row's exposure; exposure_s, readout_s (B,); lever_arm_m (B, 3); size (H, W).
    """
    height, width = size
    rows = torch.linspace(0, 1, height, device=starts_s.device, dtype=starts_s.dtype)
    first = starts_s[..., None] + readout_s[:, None, None] * rows  # B × F × H
    total = torch.zeros((), device=starts_s.device, dtype=views.image.dtype)
    for s in range(n_subframes):
        R, centre = paths.pose(first + exposure_s[:, None, None] * (s + 0.5) / n_subframes, lever_arm_m)
        map_x, map_y, _ = source_map(views, R, centre, width)
        total = total + sample(views.image, map_x, map_y)
    frames = (total / n_subframes).unflatten(2, (starts_s.shape[1], height))  # B × C × F × H × W
    return frames.transpose(1, 2)


def render_depth(views: Views, paths: Paths, t_s: Tensor, lever_arm_m: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth at one instant per clip, metres, B × H × W; t_s (B,). ``size`` may differ from the frames'."""
    height, width = size
    R, centre = paths.pose(t_s[:, None, None].expand(-1, 1, height), lever_arm_m)
    return 1.0 / source_map(views, R, centre, width)[2]


def source_map(views: Views, R: Tensor, centre: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where every output pixel looks in the source picture.

    R (B, F, H, 3, 3), centre (B, F, H, 3): pose of every row → map_x, map_y (B, F·H, W) source pixels, and the inverse
    depth there in the moving camera. ``views.camera`` counts in pixels of a frame of this height and width.
    """
    height = R.shape[2]
    fx, fy, cx, cy = views.camera[:, :, None, None].unbind(1)
    column = torch.arange(width, device=R.device, dtype=R.dtype)
    row = torch.arange(height, device=R.device, dtype=R.dtype).repeat(R.shape[1])
    x = (column - cx) / fx  # B × 1 × W
    y = (row[:, None] - cy) / fy  # B × F·H × 1
    rotation = R.flatten(1, 2)[..., None]  # B × F·H × 3 × 3 × 1
    nx, ny, nz = (rotation[:, :, k, 0] * x + rotation[:, :, k, 1] * y + rotation[:, :, k, 2] for k in range(3))
    c_x, c_y, c_z = centre.flatten(1, 2).unbind(-1)
    c_x, c_y, c_z = c_x[..., None], c_y[..., None], c_z[..., None]
    map_x, map_y = _project(views.source, nx, ny, nz)
    for _ in range(DEPTH_ITERATIONS):
        rho = sample(views.inv_depth, map_x, map_y)[:, 0]
        mu = rho * nz / (1.0 - rho * c_z)
        map_x, map_y = _project(views.source, nx + mu * c_x, ny + mu * c_y, nz + mu * c_z)
    return map_x, map_y, mu


def sample(picture: Tensor, map_x: Tensor, map_y: Tensor) -> Tensor:
    """Bilinear look-up, B × C × Hs × Ws at maps (B, h, w) → (B, C, h, w); beyond the border lies the mirror image."""
    height, width = picture.shape[-2:]
    grid = torch.stack([(2 * map_x + 1) / width - 1, (2 * map_y + 1) / height - 1], dim=-1)
    return F.grid_sample(picture, grid.to(picture.dtype), padding_mode="reflection", align_corners=False)


def _project(source: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    fx, fy, cx, cy = source[:, :, None, None].unbind(1)
    inverse = 1.0 / z
    return x * inverse * fx + cx, y * inverse * fy + cy


def encode_srgb(linear: Tensor) -> Tensor:
    """Linear light 0…1 → sRGB value 0…1 (IEC 61966-2-1)."""
    clipped = linear.clamp(0.0, 1.0)
    return torch.where(
        clipped <= _SRGB_LINEAR_BELOW, 12.92 * clipped, 1.055 * clipped.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    )


def expose(
    linear: Tensor, full_well_e: Tensor, read_noise_e: float = 5.0, gamma: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``Sensor.expose`` in torch: shot and read noise, transfer curve, rounding to 8 bit; values 0…1.

    linear (B, ...); full_well_e (B,); gamma (B,) replaces the sRGB curve by linear^(1/gamma) where it is above 0.
    """
    per_clip = (-1, *[1] * (linear.ndim - 1))
    well = full_well_e.view(per_clip)
    noise = torch.randn(linear.shape, generator=generator, device=linear.device, dtype=linear.dtype)
    light = linear + noise * (linear.clamp(min=0) * well + read_noise_e**2).sqrt() / well
    value = encode_srgb(light)
    if gamma is not None:
        g = gamma.view(per_clip)
        value = torch.where(g > 0, light.clamp(1e-6, 1) ** (1 / g.clamp(min=0.1)), value)
    return (value * 255).round() / 255


def local_gain(linear: Tensor, gain: Tensor) -> Tensor:
    """Multiply frames (B, F, C, H, W) by a smooth field that stays with the sensor: vignetting, tone mapping.

    gain (B, h, w): a coarse grid of factors, interpolated bicubically.
    """
    field = F.interpolate(gain[:, None], size=linear.shape[-2:], mode="bicubic", align_corners=True)
    return linear * field[:, None].clamp(min=0.05)


def jpeg(value: Tensor, quality: Tensor) -> Tensor:
    """What JPEG's luma quantisation leaves of pictures 0…1, (B, ..., H, W) with H, W multiples of 8.

    quality (B,) 1…100, scaled as the Independent JPEG Group's library does. No chroma: the pipeline looks at grey.
    """
    table = torch.tensor(_JPEG_LUMA, device=value.device, dtype=value.dtype)
    scale = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality) / 100
    steps = (scale.view(-1, 1, 1) * table).round().clamp(1, 255)  # B × 8 × 8
    steps = steps.view(len(value), *[1] * (value.ndim - 1), 8, 8)
    D = dct_matrix(8, value)
    blocks = value.unflatten(-2, (-1, 8)).unflatten(-1, (-1, 8)).transpose(-2, -3)  # ... × H/8 × W/8 × 8 × 8
    coefficients = D @ (blocks * 255 - 128) @ D.T
    restored = D.T @ ((coefficients / steps).round() * steps) @ D
    picture = restored.transpose(-2, -3).flatten(-2).flatten(-3, -2)
    return ((picture + 128).round() / 255).clamp(0, 1)


def dct_matrix(n: int, like: Tensor) -> Tensor:
    """Orthonormal DCT-II, n × n, rows are the basis functions."""
    k = torch.arange(n, device=like.device, dtype=like.dtype)
    D = torch.cos(torch.pi * k[:, None] * (2 * k + 1) / (2 * n)) * (2 / n) ** 0.5
    D[0] /= 2**0.5
    return D
