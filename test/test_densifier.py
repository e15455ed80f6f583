"""Samples inside a frame: their times, the interpolation baseline, and a spline's samples with their covariance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from perspblur_ros import so3
from perspblur_ros.bspline import KnotGrid
from perspblur_ros.densifier import (
    BLIND_RATE_SD_RAD_S,
    JOIN_PULL,
    MAX_JOIN_S,
    MIN_RATE_SD_RAD_S,
    from_spline,
    interpolate,
    joined,
    knot_covariance,
    sample_times_ns,
)
from perspblur_ros.spline_state import SplineState
from perspblur_ros.types import DenseSamples

START_NS = 1_700_000_000_123_456_789
periods_ns = st.lists(st.integers(1_000_000, 200_000_000), min_size=2, max_size=8)
counts = st.integers(1, 200)


def mids(periods: list[int]) -> np.ndarray:
    return START_NS + np.concatenate([[0], np.cumsum(periods)]).astype(np.int64)


@given(periods_ns, counts)
def test_frames_join_into_one_stream(periods, count):
    """Uneven periods: strictly increasing within and across frames, frames meet halfway."""
    mid_ns = mids(periods)
    stamps = [sample_times_ns(mid_ns, k, count, None) for k in range(len(mid_ns))]
    assert all(s.dtype == np.int64 and len(s) == count for s in stamps)
    assert np.all(np.diff(np.concatenate(stamps)) > 0)
    borders = np.concatenate([[-periods[0] / 2], np.cumsum(periods) - np.array(periods) / 2])
    borders = np.append(borders, sum(periods) + periods[-1] / 2)
    for k, s in enumerate(stamps):
        step = (borders[k + 1] - borders[k]) / count
        expected = borders[k] + (np.arange(count) + 0.5) * step
        np.testing.assert_allclose(s - START_NS, expected, rtol=0, atol=0.51)


@given(periods_ns, counts, st.integers(1_000, 100_000_000))
def test_samples_of_the_exposure_lie_in_it_evenly(periods, count, exposure_ns):
    mid_ns = mids(periods)
    k = len(mid_ns) // 2
    offsets = sample_times_ns(mid_ns, k, count, exposure_ns) - mid_ns[k]
    assert np.all(np.diff(offsets) > 0)
    np.testing.assert_allclose(offsets, ((np.arange(count) + 0.5) / count - 0.5) * exposure_ns, rtol=0, atol=1)


@pytest.mark.parametrize("span_ns", [None, 1, 30_000_000])
def test_a_lone_frame_has_increasing_samples(span_ns):
    stamps = sample_times_ns(np.array([START_NS]), 0, 30, span_ns)
    assert np.all(np.diff(stamps) > 0)
    assert np.all(np.abs(stamps - START_NS) < 31_000_000)


def test_even_frames_give_one_even_stream():
    mid_ns = mids([33_333_333] * 5)
    stamps = np.concatenate([sample_times_ns(mid_ns, k, 30, None) for k in range(6)])
    assert np.ptp(np.diff(stamps)) <= 2


def frames_of(omega: np.ndarray, n: int, period_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean rotations of frames under steady turning."""
    mid_ns = mids([period_ns] * (n - 1))
    return mid_ns, so3.exp(omega * (mid_ns - mid_ns[0])[:, None] * 1e-9)


def test_interpolation_is_slerp():
    rng = np.random.default_rng(0)
    mid_ns = mids([50_000_000, 40_000_000, 60_000_000])
    R = so3.exp(rng.normal(0, 0.3, (4, 3)))
    stamps = mid_ns[0] + np.arange(0, 150_000_001, 1_000_000)
    dense = interpolate(7, stamps, mid_ns, R)
    t = (stamps - START_NS) * 1e-9
    expected = Slerp((mid_ns - START_NS) * 1e-9, Rotation.from_matrix(R))(t).as_matrix()
    np.testing.assert_allclose(so3.from_quat_xyzw(dense.q_start_from_cam), expected, atol=1e-12)
    h = 1e-6
    ahead = Slerp((mid_ns - START_NS) * 1e-9, Rotation.from_matrix(R))(t[:-1] + h).as_matrix()
    rate = so3.log(np.swapaxes(expected[:-1], 1, 2) @ ahead) / h
    np.testing.assert_allclose(dense.omega[:-1], rate, atol=1e-5)
    assert (dense.frame, dense.source) == (7, "interpolation")


