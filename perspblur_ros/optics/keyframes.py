"""A chain of rotations that drifts with its keyframes, not with its frames.

Every frame is solved against a keyframe as long as enough of the keyframe's tracks are alive; only then does the last
good frame become the next keyframe, so a camera that shakes about one direction does not drift at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..camera import Camera
from ..types import IntArray, SparsePose, Status
from .rotation import BLIND_VARIANCE_RAD2, MIN_POINTS, RotationSolution, at_middle_row, robust_wahba, solve_rotation

FloatArray = NDArray[np.float64]

MIN_SHARED = 0.5  # of the keyframe's tracks; below it the next keyframe is taken
TEMPER = 10.0  # on real clips; with less, errors that tracks share pass for translation
BLUR_BIAS = 0.1  # of the blur's length, by which Lucas-Kanade misses the mean position, the same for all points


@dataclass(frozen=True)
class Sightings:
    """The tracked points of one frame.

    mid_ns        the frame's own time
    exposure_s    of one row
    ids           N, a track's stable name
    ideal         N × 2, ideal pixels as seen, each at its own row's time
    row_s         N, mid-exposure of the point's row relative to that of the middle row
    rho, rho_sd   N, inverse-depth prior 1/m in this frame; NaN where nothing is known
    """

    frame: int
    mid_ns: int
    exposure_s: float
    camera: Camera
    ids: IntArray
    ideal: FloatArray
    row_s: FloatArray
    rho: FloatArray
    rho_sd: FloatArray


@dataclass(frozen=True)
class _Posed:
    """A solved frame; ``omega`` is its body rate, rad/s, None while unknown."""

    seen: Sightings
    R_start_from_cam: FloatArray
    covariance: FloatArray
    omega: FloatArray | None


class KeyframeChain:
    """Orientation of every frame relative to the first.

    lever_arm_m                (3,) pivot → optical centre, or None where it is unknown
    translation_amplitude_m_s  with the lever arm unknown, how fast the camera may move away from its keyframe
    temper                     see ``solve_rotation``
    min_shared                 share of its tracks at which a keyframe is given up; above 1, each frame is the next's
    blur_bias                  error of all tracks together as a share of the blur: joins the covariance
    keyframes                  how many were taken so far
    """

    def __init__(
        self,
        lever_arm_m: FloatArray | None = None,
        translation_amplitude_m_s: float = 0.0,
        temper: float = TEMPER,
        blur_bias: float = BLUR_BIAS,
        min_shared: float = MIN_SHARED,
    ) -> None:
        self.keyframes = 0
        self._temper, self._blur_bias, self._min_shared = temper, blur_bias, min_shared
        self._lever_arm_m = None if lever_arm_m is None else np.asarray(lever_arm_m, float)
        self._translation_amplitude_m_s = translation_amplitude_m_s
        self._key: _Posed | None = None
        self._last: _Posed | None = None

    def cut(self) -> None:
        """What follows shares no geometry with what came before: go on from the last pose, not knowing how far off."""
        self._key = None

    def add(self, seen: Sightings) -> SparsePose:
        """Pose of the next frame; a blind one repeats the last pose with the covariance of an unknown angle."""
        if self._key is None or self._last is None:
            return self._begun(seen)
        omega = self._rate(self._last, seen)
        key = self._keyframe_for(seen, omega)
        solution = self._solution(key, seen, omega)
        if solution.status is Status.FEW_POINTS:
            return self._begun(seen)
        R = solution.R_ref_from_cur
        blur_rad = float(np.linalg.norm(omega)) * seen.exposure_s
        covariance = R.T @ key.covariance @ R + solution.covariance + (self._blur_bias * blur_rad) ** 2 * np.eye(3)
        self._last = _Posed(seen, key.R_start_from_cam @ R, covariance, omega)
        return _sparse_pose(self._last, solution.status, int(np.count_nonzero(solution.inliers)))

    def amend(self, ids: IntArray, ideal: FloatArray) -> None:
        """Better positions (N, 2) of points in the newest frame, found once its blur was known, for later frames."""
        if self._last is None:
            return
        seen = self._last.seen
        _, in_seen, in_new = np.intersect1d(seen.ids, ids, return_indices=True)
        better = seen.ideal.copy()
        better[in_seen] = ideal[in_new]
        is_key = self._last is self._key
        self._last = replace(self._last, seen=replace(seen, ideal=better))
        if is_key:
            self._key = self._last

    def shift(self, by_ns: int) -> None:
        """The frames' times were all assumed too early by ``by_ns``."""
        is_key = self._last is self._key
        self._last, self._key = (
            posed and replace(posed, seen=replace(posed.seen, mid_ns=posed.seen.mid_ns + by_ns))
            for posed in (self._last, self._key)
        )
        if is_key:
            self._key = self._last

    def _begun(self, seen: Sightings) -> SparsePose:
        """A first frame, or one that shares too little with all before it: the next keyframe if it has points."""
        enough = len(seen.ids) >= MIN_POINTS
        R = np.eye(3) if self._last is None else self._last.R_start_from_cam
        known = self._last is None and enough  # the stream's start by definition
        posed = _Posed(seen, R, np.zeros((3, 3)) if known else BLIND_VARIANCE_RAD2 * np.eye(3), None)
        if not enough:
            return _sparse_pose(posed, Status.FEW_POINTS, 0)
        self._key = self._last = posed
        self.keyframes += 1
        return _sparse_pose(posed, Status.OK, len(seen.ids))

    def _keyframe_for(self, seen: Sightings, omega: FloatArray) -> _Posed:
        """The keyframe, or the last frame in its place where too few of the keyframe's tracks are left."""
        assert self._key is not None
        assert self._last is not None
        if self._last is self._key:  # only now is the rate on both sides of the keyframe known
            before = omega if self._key.omega is None else self._key.omega
            self._key = self._last = replace(self._key, omega=(before + omega) / 2)
        elif np.isin(self._key.seen.ids, seen.ids).mean() < self._min_shared:
            self._key = self._last
            self.keyframes += 1
        return self._key

    def _rate(self, last: _Posed, seen: Sightings) -> FloatArray:
        """Mean body rate since the last frame, rad/s: what the row times are corrected with."""
        _, in_last, in_seen = np.intersect1d(last.seen.ids, seen.ids, return_indices=True)
        if len(in_seen) < MIN_POINTS:
            return np.zeros(3)
        rays_last = last.seen.camera.rays(last.seen.ideal[in_last])
        rays_seen = seen.camera.rays(seen.ideal[in_seen])
        step = robust_wahba(rays_last, rays_seen, seen.camera.focal_px)
        return so3.log(step) / ((seen.mid_ns - last.seen.mid_ns) * 1e-9)

    def _solution(self, key: _Posed, seen: Sightings, omega: FloatArray) -> RotationSolution:
        _, in_key, in_seen = np.intersect1d(key.seen.ids, seen.ids, return_indices=True)
        rho, rho_sd = key.seen.rho[in_key], key.seen.rho_sd[in_key]
        known = np.isfinite(rho)  # depth may have arrived after the keyframe; it changes little with a rotation
        rho = np.where(known, rho, seen.rho[in_seen])
        rho_sd = np.where(known, rho_sd, seen.rho_sd[in_seen])
        elapsed_s = (seen.mid_ns - key.seen.mid_ns) * 1e-9
        return solve_rotation(
            seen.camera,
            self._at_mid(key.seen, in_key, key.omega, rho),
            self._at_mid(seen, in_seen, omega, rho),
            self._lever_arm_m,
            rho,
            rho_sd,
            self._translation_amplitude_m_s * elapsed_s,
            self._temper,
        )

    def _at_mid(self, seen: Sightings, chosen: IntArray, omega: FloatArray | None, rho: FloatArray) -> FloatArray:
        """The chosen points at the frame's own time; the lever arm's share only where the depth is known."""
        ideal = seen.ideal[chosen]
        if omega is None:
            return ideal
        lever_arm_m = np.zeros(3) if self._lever_arm_m is None else self._lever_arm_m
        return at_middle_row(seen.camera, ideal, seen.row_s[chosen], omega, np.nan_to_num(rho), lever_arm_m)


def _sparse_pose(posed: _Posed, status: Status, n_points: int) -> SparsePose:
    seen = posed.seen
    return SparsePose(seen.frame, seen.mid_ns, posed.R_start_from_cam, posed.covariance, status, n_points)
