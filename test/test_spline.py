"""The track spline: its normal equations against a dense system built by differences, its windows against truth."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.transform import Rotation
from synthetic_tracks import CAMERA, LEVER_ARM_M, Tracks, follow, swaying

from perspblur_ros import so3
from perspblur_ros.bspline import KnotGrid
from perspblur_ros.camera import Camera
from perspblur_ros.motion_prior import knot_precision, translation_precision
from perspblur_ros.spline import FixedLagSpline, SplineSolution, StreamSolution, TrackWindow, solve
from perspblur_ros.spline.inverse_depth import FLAT_SD, measured_depths
from perspblur_ros.spline.window import (
    ABSOLUTE_SIGMA_RATIO,
    GAUGE_PRECISION,
    KERNEL_SCALE2,
    MIN_SIGMA_PX,
    RHO_TAIL,
    TEMPER,
    TRANSLATION_ACCELERATION_PER_S,
)
from perspblur_ros.spline_state import SplineState

NO_LEVER_ARM = np.zeros(3)
AMPLITUDE, SPEED_M_S = 0.6, 0.05
LEVER_ARMS = [LEVER_ARM_M, None]


# --- the slow, readable twin of one Gauss–Newton step ---------------------------------------------------------------


class DenseTwin:
    """One window written down as the module's docstring says: a residual vector and a full Hessian by differences."""

    def __init__(self, window: TrackWindow, camera: Camera, exposure_s: float, guess: SplineState) -> None:
        self.window, self.camera, self.exposure_s, self.guess = window, camera, exposure_s, guess
        n_d = 0 if guess.lever_arm_m is not None else guess.d.size
        self.sizes = [guess.c.size, n_d, guess.ray.size, guess.rho.size]
        self.x0 = self.flat(guess)
        self.sigma_px = self.noise_px()

    def flat(self, state: SplineState) -> np.ndarray:
        d = np.zeros(0) if state.lever_arm_m is not None else state.d.ravel()
        return np.concatenate([state.c.ravel(), d, state.ray.ravel(), state.rho])

    def parts(self, x: np.ndarray) -> list[np.ndarray]:
        return np.split(x, np.cumsum(self.sizes)[:-1])

    def track_residuals(self, x: np.ndarray) -> np.ndarray:
        """x_predicted − x_seen, (N, T, 2), NaN where not seen."""
        c, d, ray, rho = self.parts(x)
        state, w = self.guess, self.window
        r = np.full(w.ideal.shape, np.nan)
        for j, k in zip(*np.nonzero(np.isfinite(w.ideal[..., 0]))):
            t = w.mid_s[k] + w.row_s[j, k]
            phi = state.grid.mean_rows(t, self.exposure_s) @ c.reshape(-1, 3)
            R = Rotation.from_rotvec(phi).as_matrix()
            if state.lever_arm_m is not None:
                p = R @ state.lever_arm_m - state.lever_arm_m
            else:
                p = state.translation_grid.mean_rows(t, self.exposure_s) @ d.reshape(-1, 3)
            X = R.T @ (np.append(ray.reshape(-1, 2)[j], 1.0) - rho[j] * p)
            seen = [self.camera.fx * X[0] / X[2] + self.camera.cx, self.camera.fy * X[1] / X[2] + self.camera.cy]
            r[j, k] = np.array(seen) - w.ideal[j, k]
        return r

    def noise_px(self) -> float:
        steps = np.diff(self.track_residuals(self.x0), axis=1)
        return max(MIN_SIGMA_PX, 1.4826 * float(np.nanmedian(np.abs(steps))))

    def residuals(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (M, 2) in sigmas, absolute ones and differences along the tracks; and each one's trust (M,)."""
        r = self.track_residuals(x)
        scaled = np.concatenate([r / ABSOLUTE_SIGMA_RATIO, np.diff(r, axis=1)], axis=1) / self.sigma_px
        trust = np.broadcast_to(self.window.trust[:, None], scaled.shape[:2])
        seen = np.isfinite(scaled[..., 0])
        return scaled[seen], trust[seen]

    def precision(self) -> np.ndarray:
        """Prior of (c, d, ray, rho) without the gauge."""
        grid, t_grid = self.guess.grid, self.guess.translation_grid
        P = np.zeros((len(self.x0), len(self.x0)))
        n_c, n_d, n_ray, _ = self.sizes
        P[:n_c, :n_c] = np.kron(knot_precision(grid.count, grid.spacing_s) / AMPLITUDE**2, np.eye(3))
        if n_d:
            acceleration = TRANSLATION_ACCELERATION_PER_S * SPEED_M_S
            Q = translation_precision(t_grid.count, t_grid.spacing_s, SPEED_M_S, acceleration)
            P[n_c : n_c + n_d, n_c : n_c + n_d] = np.kron(Q, np.eye(3))
        at = n_c + n_d + n_ray
        off, shared = self.guess.rho - self.window.rho, np.broadcast_to(self.window.rho_shared_sd, len(self.guess.rho))

        def cost(level: float) -> float:
            off2 = ((off - shared * level) / self.window.rho_sd) ** 2
            return level**2 + np.sum(RHO_TAIL * np.log1p(off2 / RHO_TAIL)) / TEMPER

        level = minimize_scalar(cost, tol=1e-12).x
        off2 = ((off - shared * level) / self.window.rho_sd) ** 2
        p = 1 / self.window.rho_sd**2 / (1 + off2 / RHO_TAIL) / TEMPER
        P[at:, at:] = np.diag(p) - np.outer(p * shared, p * shared) / (1 + p @ shared**2)  # the level eliminated
        return P

    def gauge(self) -> np.ndarray:
        """Holds φ(ref) = 0 and p(ref) = 0; and, softly, the rays."""
        n_c, n_d, n_ray, _ = self.sizes
        G = np.zeros((len(self.x0), len(self.x0)))
        for grid, start, size in ((self.guess.grid, 0, n_c), (self.guess.translation_grid, n_c, n_d)):
            row = grid.rows(self.guess.ref_s)
            if size:
                G[start : start + size, start : start + size] = GAUGE_PRECISION * np.kron(np.outer(row, row), np.eye(3))
        rays = slice(n_c + n_d, n_c + n_d + n_ray)
        G[rays, rays] += np.eye(n_ray) / TEMPER
        return G

    def system(self) -> tuple[np.ndarray, np.ndarray]:
        """Full Hessian and gradient at the guess, Jacobian by central differences."""
        (r, trust), h = self.residuals(self.x0), 1e-6
        J = np.empty((r.size, len(self.x0)))
        for i in range(len(self.x0)):
            step = h * (np.arange(len(self.x0)) == i)
            J[:, i] = (self.residuals(self.x0 + step)[0] - self.residuals(self.x0 - step)[0]).ravel() / (2 * h)
        e2 = np.sum(r * r, axis=1)
        weight = np.repeat(trust / (1 + e2 / KERNEL_SCALE2) ** 2, 2) / TEMPER  # slope of k e²/(k + e²)
        prior = self.guess.rho - self.window.rho
        offset = np.concatenate([self.x0[: sum(self.sizes[:2])], np.zeros(self.sizes[2]), prior])
        P = self.precision()
        return (J.T * weight) @ J + P + self.gauge(), (J.T * weight) @ r.ravel() + P @ offset


def small_tracks(lever_arm_m: np.ndarray | None, seed: int = 3) -> Tracks:
    lever = NO_LEVER_ARM if lever_arm_m is None else lever_arm_m
    return follow(swaying(seed, 0.5, 0.3, 0.0 if lever.any() else 0.03), 5, n_points=8, lever_arm_m=lever, seed=seed)


def near_guess(tracks: Tracks, window: TrackWindow, lever_arm_m: np.ndarray | None) -> SplineState:
    """The truth at the window's middle as a spline, every unknown somewhat off, φ and p zero at the reference."""
    rng = np.random.default_rng(5)
    grid = KnotGrid.covering(window.mid_s[0] - 0.06, window.mid_s[-1] + 0.06, 0.02)
    t_grid = KnotGrid.covering(grid.centres_s[0], grid.centres_s[-1], 0.15)
    ref_s = float(window.mid_s[len(window.mid_s) // 2])
    R_ref = tracks.path.rotation(ref_s)
    phi = so3.log(R_ref.T @ tracks.path.rotation(grid.centres_s))
    p = (tracks.path.pivot(t_grid.centres_s) - tracks.path.pivot(ref_s)) @ R_ref
    j, k = np.arange(len(window.ids)), np.argmin(np.where(np.isfinite(window.ideal[..., 0]), 0, 1), axis=1)
    rays = np.einsum("nij,nj->ni", R_ref.T @ tracks.path.rotation(window.mid_s[k]), CAMERA.rays(window.ideal[j, k]))
    c, d = grid.fit_values(phi), np.zeros((t_grid.count, 3)) if lever_arm_m is not None else t_grid.fit_values(p)
    c, d = c + rng.normal(0, 4e-4, c.shape), d + rng.normal(0, 1e-3, d.shape)
    ray = rays[:, :2] / rays[:, 2:] + rng.normal(0, 5e-4, (len(j), 2))
    c, d = c - grid.rows(ref_s) @ c, d - t_grid.rows(ref_s) @ d
    return SplineState(grid, c, t_grid, d, window.ids, ray, window.rho * 1.1, ref_s, lever_arm_m)


@pytest.fixture(
    scope="module", params=[(LEVER_ARM_M, 0.0), (LEVER_ARM_M, 0.3), (None, 0.0)],
    ids=["lever arm", "lever arm and unknown level", "free translation"],
)
def one_step(request) -> tuple[DenseTwin, SplineSolution, np.ndarray, np.ndarray]:
    """The twin, the solver's first step from the same guess, and the twin's Hessian and gradient."""
    lever_arm_m, shared_sd = request.param
    tracks = small_tracks(lever_arm_m)
    window = tracks.window(0, 5)
    ideal = window.ideal.copy()
    ideal[2, 3] = np.nan  # one gap
    ideal[6] += np.linspace(0, 6, 5)[:, None]  # one thing that moves on its own
    shared = shared_sd * np.linspace(0.5, 1, len(ideal))
    window = replace(window, ideal=ideal, trust=np.linspace(0.3, 1.0, len(ideal)), rho_shared_sd=shared)
    guess = near_guess(tracks, window, lever_arm_m)
    twin = DenseTwin(window, CAMERA, tracks.exposure_s, guess)
    solution = solve(
        window, CAMERA, tracks.exposure_s, guess, amplitude=AMPLITUDE, translation_m_s=SPEED_M_S, max_iterations=1
    )
    return twin, solution, *twin.system()


@pytest.mark.parametrize("unknown", ["c", "d", "ray", "rho"])
def test_a_step_is_that_of_the_dense_system(one_step, unknown):
    """Every Jacobian enters: by rotation and translation knots, rays and inverse depths."""
    twin, solution, H, gradient = one_step
    part = ["c", "d", "ray", "rho"].index(unknown)
    expected = twin.parts(-np.linalg.solve(H, gradient))[part]
    actual = twin.parts(twin.flat(solution.state) - twin.x0)[part]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(initial=1e-12))
    if unknown != "d" or twin.guess.lever_arm_m is None:
        assert np.abs(expected).max() > 1e-5


def test_information_is_the_dense_system_without_the_landmarks(one_step):
    twin, solution, H, _ = one_step
    n = sum(twin.sizes[:2])
    reduced = np.linalg.inv(np.linalg.inv(H)[:n, :n])
    np.testing.assert_allclose(solution.information, reduced, rtol=1e-4, atol=1e-6 * np.abs(reduced).max())
    prior = (twin.precision() + twin.gauge())[:n, :n]
    np.testing.assert_allclose(solution.tracks, reduced - prior, rtol=1e-4, atol=1e-5 * np.abs(solution.tracks).max())


def test_measured_depths_are_those_of_the_dense_system(one_step):
    """One step without the priors' pull, and the ρ block of the whole inverse."""
    twin, window = one_step[0], one_step[0].window
    if twin.guess.lever_arm_m is not None:
        window = replace(window, rho_sd=np.full(len(twin.guess.rho), FLAT_SD), rho_shared_sd=np.zeros(1))
    free = DenseTwin(window, CAMERA, twin.exposure_s, twin.guess)
    H, gradient = free.system()
    n_c = twin.sizes[0]
    gradient[:n_c] -= twin.precision()[:n_c, :n_c] @ twin.x0[:n_c]
    solution = replace(one_step[1], state=twin.guess, sigma_px=free.sigma_px, weights=np.ones(len(twin.guess.rho)))
    measured = measured_depths(twin.window, CAMERA, twin.exposure_s, solution, SPEED_M_S)
    at, covariance = sum(twin.sizes[:3]), np.linalg.inv(H)
    sd = np.sqrt(covariance.diagonal()[at:])
    np.testing.assert_allclose(measured.covariance, covariance[at:, at:], rtol=1e-3, atol=1e-4 * np.min(sd) ** 2)
    expected = twin.guess.rho - np.linalg.solve(H, gradient)[at:]
    np.testing.assert_allclose((measured.rho - expected) / sd, 0.0, atol=1e-3)
    assert np.all((measured.prior_share > 0) & (measured.prior_share < 1))


@pytest.mark.parametrize("seed", [1, 2])
def test_measured_depths_tell_their_errors(seed):
    """Depths that nobody told, of a wide view that turns about a known pivot: close, and as uncertain as they say."""
    tracks = hand(seed, LEVER_ARM_M)
    spline = smoother(LEVER_ARM_M)
    window, last = [
        (replace(w, rho_shared_sd=np.ones(1)), s)
        for w, s in stream(tracks, spline, np.full(len(tracks.rho), 0.6), rho_sd=0.4)
    ][-1]
    measured = measured_depths(window, CAMERA, tracks.exposure_s, last.solution, spline.translation_m_s)
    R = tracks.path.rotation(window.mid_s[WINDOW_FRAMES // 2])
    position = R @ LEVER_ARM_M - LEVER_ARM_M
    depth = ((CAMERA.rays(tracks.ideal[window.ids, 0]) / tracks.rho[window.ids, None] - position) @ R)[:, 2]
    error, sd = measured.rho - 1 / depth, np.sqrt(measured.covariance.diagonal())
    assert np.median(np.abs(error) * depth) < 0.1
    assert np.mean(np.abs(error) < sd) > 0.6
    assert np.median(sd) < 10 * np.median(np.abs(error))  # tempered for real tracks, these have independent noise
    assert measured.prior_share.max() < 0.5


def test_without_a_lever_arm_nothing_is_measured():
    tracks = hand(1, NO_LEVER_ARM)
    spline = smoother(NO_LEVER_ARM)
    window, last = stream(tracks, spline, np.full(len(tracks.rho), 0.6), rho_sd=0.4)[-1]
    measured = measured_depths(window, CAMERA, tracks.exposure_s, last.solution, spline.translation_m_s)
    assert measured.prior_share.min() > 0.99
    assert measured.covariance.diagonal().min() > 100.0


# --- windows and streams against the truth ----------------------------------------------------------------------------

STREAM_FRAMES, WINDOW_FRAMES = 15, 9
FIRST_FRAMES = 4
ROOM_RHO_SD = 0.25  # of an ordinary room; the tracks' true depths are told to 0.02


def hand(seed: int, lever_arm_m: np.ndarray | None, **options) -> Tracks:
    """A hand turning about a pivot, or swaying freely."""
    if lever_arm_m is None:
        return follow(swaying(seed, 1.0, 0.4, 0.02), STREAM_FRAMES, lever_arm_m=NO_LEVER_ARM, seed=seed, **options)
    return follow(swaying(seed, 1.0, 0.4), STREAM_FRAMES, lever_arm_m=lever_arm_m, seed=seed, **options)


def smoother(lever_arm_m: np.ndarray | None, iterations: int = 2) -> FixedLagSpline:
    return FixedLagSpline(0.015, lever_arm_m, amplitude_ratio=1.3, translation_m_s=0.015, iterations=iterations)


def rough_rotations(tracks: Tracks, sd_rad: float = 2e-3) -> np.ndarray:
    """What a sparse solver says of the frames."""
    noise = np.random.default_rng(0).normal(0, sd_rad, (len(tracks.mid_s), 3))
    return tracks.mean_rotations(0, len(tracks.mid_s)) @ so3.exp(noise)


def stream(
    tracks: Tracks, spline: FixedLagSpline, rho: np.ndarray | None = None, rho_sd: float = 0.02
) -> list[tuple[TrackWindow, StreamSolution]]:
    """Frame by frame, as the pipeline does it."""
    R, out = rough_rotations(tracks), []
    for end in range(FIRST_FRAMES, len(tracks.mid_s) + 1):
        start = max(0, end - WINDOW_FRAMES)
        window = tracks.window(start, end, rho, rho_sd)
        solution = spline.add(window, tracks.camera, tracks.exposure_s, tracks.period_s / 2, R[start:end])
        out.append((window, solution))
    return out


def relative_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(estimate - truth, axis=1).sum() / np.linalg.norm(truth, axis=1).sum())


def published_times(tracks: Tracks, mid_s: float) -> np.ndarray:
    return mid_s + ((np.arange(20) + 0.5) / 20 - 0.5) * tracks.period_s


def stream_error(tracks: Tracks, out: list[tuple[TrackWindow, StreamSolution]]) -> float:
    """Rate error over the frame before the newest one of every window: what is published."""
    t = [published_times(tracks, window.mid_s[-2]) for window, _ in out]
    estimate = [s.solution.state.rate(t) for t, (_, s) in zip(t, out)]
    return relative_error(np.concatenate(estimate), tracks.path.rate(np.concatenate(t)))


def interpolation_error(tracks: Tracks) -> float:
    """Rate error of interpolating even the true means, over the same times."""
    R = tracks.mean_rotations(0, len(tracks.mid_s))
    rates = so3.log(np.swapaxes(R[:-1], 1, 2) @ R[1:]) / np.diff(tracks.mid_s)[:, None]
    t = np.concatenate([published_times(tracks, m) for m in tracks.mid_s[FIRST_FRAMES - 2 : -1]])
    i = np.clip(np.searchsorted(tracks.mid_s, t) - 1, 0, len(rates) - 1)
    return relative_error(rates[i], tracks.path.rate(t))


@pytest.mark.parametrize("lever_arm_m", LEVER_ARMS, ids=["lever arm", "free translation"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_path_inside_the_frames_is_recovered(seed, lever_arm_m):
    tracks = hand(seed, lever_arm_m)
    error = stream_error(tracks, stream(tracks, smoother(lever_arm_m)))
    assert error < 0.05
    assert error < 0.2 * interpolation_error(tracks)


def test_the_lever_arm_matters():
    """The same tracks with the lever arm taken for zero: parallax is misread as rotation."""
    tracks = hand(1, LEVER_ARM_M)
    told = stream_error(tracks, stream(tracks, smoother(LEVER_ARM_M)))
    assert stream_error(tracks, stream(tracks, smoother(NO_LEVER_ARM))) > 2 * told


def test_row_times_and_exposure_matter():
    """Half a millisecond per row and 40 ms of exposure: told to be a global, instant shutter, the rate suffers."""
    tracks = hand(1, LEVER_ARM_M)
    instant, all_at_once = replace(tracks, exposure_s=1e-4), replace(tracks, row_s=0 * tracks.row_s)
    told, no_exposure, no_rows = (
        stream_error(t, stream(t, smoother(LEVER_ARM_M))) for t in (tracks, instant, all_at_once)
    )
    assert no_exposure > 1.5 * told
    assert no_rows > 1.5 * told


@pytest.mark.parametrize("options", [
    {"exposure_s": 0.0, "readout_s": 0.0},
    {"exposure_s": 0.01, "readout_s": 0.0},
    {"exposure_s": 0.005, "readout_s": 0.0333, "fps": 30.0},
    {"lifetime_frames": 7, "n_points": 150},
], ids=["instant global", "short duty", "fast rolling", "short lives"])
def test_other_shutters_and_short_tracks(options):
    """Without rolling rows and long exposures only the prior knows what happens between the frames."""
    tracks = hand(3, None, **options)
    assert stream_error(tracks, stream(tracks, smoother(None))) < 0.5 * interpolation_error(tracks)


@pytest.mark.parametrize("lever_arm_m", LEVER_ARMS, ids=["lever arm", "free translation"])
def test_the_stream_ends_where_a_cold_solution_of_its_last_window_does(lever_arm_m):
    tracks = hand(1, lever_arm_m)
    out = stream(tracks, smoother(lever_arm_m))
    window, warm = out[-1]
    cold = smoother(lever_arm_m).add(
        window, tracks.camera, tracks.exposure_s, tracks.period_s / 2, rough_rotations(tracks)[-WINDOW_FRAMES:]
    )
    t = np.linspace(window.mid_s[0], window.mid_s[-1], 200)
    warm_rate, cold_rate = (s.solution.state.rate(t) for s in (warm, cold))
    assert relative_error(warm_rate, cold_rate) < 0.015
    assert warm.solution.cost < 1.05 * cold.solution.cost


def predicted(window: TrackWindow, stream_solution: StreamSolution, t: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Pixels (n, M, 2) at which the named landmarks are seen at the times t."""
    state = stream_solution.solution.state
    j = np.searchsorted(window.ids, names)
    R = state.rotation(t)
    p = state.position(state.translation_grid.rows(t), R)
    v = np.concatenate([state.ray[j], np.ones((len(j), 1))], axis=1)[:, None] - state.rho[j, None, None] * p
    return CAMERA.project(np.einsum("mji,nmj->nmi", R, v))


@pytest.mark.parametrize("lever_arm_m", LEVER_ARMS, ids=["lever arm", "free translation"])
def test_moving_on_leaves_the_trajectory_where_it_was(lever_arm_m):
    """Without noise, neighbouring windows differ only by their reference: same orientations, same pixels.

    One iteration per window leaves the solver no time to mend a bad start; the free translation is several centimetres.
    """
    speed_m_s = 0.3 if lever_arm_m is None else 0.0
    path, arm = swaying(2, 1.0, 0.4, speed_m_s), NO_LEVER_ARM if lever_arm_m is None else lever_arm_m
    tracks = follow(path, STREAM_FRAMES, lever_arm_m=arm, noise_px=0.0, seed=2)
    out = stream(tracks, FixedLagSpline(0.015, lever_arm_m, 1.3, translation_m_s=0.3, iterations=1))
    for (w0, before), (w1, after) in pairwise(out[6:]):
        assert before.solution.state.ref_s != after.solution.state.ref_s
        t, names = np.linspace(w0.mid_s[2], w0.mid_s[-2], 30), np.intersect1d(w0.ids, w1.ids)
        R_before, R_after = (s.R_start_from_ref @ s.solution.state.rotation(t) for s in (before, after))
        assert np.abs(so3.log(np.swapaxes(R_before, 1, 2) @ R_after)).max() < 8e-4
        change = np.linalg.norm(predicted(w0, before, t, names) - predicted(w1, after, t, names), axis=2)
        assert np.percentile(change, 95) < 0.3


def test_orientation_does_not_drift_over_a_stream():
    tracks = hand(1, LEVER_ARM_M, noise_px=0.0)
    errors = []
    for window, s in stream(tracks, smoother(LEVER_ARM_M)):
        t = window.mid_s[1:-1]
        R = s.R_start_from_ref @ s.solution.state.rotation(t)
        errors.append(so3.log(tracks.path.rotation(t) @ np.swapaxes(R, 1, 2)).mean(axis=0))  # in the start frame
    assert np.abs(errors[-1] - errors[0]).max() < 1e-3  # 11 windows later, turned by up to 0.3 rad


def vehicle(seed: int, speed_m_s: float) -> Tracks:
    """Driving straight ahead through a street while shaking a little."""
    path = swaying(seed, 1.2, 0.15)
    pivot = np.zeros((len(path.t_s), 3))
    pivot[:, 2] = speed_m_s * path.t_s
    street = replace(path, pivot_m=pivot)
    return follow(
        street, STREAM_FRAMES, fps=30.0, exposure_s=0.02, lever_arm_m=NO_LEVER_ARM, n_points=200,
        depths_m=(6.0, 40.0), seed=seed,
    )


def unknown_depth(tracks: Tracks) -> dict:
    return {"rho": np.full(len(tracks.rho), 0.4), "rho_sd": ROOM_RHO_SD}


@pytest.mark.parametrize("speed_m_s", [4.0, 15.0])
def test_a_vehicle_loosens_the_regulariser(speed_m_s):
    """At 15 m/s the tracks disagree so much with a hand's regulariser that they do not even strain it."""
    driving, spline = vehicle(1, speed_m_s), smoother(None)
    out = stream(driving, spline, **unknown_depth(driving))
    assert spline.translation_m_s > 0.015
    assert stream_error(driving, out[6:]) < 0.3 * interpolation_error(driving)
    assert out[-1][1].solution.sigma_px < 0.3  # everything has fallen in line


@pytest.mark.parametrize("noise_px", [0.1, 4.0])
def test_a_hand_does_not_loosen_the_regulariser(noise_px):
    """Not even where the tracks are so noisy that it is tried."""
    by_hand, spline = hand(1, None, noise_px=noise_px), smoother(None)
    stream(by_hand, spline, **unknown_depth(by_hand))
    assert spline.translation_m_s == 0.015


def test_things_that_move_on_their_own_lose_their_say():
    tracks = hand(1, None)
    ideal, movers = tracks.ideal.copy(), np.arange(20)
    drift = np.random.default_rng(1).normal(0, 4, (len(movers), 1, 2)) * np.arange(STREAM_FRAMES)[:, None]
    ideal[movers] += drift
    spline = smoother(None)
    out = stream(replace(tracks, ideal=ideal), spline, **unknown_depth(tracks))
    assert stream_error(tracks, out) < 0.06
    assert spline.translation_m_s == 0.015
    window, last = out[-1]
    moving = np.isin(window.ids, movers)
    assert np.median(last.solution.weights[moving]) < 0.3
    assert np.median(last.solution.weights[~moving]) > 0.8


@pytest.mark.parametrize("seed", [1, 3])
def test_a_start_with_near_and_far_exchanged_recovers(seed):
    """A narrow view hardly tells the two apart; the first window is told the wrong way round and believes it."""
    narrow = Camera(640, 480, 1800.0, 1800.0, 319.5, 239.5)
    tracks = follow(
        swaying(seed, 1.2, 0.08, 0.05), 20, lever_arm_m=NO_LEVER_ARM, camera=narrow, seed=seed, n_points=60
    )
    exchanged = np.clip(2 * np.median(tracks.rho) - tracks.rho, 0.05, 5.0)
    out = stream(tracks, smoother(None), exchanged, rho_sd=1.0)
    like_truth = [np.corrcoef(s.solution.state.rho, tracks.rho[w.ids])[0, 1] for w, s in out]
    assert like_truth[0] < -0.8
    assert like_truth[-1] > 0.9
    assert stream_error(tracks, out[8:]) < 0.7 * interpolation_error(tracks)


def test_reset_forgets_everything():
    tracks, used = hand(1, LEVER_ARM_M, n_points=40), smoother(LEVER_ARM_M)
    stream(hand(2, LEVER_ARM_M, n_points=40), used)
    used.reset()
    again, fresh = (stream(tracks, s)[-1][1].solution.state for s in (used, smoother(LEVER_ARM_M)))
    np.testing.assert_array_equal(again.c, fresh.c)


def test_a_window_of_few_tracks_and_no_motion_stays_finite():
    still = follow(swaying(1, 0.5, 0.0), 5, n_points=3, noise_px=0.0)
    out = smoother(None).add(
        still.window(0, 5), CAMERA, still.exposure_s, still.period_s / 2, still.mean_rotations(0, 5)
    )
    assert np.all(np.isfinite(out.solution.state.c))
    assert np.all(np.isfinite(out.solution.information))
    assert np.abs(out.solution.state.rate(still.mid_s)).max() < 1e-3