def test_interpolation_goes_on_beyond_the_ends():
    omega = np.array([0.4, -0.2, 0.3])
    mid_ns, R = frames_of(omega, 3, 40_000_000)
    stamps = mid_ns[0] + np.arange(-20, 101, 5) * 1_000_000
    dense = interpolate(0, stamps, mid_ns, R)
    np.testing.assert_allclose(dense.omega, np.broadcast_to(omega, dense.omega.shape), atol=1e-9)
    expected = so3.exp(omega * ((stamps - mid_ns[0]) * 1e-9)[:, None])
    np.testing.assert_allclose(so3.from_quat_xyzw(dense.q_start_from_cam), expected, atol=1e-9)


def test_interpolation_is_as_unsure_as_the_rate_is_unsteady():
    mid_ns = mids([50_000_000] * 2)
    jerked = so3.exp(np.array([[0.0, 0, 0], [0.02, 0, 0], [0.0, 0, 0]]))
    stamps = mid_ns[1] + np.arange(-25, 26, 5) * 1_000_000
    dense = interpolate(0, stamps, mid_ns, jerked)
    sd = np.sqrt(np.diagonal(dense.cov_omega, axis1=1, axis2=2))
    np.testing.assert_allclose(sd[:, 0], 0.4)  # half of the change of 0.8 rad/s
    np.testing.assert_allclose(sd[:, 1:], MIN_RATE_SD_RAD_S)


def test_a_lone_frame_is_not_interpolated_with_confidence():
    dense = interpolate(0, np.array([START_NS - 1, START_NS + 1]), np.array([START_NS]), so3.exp([[0.1, 0, 0]]))
    assert np.all(dense.omega == 0)
    np.testing.assert_allclose(np.sqrt(np.diagonal(dense.cov_omega, axis1=1, axis2=2)), BLIND_RATE_SD_RAD_S)
    assert np.all(np.linalg.eigvalsh(dense.cov_rotation) >= 0)


GRID = KnotGrid.covering(0.0, 0.3, 0.015)
EVEN_NS = mids([60_000_000] * 4)


def spline(seed: int = 0, amplitude: float = 0.05) -> SplineState:
    rng = np.random.default_rng(seed)
    phase, frequency = rng.uniform(0, 6, 3), rng.uniform(1, 5, 3)
    c = amplitude * np.sin(2 * np.pi * frequency * GRID.centres_s[:, None] + phase)
    return SplineState(
        GRID, c, KnotGrid.covering(0.0, 0.3, 0.15), np.zeros((5, 3)), np.zeros(0, np.int64), np.zeros((0, 2)),
        np.zeros(0), 0.12, None,
    )


def information(size: int, seed: int = 0) -> np.ndarray:
    """A well-conditioned information matrix with correlations everywhere."""
    A = np.random.default_rng(seed).normal(size=(size, size)) * 30
    return A @ A.T + 1e4 * np.eye(size)


def samples(state: SplineState, info: np.ndarray, variance_scale: float = 1.0, R: np.ndarray | None = None):
    stamps = sample_times_ns(EVEN_NS, 2, 30, None)
    return from_spline(
        3, stamps, (stamps - START_NS) * 1e-9, (EVEN_NS[1:4] - START_NS) * 1e-9, state, info,
        np.eye(3) if R is None else R, variance_scale, "spline",
    )


def steadily_turning(first_ns: int, off: np.ndarray):
    """Thirty samples of a camera that turns about x, seen from a start that is turned by ``off``."""
    omega, n = np.array([0.5, 0.0, 0.0]), 30
    stamps = first_ns + np.arange(n) * 1_000_000
    R = so3.exp(off) @ so3.exp(omega * ((stamps - START_NS) * 1e-9)[:, None])
    zeros = np.zeros((n, 3, 3))
    return DenseSamples(0, stamps, so3.to_quat_xyzw(R), np.tile(omega, (n, 1)), zeros, zeros, "spline")


def test_a_frame_goes_on_where_the_last_one_ended():
    off = np.array([1e-3, -2e-3, 3e-3])
    before, dense = steadily_turning(START_NS, np.zeros(3)), steadily_turning(START_NS + 30_000_000, off)
    turned = joined(dense, before)
    straight_on = steadily_turning(START_NS + 30_000_000, JOIN_PULL * off)
    np.testing.assert_allclose(turned.q_start_from_cam, straight_on.q_start_from_cam, atol=1e-12)
    np.testing.assert_array_equal(turned.omega, dense.omega)


