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

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..bspline import KnotGrid
from ..camera import Camera
from ..motion_prior import knot_precision, translation_precision
from ..spline_state import SplineState

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

ABSOLUTE_SIGMA_RATIO = 3.0
TEMPER = 3.0
MIN_SIGMA_PX = 0.12
KERNEL_SCALE2 = 6.0  # of the Geman–McClure kernel, in sigma²: things that move on their own must lose their say
TRUST_SCALE2 = 30.0  # mean squared change of a track's residual, in sigma², that costs it three quarters of its say
TRANSLATION_KNOT_S = 0.15
TRANSLATION_ACCELERATION_PER_S = 3.0  # acceleration allowed per metre per second of allowed speed
MIN_RATE_AMPLITUDE = 0.03
GAUGE_PRECISION = 1e8
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


@dataclass(frozen=True)
class _Geometry:
    """The sightings at a state, T × … × N: residuals r (T, 2, N) px, 0 where a track was not seen, and their changes
    from frame to frame (T − 1, 2, N); φ, turned points X, positions p (T, 3, N) and R (T, 3, 3, N)."""

    r: FloatArray
    change: FloatArray
    phi: FloatArray
    R: FloatArray
    X: FloatArray
    p: FloatArray


class _Rows:
    """A basis at every sighting, averaged over its exposure.

    rows   T × K × N, over the knots that act in the frame; 0 where a track was not seen
    knots  (T, K), which ones; columns (T, 3 K) are theirs in a system knot by knot
    dense  N × T × count, over all knots
    """

    def __init__(self, grid: KnotGrid, t_s: FloatArray, seen: BoolArray, exposure_s: float) -> None:
        low = np.min(t_s, axis=1, where=seen, initial=np.inf) - exposure_s / 2
        high = np.max(t_s, axis=1, where=seen, initial=-np.inf) + exposure_s / 2
        spans = [grid.span(*ends) if seen.any() else slice(0, 0) for *ends, seen in zip(low, high, seen)]
        K = max(span.stop - span.start for span in spans)
        first = np.array([min(span.start, grid.count - K) for span in spans])
        self.knots = first[:, None] + np.arange(K)
        self.columns = (3 * self.knots[:, :, None] + np.arange(3)).reshape(len(first), -1)
        rows = grid.mean_rows(t_s - first[:, None] * grid.spacing_s, exposure_s, slice(0, K)) * seen[:, :, None]
        self.rows = np.ascontiguousarray(np.swapaxes(rows, 1, 2))
        self.dense = np.zeros((*t_s.T.shape, grid.count))
        for k, knots in enumerate(self.knots):
            self.dense[:, k, knots] = rows[k]

    def values(self, c: FloatArray) -> FloatArray:
        """The spline with the coefficients c (count, 3): T × 3 × N."""
        return np.swapaxes(c[self.knots], 1, 2) @ self.rows

    def by_knots(self, J: FloatArray, k: int) -> FloatArray:
        """Jacobians of frame k by the spline's value (2, 3, N) → by the knots that act, (3 K, 2 N)."""
        return (self.rows[k, :, None, None] * np.swapaxes(J, 0, 1)).reshape(-1, J.shape[0] * J.shape[2])


