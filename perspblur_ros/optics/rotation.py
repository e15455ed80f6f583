"""Camera rotation between two frames from tracked points: closed form, then Gauss–Newton on the exact model.

A point on ray m at inverse depth ρ in the reference frame is seen by a camera at position p (metres, reference frame)
turned by R = R_ref_from_cur at

    u = π(K Y),   Y = Rᵀ (m − ρ p),   p = (R − I) r where the lever arm r is known.

Rotation and depth are solved together: each ρ is a Gaussian whose mean is refined and whose variance is marginalised
out of the rotation (Schur complement). Fitting the rotation first with r = 0 would absorb the mean parallax.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import so3
from ..camera import Camera
from ..displacement import J_rotation, J_translation
from ..types import Status

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MIN_POINTS = 8
MIN_SIGMA_PX = 0.03  # no tracker is better than this; noise below it is not believed
CAUCHY_SCALE2 = 5.7  # squared residual, in sigmas, at which a point counts half: 95 % efficient on Gaussian noise
INLIER_CHI2 = 9.21  # 99 % of a chi-square with two degrees of freedom
MEDIAN_CHI2 = 1.386  # of a chi-square with two degrees of freedom
MEDIAN_ABS_NORMAL = 0.6745
MAX_ITERATIONS = 30
NOISE_ITERATIONS = 8
WAHBA_ITERATIONS = 8
WAHBA_CONVERGED_PX = 0.02  # it only starts Gauss–Newton, and tells the rate that row times are corrected with
CONVERGED_PX = 1e-4
RHO_RANGE = (0.0, 20.0)  # 1/m: infinity to 5 cm
NEAREST = 0.05  # a point this close to the image plane, in units of its depth, is behind the camera for all we know
BLIND_VARIANCE_RAD2 = np.pi**2 / 3  # of an angle of which nothing is known
DEFAULT_RHO, DEFAULT_RHO_SD = 0.4, 0.25  # 1/m, a room


@dataclass(frozen=True)
class RotationSolution:
    """What two frames say about the rotation between them.

    R_ref_from_cur  3 × 3
    covariance      3 × 3, rad², of δ in R_true = R exp(δ); from the residuals; large where nothing was seen
    position_m      (3,) of the current camera in the reference frame
    rho, rho_sd     N, inverse depths in the reference frame, 1/m, and their deviations given the rest
    inliers         N, bool
    residual_px     N, length of the reprojection error, NaN where a point was not seen in both frames
    sigma_px        noise of one coordinate of one point
    """

    R_ref_from_cur: FloatArray
    covariance: FloatArray
    status: Status
    position_m: FloatArray
    rho: FloatArray
    rho_sd: FloatArray
    inliers: BoolArray
    residual_px: FloatArray
    sigma_px: float
    iterations: int


def predicted_pixels(
    camera: Camera, rays_ref: ArrayLike, R_ref_from_cur: ArrayLike, position_m: ArrayLike, rho: ArrayLike
) -> FloatArray:
    """u = π(K Rᵀ(m − ρ p)): rays (N, 3), R (3, 3), p (3,), ρ (N,) → ideal pixels (N, 2)."""
    return camera.project(_seen_from(rays_ref, R_ref_from_cur, position_m, rho))


def J_predicted_pixels(
    camera: Camera, rays_ref: ArrayLike, R_ref_from_cur: ArrayLike, position_m: ArrayLike, rho: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Derivatives of ``predicted_pixels`` by (δ, p) with R ← R exp(δ), (N, 2, 6), and by ρ, (N, 2)."""
    R, p = np.asarray(R_ref_from_cur, float), np.asarray(position_m, float)
    Y = _seen_from(rays_ref, R, p, rho)
    pixels = camera.project(Y)
    A = J_translation(camera, pixels) / Y[:, 2, None, None]
    by_position = np.asarray(rho, float)[:, None, None] * (A @ R.T)
    return np.concatenate([J_rotation(camera, pixels), by_position], axis=2), A @ (R.T @ p)


