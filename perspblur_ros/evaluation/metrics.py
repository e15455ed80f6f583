"""An estimate against the truth: one definition of every number in reports, tables and the README.

Orientations are compared relative to the mean rotation of the first frame (of every segment: a reset starts anew). An
error is the rotation vector from the true to the estimated orientation, e = log(R_trueᵀ R_est).

sparse AbsRel   Σ‖e_k‖₁ / Σ‖θ_k‖₁ over the frames' mean rotations θ_k; e1, e2: share of frames with ‖e‖/‖θ‖ < 0.10, 0.25
dense AbsRel    the same over 15 or 30 instants of every frame
detail error    Σ‖(θ̂ − mean θ̂) − (θ − mean θ)‖ / Σ‖θ − mean θ‖ within every frame: what densification adds
rate error      Σ‖ω̂ − ω‖ / Σ‖ω‖ on a 200 Hz grid
calibration     share of samples inside 1σ and 2σ, and the normalised squared error (1 is right), for the rate, and for
                the rotation relative to its neighbourhood: the covariance does not describe the drift since the start
depth           AbsRel, δ1, δ2 on valid pixels, beside the best constant depth (the median of the truth)

A camera's gyro as truth has its own clock: one constant offset per trajectory, the one with the least rate error within
±0.15 s, is taken off and reported. Against rendered truth no offset is applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..errors import BagError
from .bags import ImuLog
from .writers import DenseTrajectory, SparseTrajectory

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

RATE_STEP_S = 0.005
MAX_OFFSET_S = 0.15
GAP_S = 0.2  # no sample for longer: the estimate does not cover the time between
PER_FRAME = (15, 30)
WITHIN = (0.10, 0.25)  # e1, e2
DELTA = 1.25
NEIGHBOURS = 1  # frames to either side whose mean error is the rotation's own reference


class Motion:
    """A true motion as a function of time; times are seconds after ``epoch_ns``."""

    def __init__(self, log: ImuLog, epoch_ns: int) -> None:
        self.t_s = seconds(log.stamp_ns, epoch_ns)
        self.omega = log.omega
        self.R = so3.from_quat_xyzw(log.q_ref_from_cam) if log.q_ref_from_cam is not None else _integrate(self)

    def rotation(self, t_s: FloatArray) -> FloatArray:
        return so3.interpolate(t_s, self.t_s, self.R)

    def rate(self, t_s: FloatArray) -> FloatArray:
        return _linear(t_s, self.t_s, self.omega)

    def covers(self, t_s: FloatArray) -> BoolArray:
        """Inside the recording and not in a hole of it."""
        i = np.clip(np.searchsorted(self.t_s, t_s, side="right"), 1, len(self.t_s) - 1)
        return (t_s >= self.t_s[0]) & (t_s <= self.t_s[-1]) & (self.t_s[i] - self.t_s[i - 1] <= GAP_S)

    def mean_rotation(self, t_s: FloatArray, width_s: float) -> FloatArray:
        """Mean over [t − width/2, t + width/2] of every t; (N,) → (N, 3, 3)."""
        if width_s <= 0:
            return self.rotation(t_s)
        around = (np.arange(21) + 0.5) / 21 - 0.5
        return _means(self.rotation(t_s[:, None] + width_s * around))


@dataclass(frozen=True)
class Estimate:
    """A dense trajectory with times in seconds after ``epoch_ns`` and the number of its segment per sample."""

    t_s: FloatArray
    R: FloatArray
    omega: FloatArray
    sd_rotation: FloatArray
    sd_omega: FloatArray
    frame: IntArray
    segment: IntArray

    @classmethod
    def of(cls, dense: DenseTrajectory, epoch_ns: int, resets: Sequence[int]) -> Estimate:
        t_s = seconds(dense.stamp_ns, epoch_ns)
        return cls(
            t_s,
            so3.from_quat_xyzw(dense.q_start_from_cam),
            dense.omega,
            dense.sd_rotation,
            dense.sd_omega,
            dense.frame,
            segments(t_s, dense.frame, resets),
        )

    def frames(self) -> list[slice]:
        """The samples of every frame, in order."""
        starts = np.flatnonzero(np.diff(self.frame, prepend=self.frame[0] - 1))
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(self.frame)])]


def seconds(stamp_ns: IntArray, epoch_ns: int) -> FloatArray:
    """Integer stamps as seconds after an epoch."""
    return np.asarray((stamp_ns - epoch_ns) * 1e-9, float)


def segments(t_s: FloatArray, frame: IntArray, resets: Sequence[int]) -> IntArray:
    """Number of the stretch without interruption that each sample belongs to."""
    by_reset = np.searchsorted(np.sort(np.asarray(resets, int)), frame, side="right")
    breaks = (np.diff(t_s, prepend=t_s[0]) > GAP_S) | (np.diff(by_reset, prepend=by_reset[0]) != 0)
    return np.cumsum(breaks)


def interpolated(sparse: SparseTrajectory, like: DenseTrajectory) -> DenseTrajectory:
    """Geodesic interpolation of one rotation per frame, sampled where ``like`` is: the baseline of every table."""
    t0 = int(sparse.stamp_ns[0])
    knots, t = seconds(sparse.stamp_ns, t0), seconds(like.stamp_ns, t0)
    R = so3.from_quat_xyzw(sparse.q_start_from_cam)
    if len(knots) == 1:
        omega = np.zeros((len(t), 3))
    else:
        rates = so3.log(_transpose(R[:-1]) @ R[1:]) / np.diff(knots)[:, None]
        omega = rates[np.clip(np.searchsorted(knots, t, side="right") - 1, 0, len(rates) - 1)]
    unknown = np.full((len(t), 3), np.nan)
    q = so3.to_quat_xyzw(so3.interpolate(t, knots, R))
    return DenseTrajectory(like.stamp_ns, q, omega, unknown, unknown, like.frame, np.full(len(t), "interpolation"))


def perfect_means(
    sparse: SparseTrajectory, truth: Motion, epoch_ns: int, offset_s: float, exposure_s: float
) -> SparseTrajectory:
    """The true mean rotation of every frame's exposure: what a perfect sparse estimate would be."""
    t_s = seconds(sparse.stamp_ns, epoch_ns) + offset_s
    keep = truth.covers(t_s)
    if not keep.any():
        raise BagError("the truth and the estimate have no time in common")
    q = so3.to_quat_xyzw(truth.mean_rotation(t_s[keep], exposure_s))
    return SparseTrajectory(sparse.stamp_ns[keep], q, sparse.sd_rotation[keep], sparse.frame[keep])