def test_a_chain_of_disagreements_does_not_drift_away():
    """What every frame's solution says again of the same angle prevails within some tens of frames."""
    off, dense = np.array([1e-3, -2e-3, 3e-3]), steadily_turning(START_NS, np.zeros(3))
    for k in range(1, 60):
        dense = joined(steadily_turning(START_NS + k * 30_000_000, off), dense)
    R = so3.from_quat_xyzw(dense.q_start_from_cam[0])
    expected = so3.from_quat_xyzw(steadily_turning(int(dense.stamp_ns[0]), off).q_start_from_cam[0])
    assert np.abs(so3.log(expected.T @ R)).max() < 1e-5


def test_a_frame_after_a_gap_is_left_as_it_is():
    late = steadily_turning(START_NS + 29_000_000 + round(MAX_JOIN_S * 1e9) + 1, np.full(3, 1e-3))
    assert joined(late, steadily_turning(START_NS, np.zeros(3))) is late
    assert joined(late, None) is late


def test_knot_covariance_is_the_block_of_the_full_inverse():
    info = information(3 * GRID.count + 15)
    knots = np.array([2, 3, 7, 11])
    full = np.linalg.inv(info)[: 3 * GRID.count, : 3 * GRID.count].reshape(GRID.count, 3, GRID.count, 3)
    np.testing.assert_allclose(knot_covariance(info, knots), full[knots][:, :, knots], rtol=1e-9, atol=1e-15)


def test_spline_samples_are_the_splines_rotation_and_its_derivative():
    state, R = spline(), so3.exp([0.3, -0.2, 0.5])
    dense = samples(state, information(3 * GRID.count), R=R)
    t, h = (dense.stamp_ns - START_NS) * 1e-9, 1e-6
    np.testing.assert_allclose(so3.from_quat_xyzw(dense.q_start_from_cam), R @ state.rotation(t), atol=1e-9)
    rate = so3.log(np.swapaxes(state.rotation(t - h), 1, 2) @ state.rotation(t + h)) / (2 * h)
    np.testing.assert_allclose(dense.omega, rate, atol=1e-6)
    assert (dense.frame, dense.source) == (3, "spline")


def test_covariance_is_that_of_the_full_inverse_propagated_sample_by_sample():
    """The slow twin: numeric Jacobians of every sample by every knot, times the whole inverse."""
    state, info = spline(), information(3 * GRID.count + 15)
    dense = samples(state, info, variance_scale=2.5)
    covariance = 2.5 * np.linalg.inv(info)[: 3 * GRID.count, : 3 * GRID.count]
    t, near = (dense.stamp_ns - START_NS) * 1e-9, (EVEN_NS[1:4] - START_NS) * 1e-9
    h = 1e-5
    for n in (0, 14, 29):
        J_rate = np.zeros((3, 3 * GRID.count))
        J_rotation = np.zeros((3, 3 * GRID.count))
        for column in range(3 * GRID.count):
            step = np.zeros(3 * GRID.count)
            step[column] = h
            ahead, behind = (
                SplineState(**{**state.__dict__, "c": state.c + sign * step.reshape(-1, 3)}) for sign in (1, -1)
            )
            J_rate[:, column] = (ahead.rate(t[n : n + 1]) - behind.rate(t[n : n + 1]))[0] / (2 * h)
            phi = [s.grid.rows(t[n]) @ s.c - (s.grid.rows(near) @ s.c).mean(axis=0) for s in (ahead, behind)]
            J_rotation[:, column] = (phi[0] - phi[1]) / (2 * h)
        turn = so3.J_right(state.grid.rows(t[n]) @ state.c)
        expected = turn @ J_rotation @ covariance @ J_rotation.T @ turn.T
        np.testing.assert_allclose(dense.cov_rotation[n], expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
        expected = J_rate @ covariance @ J_rate.T
        np.testing.assert_allclose(dense.cov_omega[n], expected, rtol=0.05, atol=0.05 * np.abs(expected).max())


def test_covariances_are_symmetric_and_positive():
    dense = samples(spline(1), information(3 * GRID.count, 1))
    for covariance in (dense.cov_rotation, dense.cov_omega):
        np.testing.assert_allclose(covariance, np.swapaxes(covariance, 1, 2), rtol=1e-9, atol=1e-20)
        assert np.linalg.eigvalsh(covariance).min() > 0


def test_twice_the_variance_scale_is_twice_the_covariance():
    once, twice = (samples(spline(), information(3 * GRID.count), scale) for scale in (1.0, 2.0))
    np.testing.assert_allclose(twice.cov_omega, 2 * once.cov_omega)
    np.testing.assert_allclose(twice.cov_rotation, 2 * once.cov_rotation)