class _Problem:
    """One window's residuals and normal equations at a given state. Arrays are T × … × N, 0 where nothing was seen."""

    def __init__(self, window: TrackWindow, camera: Camera, exposure_s: float, state: SplineState, amplitude: float,
                 translation_m_s: float) -> None:
        self.camera, self.window = camera, window
        grid, t_grid = state.grid, state.translation_grid
        self.free_translation = state.lever_arm_m is None
        self.n_rot, self.n_trans = 3 * grid.count, 3 * t_grid.count if self.free_translation else 0
        self.Q = knot_precision(grid.count, grid.spacing_s) / amplitude**2
        gauge = grid.rows(np.array([state.ref_s]))
        self.prior = np.kron(self.Q + GAUGE_PRECISION * gauge.T @ gauge, np.eye(3))
        if self.free_translation:
            gauge = t_grid.rows(np.array([state.ref_s]))
            self.Qt = translation_precision(
                t_grid.count, t_grid.spacing_s, translation_m_s, TRANSLATION_ACCELERATION_PER_S * translation_m_s
            ) + GAUGE_PRECISION * gauge.T @ gauge
            self.prior_trans = np.kron(self.Qt, np.eye(3))
        self.seen = np.isfinite(window.ideal[:, :, 0]).T
        self.followed = self.seen[1:] & self.seen[:-1]
        self.ideal = np.where(self.seen[:, None], window.ideal.transpose(1, 2, 0), 0.0)
        t_s = window.mid_s[:, None] + np.where(self.seen, window.row_s.T, 0.0)
        self.rot = _Rows(grid, t_s, self.seen, exposure_s)
        self.trans = _Rows(t_grid, t_s, self.seen, exposure_s) if self.free_translation else None

    def geometry(self, state: SplineState) -> _Geometry:
        phi = self.rot.values(state.c)
        R = _innermost_last(so3.exp(np.swapaxes(phi, 1, 2)))
        if state.lever_arm_m is None:
            assert self.trans is not None
            p = self.trans.values(state.d)
        else:
            p = np.einsum("tabn,b->tan", R, state.lever_arm_m) - state.lever_arm_m[:, None]
        v = np.stack([*state.ray.T, np.ones(len(state.rho))]) - state.rho * p
        X = np.einsum("tban,tbn->tan", R, v)
        camera = self.camera
        f, centre = np.array([[camera.fx], [camera.fy]]), np.array([[camera.cx], [camera.cy]])
        r = (X[:, :2] * (f / X[:, 2:]) + centre - self.ideal) * self.seen[:, None]
        return _Geometry(r, np.diff(r, axis=0) * self.followed[:, None], phi, R, X, p)

    def jacobians(self, state: SplineState, at: _Geometry) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Of the pixels by φ, by p and by the landmark (mx, my, ρ), each (T, 2, 3, N)."""
        R, X, f = at.R, at.X, (self.camera.fx, self.camera.fy)
        x, y = X[:, 0] / X[:, 2], X[:, 1] / X[:, 2]
        A = np.stack([
            f[a] / X[:, 2, None] * (R[:, :, a] - slope[:, None] * R[:, :, 2]) for a, slope in enumerate((x, y))
        ], 1)
        Y = X if state.lever_arm_m is None else X + state.rho * state.lever_arm_m[:, None]
        by_turn = np.stack([  # A [Y]×
            np.stack([x * Y[:, 1], -Y[:, 2] - x * Y[:, 0], Y[:, 1]], 1) * (f[0] / X[:, 2])[:, None],
            np.stack([Y[:, 2] + y * Y[:, 1], -y * Y[:, 0], -Y[:, 0]], 1) * (f[1] / X[:, 2])[:, None],
        ], 1)
        J_right = _innermost_last(so3.J_right(np.swapaxes(at.phi, 1, 2)))
        by_phi = np.einsum("tabn,tbcn->tacn", by_turn, J_right)
        by_rho = -np.einsum("tabn,tbn->tan", A, at.p)
        return by_phi, -state.rho * A, np.concatenate([A[:, :, :2], by_rho[:, :, None]], axis=2)

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

    def data_cost(self, at: _Geometry, sigma_px: float) -> float:
        """Robust, tempered cost of what was tracked."""
        cost = _robust_cost(at.r / (ABSOLUTE_SIGMA_RATIO * sigma_px)) + _robust_cost(at.change / sigma_px)
        return float(cost @ self.window.trust) / TEMPER

    def weights(self, at: _Geometry, sigma_px: float) -> tuple[FloatArray, FloatArray]:
        """Weights of the residuals (T, N) and of their changes (T − 1, N): slopes of the robust cost, 1/px²."""
        w, w_change = (
            seen * self.window.trust / TEMPER / s2 / (1 + np.sum(r * r, axis=1) / (KERNEL_SCALE2 * s2)) ** 2
            for r, seen, s2 in (
                (at.r, self.seen, (ABSOLUTE_SIGMA_RATIO * sigma_px) ** 2), (at.change, self.followed, sigma_px**2)
            )
        )
        return w, w_change

    def change_px2(self, at: _Geometry) -> FloatArray:
        """Mean squared change of the residual per track (N,); 0 for one without two sightings in a row."""
        return np.sum(at.change**2, axis=(0, 1)) / np.maximum(self.followed.sum(axis=0), 1)

    def noise_px(self, at: _Geometry) -> float:
        """Pixel noise of the along-track differences from the median absolute deviation."""
        d = np.swapaxes(at.change, 1, 2)[self.followed]
        return max(MIN_SIGMA_PX, 1.4826 * float(np.median(np.abs(d)))) if len(d) else 1.0


def _innermost_last(matrices: FloatArray) -> FloatArray:
    """T × N × 3 × 3 → T × 3 × 3 × N."""
    return np.ascontiguousarray(np.moveaxis(matrices, 1, -1))


def _robust_cost(e: FloatArray) -> FloatArray:
    """Of residuals (T, 2, N) in sigmas, per track (N,)."""
    e2 = np.sum(e * e, axis=1)
    return np.sum(KERNEL_SCALE2 * e2 / (KERNEL_SCALE2 + e2), axis=0)


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
    problem: _Problem, state: SplineState, at: _Geometry, sigma_px: float, damping: float
) -> Normal:
    """Gauss–Newton: the weights couple each sighting with itself and with the track's next one."""
    n, N = problem.n_rot + problem.n_trans, len(state.rho)
    by_phi, by_p, by_landmark = problem.jacobians(state, at)
    weight, w_change = problem.weights(at, sigma_px)
    weight[1:] += w_change
    weight[:-1] += w_change

    def weighted(x: FloatArray) -> FloatArray:
        out, w = weight[:, None, None] * x, w_change[:, None, None]
        out[:-1] -= w * x[1:]
        out[1:] -= w * x[:-1]
        return out

    r, J_l = weighted(at.r[:, :, None])[:, :, 0], weighted(by_landmark)
    splines = [(problem.rot, by_phi, 0), *([(problem.trans, by_p, problem.n_rot)] if problem.trans else [])]
    H, g = np.zeros((n + 1, n + 1)), np.zeros(n + 1)
    before, J_before = np.zeros(0, np.int64), np.zeros((0, 2 * N))
    for k in range(len(at.r)):
        here = np.concatenate([rows.columns[k] + start for rows, _, start in splines])
        J = np.concatenate([rows.by_knots(by_value[k], k) for rows, by_value, _ in splines])
        g[here] += J @ r[k].ravel()
        H[here[:, None], here] += (J * np.tile(weight[k], 2)) @ J.T
        if k:
            coupling = (J * np.tile(w_change[k - 1], 2)) @ J_before.T
            H[here[:, None], before] -= coupling
            H[before[:, None], here] -= coupling.T
        before, J_before = here, J
    H_l = np.einsum("txan,txbn->nab", J_l, by_landmark)
    g_l = np.einsum("txan,txn->na", by_landmark, r)
    cross = np.zeros((N, 3, n + 1))
    for rows, by_value, start in splines:
        per_sighting = np.einsum("txln,txan->lant", J_l, by_value).transpose(2, 0, 1, 3).reshape(N, 9, -1)
        by_axis = (per_sighting @ rows.dense).reshape(N, 3, 3, -1)
        columns = cross[:, :, start : start + 3 * by_axis.shape[3]]
        columns.reshape(N, 3, -1, 3)[:] = np.swapaxes(by_axis, 2, 3)
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
    root = np.linalg.inv(np.linalg.cholesky(H_l))  # H_l⁻¹ = rootᵀ root
    reduced = (root @ cross).reshape(3 * N, n + 1)
    H -= reduced.T @ reduced
    g -= reduced.T @ (root @ g_l[:, :, None]).ravel()
    H_inv = np.swapaxes(root, 1, 2) @ root
    level_row, level_b, level_variance = H[n, :n] / H[n, n], g[n] / H[n, n], 1 / H[n, n]
    S_tracks = H[:n, :n] - np.outer(level_row, H[n, :n])
    g = g[:n] - level_row * g[n]
    S = S_tracks.copy()
    rot = slice(0, problem.n_rot)
    S[rot, rot] += problem.prior
    g[rot] += (problem.Q @ state.c).ravel()
    if problem.n_trans:
        trans = slice(problem.n_rot, n)
        S[trans, trans] += problem.prior_trans
        g[trans] += (problem.Qt @ state.d).ravel()
    return Normal(S, g, H_inv.astype(float), g_l, cross, S_tracks, level_row, float(level_b), float(level_variance))