def _seen_from(rays_ref: ArrayLike, R: ArrayLike, p: ArrayLike, rho: ArrayLike) -> FloatArray:
    """Y = Rᵀ(m − ρ p), kept in front of the camera: a point behind it then has a huge residual, not none."""
    Y = (np.asarray(rays_ref, float) - np.asarray(rho, float)[:, None] * np.asarray(p, float)) @ np.asarray(R, float)
    Y[:, 2] = np.maximum(Y[:, 2], NEAREST)
    return Y


def at_middle_row(
    camera: Camera,
    ideal: ArrayLike,
    row_offset_s: ArrayLike,
    omega: ArrayLike,
    rho: ArrayLike = 0.0,
    lever_arm_m: ArrayLike = (0.0, 0.0, 0.0),
) -> FloatArray:
    """Where rolling-shutter points would have been seen at their frame's own time, to first order in the rate.

    ideal (N, 2) ideal pixels; row_offset_s (N,) their row's time after the middle row's (``Shutter.row_offset_s``);
    omega (3,) rad/s body rate; rho (N,) 1/m → (N, 2).
    """
    ideal = np.asarray(ideal, float)
    omega = np.asarray(omega, float)
    velocity = np.cross(omega, np.asarray(lever_arm_m, float))
    rate = J_rotation(camera, ideal) @ omega
    rate += np.asarray(rho, float)[..., None] * (J_translation(camera, ideal) @ velocity)
    return ideal - np.asarray(row_offset_s, float)[..., None] * rate


