"""The priors on knots: what they charge for motions that can be written down, and for those of their own spectrum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from perspblur_ros.bspline import KnotGrid
from perspblur_ros.motion_prior import HAND, knot_precision, translation_precision

SPACING_S = 0.015
COUNT = 40


def drift(f_hz: np.ndarray) -> np.ndarray:
    return 1 / (1 + (f_hz / HAND.drift_corner_hz) ** HAND.drift_slope)


def tremor(f_hz: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((f_hz - HAND.tremor_centre_hz) / HAND.tremor_width_hz) ** 2)


def density(f_hz: np.ndarray) -> np.ndarray:
    """The rate's spectrum in closed form, of unit area."""
    drift_area, tremor_area = quad(drift, 0, 2000, limit=200)[0], quad(tremor, 0, 60)[0]
    return (1 - HAND.tremor_share) * drift(f_hz) / drift_area + HAND.tremor_share * tremor(f_hz) / tremor_area


def test_the_spectrum_has_unit_variance():
    f = np.arange(0.005, 50, 0.01)
    assert np.sum(HAND.density(f)) * 0.01 == pytest.approx(1.0, abs=1e-3)


def test_precision_is_symmetric_and_positive():
    Q = knot_precision(COUNT, SPACING_S)
    np.testing.assert_allclose(Q, Q.T, rtol=1e-6, atol=1e-6 * np.abs(Q).max())
    assert np.linalg.eigvalsh((Q + Q.T) / 2).min() > 0


def test_a_constant_rotation_is_free():
    Q = knot_precision(COUNT, SPACING_S)
    a_degree = np.full(COUNT, 0.0175)
    turning = 0.5 * SPACING_S * np.arange(COUNT)  # 0.5 rad/s
    assert a_degree @ Q @ a_degree < 1e-3
    assert turning @ Q @ turning > 0.1


@pytest.mark.parametrize("steps", [1, 2, 5, 15])
def test_increments_have_the_variance_of_the_spectrum(steps):
    """Var[φ(t + τ) − φ(t)] = ∫ S(f) (sin πfτ / πf)² df, in closed form against the inverse of the precision."""
    covariance = np.linalg.inv(knot_precision(COUNT, SPACING_S))
    i = 12
    j = i + steps
    variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
    tau = steps * SPACING_S
    f = np.arange(0.005, 50, 0.01)
    expected = np.sum(density(f) * (np.sin(np.pi * f * tau) / (np.pi * f)) ** 2) * 0.01
    assert variance == pytest.approx(expected, rel=0.05)


def test_the_rate_of_a_spline_drawn_from_the_prior_is_one():
    grid = KnotGrid(SPACING_S, 0, COUNT)
    covariance = np.linalg.inv(knot_precision(COUNT, SPACING_S))
    rows = grid.rate_rows(np.linspace(0.1, 0.45, 30))
    rms = np.sqrt(np.mean(np.einsum("nk,kl,nl->n", rows, covariance, rows)))
    assert rms == pytest.approx(1.0, abs=0.05)


def test_translation_charges_neither_place_nor_knot_spacing():
    costs = []
    for spacing in (0.15, 0.05):
        count = round(1.5 / spacing)
        Q = translation_precision(count, spacing, speed_m_s=0.02, acceleration_m_s2=0.06)
        t = spacing * np.arange(count)
        assert np.ones(count) @ Q @ np.ones(count) < 1e-9 * np.trace(Q)
        costs.append([x @ Q @ x for x in (0.02 * t, 0.03 * t * t)])
    np.testing.assert_allclose(costs[0], costs[1], rtol=0.35)  # a window of n knots has n − 1 steps


def test_translation_charges_squares_of_speed_and_acceleration():
    count, spacing = 10, 0.15
    t = spacing * np.arange(count)
    Q = translation_precision(count, spacing, speed_m_s=0.02, acceleration_m_s2=1e9)
    assert (0.02 * t) @ Q @ (0.02 * t) == pytest.approx(4 * (count - 1) / count)
    assert (0.06 * t) @ Q @ (0.06 * t) == pytest.approx(9 * 4 * (count - 1) / count)
    Q = translation_precision(count, spacing, speed_m_s=1e9, acceleration_m_s2=0.5)
    assert (0.25 * t * t) @ Q @ (0.25 * t * t) == pytest.approx((count - 2) * spacing / 0.04, rel=1e-6)
