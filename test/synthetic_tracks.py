"""Point tracks of a camera whose motion is known at every instant: row-timed, averaged over each row's exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perspblur_ros import so3
from perspblur_ros.camera import Camera, Shutter
from perspblur_ros.sim.motion import MotionPath, from_rates, time_grid
from perspblur_ros.spline import TrackWindow

CAMERA = Camera(640, 480, 480.0, 480.0, 319.5, 239.5)
LEVER_ARM_M = np.array([0.03, -0.05, 0.2])
SUBSAMPLES = 24


def swaying(seed: int, duration_s: float, rate_rad_s: float = 0.4, speed_m_s: float = 0.0) -> MotionPath:
    """Smooth motion on all axes: drift at 0.5 to 1.5 Hz with a tremor at 5 to 8 Hz; the pivot sways slowly."""
    rng = np.random.default_rng(seed)
    t = time_grid(duration_s)
    slow, fast, sway = rng.uniform([0.5, 5, 0.4], [1.5, 8, 1.0], (3, 3)).T
    phase = rng.uniform(0, 2 * np.pi, (3, 3))
    rates = np.sin(2 * np.pi * slow * t[:, None] + phase[0]) + 0.6 * np.sin(2 * np.pi * fast * t[:, None] + phase[1])
    speeds = speed_m_s * np.sin(2 * np.pi * sway * t[:, None] + phase[2])
    return from_rates(t, rate_rad_s * rates, np.cumsum(speeds, axis=0) * (t[1] - t[0]))


@dataclass(frozen=True)
class Tracks:
    """N points followed over K frames.

    ideal (N, K, 2) and row_s (N, K), NaN where not seen; mid_s (K,)
    rho (N,) true inverse depth in the path's reference frame
    """

    path: MotionPath
    camera: Camera
    exposure_s: float
    lever_arm_m: np.ndarray
    ideal: np.ndarray
    row_s: np.ndarray
    mid_s: np.ndarray
    rho: np.ndarray

    def window(self, first: int, last: int, rho: np.ndarray | None = None, rho_sd: float = 0.02) -> TrackWindow:
        """Frames first … last − 1; the inverse-depth prior is the truth unless given."""
        ideal = self.ideal[:, first:last]
        ids = np.flatnonzero(np.isfinite(ideal[..., 0]).sum(axis=1) >= 3)
        rho = self.rho if rho is None else rho
        return TrackWindow(
            ids, ideal[ids], self.row_s[ids, first:last], self.mid_s[first:last], rho[ids],
            np.full(len(ids), rho_sd), np.ones(len(ids)),
        )

    def mean_rotations(self, first: int, last: int) -> np.ndarray:
        """True mean rotation of each frame, (last − first, 3, 3)."""
        offsets = ((np.arange(SUBSAMPLES) + 0.5) / SUBSAMPLES - 0.5) * self.exposure_s
        return np.array([so3.mean(self.path.rotation(t + offsets)) for t in self.mid_s[first:last]])

    @property
    def period_s(self) -> float:
        return float(self.mid_s[1] - self.mid_s[0])


def follow(
    path: MotionPath,
    n_frames: int,
    fps: float = 20.0,
    exposure_s: float = 0.04,
    readout_s: float = 0.015,
    lever_arm_m: np.ndarray = LEVER_ARM_M,
    n_points: int = 90,
    noise_px: float = 0.1,
    depths_m: tuple[float, float] = (1.0, 4.0),
    camera: Camera = CAMERA,
    lifetime_frames: int | None = None,
    seed: int = 0,
) -> Tracks:
    """Track random points of a room through the path; the first frame's middle row is exposed around 50 ms."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform([20, 20], [camera.width - 20, camera.height - 20], (n_points, 2))
    rays, rho = camera.rays(pixels), 1 / rng.uniform(*depths_m, n_points)
    mid_s = 0.05 + np.arange(n_frames) / fps
    shutter = Shutter(round(exposure_s * 1e9), round(readout_s * 1e9))
    offsets = ((np.arange(SUBSAMPLES) + 0.5) / SUBSAMPLES - 0.5) * exposure_s
    seen = np.broadcast_to(pixels[:, None], (n_points, n_frames, 2))
    for _ in range(4):  # the row decides on the time, and the time on the row
        row_s = shutter.row_offset_s(seen[..., 1], camera.height)
        t = (mid_s + row_s)[..., None] + offsets
        R = path.rotation(t)
        centre = R @ lever_arm_m - lever_arm_m + path.pivot(t)
        X = np.einsum("nksji,nksj->nksi", R, rays[:, None, None] - rho[:, None, None, None] * centre)
        seen = camera.project(X).mean(axis=2)
    inside = np.all((seen > 0) & (seen < [camera.width - 1, camera.height - 1]), axis=-1)
    inside &= np.all(X[..., 2] > 0, axis=-1)
    if lifetime_frames is not None:
        born = rng.integers(-lifetime_frames + 3, n_frames - 2, (n_points, 1))
        inside &= (np.arange(n_frames) >= born) & (np.arange(n_frames) < born + lifetime_frames)
    ideal = np.where(inside[..., None], seen + rng.normal(0, noise_px, seen.shape), np.nan)
    row_s = np.where(inside, row_s, np.nan)
    return Tracks(path, camera, exposure_s, np.asarray(lever_arm_m), ideal, row_s, mid_s, rho)