def wahba(rays_ref: ArrayLike, rays_cur: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """R_ref_from_cur that minimises Σ w |m_ref − R m_cur|² over unit rays, by SVD; (N, 3), (N, 3), (N,) → (3, 3)."""
    a, b = _unit(rays_ref), _unit(rays_cur)
    w = np.ones(len(a)) if weights is None else np.asarray(weights, float)
    return _nearest_rotation((w[:, None] * a).T @ b)


def _nearest_rotation(M: FloatArray) -> FloatArray:
    U, _, Vt = np.linalg.svd(M)
    U[:, 2] *= np.linalg.det(U) * np.linalg.det(Vt)
    return np.asarray(U @ Vt, float).astype(float)


def _unit(rays: ArrayLike) -> FloatArray:
    rays = np.asarray(rays, float)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def robust_wahba(rays_ref: ArrayLike, rays_cur: ArrayLike, focal_px: float) -> FloatArray:
    """``wahba`` with Geman–McClure weights, their scale from the median residual."""
    a, b = np.ascontiguousarray(_unit(rays_ref).T), np.ascontiguousarray(_unit(rays_cur).T)
    R, weights = np.eye(3), np.ones(a.shape[1])
    for _ in range(WAHBA_ITERATIONS):
        R_before, R = R, _nearest_rotation((weights * a) @ b.T)
        if np.abs(R - R_before).max() * focal_px < WAHBA_CONVERGED_PX:
            break
        error2 = np.sum((a - R @ b) ** 2, axis=0) * focal_px**2
        scale2 = max(MIN_SIGMA_PX**2, float(np.median(error2)) / MEDIAN_CHI2)
        weights = 1.0 / (1.0 + error2 / (2 * scale2)) ** 2
    return R


def solve_rotation(
    camera: Camera,
    ideal_ref: ArrayLike,
    ideal_cur: ArrayLike,
    lever_arm_m: ArrayLike | None = None,
    rho: ArrayLike = DEFAULT_RHO,
    rho_sd: ArrayLike = DEFAULT_RHO_SD,
    translation_sd_m: float = 0.0,
    temper: float = 1.0,
) -> RotationSolution:
    """Rotation between two frames with its covariance; bad tracks give a ``Status``, never an exception.

    ideal_ref, ideal_cur  (N, 2) ideal pixels of the same points at their frames' own times, NaN where not seen
    lever_arm_m           (3,) pivot → optical centre where known; zeros for a turn about the optical centre
    rho, rho_sd           Gaussian prior of the inverse depth in the reference frame, 1/m, of N points or one for all;
                          the default where rho is NaN; rho_sd = 0 is a depth that is believed
    translation_sd_m      with the lever arm unknown, how far the camera may have moved; 0 is pure rotation
    temper                this many points count as one, because neighbours share their tracking errors
    """
    ref, cur = np.asarray(ideal_ref, float).reshape(-1, 2), np.asarray(ideal_cur, float).reshape(-1, 2)
    rho0, rho0_sd = _depth_prior(rho, rho_sd, len(ref))
    seen = np.isfinite(ref).all(axis=1) & np.isfinite(cur).all(axis=1)
    if np.count_nonzero(seen) < MIN_POINTS:
        return _blind(Status.FEW_POINTS, rho0, rho0_sd)
    if lever_arm_m is None and translation_sd_m == 0:
        lever_arm_m = np.zeros(3)
    problem = _Problem(
        camera,
        camera.rays(ref[seen]),
        cur[seen],
        rho0[seen],
        rho0_sd[seen],
        None if lever_arm_m is None else np.asarray(lever_arm_m, float),
        translation_sd_m,
        temper,
    )
    estimate, converged = problem.solved()
    return _solution(problem, estimate, converged, seen, rho0, rho0_sd)


@dataclass(frozen=True)
class _Estimate:
    """R and p as in the module's text; ``depth_shift``: by how many of their deviations all depths are off together."""

    R: FloatArray
    p: FloatArray
    depth_shift: float
    sigma_px: float
    iterations: int


@dataclass(frozen=True)
class _System:
    """The problem linearised at an estimate; arrays end with the points, N.

    residual   2 × N, measured − predicted pixels, each point at its prior depth (plus the common shift)
    J          2 × k × N, by the unknowns: δ, the position where it is free, the common depth shift
    spread     2 × N, by the point's own inverse depth in its prior deviations: with the pixel noise it makes up the
               residual's covariance, σ² I + s sᵀ
    """

    residual: FloatArray
    J: FloatArray
    spread: FloatArray
    sigma_px: float

    @cached_property
    def variance_along(self) -> FloatArray:
        """N, px² in the direction of ``spread``."""
        return self.sigma_px**2 + np.sum(self.spread**2, axis=0)

    @cached_property
    def whitened(self) -> FloatArray:
        """2 × N, inverse covariance times residual (Sherman–Morrison)."""
        along = np.sum(self.spread * self.residual, axis=0) / self.variance_along
        return (self.residual - self.spread * along) / self.sigma_px**2

    @cached_property
    def chi2(self) -> FloatArray:
        """N, squared residuals in sigmas."""
        return np.sum(self.residual * self.whitened, axis=0)

    @cached_property
    def scores(self) -> FloatArray:
        """k × N, every point's pull on the unknowns."""
        return self.whitened[0] * self.J[0] + self.whitened[1] * self.J[1]

    def information(self, weight: FloatArray) -> FloatArray:
        """Σ w Jᵀ (σ² I + s sᵀ)⁻¹ J, (k, k)."""
        along = self.spread[0] * self.J[0] + self.spread[1] * self.J[1]
        parts = (weight * self.J[0]) @ self.J[0].T + (weight * self.J[1]) @ self.J[1].T
        return (parts - (weight / self.variance_along * along) @ along.T) / self.sigma_px**2


@dataclass(frozen=True)
class _Problem:
    """Points of two frames and what is known about their depths and the motion; the lever arm None is unknown."""

    camera: Camera
    rays: FloatArray
    cur: FloatArray
    rho: FloatArray
    rho_sd: FloatArray
    lever_arm_m: FloatArray | None
    translation_sd_m: float
    temper: float

    def position(self, R: FloatArray) -> FloatArray:
        """p = (R − I) r of the pivoting camera, or the prior's mean."""
        return np.zeros(3) if self.lever_arm_m is None else (R - np.eye(3)) @ self.lever_arm_m

    @cached_property
    def prior(self) -> FloatArray:
        """Diagonal of the prior precision of the unknowns, (k,)."""
        variances = [BLIND_VARIANCE_RAD2] * 3 + ([self.translation_sd_m**2] * 3 if self.lever_arm_m is None else [])
        return 1.0 / np.array([*variances, 1.0])

    def depths(self, at: _Estimate) -> FloatArray:
        return np.clip(self.rho + at.depth_shift * self.rho_sd, *RHO_RANGE)

    def system(self, at: _Estimate) -> _System:
        """As ``predicted_pixels`` and ``J_predicted_pixels``, all points at once; p free, or tied by dp = −R [r]× δ."""
        rho, f = self.depths(at), np.array([[self.camera.fx], [self.camera.fy]])
        Y = _seen_from(self.rays, at.R, at.p, rho).T
        x, y = slopes = Y[:2] / Y[2]
        one, zero = np.ones_like(x), np.zeros_like(x)
        by_turn = f[:, None] * np.array([[x * y, -1 - x * x, y], [1 + y * y, -x * y, -x]])
        by_shift = f[:, None] / Y[2] * np.array([[one, zero, -x], [zero, one, -y]])
        if self.lever_arm_m is None:
            J = np.concatenate([by_turn, -rho * (at.R @ by_shift)], axis=1)
        else:
            J = by_turn - rho * (so3.hat(self.lever_arm_m) @ by_shift)
        spread = -self.rho_sd * ((at.R.T @ at.p) @ by_shift)
        residual = self.cur.T - f * slopes - np.array([[self.camera.cx], [self.camera.cy]])
        return _System(residual, np.concatenate([J, spread[:, None]], axis=1), spread, at.sigma_px)

    def solved(self) -> tuple[_Estimate, bool]:
        R = robust_wahba(self.rays, self.camera.rays(self.cur), self.camera.focal_px)
        estimate = _Estimate(R, self.position(R), 0.0, 1.0, 0)
        for _ in range(MAX_ITERATIONS):
            estimate, step = self._improved(estimate)
            if self.camera.focal_px * np.linalg.norm(step[:3]) < CONVERGED_PX:
                return estimate, True
        return estimate, False

    def _improved(self, at: _Estimate) -> tuple[_Estimate, FloatArray]:
        """One Gauss–Newton step, and the noise from the residuals."""
        system = self.system(at)
        weight = _cauchy(system.chi2)
        state = np.array([0.0, 0.0, 0.0, *([] if self.lever_arm_m is not None else at.p), at.depth_shift])
        gradient = system.scores @ weight / self.temper - self.prior * state
        step = np.linalg.solve(system.information(weight) / self.temper + np.diag(self.prior), gradient)
        R = at.R @ so3.exp(step[:3])
        p = self.position(R) if self.lever_arm_m is not None else at.p + step[3:6]
        settled = at.iterations >= NOISE_ITERATIONS  # a median that keeps jumping would keep the solver from resting
        sigma_px = at.sigma_px if settled else self._noise_px(system, at.sigma_px)
        return _Estimate(R, p, at.depth_shift + step[-1], sigma_px, at.iterations + 1), step

    def _noise_px(self, system: _System, sigma_px: float) -> float:
        """The noise from the median residual; along the way a depth error moves a point, in so far as it is noise."""
        length = np.hypot(*system.spread)
        along_x, along_y = np.where(length > 0, system.spread, [[1.0], [0.0]]) / np.where(length > 0, length, 1.0)
        x, y = system.residual
        sd_along = np.sqrt(system.variance_along)
        z = np.abs(np.concatenate([(along_x * y - along_y * x) / sigma_px, (along_x * x + along_y * y) / sd_along]))
        share = np.concatenate([np.ones(len(length)), (sigma_px / sd_along) ** 2])
        return max(MIN_SIGMA_PX, sigma_px * _weighted_median(z, share) / MEDIAN_ABS_NORMAL)

    def covariance(self, system: _System) -> FloatArray:
        """3 × 3, of the rotation: the M-estimator's A⁻¹ M A⁻¹, A its curvature and M the variance of its score."""
        weight = _cauchy(system.chi2)
        curvature = np.maximum(weight - weight**2 * system.chi2 / CAUCHY_SCALE2, 0.0)
        scores = weight * system.scores
        n, k = len(weight), len(self.prior)
        prior = np.diag(self.prior)
        A = np.linalg.inv(system.information(curvature) / self.temper + prior)
        M = scores @ scores.T / self.temper * n / (n - k / 2) + prior
        return (A @ M @ A)[:3, :3]

    def refined_rho(self, at: _Estimate, system: _System) -> tuple[FloatArray, FloatArray]:
        """Inverse depths and their deviations given the motion: prior and parallax as two Gaussians."""
        rho = self.depths(at) + self.rho_sd * np.sum(system.spread * system.whitened, axis=0)
        left = system.sigma_px**2 / system.variance_along
        return np.clip(rho, *RHO_RANGE), self.rho_sd * np.sqrt(left)


def _cauchy(chi2: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + chi2 / CAUCHY_SCALE2)


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def _depth_prior(rho: ArrayLike, rho_sd: ArrayLike, count: int) -> tuple[FloatArray, FloatArray]:
    """N means and N deviations; the default where a mean is NaN."""
    mean = np.broadcast_to(np.asarray(rho, float), count)
    sd = np.broadcast_to(np.asarray(rho_sd, float), count)
    known = np.isfinite(mean) & np.isfinite(sd)
    return np.where(known, mean, DEFAULT_RHO), np.where(known, sd, DEFAULT_RHO_SD)


def _blind(status: Status, rho: FloatArray, rho_sd: FloatArray) -> RotationSolution:
    """Nothing is known: no rotation, with the covariance of an unknown angle."""
    return RotationSolution(
        R_ref_from_cur=np.eye(3),
        covariance=BLIND_VARIANCE_RAD2 * np.eye(3),
        status=status,
        position_m=np.zeros(3),
        rho=rho,
        rho_sd=rho_sd,
        inliers=np.zeros(len(rho), bool),
        residual_px=np.full(len(rho), np.nan),
        sigma_px=np.inf,
        iterations=0,
    )


def _solution(
    problem: _Problem, at: _Estimate, converged: bool, seen: BoolArray, rho0: FloatArray, rho0_sd: FloatArray
) -> RotationSolution:
    """The estimate as seen from outside: all N points, also those that were not seen."""
    system = problem.system(at)
    inliers = np.zeros(len(seen), bool)
    inliers[seen] = system.chi2 < INLIER_CHI2
    if np.count_nonzero(inliers) < MIN_POINTS:
        return _blind(Status.FEW_POINTS, rho0, rho0_sd)
    residual_px = np.full(len(seen), np.nan)
    rho, rho_sd = rho0.copy(), rho0_sd.copy()
    rho[seen], rho_sd[seen] = problem.refined_rho(at, system)
    pixels = predicted_pixels(problem.camera, problem.rays, at.R, at.p, rho[seen])
    residual_px[seen] = np.linalg.norm(problem.cur - pixels, axis=1)
    return RotationSolution(
        R_ref_from_cur=at.R,
        covariance=problem.covariance(system),
        status=Status.OK if converged else Status.NOT_CONVERGED,
        position_m=at.p,
        rho=rho,
        rho_sd=rho_sd,
        inliers=inliers,
        residual_px=residual_px,
        sigma_px=at.sigma_px,
        iterations=at.iterations,
    )