def time_offset_s(estimate: Estimate, truth: Motion) -> float:
    """The offset d with the least rate error of ω̂(t) against ω(t + d), |d| ≤ 0.15 s, to a tenth of a millisecond."""
    best = 0.0
    for span, step in ((MAX_OFFSET_S, 0.01), (0.012, 0.002), (0.0025, 0.0005), (0.0006, 0.0001)):
        offsets = best + np.arange(-span, span + step / 2, step)
        offsets = offsets[np.abs(offsets) <= MAX_OFFSET_S + 1e-9]
        errors = [_offset_error(estimate, truth, d) for d in offsets]
        best = float(offsets[int(np.nanargmin(errors))]) if np.isfinite(errors).any() else best
    return round(best, 4)


def _offset_error(estimate: Estimate, truth: Motion, offset_s: float) -> float:
    """Rate error at one offset; NaN where less than two thirds of the grid are covered, which would reward cutting."""
    t = _rate_grid(estimate)
    inside = truth.covers(t + offset_s)
    if inside.sum() < max(2, 0.67 * len(t)):
        return math.nan
    true = truth.rate(t[inside] + offset_s)
    return norm_ratio(_linear(t[inside], estimate.t_s, estimate.omega) - true, true)


def norm_ratio(error: FloatArray, true: FloatArray) -> float:
    """Σ‖error‖ / Σ‖true‖; (..., 3) each."""
    return _ratio(np.linalg.norm(error, axis=-1).sum(), np.linalg.norm(true, axis=-1).sum())


def relative_errors(error: FloatArray, theta: FloatArray) -> dict[str, float]:
    """AbsRel, e1, e2 of errors (N, 3) against rotation vectors (N, 3)."""
    size = np.linalg.norm(theta, axis=-1)
    moved = size > 1e-9  # the reference itself has no relative error
    share = np.linalg.norm(error, axis=-1)[moved] / size[moved]
    within = [float(np.mean(share < limit)) if moved.any() else math.nan for limit in WITHIN]
    return {"abs_rel": _ratio(np.abs(error).sum(), np.abs(theta).sum()), "e1": within[0], "e2": within[1]}


