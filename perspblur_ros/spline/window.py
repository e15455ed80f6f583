"""The row-timed, exposure-averaged spline through a window of point tracks (bundle adjustment in continuous time).

Unknowns: rotation knots c (R(t) = exp(φ(t)), φ the spline, relative to the window's reference frame), translation
knots d (weakly regularised; or none, where the lever arm r is known and p(t) = (R(t) − I) r), and per track a ray
(mx, my) and an inverse depth ρ in the reference frame. A point seen at row y of frame k measures

    x = π(K Rᵀ(m − ρ p)),   φ and p averaged over that row's own exposure.

Chains of tracked positions drift like random walks, so the residuals are differences along each track, with the
absolute residual at a wider sigma. Noise comes from the MAD; the data is tempered, because neighbouring tracks share
their errors. Landmarks are eliminated by the Schur complement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..camera import Camera
from ..motion_prior import knot_precision, translation_precision
from ..spline_state import SplineState

FloatArray = NDArray[np.float64]

ABSOLUTE_SIGMA_RATIO = 3.0
TEMPER = 3.0
MIN_SIGMA_PX = 0.12
KERNEL_SCALE2 = 6.0  # of the Geman–McClure kernel, in sigma²: things that move on their own must lose their say
TRUST_SCALE2 = 30.0  # mean squared change of a track's residual, in sigma², that costs it three quarters of its say
TRANSLATION_KNOT_S = 0.15
TRANSLATION_ACCELERATION_PER_S = 3.0  # acceleration allowed per metre per second of allowed speed
MIN_RATE_AMPLITUDE = 0.03
GAUGE_PRECISION = 1e8
MIN_TRACK_LENGTH = 3
RHO_RANGE = (0.0, 5.0)
LEVEL_ITERATIONS = 5
RHO_TAIL = 4.0  # of the Student-like prior on inverse depth, in its variances: something may be very near


@dataclass(frozen=True)
class TrackWindow:
    """What was seen in the T frames that are solved together.

    ids         N, a track's stable name
    ideal       N × T × 2, undistorted pixels, NaN where a track was not seen
    row_s       N × T, mid-exposure of the point's row relative to that of its frame
    mid_s       T, mid-exposure of each frame's middle row from the segment's origin, increasing
    rho, rho_sd N, inverse-depth prior 1/m
    trust       N, in (0, 1]: how well each track agreed with the others so far
    rho_shared_sd  (N,) or (1,), 1/m: an error of the prior that all tracks have in common (its level), beside rho_sd
    """

    ids: NDArray[np.int64]
    ideal: FloatArray
    row_s: FloatArray
    mid_s: FloatArray
    rho: FloatArray
    rho_sd: FloatArray
    trust: FloatArray
    rho_shared_sd: FloatArray = field(default_factory=lambda: np.zeros(1))


@dataclass(frozen=True)
class SplineSolution:
    """The solved window and its information.

    information  over (c, d) flattened knot by knot: the tempered track information S plus the prior
    tracks       the track part alone, landmarks eliminated
    weights      N, mean robust weight of each track in (0, 1]
    trust        N, what the next window should trust each track: one that moves on its own loses its say as a whole
    energy       prior energy of the rotation per degree of freedom
    translation_energy  likewise of the free translation (0 where it is tied to the lever arm)
    amplitude    rate RMS assumed by the prior, rad/s
    """

    state: SplineState
    information: FloatArray
    tracks: FloatArray
    weights: FloatArray
    trust: FloatArray
    sigma_px: float
    median_px: float
    energy: float
    translation_energy: float
    amplitude: float
    cost: float
    data_cost: float
    iterations: int


@dataclass
class _Group:
    """Residuals that share a range of columns: rows r (n, 2), J over (knots, translation), J over the landmark."""

    tracks: NDArray[np.int64]
    r: FloatArray
    J: FloatArray
    J_landmark: FloatArray
    knots: slice
    weight_ratio: float


@dataclass(frozen=True)
class _FrameGeometry:
    """One frame's points at a state: residual r (n, 2) px, φ, turned points X, positions p (n, 3) and R (n, 3, 3)."""

    r: FloatArray
    phi: FloatArray
    R: FloatArray
    X: FloatArray
    p: FloatArray


