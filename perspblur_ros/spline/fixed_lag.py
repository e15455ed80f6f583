"""The track spline over a stream: each new frame re-solves a sliding window from where the last one ended.

The knots lie on one grid for the whole segment, so sliding keeps their meaning. The reference (φ = 0, p = 0) is the
window's middle frame; when it moves on, the best-known part of the trajectory hands the world orientation over, so
that errors of the newest frames do not accumulate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..bspline import KnotGrid
from ..camera import Camera
from ..motion_prior import knot_precision
from ..spline_state import SplineState
from .window import (
    MIN_RATE_AMPLITUDE,
    RHO_RANGE,
    TRANSLATION_KNOT_S,
    SplineSolution,
    TrackWindow,
    solve,
)

FloatArray = NDArray[np.float64]

COLD_ITERATIONS = 12
TRUST_AFTER_WINDOWS = 24  # by then the depth order is settled; before, parallax looks like own motion
REVERSAL_FRAMES = 24  # windows after a start in which the reversed depth order is tried as well
REVERSAL_EVERY = 2
REVERSAL_ITERATIONS = 6
TRANSLATION_STRAIN = 1.5  # prior energy per degree of freedom at which a looser regulariser is tried
LOST_SIGMA_PX = 1.5  # likewise of the tracks' noise: at wheel speed they lose their say before they strain anything
TRANSLATION_GAIN = 0.87  # and kept if it lowers the data cost to this share
TRANSLATION_STEP = 3.0
TRANSLATION_TRIAL_WINDOWS = 8
MAX_TRANSLATION_M_S = 1.0
REVERSAL_MARGIN = 5.0  # cost units by which the reversed solution must be better
EDGE_S = 0.02  # the grid reaches this far beyond the first and last exposure


@dataclass(frozen=True)
class StreamSolution:
    """A window's solution and where it lies: R_start_from_ref (3, 3) is the reference frame in the stream's start."""

    solution: SplineSolution
    R_start_from_ref: FloatArray


class FixedLagSpline:
    """Solves the newest T frames together, warm-started; ``reset`` at every segment.

    lever_arm_m       (3,) or None when unknown (then the translation is a weakly regularised spline)
    amplitude_ratio   prior rate RMS relative to the measured frame-to-frame rate
    """

    def __init__(
        self,
        knot_spacing_s: float,
        lever_arm_m: FloatArray | None,
        amplitude_ratio: float,
        translation_m_s: float,
        iterations: int,
    ) -> None:
        self._spacing_s, self._lever_arm_m = knot_spacing_s, lever_arm_m
        self._amplitude_ratio, self._base_translation_m_s = amplitude_ratio, translation_m_s
        self._iterations = iterations
        self.reset()

    def reset(self) -> None:
        self._last: StreamSolution | None = None
        self._windows = 0
        self.translation_m_s = self._base_translation_m_s
        self._until_trial = 0

    def add(
        self, window: TrackWindow, camera: Camera, exposure_s: float, reach_s: float, R_start_from_frames: FloatArray
    ) -> StreamSolution:
        """Solve the window.

        reach_s               how far the spline must be defined beyond the last frame's mid-exposure
        R_start_from_frames   T × 3 × 3, the frames' sparse orientations: the guess for what was not solved yet
        """
        window = self._with_trust(window)
        half = exposure_s / 2 + float(np.nanmax(np.abs(window.row_s), initial=0.0)) + EDGE_S
        grid = KnotGrid.covering(window.mid_s[0] - half, window.mid_s[-1] + max(half, reach_s), self._spacing_s)
        t_grid = KnotGrid.covering(grid.centres_s[0], grid.centres_s[-1], TRANSLATION_KNOT_S)
        amplitude = self._amplitude(window.mid_s, R_start_from_frames)
        guess, R_start_from_ref = self._guess(window, camera, exposure_s, grid, t_grid, amplitude, R_start_from_frames)

        def solved(start: SplineState, iterations: int) -> SplineSolution:
            return solve(window, camera, exposure_s, start, amplitude=amplitude,
                         translation_m_s=self.translation_m_s, max_iterations=iterations)

        solution = solved(guess, self._iterations if self._last else COLD_ITERATIONS)
        solution = self._let_travel(solution, solved)
        self._windows += 1
        if self._lever_arm_m is None and self._windows <= REVERSAL_FRAMES and self._windows % REVERSAL_EVERY == 0:
            reversed_depth = solved(_depth_reversed(solution.state), REVERSAL_ITERATIONS)
            if reversed_depth.cost < solution.cost - REVERSAL_MARGIN:
                solution = reversed_depth
        self._last = StreamSolution(solution, R_start_from_ref)
        return self._last

    def _let_travel(
        self, solution: SplineSolution, solved: Callable[[SplineState, int], SplineSolution]
    ) -> SplineSolution:
        """Loosen the translation regulariser where the tracks gain clearly by it.

        It is right for a hand and far too tight for wheels or wings. Strain or noise alone do not tell: things that
        move on their own cause them too, but they do not fall in line when it is loosened.
        """
        self._until_trial = max(0, self._until_trial - 1)
        if self._until_trial or self._lever_arm_m is not None:
            return solution
        tried, kept_m_s = solution, self.translation_m_s
        while _held_back(tried) and self.translation_m_s < MAX_TRANSLATION_M_S:
            self.translation_m_s *= TRANSLATION_STEP
            tried = solved(tried.state, REVERSAL_ITERATIONS)
            if tried.data_cost <= TRANSLATION_GAIN * solution.data_cost:
                solution, kept_m_s = tried, self.translation_m_s
            elif tried.sigma_px <= LOST_SIGMA_PX:
                break
        if self.translation_m_s != kept_m_s:
            self.translation_m_s, self._until_trial = kept_m_s, TRANSLATION_TRIAL_WINDOWS
        return solution

    def _with_trust(self, window: TrackWindow) -> TrackWindow:
        """The window with each track's trust from the last one."""
        if self._last is None or self._windows < TRUST_AFTER_WINDOWS:
            return window
        last = self._last.solution
        trust = window.trust.copy()
        _, now, before = np.intersect1d(window.ids, last.state.ids, assume_unique=True, return_indices=True)
        trust[now] *= last.trust[before]
        return replace(window, trust=trust)

    def _amplitude(self, mid_s: FloatArray, R_frames: FloatArray) -> float:
        steps = so3.log(np.swapaxes(R_frames[:-1], 1, 2) @ R_frames[1:]) / np.diff(mid_s)[:, None]
        return max(MIN_RATE_AMPLITUDE, self._amplitude_ratio * float(np.sqrt(np.mean(steps**2))))

    def _guess(
        self,
        window: TrackWindow,
        camera: Camera,
        exposure_s: float,
        grid: KnotGrid,
        t_grid: KnotGrid,
        amplitude: float,
        R_start_from_frames: FloatArray,
    ) -> tuple[SplineState, FloatArray]:
        ref_s = float(window.mid_s[len(window.mid_s) // 2])
        if self._last is None:
            R_start_from_ref = R_start_from_frames[len(window.mid_s) // 2]
            phi_frames = so3.log(R_start_from_ref.T @ R_start_from_frames)
            c = _smooth_through(grid, grid.mean_rows(window.mid_s, exposure_s), phi_frames, amplitude)
            state = SplineState(
                grid, c, t_grid, np.zeros((t_grid.count, 3)), np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0),
                ref_s, self._lever_arm_m,
            )
        else:
            state, R_start_from_ref = self._moved_on(self._last, grid, t_grid, ref_s, exposure_s, window.mid_s,
                                                     R_start_from_frames, amplitude)
        return _with_landmarks(state, window, camera, exposure_s), R_start_from_ref

    def _moved_on(
        self,
        last: StreamSolution,
        grid: KnotGrid,
        t_grid: KnotGrid,
        ref_s: float,
        exposure_s: float,
        mid_s: FloatArray,
        R_start_from_frames: FloatArray,
        amplitude: float,
    ) -> tuple[SplineState, FloatArray]:
        """The last state seen from the new reference, its knots extended by the prior through the new frames."""
        old = last.solution.state
        R0 = old.rotation(np.array([ref_s]))[0]
        p0 = old.position(old.translation_grid.rows(np.array([ref_s])), R0[None])[0]
        R_start_from_ref = last.R_start_from_ref @ R0

        values = so3.log(R0.T @ so3.exp(old.grid.rows(old.grid.centres_s) @ old.c))
        turned = old.grid.fit_values(values)
        ends = grid.first + grid.count, old.grid.first + old.grid.count
        shared = np.arange(max(grid.first, old.grid.first), min(ends))
        known = turned[shared - old.grid.first]
        # beyond the last solved frame the old spline was only the prior's extrapolation: let it go softly
        solved_until_s = mid_s[-2] + exposure_s / 2
        beyond_s = np.maximum(shared * grid.spacing_s - solved_until_s, 0.0)
        sd = 1e-4 + amplitude * beyond_s
        rows = np.concatenate([np.eye(grid.count)[shared - grid.first], grid.mean_rows(mid_s[-1:], exposure_s)])
        newest = so3.log(R_start_from_ref.T @ R_start_from_frames[-1])[None]
        c = _smooth_through(
            grid, rows, np.concatenate([known, newest]), amplitude, np.concatenate([sd, [5e-4]])
        )

        t_shared = np.clip(np.arange(t_grid.first, t_grid.first + t_grid.count) - old.translation_grid.first, 0,
                           old.translation_grid.count - 1)
        d = (old.d[t_shared] - p0) @ R0
        v = np.concatenate([old.ray, np.ones((len(old.ray), 1))], axis=1) - old.rho[:, None] * p0
        v = v @ R0
        state = SplineState(
            grid, c, t_grid, d, old.ids, v[:, :2] / v[:, 2:], np.clip(old.rho / v[:, 2], *RHO_RANGE), ref_s,
            self._lever_arm_m,
        )
        return state, R_start_from_ref


def _held_back(solution: SplineSolution) -> bool:
    """Whether the translation regulariser may keep the tracks from fitting."""
    return solution.translation_energy > TRANSLATION_STRAIN or solution.sigma_px > LOST_SIGMA_PX


def _depth_reversed(state: SplineState) -> SplineState:
    """The other solution of a narrow view: near and far exchanged, translation reversed, rotation taking up the rest.

    A pixel near the axis moves by −ρ p; exchanging depths about their median ρ0 with p → −p leaves 2 ρ0 p to rotation.
    """
    rho0 = float(np.median(state.rho))
    p = state.translation_grid.rows(state.grid.centres_s) @ state.d
    turn = 2 * rho0 * np.stack([-p[:, 1], p[:, 0], np.zeros(len(p))], axis=1)
    rho = np.clip(2 * rho0 - state.rho, 0.02, RHO_RANGE[1])
    return replace(state, c=state.c + turn, d=-state.d, rho=rho)


def _smooth_through(
    grid: KnotGrid, rows: FloatArray, values: FloatArray, amplitude: float, sd: FloatArray | float = 5e-4
) -> FloatArray:
    """Most probable knots given ``rows @ c ≈ values`` with standard deviation ``sd`` (rad)."""
    weight = np.broadcast_to(1 / np.square(sd), len(rows))
    weighted = rows.T * weight
    Q = knot_precision(grid.count, grid.spacing_s) / amplitude**2
    return np.linalg.solve(weighted @ rows + Q, weighted @ values)


def _with_landmarks(state: SplineState, window: TrackWindow, camera: Camera, exposure_s: float) -> SplineState:
    """``state`` with exactly the window's tracks: known ones carried over, new ones back-projected and averaged."""
    N = len(window.ids)
    ray, rho = np.full((N, 2), np.nan), window.rho.copy()
    _, new_at, old_at = np.intersect1d(window.ids, state.ids, assume_unique=True, return_indices=True)
    ray[new_at], rho[new_at] = state.ray[old_at], state.rho[old_at]
    missing = np.flatnonzero(np.isnan(ray[:, 0]))
    j, k = np.nonzero(np.isfinite(window.ideal[missing, :, 0]))
    t = window.mid_s[k] + window.row_s[missing[j], k]
    R = so3.exp(state.grid.mean_rows(t, exposure_s) @ state.c)
    p = state.position(state.translation_grid.rows(t), R)
    v = np.einsum("nij,nj->ni", R, camera.rays(window.ideal[missing[j], k])) + rho[missing[j], None] * p
    seen = np.bincount(j, minlength=len(missing))
    for axis in range(2):
        ray[missing, axis] = np.bincount(j, v[:, axis] / v[:, 2], minlength=len(missing)) / np.maximum(seen, 1)
    return replace(state, ids=window.ids, ray=ray, rho=rho)