def sparse_metrics(
    sparse: SparseTrajectory, truth: Motion, epoch_ns: int, offset_s: float, exposure_s: float, resets: Sequence[int]
) -> dict[str, float]:
    """AbsRel, e1, e2 of the frames' mean rotations, and how many frames were compared."""
    t = seconds(sparse.stamp_ns, epoch_ns)
    keep = truth.covers(t + offset_s)
    t, R = t[keep], so3.from_quat_xyzw(sparse.q_start_from_cam)[keep]
    true = truth.mean_rotation(t + offset_s, exposure_s)
    error, theta = [], []
    segment = segments(t, sparse.frame[keep], resets)
    for s in np.unique(segment):
        part = segment == s
        rel_true, rel_est = true[part][0].T @ true[part], R[part][0].T @ R[part]
        error.append(_error(rel_true, rel_est))
        theta.append(so3.log(rel_true))
    return {**relative_errors(_join(error), _join(theta)), "frames": int(keep.sum())}


def dense_metrics(estimate: Estimate, truth: Motion, offset_s: float, per_frame: int) -> dict[str, float]:
    """AbsRel, e1, e2 and the detail error at ``per_frame`` instants of every frame's span."""
    parts = estimate.frames()
    t = np.array([_instants(estimate.t_s[part], per_frame) for part in parts])
    keep = np.all(truth.covers(t + offset_s), axis=1)
    t, segment = t[keep], estimate.segment[[part.start for part in parts]][keep]
    true, est = truth.rotation(t + offset_s), so3.interpolate(t, estimate.t_s, estimate.R)
    mean_true, mean_est = _means(true), _means(est)
    first = np.searchsorted(segment, segment)  # the first frame of each one's segment
    rel_true = _transpose(mean_true[first])[:, None] @ true
    error = _error(rel_true, _transpose(mean_est[first])[:, None] @ est)
    detail = so3.log(_transpose(mean_true)[:, None] @ true)
    detail_error = so3.log(_transpose(mean_est)[:, None] @ est) - detail
    return {
        **relative_errors(error.reshape(-1, 3), so3.log(rel_true).reshape(-1, 3)),
        "detail_error": norm_ratio(detail_error, detail),
    }


def rate_metrics(estimate: Estimate, truth: Motion, offset_s: float) -> dict[str, Any]:
    """Rate error, correlation and slope per axis, and the mean difference (a gyro's bias is in it)."""
    t = _rate_grid(estimate)
    t = t[truth.covers(t + offset_s)]
    if len(t) < 2:
        raise BagError("the truth and the estimate have no time in common")
    est, true = _linear(t, estimate.t_s, estimate.omega), truth.rate(t + offset_s)
    power = np.sum(true * true, axis=0)
    return {
        "rate_error": norm_ratio(est - true, true),
        "rate_rms_rad_s": float(np.sqrt(np.mean(np.sum(true * true, axis=1)))),
        "rate_bias_rad_s": (est - true).mean(axis=0).tolist(),
        "rate_slope": [_ratio(a, b) for a, b in zip(np.sum(est * true, axis=0), power)],
        "rate_correlation": [_correlation(est[:, i], true[:, i]) for i in range(3)],
    }


def calibration(estimate: Estimate, truth: Motion, offset_s: float) -> dict[str, dict[str, Any]]:
    """How well the standard deviations describe the errors of the rotation (in its neighbourhood) and of the rate."""
    t = estimate.t_s + offset_s
    inside = truth.covers(t)
    error_omega = estimate.omega - truth.rate(t)
    error_rotation = _local(_error(truth.rotation(t), estimate.R), estimate, inside)
    return {
        "rotation": _coverage(error_rotation[inside], estimate.sd_rotation[inside]),
        "rate": _coverage(error_omega[inside], estimate.sd_omega[inside]),
    }


def depth_metrics(
    estimated_m: FloatArray, true_m: FloatArray, variance_m2: FloatArray | None = None
) -> dict[str, float]:
    """AbsRel, δ1, δ2 where both maps are valid; the constant-depth baseline on the same pixels.

    With the map's variance also the share of the pixels within one and two standard deviations, and the median one
    relative to the depth.
    """
    if estimated_m.shape != true_m.shape:
        raise BagError(f"the depth map is {estimated_m.shape}, its truth {true_m.shape}")
    valid = np.isfinite(estimated_m) & np.isfinite(true_m) & (true_m > 0) & (estimated_m > 0)
    if not valid.any():
        return {"pixels": 0, "valid_share": 0.0}
    est, true = estimated_m[valid].astype(float), true_m[valid].astype(float)
    own = _depth_errors(est, true)
    constant = _depth_errors(np.full_like(true, np.median(true)), true)
    return {
        "pixels": int(valid.sum()),
        "valid_share": float(valid.mean()),
        **own,
        **{f"constant_{name}": value for name, value in constant.items()},
        **(_depth_calibration(est, true, np.sqrt(variance_m2[valid])) if variance_m2 is not None else {}),
    }