class _Problem:
    """One window's residuals and normal equations at a given state."""

    def __init__(self, window: TrackWindow, camera: Camera, exposure_s: float, state: SplineState, amplitude: float,
                 translation_m_s: float) -> None:
        self.camera, self.window, self.exposure_s = camera, window, exposure_s
        grid, t_grid = state.grid, state.translation_grid
        self.free_translation = state.lever_arm_m is None
        self.n_rot, self.n_trans = 3 * grid.count, 3 * t_grid.count if self.free_translation else 0
        self.Q = knot_precision(grid.count, grid.spacing_s) / amplitude**2
        gauge = grid.rows(np.array([state.ref_s]))
        self.Q_gauge = self.Q + GAUGE_PRECISION * gauge.T @ gauge
        if self.free_translation:
            gauge = t_grid.rows(np.array([state.ref_s]))
            self.Qt = translation_precision(
                t_grid.count, t_grid.spacing_s, translation_m_s, TRANSLATION_ACCELERATION_PER_S * translation_m_s
            ) + GAUGE_PRECISION * gauge.T @ gauge
        self.seen = [np.flatnonzero(np.isfinite(window.ideal[:, k, 0])) for k in range(len(window.mid_s))]
        self.pairs = [np.zeros((3, 0), np.int64)] + [
            np.array(np.intersect1d(before, after, assume_unique=True, return_indices=True))
            for before, after in zip(self.seen[:-1], self.seen[1:])
        ]  # per frame k: tracks also seen in k − 1, their places in seen[k − 1] and in seen[k]
        self.spans, self.rows, self.t_rows = [], [], []
        for k, j in enumerate(self.seen):
            t = window.mid_s[k] + window.row_s[j, k]
            low, high = (t.min(), t.max()) if len(t) else (window.mid_s[k],) * 2
            span = grid.span(low - exposure_s / 2, high + exposure_s / 2)
            self.spans.append(span)
            self.rows.append(grid.mean_rows(t, exposure_s, span))
            self.t_rows.append(t_grid.mean_rows(t, exposure_s) if self.free_translation else np.zeros((len(t), 0)))

    def frames(self, state: SplineState) -> list[_FrameGeometry]:
        return [self._frame(state, k) for k in range(len(self.seen))]

    def _frame(self, state: SplineState, k: int) -> _FrameGeometry:
        j = self.seen[k]
        phi = self.rows[k] @ state.c[self.spans[k]]
        R = so3.exp(phi)
        p = state.position(self.t_rows[k], R)
        v = np.concatenate([state.ray[j], np.ones((len(j), 1))], axis=1) - state.rho[j, None] * p
        X = (v[:, None, :] @ R)[:, 0]
        return _FrameGeometry(self.camera.project(X) - self.window.ideal[j, k], phi, R, X, p)

    def linearise(self, state: SplineState, frames: list[_FrameGeometry]) -> Iterator[_Group]:
        """Absolute and along-track difference residuals with their Jacobians, grouped by frame and frame pair."""
        before: tuple[FloatArray, FloatArray, FloatArray] | None = None
        for k, frame in enumerate(frames):
            r, J, J_landmark = after = self._frame_jacobians(state, frame, k)
            yield _Group(self.seen[k], r, J, J_landmark, self.spans[k], 1 / ABSOLUTE_SIGMA_RATIO)
            if before is not None:
                yield self._difference(k, before, after)
            before = after

    def differences(self, frames: list[_FrameGeometry]) -> list[FloatArray]:
        """Change of the residual along each track from frame to frame, (n, 2) px."""
        return [
            frames[k].r[b] - frames[k - 1].r[a] for k, (_, a, b) in enumerate(self.pairs) if k
        ]

    def _frame_jacobians(
        self, state: SplineState, frame: _FrameGeometry, k: int
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        j, camera = self.seen[k], self.camera
        r, phi, R, X, p = frame.r, frame.phi, frame.R, frame.X, frame.p
        A = np.zeros((len(j), 2, 3))
        A[:, 0, 0], A[:, 1, 1] = camera.fx / X[:, 2], camera.fy / X[:, 2]
        A[:, 0, 2] = -camera.fx * X[:, 0] / X[:, 2] ** 2
        A[:, 1, 2] = -camera.fy * X[:, 1] / X[:, 2] ** 2
        AR = A @ np.swapaxes(R, 1, 2)
        rho = state.rho[j]
        turned = X if state.lever_arm_m is None else X + rho[:, None] * state.lever_arm_m
        J_phi = A @ so3.hat(turned) @ so3.J_right(phi)
        J_rot = (J_phi[:, :, None, :] * self.rows[k][:, None, :, None]).reshape(len(j), 2, 3 * self.rows[k].shape[1])
        J_trans = (-rho[:, None, None, None] * AR[:, :, None, :] * self.t_rows[k][:, None, :, None]).reshape(
            len(j), 2, self.n_trans
        )
        J_landmark = np.concatenate([AR[:, :, :2], -(AR @ p[:, :, None])], axis=2)
        return r, np.concatenate([J_rot, J_trans], axis=2), J_landmark

    def _difference(self, k: int, before: tuple[FloatArray, ...], after: tuple[FloatArray, ...]) -> _Group:
        tracks, a, b = self.pairs[k]
        sa, sb = self.spans[k - 1], self.spans[k]
        union = slice(min(sa.start, sb.start), max(sa.stop, sb.stop))
        J = np.zeros((len(tracks), 2, 3 * (union.stop - union.start) + self.n_trans))
        for sign, span, rows, (_, J_frame, _) in ((-1, sa, a, before), (1, sb, b, after)):
            n_rot = 3 * (span.stop - span.start)
            at = 3 * (span.start - union.start)
            J[:, :, at : at + n_rot] += sign * J_frame[rows, :, :n_rot]
            if self.n_trans:
                J[:, :, -self.n_trans :] += sign * J_frame[rows, :, n_rot:]
        return _Group(tracks, after[0][b] - before[0][a], J, after[2][b] - before[2][a], union, 1.0)

    def columns(self, knots: slice) -> NDArray[np.int64]:
        rot = np.arange(3 * knots.start, 3 * knots.stop)
        return np.concatenate([rot, np.arange(self.n_rot, self.n_rot + self.n_trans)])

    def prior_cost(self, state: SplineState) -> float:
        cost = float(np.sum(state.c * (self.Q @ state.c)))
        if self.free_translation:
            cost += float(np.sum(state.d * (self.Qt @ state.d)))
        off, _, level = self.rho_prior(state.rho)
        off2 = (off / self.window.rho_sd) ** 2
        return cost + level**2 + float(np.sum(RHO_TAIL * np.log1p(off2 / RHO_TAIL))) / TEMPER

    def rho_prior(self, rho: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        """Offsets of ρ from the prior (N,), their precisions (N,), and the prior's shared error in its deviations.

        The shared error is that which fits the offsets best (iteratively re-weighted, for the precisions are robust).
        """
        w, level = self.window, 0.0
        for _ in range(LEVEL_ITERATIONS):
            off = rho - w.rho - w.rho_shared_sd * level
            precision = 1 / w.rho_sd**2 / TEMPER / (1 + (off / w.rho_sd) ** 2 / RHO_TAIL)
            pull = precision * w.rho_shared_sd
            level += float((pull @ off - level) / (1 + pull @ np.broadcast_to(w.rho_shared_sd, len(pull))))
        off = rho - w.rho - w.rho_shared_sd * level
        return off, 1 / w.rho_sd**2 / TEMPER / (1 + (off / w.rho_sd) ** 2 / RHO_TAIL), level

    def data_cost(self, frames: list[_FrameGeometry], sigma_px: float) -> float:
        """Robust, tempered cost of what was tracked."""
        trust, total = self.window.trust, 0.0
        for frame, j in zip(frames, self.seen):
            total += _robust_cost(frame.r / (ABSOLUTE_SIGMA_RATIO * sigma_px), trust[j])
        for change, (tracks, _, _) in zip(self.differences(frames), self.pairs[1:]):
            total += _robust_cost(change / sigma_px, trust[tracks])
        return total / TEMPER

    def change_px2(self, frames: list[_FrameGeometry]) -> FloatArray:
        """Mean squared change of the residual per track (N,); 0 for one without two sightings in a row."""
        total, count = np.zeros(len(self.window.ids)), np.zeros(len(self.window.ids))
        for change, (tracks, _, _) in zip(self.differences(frames), self.pairs[1:]):
            total[tracks] += np.sum(change**2, axis=1)
            count[tracks] += 1
        return total / np.maximum(count, 1)

    def noise_px(self, frames: list[_FrameGeometry]) -> float:
        """Pixel noise of the along-track differences from the median absolute deviation."""
        d = np.concatenate([np.zeros((0, 2)), *self.differences(frames)])
        return max(MIN_SIGMA_PX, 1.4826 * float(np.median(np.abs(d)))) if len(d) else 1.0


def _robust_cost(e: FloatArray, trust: FloatArray) -> float:
    e2 = np.sum(e * e, axis=1)
    return float(np.sum(trust * KERNEL_SCALE2 * e2 / (KERNEL_SCALE2 + e2)))


@dataclass
class Normal:
    """Reduced normal equations: S x = −b over the trajectory, and what the landmarks need for back-substitution.

    The last column of ``cross`` belongs to the level of the inverse-depth prior, δ = −level_b − level_row x.
    """

    S: FloatArray
    b: FloatArray
    H_landmark_inv: FloatArray
    g_landmark: FloatArray
    cross: FloatArray
    S_tracks: FloatArray
    level_row: FloatArray
    level_b: float
    level_variance: float

    def with_level(self, x: FloatArray) -> FloatArray:
        """Columns over the trajectory, (n,) or (n, m), with the level's own below them."""
        return np.append(x, [-self.level_b - self.level_row @ x], axis=0)


def _normal_equations(
    problem: _Problem, state: SplineState, frames: list[_FrameGeometry], sigma_px: float, damping: float
) -> Normal:
    n, N = problem.n_rot + problem.n_trans, len(state.rho)
    H, g = np.zeros((n + 1, n + 1)), np.zeros(n + 1)
    H_l, g_l, cross = np.zeros((N, 3, 3)), np.zeros((N, 3)), np.zeros((N, 3, n + 1))
    for group in problem.linearise(state, frames):
        if len(group.tracks) == 0:
            continue
        scale = group.weight_ratio / sigma_px
        weight = scale**2 / (1 + np.sum(group.r**2, axis=1) * scale**2 / KERNEL_SCALE2) ** 2 / TEMPER
        weight *= problem.window.trust[group.tracks]
        root = np.sqrt(weight)[:, None, None]
        J, J_l, r = group.J * root, group.J_landmark * root, group.r * root[:, :, 0]
        columns = problem.columns(group.knots)
        J_flat = J.reshape(-1, len(columns))
        H[np.ix_(columns, columns)] += J_flat.T @ J_flat
        g[columns] += J_flat.T @ r.ravel()
        J_lT = np.swapaxes(J_l, 1, 2)
        H_l[group.tracks] += J_lT @ J_l
        g_l[group.tracks] += (J_lT @ r[:, :, None])[:, :, 0]
        rot = slice(3 * group.knots.start, 3 * group.knots.stop)
        JJ = J_lT @ J
        cross[group.tracks, :, rot] += JJ[:, :, : rot.stop - rot.start]
        if problem.n_trans:
            cross[group.tracks, :, problem.n_rot : n] += JJ[:, :, rot.stop - rot.start :]
    off, precision, level = problem.rho_prior(state.rho)
    pull = precision * problem.window.rho_shared_sd
    H_l[:, 2, 2] += precision
    g_l[:, 2] += precision * off
    cross[:, 2, n] -= pull
    H[n, n] = 1 + np.sum(pull * problem.window.rho_shared_sd)
    g[n] = level - np.sum(pull * off)
    H_l[:, 0, 0] += 1 / TEMPER
    H_l[:, 1, 1] += 1 / TEMPER
    H_l += damping * H_l * np.eye(3)
    H_inv = np.linalg.inv(H_l)
    reduced = np.matmul(H_inv, cross).reshape(3 * N, n + 1)
    H -= cross.reshape(3 * N, n + 1).T @ reduced
    g -= reduced.T @ g_l.ravel()
    level_row, level_b, level_variance = H[n, :n] / H[n, n], g[n] / H[n, n], 1 / H[n, n]
    S_tracks = H[:n, :n] - np.outer(level_row, H[n, :n])
    g = g[:n] - level_row * g[n]
    S = S_tracks.copy()
    rot = slice(0, problem.n_rot)
    S[rot, rot] += np.kron(problem.Q_gauge, np.eye(3))
    g[rot] += (problem.Q @ state.c).ravel()
    if problem.n_trans:
        trans = slice(problem.n_rot, n)
        S[trans, trans] += np.kron(problem.Qt, np.eye(3))
        g[trans] += (problem.Qt @ state.d).ravel()
    return Normal(S, g, H_inv.astype(float), g_l, cross, S_tracks, level_row, float(level_b), float(level_variance))


def _step(problem: _Problem, state: SplineState, normal: Normal, damping: float) -> SplineState:
    S = normal.S + damping * np.diag(np.diag(normal.S))
    x = -np.linalg.solve(S, normal.b)
    landmark = -np.einsum("nab,nb->na", normal.H_landmark_inv, normal.g_landmark + normal.cross @ normal.with_level(x))
    return replace(
        state,
        c=state.c + x[: problem.n_rot].reshape(-1, 3),
        d=state.d + x[problem.n_rot :].reshape(-1, 3) if problem.n_trans else state.d,
        ray=state.ray + landmark[:, :2],
        rho=np.clip(state.rho + landmark[:, 2], *RHO_RANGE),
    )


def solve(
    window: TrackWindow,
    camera: Camera,
    exposure_s: float,
    guess: SplineState,
    *,
    amplitude: float,
    translation_m_s: float,
    max_iterations: int,
) -> SplineSolution:
    """Levenberg–Marquardt from ``guess`` (same ids as the window). Few iterations suffice from the previous window."""
    problem = _Problem(window, camera, exposure_s, guess, amplitude, translation_m_s)
    state, frames = guess, problem.frames(guess)
    damping, iterations = 0.0, 0
    while iterations < max_iterations:
        iterations += 1
        sigma = problem.noise_px(frames)
        cost = problem.data_cost(frames, sigma) + problem.prior_cost(state)
        normal = _normal_equations(problem, state, frames, sigma, damping)
        trial = _step(problem, state, normal, damping)
        trial_frames = problem.frames(trial)
        trial_cost = problem.data_cost(trial_frames, sigma) + problem.prior_cost(trial)
        if not trial_cost <= cost * (1 + 1e-9):
            damping = max(damping * 10, 1e-4)
            continue
        state, frames = trial, trial_frames
        damping = 0.0 if damping < 1e-3 else damping / 10
        if cost - trial_cost < 1e-4 * cost:
            break
    return _solution(problem, state, frames, normal, amplitude, iterations)


def linearised(
    window: TrackWindow, camera: Camera, exposure_s: float, solution: SplineSolution, translation_m_s: float
) -> Normal:
    """The normal equations of ``window`` at a solution."""
    problem = _Problem(window, camera, exposure_s, solution.state, solution.amplitude, translation_m_s)
    return _normal_equations(problem, solution.state, problem.frames(solution.state), solution.sigma_px, 0.0)


def _solution(
    problem: _Problem,
    state: SplineState,
    frames: list[_FrameGeometry],
    normal: Normal,
    amplitude: float,
    iterations: int,
) -> SplineSolution:
    sigma = problem.noise_px(frames)
    residual2 = np.full((len(state.rho), len(frames)), np.nan)
    for k, frame in enumerate(frames):
        residual2[problem.seen[k], k] = np.sum(frame.r**2, axis=1)
    weights = np.nanmean(1 / (1 + residual2 / sigma**2 / KERNEL_SCALE2), axis=1)
    c0 = state.c - state.c.mean(axis=0)
    return SplineSolution(
        state=state,
        information=normal.S,
        tracks=normal.S_tracks,
        weights=weights,
        trust=1 / (1 + problem.change_px2(frames) / sigma**2 / TRUST_SCALE2) ** 2,
        sigma_px=sigma,
        median_px=float(np.nanmedian(np.sqrt(residual2))),
        energy=float(np.sum(c0 * (problem.Q @ c0)) / c0.size),
        translation_energy=float(np.mean(state.d * (problem.Qt @ state.d))) if problem.n_trans else 0.0,
        amplitude=amplitude,
        cost=problem.data_cost(frames, sigma) + problem.prior_cost(state),
        data_cost=problem.data_cost(frames, 2 * MIN_SIGMA_PX),
        iterations=iterations,
    )