def _step(problem: _Problem, state: SplineState, normal: Normal, damping: float) -> SplineState:
    S = normal.S + damping * np.diag(np.diag(normal.S))
    x = -np.linalg.solve(S, normal.b).astype(float)
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
    state, at = guess, problem.geometry(guess)
    damping, iterations = 0.0, 0
    while iterations < max_iterations:
        iterations += 1
        sigma = problem.noise_px(at)
        cost = problem.data_cost(at, sigma) + problem.prior_cost(state)
        normal = _normal_equations(problem, state, at, sigma, damping)
        trial = _step(problem, state, normal, damping)
        trial_at = problem.geometry(trial)
        trial_cost = problem.data_cost(trial_at, sigma) + problem.prior_cost(trial)
        if not trial_cost <= cost * (1 + 1e-9):
            damping = max(damping * 10, 1e-4)
            continue
        state, at = trial, trial_at
        damping = 0.0 if damping < 1e-3 else damping / 10
        if cost - trial_cost < 1e-4 * cost:
            break
    return _solution(problem, state, at, normal, amplitude, iterations)


def linearised(
    window: TrackWindow, camera: Camera, exposure_s: float, solution: SplineSolution, translation_m_s: float
) -> Normal:
    """The normal equations of ``window`` at a solution."""
    problem = _Problem(window, camera, exposure_s, solution.state, solution.amplitude, translation_m_s)
    return _normal_equations(problem, solution.state, problem.geometry(solution.state), solution.sigma_px, 0.0)


def _solution(
    problem: _Problem,
    state: SplineState,
    at: _Geometry,
    normal: Normal,
    amplitude: float,
    iterations: int,
) -> SplineSolution:
    sigma = problem.noise_px(at)
    residual2 = np.sum(at.r**2, axis=1)
    weights = np.sum(problem.seen / (1 + residual2 / sigma**2 / KERNEL_SCALE2), axis=0) / problem.seen.sum(axis=0)
    c0 = state.c - state.c.mean(axis=0)
    return SplineSolution(
        state=state,
        information=normal.S,
        tracks=normal.S_tracks,
        weights=weights,
        trust=1 / (1 + problem.change_px2(at) / sigma**2 / TRUST_SCALE2) ** 2,
        sigma_px=sigma,
        median_px=float(np.median(np.sqrt(residual2[problem.seen]))),
        energy=float(np.sum(c0 * (problem.Q @ c0)) / c0.size),
        translation_energy=float(np.mean(state.d * (problem.Qt @ state.d))) if problem.n_trans else 0.0,
        amplitude=amplitude,
        cost=problem.data_cost(at, sigma) + problem.prior_cost(state),
        data_cost=problem.data_cost(at, 2 * MIN_SIGMA_PX),
        iterations=iterations,
    )
