"""Inverse depth of tracked points from a depth map that was given, or the assumption of an ordinary room."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .camera import Camera

FloatArray = NDArray[np.float64]

ASSUMED_RHO, ASSUMED_RHO_SD = 0.6, 0.4  # 1/m; a gauge where the lever arm is unknown, a start where it is known
LEVEL_SD = 1.0  # 1/m: where the lever arm is known, the scene's own level is found, whatever was assumed
MAP_RELATIVE_SD = 0.05
MAP_FLOOR_SD = 0.01  # 1/m
MIN_SPREAD = 0.05  # 1/m


class RhoPrior(NamedTuple):
    """Inverse depths (N,), 1/m, the deviation of each, and that of an error which all of them share."""

    rho: FloatArray
    sd: FloatArray
    shared_sd: FloatArray


class DepthPrior:
    """Holds the last depth map with the rotation of the camera that saw it.

    ``scale_is_observable``: the lever arm is known, so the assumption is no gauge and its level may move.
    """

    def __init__(self, scale_is_observable: bool = False) -> None:
        self._level_sd = LEVEL_SD if scale_is_observable else 0.0
        self._spread = ASSUMED_RHO_SD
        self._depth_m: NDArray[np.float32] | None = None
        self._R_start_from_map = np.eye(3)
        self._relative_sd = MAP_RELATIVE_SD

    def set_map(
        self, depth_m: NDArray[np.float32], R_start_from_map: FloatArray, relative_sd: float = MAP_RELATIVE_SD
    ) -> None:
        """depth_m H × W metres along the optical axis, NaN or ≤ 0 invalid, registered to the camera's picture."""
        self._depth_m, self._R_start_from_map, self._relative_sd = depth_m, R_start_from_map, relative_sd

    def forget_map(self) -> None:
        """Back to the assumption."""
        self._depth_m = None

    def learn_level(self, rho: FloatArray) -> None:
        """Where the scale is observable, the spread of a scene's inverse depths follows their level."""
        if self._level_sd and len(rho):
            self._spread = max(MIN_SPREAD, ASSUMED_RHO_SD / ASSUMED_RHO * float(np.median(rho)))

    def inverse_depths(
        self, camera: Camera, ideal: FloatArray, R_start_from_frames: FloatArray, R_start_from_ref: FloatArray
    ) -> RhoPrior:
        """Prior of ρ in the reference frame.

        ideal (N, T, 2) sightings, NaN where not seen; R_start_from_frames (T, 3, 3). The newest sighting of each point
        is turned into the map's frame; the camera's small translation since then is ignored.
        """
        N, T = ideal.shape[:2]
        rho, sd, shared_sd = np.full(N, ASSUMED_RHO), np.full(N, self._spread), np.full(N, self._level_sd)
        if self._depth_m is None or N == 0:
            return RhoPrior(rho, sd, shared_sd)
        newest = T - 1 - np.argmax(np.isfinite(ideal[:, ::-1, 0]), axis=1)
        rays = camera.rays(ideal[np.arange(N), newest])
        in_map = np.einsum("ij,njk,nk->ni", self._R_start_from_map.T, R_start_from_frames[newest], rays)
        z = self._looked_up(camera, in_map)
        in_ref = (in_map / in_map[:, 2:] * z[:, None]) @ (R_start_from_ref.T @ self._R_start_from_map).T
        known = np.isfinite(z) & (in_ref[:, 2] > 0)
        rho[known] = 1 / in_ref[known, 2]
        sd[known] = self._relative_sd * rho[known] + MAP_FLOOR_SD
        shared_sd[known] = 0.0
        return RhoPrior(rho, sd, shared_sd)

    def _looked_up(self, camera: Camera, rays: FloatArray) -> FloatArray:
        """Depth (N,) where the rays meet the map's pixels; NaN outside, behind or where the map is invalid."""
        assert self._depth_m is not None
        height, width = self._depth_m.shape
        ahead = rays[:, 2] > 0.1
        pixels = camera.distort(camera.project(np.where(ahead[:, None], rays, (0.0, 0.0, 1.0))))
        u = np.round((pixels[:, 0] + 0.5) * width / camera.width - 0.5)
        v = np.round((pixels[:, 1] + 0.5) * height / camera.height - 0.5)
        inside = ahead & (u >= 0) & (v >= 0) & (u < width) & (v < height)
        z = np.full(len(rays), np.nan)
        z[inside] = self._depth_m[v[inside].astype(int), u[inside].astype(int)]
        z[~(z > 0)] = np.nan
        return z
