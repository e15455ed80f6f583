"""Cosine coefficients of the path inside a frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from perspblur_ros import detail_basis as db
from perspblur_ros import so3
from perspblur_ros.bspline import KnotGrid
from perspblur_ros.camera import Camera
from perspblur_ros.spline_state import SplineState

counts = st.integers(db.ORDERS + 1, 60)
coefficients = arrays(float, (db.ORDERS, 3), elements=st.floats(-50, 50))
PX = db.pixel_units(Camera(640, 480, 600, 600, 319.5, 239.5))


@given(counts, coefficients)
def test_paths_have_no_mean_whatever_the_sample_count(n: int, a: np.ndarray) -> None:
    assert np.abs((db.synthesis(n) @ a).mean(axis=0)).max() < 1e-9


@given(counts)
def test_orders_are_orthogonal(n: int) -> None:
    gram = db.synthesis(n).T @ db.synthesis(n)
    assert np.allclose(gram, n / 2 * np.eye(db.ORDERS), atol=1e-9 * n)


@given(counts, coefficients)
def test_round_trip(n: int, a: np.ndarray) -> None:
    assert np.allclose(db.analysis(n) @ (db.synthesis(n) @ a), a, atol=1e-9)


@given(counts, coefficients)
def test_rotations_round_trip(n: int, a: np.ndarray) -> None:
    """Up to the 4th order of the in-frame angle (here below 0.1 rad), the mean rotation drops out."""
    a = a / 10
    turned = so3.exp([0.3, -0.5, 0.2]) @ so3.exp(db.synthesis(n) @ a / PX)
    assert np.allclose(db.coefficients(turned, PX), a, atol=1e-2)


def test_a_constant_rate_is_almost_all_first_order() -> None:
    t = (np.arange(30) + 0.5) / 30 - 0.5
    a = db.coefficients(so3.exp(t[:, None] * [0.0, 0.05, 0.0]), PX)
    assert a[0, 1] == pytest.approx(-0.05 * PX[1] * 4 / np.pi**2, rel=0.01)
    assert np.abs(a[1::2]).max() < 1e-9


def test_knot_map_is_the_derivative() -> None:
    rng = np.random.default_rng(3)
    grid = KnotGrid.covering(-0.1, 0.3, 0.015)
    slow = 0.3 * np.sin(np.linspace(0, 4, grid.count))[:, None] * [1, -0.5, 0.7]
    c = slow + 0.01 * rng.standard_normal(slow.shape)
    t_grid = KnotGrid.covering(-0.1, 0.3, 0.15)
    empty = np.zeros(0)
    state = SplineState(grid, c, t_grid, np.zeros((t_grid.count, 3)), empty.astype(int), empty.reshape(0, 2), empty,
                        0.1, None)
    step = 1e-4 * rng.standard_normal(c.shape)
    exposure_s, mid_s = 0.05, 0.12
    t = mid_s + db.sample_offsets_s(exposure_s)
    before, after = state.rotation(t), replace(state, c=c + step).rotation(t)
    moved = (db.knot_map(state, mid_s, exposure_s, PX) @ step.ravel()).reshape(-1, 3)
    change = db.coefficients(after, PX) - db.coefficients(before, PX)
    assert np.allclose(moved[:-1], change, atol=0.05 * np.abs(change).max())
    turn = so3.log(db.path_about_mean(before)[1].T @ db.path_about_mean(after)[1]) * PX
    assert np.allclose(moved[-1], turn, atol=0.02 * np.abs(turn).max())