def _depth_calibration(est: FloatArray, true: FloatArray, sd: FloatArray) -> dict[str, float]:
    return {
        "within_1sigma": float(np.mean(np.abs(est - true) < sd)),
        "within_2sigma": float(np.mean(np.abs(est - true) < 2 * sd)),
        "relative_sd": float(np.median(sd / est)),
    }


def _depth_errors(est: FloatArray, true: FloatArray) -> dict[str, float]:
    ratio = np.maximum(est / true, true / est)
    return {
        "abs_rel": float(np.mean(np.abs(est - true) / true)),
        "delta1": float(np.mean(ratio < DELTA)),
        "delta2": float(np.mean(ratio < DELTA**2)),
    }


def _integrate(motion: Motion) -> FloatArray:
    """Orientation of a gyro log relative to its first sample: each step turns by the mean rate of its two ends."""
    steps = so3.exp(0.5 * (motion.omega[:-1] + motion.omega[1:]) * np.diff(motion.t_s)[:, None])
    R = np.empty((len(motion.t_s), 3, 3))
    R[0] = np.eye(3)
    for k, step in enumerate(steps):
        R[k + 1] = R[k] @ step
    return so3.from_quat_xyzw(so3.to_quat_xyzw(R))  # rounding of a long product


def _rate_grid(estimate: Estimate) -> FloatArray:
    """Every 5 ms between the first and the last sample of every segment."""
    grids = []
    for s in np.unique(estimate.segment):
        t = estimate.t_s[estimate.segment == s]
        first, last = np.ceil(t[0] / RATE_STEP_S - 1e-9), np.floor(t[-1] / RATE_STEP_S + 1e-9)
        grids.append(RATE_STEP_S * np.arange(first, last + 1))
    return np.concatenate(grids)


def _instants(t_s: FloatArray, n: int) -> FloatArray:
    """The samples' own instants if there are ``n``, else ``n`` even ones over the same span."""
    return t_s if len(t_s) == n else np.linspace(t_s[0], t_s[-1], n)


def _local(error: FloatArray, estimate: Estimate, inside: BoolArray) -> FloatArray:
    """Errors less their mean over the own and the neighbouring frames of the segment."""
    out = error.copy()
    for part in estimate.frames():
        frame, segment = estimate.frame[part.start], estimate.segment[part.start]
        near = (np.abs(estimate.frame - frame) <= NEIGHBOURS) & (estimate.segment == segment) & inside
        if near.any():
            out[part] -= error[near].mean(axis=0)
    return out


def _coverage(error: FloatArray, sd: FloatArray) -> dict[str, Any]:
    known = np.all(np.isfinite(sd) & (sd > 0), axis=1)
    if not known.any():
        return {"samples": 0}
    z = error[known] / sd[known]
    return {
        "samples": int(known.sum()),
        "within_1sigma": float(np.mean(np.abs(z) < 1)),
        "within_2sigma": float(np.mean(np.abs(z) < 2)),
        "within_1sigma_axes": np.mean(np.abs(z) < 1, axis=0).tolist(),
        "within_2sigma_axes": np.mean(np.abs(z) < 2, axis=0).tolist(),
        "nees": float(np.mean(z * z)),
    }


def _error(R_true: FloatArray, R_est: FloatArray) -> FloatArray:
    return so3.log(_transpose(R_true) @ R_est)


def _transpose(R: FloatArray) -> FloatArray:
    return np.swapaxes(R, -1, -2)


def _means(R: FloatArray) -> FloatArray:
    """Mean rotation over the second axis; (F, N, 3, 3) → (F, 3, 3)."""
    return np.array([so3.mean(samples) for samples in R]).reshape(-1, 3, 3)


def _linear(t: FloatArray, knots: FloatArray, values: FloatArray) -> FloatArray:
    return np.stack([np.interp(t, knots, values[:, i]) for i in range(3)], axis=-1)


def _join(parts: list[FloatArray]) -> FloatArray:
    return np.concatenate(parts) if parts else np.empty((0, 3))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


def _correlation(a: FloatArray, b: FloatArray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else math.nan
