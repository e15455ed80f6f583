"""Metrics: known errors give known numbers, shifts are found, and fast paths agree with slow twins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perspblur_ros import so3
from perspblur_ros.errors import BagError
from perspblur_ros.evaluation import metrics
from perspblur_ros.evaluation.bags import ImuLog
from perspblur_ros.evaluation.metrics import Estimate, Motion
from perspblur_ros.evaluation.writers import DenseTrajectory, SparseTrajectory

EPOCH = 5_000_000_000
STEP_NS = 2_000_000
PERIOD_S, N_FRAMES, PER_FRAME = 0.06, 14, 30
SD = 0.01


def shake(seed: int, scale: float = 1.0, duration_s: float = 1.3) -> ImuLog:
    """A smooth random motion with its true rate, 500 Hz, starting 0.2 s before the epoch."""
    rng = np.random.default_rng(seed)
    stamps = EPOCH - 200_000_000 + STEP_NS * np.arange(int(duration_s * 500) + 1)
    t = (stamps - EPOCH) * 1e-9
    w = np.zeros((len(t), 3))
    for f in (0.8, 2.3, 6.0, 9.0):
        w += rng.normal(size=3) * np.sin(2 * math.pi * f * t[:, None] + rng.uniform(0, 6, 3))
    w *= 0.5 * scale
    R = np.empty((len(t), 3, 3))
    R[0] = so3.exp(rng.normal(size=3))
    for k in range(len(t) - 1):
        R[k + 1] = R[k] @ so3.exp(0.5 * (w[k] + w[k + 1]) * STEP_NS * 1e-9)
    return ImuLog("/ground_truth/imu", stamps, w, so3.to_quat_xyzw(R))


def sample_times() -> np.ndarray:
    k = np.arange(N_FRAMES)[:, None]
    s = (np.arange(PER_FRAME) + 0.5) / PER_FRAME
    return (PERIOD_S * (k + s)).ravel()


def dense_of(t_s: np.ndarray, R: np.ndarray, omega: np.ndarray, n: int = PER_FRAME) -> DenseTrajectory:
    stamps = EPOCH + np.round(t_s * 1e9).astype(np.int64)
    sd = np.full((len(t_s), 3), SD)
    return DenseTrajectory(
        stamps, so3.to_quat_xyzw(R), omega, sd, sd, np.arange(len(t_s)) // n, np.full(len(t_s), "spline")
    )


def perfect(truth: Motion) -> DenseTrajectory:
    t = sample_times()
    return dense_of(t, truth.rotation(t), truth.rate(t))


def sparse_of(truth: Motion) -> SparseTrajectory:
    t = PERIOD_S * (np.arange(N_FRAMES) + 0.5)
    q = so3.to_quat_xyzw(truth.mean_rotation(t, PERIOD_S))
    return SparseTrajectory(
        EPOCH + np.round(t * 1e9).astype(np.int64), q, np.full((N_FRAMES, 3), SD), np.arange(N_FRAMES)
    )


def estimate(dense: DenseTrajectory, resets: tuple[int, ...] = ()) -> Estimate:
    return Estimate.of(dense, EPOCH, resets)


@given(st.integers(0, 10_000))
@settings(max_examples=8)
def test_a_perfect_estimate_has_no_error_whatever_its_reference(seed: int) -> None:
    truth = Motion(shake(seed), EPOCH)
    dense = perfect(truth)
    turned = so3.exp([0.3, -0.2, 1.1]) @ so3.from_quat_xyzw(dense.q_start_from_cam)
    est = estimate(replace(dense, q_start_from_cam=so3.to_quat_xyzw(turned)))
    for n in (15, 30):
        result = metrics.dense_metrics(est, truth, 0.0, n)
        between_samples = n == 15
        assert result["abs_rel"] < (1e-3 if between_samples else 1e-6)
        assert result["detail_error"] < (5e-3 if between_samples else 1e-6)
        assert result["e1"] == result["e2"] == 1.0
    assert metrics.rate_metrics(est, truth, 0.0)["rate_error"] < 0.01  # linear between samples 2 ms apart
    sparse = metrics.sparse_metrics(sparse_of(truth), truth, EPOCH, 0.0, PERIOD_S, ())
    assert sparse["abs_rel"] < 1e-9
    assert sparse["frames"] == N_FRAMES


def test_an_estimate_that_never_moves_has_error_one() -> None:
    truth = Motion(shake(1), EPOCH)
    t = sample_times()
    est = estimate(dense_of(t, np.tile(np.eye(3), (len(t), 1, 1)), np.zeros((len(t), 3))))
    dense = metrics.dense_metrics(est, truth, 0.0, 30)
    assert dense["abs_rel"] == pytest.approx(1.0, abs=1e-9)
    assert dense["detail_error"] == pytest.approx(1.0, abs=1e-9)
    assert dense["e1"] == dense["e2"] == 0.0
    assert metrics.rate_metrics(est, truth, 0.0)["rate_error"] == pytest.approx(1.0)
    still = replace(sparse_of(truth), q_start_from_cam=np.tile([0, 0, 0, 1.0], (N_FRAMES, 1)))
    assert metrics.sparse_metrics(still, truth, EPOCH, 0.0, PERIOD_S, ())["abs_rel"] == pytest.approx(1.0, abs=1e-9)


def one_axis(rate) -> ImuLog:
    """Rotation about the optical axis with the given rate(t)."""
    stamps = EPOCH - 200_000_000 + STEP_NS * np.arange(700)
    t = (stamps - EPOCH) * 1e-9
    w = np.zeros((len(t), 3))
    w[:, 2] = rate(t)
    angle = np.concatenate([[0], np.cumsum(0.5 * (w[1:, 2] + w[:-1, 2]) * np.diff(t))])
    return ImuLog("/ground_truth/imu", stamps, w, so3.to_quat_xyzw(so3.exp(angle[:, None] * [0.0, 0, 1])))


@pytest.mark.parametrize("scale", [0.8, 0.95, 1.2])
def test_a_scale_error_gives_its_value(scale: float) -> None:
    truth = Motion(one_axis(lambda t: 1.5 + np.sin(20 * t)), EPOCH)
    t = sample_times()
    angles = so3.log(truth.rotation(np.zeros(1)).swapaxes(-1, -2) @ truth.rotation(t))
    est = estimate(dense_of(t, so3.exp(scale * angles), scale * truth.rate(t)))
    dense = metrics.dense_metrics(est, truth, 0.0, 30)
    expected = abs(scale - 1)
    assert dense["abs_rel"] == pytest.approx(expected, rel=1e-3)
    assert dense["detail_error"] == pytest.approx(expected, rel=1e-3)
    assert (dense["e1"], dense["e2"]) == (1.0 if expected < 0.1 else 0.0, 1.0)
    rate = metrics.rate_metrics(est, truth, 0.0)
    assert rate["rate_error"] == pytest.approx(expected, rel=2e-2)
    assert rate["rate_slope"][2] == pytest.approx(scale, rel=1e-2)


def test_detail_error_of_interpolated_means_agrees_with_a_slow_twin() -> None:
    truth = Motion(shake(4, scale=0.3), EPOCH)
    dense = perfect(truth)
    est = estimate(metrics.interpolated(sparse_of(truth), dense))
    part, whole = 0.0, 0.0
    for k in range(N_FRAMES):
        t = sample_times()[k * PER_FRAME : (k + 1) * PER_FRAME]
        vectors = []
        for R in (truth.rotation(t), est.R[k * PER_FRAME : (k + 1) * PER_FRAME]):
            v = np.array([so3.log(R[0].T @ r) for r in R])  # small turns: vectors add
            vectors.append(v - v.mean(axis=0))
        for a, b in zip(*vectors):
            part += np.linalg.norm(b - a)
            whole += np.linalg.norm(a)
    fast = metrics.dense_metrics(est, truth, 0.0, PER_FRAME)["detail_error"]
    assert fast == pytest.approx(part / whole, rel=1e-3)
    assert 0.05 < fast < 1.0


def test_the_interpolation_baseline_passes_through_the_means_with_constant_rates() -> None:
    truth = Motion(shake(5), EPOCH)
    sparse, dense = sparse_of(truth), perfect(truth)
    line = metrics.interpolated(sparse, dense)
    est = estimate(line)
    knots = (sparse.stamp_ns - EPOCH) * 1e-9
    at = so3.interpolate(knots, est.t_s, est.R)
    error = so3.log(np.swapaxes(at, -1, -2) @ so3.from_quat_xyzw(sparse.q_start_from_cam))
    assert np.abs(error[1:-1]).max() < 1e-3  # the knots lie between two samples; the path bends there
    inside = (est.t_s > knots[3]) & (est.t_s < knots[4])
    assert np.ptp(line.omega[inside], axis=0).max() < 1e-12
    numeric = so3.log(np.swapaxes(est.R[:-1], -1, -2) @ est.R[1:]) / np.diff(est.t_s)[:, None]
    assert np.abs(numeric[inside[:-1] & inside[1:]] - line.omega[inside][0]).max() < 1e-6


@pytest.mark.parametrize("shift_s", [-0.131, -0.045, 0.0, 0.0123, 0.09])
def test_a_time_shift_is_found_to_a_millisecond(shift_s: float) -> None:
    log = shake(6, duration_s=1.6)
    shifted = replace(log, stamp_ns=log.stamp_ns + round(shift_s * 1e9))
    true = Motion(log, EPOCH)
    est = estimate(perfect(true))
    assert metrics.time_offset_s(est, Motion(shifted, EPOCH)) == pytest.approx(shift_s, abs=1e-3)
    late = replace(log, stamp_ns=log.stamp_ns + 400_000_000)
    assert abs(metrics.time_offset_s(est, Motion(late, EPOCH))) <= metrics.MAX_OFFSET_S


def test_a_gyro_integrates_to_the_orientation() -> None:
    log = shake(7)
    gyro = Motion(replace(log, q_ref_from_cam=None), EPOCH)
    relative = gyro.R[0].T @ gyro.R
    true = Motion(log, EPOCH)
    error = so3.log(np.swapaxes(true.R[0].T @ true.R, -1, -2) @ relative)
    assert np.abs(error).max() < 1e-6


def test_segments_have_their_own_reference_and_no_rate_between_them() -> None:
    truth = Motion(shake(8), EPOCH)
    dense = perfect(truth)
    R = so3.from_quat_xyzw(dense.q_start_from_cam)
    R[dense.frame >= 6] = so3.exp([0.5, 0, 0]) @ R[dense.frame >= 6]  # the stream started anew
    jumped = replace(dense, q_start_from_cam=so3.to_quat_xyzw(R))
    assert metrics.dense_metrics(estimate(jumped), truth, 0.0, 30)["abs_rel"] > 0.5
    assert metrics.dense_metrics(estimate(jumped, (6,)), truth, 0.0, 30)["abs_rel"] < 1e-5
    keep = (dense.frame < 4) | (dense.frame > 9)  # 0.36 s without samples
    gap = DenseTrajectory(*(getattr(dense, name)[keep] for name in dense.__dataclass_fields__))
    est = estimate(gap)
    assert len(np.unique(est.segment)) == 2
    grid = metrics._rate_grid(est)
    assert not np.any((grid > 4 * PERIOD_S) & (grid < 10 * PERIOD_S))


def test_only_what_the_truth_covers_is_compared() -> None:
    log = shake(9)
    half = Motion(ImuLog(log.topic, log.stamp_ns[:350], log.omega[:350], log.q_ref_from_cam[:350]), EPOCH)
    est = estimate(perfect(Motion(log, EPOCH)))
    assert metrics.dense_metrics(est, half, 0.0, 30)["abs_rel"] < 1e-5
    sparse = metrics.sparse_metrics(sparse_of(Motion(log, EPOCH)), half, EPOCH, 0.0, PERIOD_S, ())
    assert 0 < sparse["frames"] < N_FRAMES
    elsewhere = Motion(replace(log, stamp_ns=log.stamp_ns + 10**12), EPOCH)
    with pytest.raises(BagError, match="no time in common"):
        metrics.rate_metrics(est, elsewhere, 0.0)
    with pytest.raises(BagError, match="no time in common"):
        metrics.perfect_means(sparse_of(Motion(log, EPOCH)), elsewhere, EPOCH, 0.0, 0.0)


@pytest.mark.parametrize("too_small", [1.0, 2.0])
def test_calibration_of_known_noise(too_small: float) -> None:
    rng = np.random.default_rng(10)
    truth = Motion(shake(10), EPOCH)
    dense = perfect(truth)
    noise = rng.normal(scale=SD * too_small, size=(2, len(dense.stamp_ns), 3))
    R = so3.from_quat_xyzw(dense.q_start_from_cam) @ so3.exp(noise[0])
    noisy = replace(dense, q_start_from_cam=so3.to_quat_xyzw(R), omega=dense.omega + noise[1])
    result = metrics.calibration(estimate(noisy), truth, 0.0)
    expected = {1.0: (0.683, 0.954, 1.0), 2.0: (0.383, 0.683, 4.0)}[too_small]
    for kind in ("rotation", "rate"):
        found = result[kind]["within_1sigma"], result[kind]["within_2sigma"]
        assert found == pytest.approx(expected[:2], abs=0.03)
        assert result[kind]["nees"] == pytest.approx(expected[2], rel=0.1)
    drifted = R @ so3.exp(np.linspace(0, 0.02, len(R))[:, None] * [0, 0, 1.0])
    slow = replace(noisy, q_start_from_cam=so3.to_quat_xyzw(drifted))
    assert metrics.calibration(estimate(slow), truth, 0.0)["rotation"]["within_1sigma"] > expected[0] - 0.05


def test_a_trajectory_without_covariance_has_no_calibration() -> None:
    truth = Motion(shake(11), EPOCH)
    line = metrics.interpolated(sparse_of(truth), perfect(truth))
    assert metrics.calibration(estimate(line), truth, 0.0) == {"rotation": {"samples": 0}, "rate": {"samples": 0}}


def test_depth_metrics() -> None:
    true = np.array([[1.0, 2.0, np.nan], [4.0, 4.0, 2.0]])
    est = np.array([[1.1, 2.0, 3.0], [4.0, np.nan, 4.0]])
    result = metrics.depth_metrics(est, true)
    assert result["pixels"] == 4
    assert result["valid_share"] == pytest.approx(4 / 6)
    assert result["abs_rel"] == pytest.approx((0.1 + 0 + 0 + 1.0) / 4)
    assert (result["delta1"], result["delta2"]) == (0.75, 0.75)
    assert result["constant_abs_rel"] == pytest.approx((1.0 + 0 + 0.5 + 0) / 4)
    assert metrics.depth_metrics(np.full((2, 3), np.nan), true) == {"pixels": 0, "valid_share": 0.0}
    with pytest.raises(BagError, match="truth"):
        metrics.depth_metrics(est[:1], true)
