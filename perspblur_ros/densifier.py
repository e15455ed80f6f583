"""From frames to samples: the dense rotation inside one frame, by interpolation or from a spline.

The samples of a frame cover its share of time: up to halfway to its neighbours ("period"), so that consecutive frames
join into one even stream, or only its middle row's exposure ("exposure").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from . import so3
from .spline_state import SplineState
from .types import DenseSamples, IntArray

FloatArray = NDArray[np.float64]

INTERPOLATION_RATE_SD_SHARE = 0.5  # of the rate's change between neighbouring frames
MIN_RATE_SD_RAD_S = 0.01
BLIND_RATE_SD_RAD_S = 10.0
JOIN_PULL = 0.1  # share of a disagreement that is taken over at once; more shows as a jump, less drifts
MAX_JOIN_S = 0.005  # between two samples, or a mean of their rates does not tell how the camera turned


def sample_times_ns(mid_ns: IntArray, k: int, count: int, span_ns: int | None) -> IntArray:
    """Times of frame ``k``'s samples, strictly increasing.

    mid_ns (T,) the frames' mid-exposures; span_ns the exposure, or None to reach halfway to the neighbours (at the ends
    of a segment as far out as in).
    """
    before = mid_ns[k] - mid_ns[k - 1] if k else (mid_ns[k + 1] - mid_ns[k] if len(mid_ns) > 1 else 0)
    after = mid_ns[k + 1] - mid_ns[k] if k + 1 < len(mid_ns) else before
    low, high = (-span_ns / 2, span_ns / 2) if span_ns else (-before / 2, after / 2)
    high = max(high, low + 2 * count)  # a lone frame: two nanoseconds apart, so that rounding keeps them apart
    offsets = low + (np.arange(count) + 0.5) / count * (high - low)
    return mid_ns[k] + np.round(offsets).astype(np.int64)


def interpolate(
    frame: int, stamp_ns: IntArray, mid_ns: IntArray, R_start_from_frames: FloatArray, trusted: bool = True
) -> DenseSamples:
    """The baseline: geodesic interpolation of the frames' mean rotations; piecewise constant rate.

    stamp_ns (N,) the samples; mid_ns (T,), R_start_from_frames (T, 3, 3). ``trusted`` is False where one of the means
    is only a guess: then the covariance is that of an unknown rate.
    """
    epoch = int(mid_ns[0])
    t, knots = (stamp_ns - epoch) * 1e-9, (mid_ns - epoch) * 1e-9
    N = len(t)
    if len(knots) == 1:
        R, omega = np.repeat(R_start_from_frames, N, axis=0), np.zeros((N, 3))
        sd_rate = np.full(3, BLIND_RATE_SD_RAD_S)
    else:
        steps = so3.log(np.swapaxes(R_start_from_frames[:-1], 1, 2) @ R_start_from_frames[1:])
        rates = steps / np.diff(knots)[:, None]
        i = np.clip(np.searchsorted(knots, t, side="right") - 1, 0, len(rates) - 1)
        omega = rates[i]
        R = R_start_from_frames[i] @ so3.exp(omega * (t - knots[i])[:, None])
        change = np.abs(np.diff(rates, axis=0)).max(axis=0, initial=0.0)
        sd_rate = np.maximum(MIN_RATE_SD_RAD_S, INTERPOLATION_RATE_SD_SHARE * np.maximum(change, np.abs(rates).max(0)))
    if not trusted:
        sd_rate = np.full(3, BLIND_RATE_SD_RAD_S)
    cov_omega = np.broadcast_to(np.diag(sd_rate**2), (N, 3, 3)).copy()
    cov_rotation = cov_omega * _half_s(t) ** 2
    return DenseSamples(frame, stamp_ns, so3.to_quat_xyzw(R), omega, cov_rotation, cov_omega, "interpolation")


def _half_s(t_s: NDArray[Any]) -> float:
    """Half of the samples' span: over it a wrong rate adds up to a wrong rotation."""
    return float(t_s[-1] - t_s[0]) / 2 + 1e-9


def from_spline(
    frame: int,
    stamp_ns: IntArray,
    t_s: FloatArray,
    neighbourhood_s: FloatArray,
    state: SplineState,
    information: FloatArray,
    R_start_from_ref: FloatArray,
    variance_scale: float,
    source: str,
    trusted: bool = True,
) -> DenseSamples:
    """Samples of a solved spline with its posterior covariance.

    t_s (N,)              the samples from the spline's origin
    neighbourhood_s (M,)  times whose mean rotation the rotation's covariance is relative to
    information           over (c, d), knot by knot; only the rotation's block of its inverse is used
    variance_scale        measured on held-out clips: neighbouring pixels and tracks share their errors
    trusted               False where no track saw the frame: the covariance is then that of an unknown rate
    """
    grid = state.grid
    rows, rate_rows = grid.rows(t_s), grid.rate_rows(t_s)
    local = rows - grid.rows(neighbourhood_s).mean(axis=0)
    acting = np.flatnonzero(np.abs(local).max(axis=0) + np.abs(rate_rows).max(axis=0) > 1e-12)
    covariance = knot_covariance(information, acting) * variance_scale
    J = so3.J_right(rows @ state.c)
    unknown = np.eye(3) * (0.0 if trusted else BLIND_RATE_SD_RAD_S**2)
    return DenseSamples(
        frame=frame,
        stamp_ns=stamp_ns,
        q_start_from_cam=so3.to_quat_xyzw(R_start_from_ref @ state.rotation(t_s)),
        omega=state.rate(t_s),
        cov_rotation=_propagated(J, local[:, acting], covariance) + unknown * _half_s(t_s) ** 2,
        cov_omega=_propagated(J, rate_rows[:, acting], covariance) + unknown,
        source=source,
    )


def joined(dense: DenseSamples, before: DenseSamples | None) -> DenseSamples:
    """``dense`` turned as a whole so that it goes on where ``before``, the frame published before it, ended.

    Each frame comes from a newer solution, which sees the last frame a little differently. All but a small share of
    that is turned away, so that the orientation is the integral of the rate, and yet follows the solutions' own chain.
    """
    if before is None or abs(dense.stamp_ns[0] - before.stamp_ns[-1]) > MAX_JOIN_S * 1e9:
        return dense
    step = (before.omega[-1] + dense.omega[0]) / 2 * float(dense.stamp_ns[0] - before.stamp_ns[-1]) * 1e-9
    R, R_end = so3.from_quat_xyzw(dense.q_start_from_cam), so3.from_quat_xyzw(before.q_start_from_cam[-1])
    away = so3.log(R_end @ so3.exp(step) @ R[0].T)
    return replace(dense, q_start_from_cam=so3.to_quat_xyzw(so3.exp((1 - JOIN_PULL) * away) @ R))


def knot_covariance(information: FloatArray, knots: NDArray[np.int64]) -> FloatArray:
    """Joint covariance of some rotation knots: (K, 3, K, 3)."""
    columns = (3 * knots[:, None] + np.arange(3)).ravel()
    identity = np.zeros((len(information), len(columns)))
    identity[columns, np.arange(len(columns))] = 1.0
    block = cho_solve(cho_factor(information), identity)[columns]
    return block.reshape(len(knots), 3, len(knots), 3)


def _propagated(J: FloatArray, rows: FloatArray, covariance: FloatArray) -> FloatArray:
    K = rows.shape[1]
    half = (rows @ covariance.reshape(K, -1)).reshape(-1, 3, K, 3)
    of_vector = np.einsum("nl,nalb->nab", rows, half)
    return J @ of_vector @ np.swapaxes(J, 1, 2)
