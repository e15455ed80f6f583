"""Cubic B-splines on one grid of knots, against scipy's and against numeric means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import BSpline

from perspblur_ros.bspline import KnotGrid

GRID = KnotGrid(spacing_s=0.015, first=-3, count=14)
INSIDE_S = np.linspace(-0.03, 0.15, 41)  # complete on these times: two knots stand beyond either end

spacings = st.floats(0.002, 0.1)
starts = st.floats(-5.0, 600.0)
lengths = st.floats(0.0, 1.0)


def scipy_basis(grid: KnotGrid, i: int) -> BSpline:
    """Basis function i of the grid as scipy builds it, zero outside its five knots."""
    centre = grid.first + i
    return BSpline.basis_element(grid.spacing_s * (centre + np.arange(-2.0, 3.0)), extrapolate=False)


def scipy_rows(grid: KnotGrid, t: np.ndarray, derivative: int = 0) -> np.ndarray:
    columns = [scipy_basis(grid, i).derivative(derivative)(t) if derivative else scipy_basis(grid, i)(t)
               for i in range(grid.count)]
    return np.nan_to_num(np.stack(columns, axis=-1))


def test_rows_are_scipys_basis_functions():
    np.testing.assert_allclose(GRID.rows(INSIDE_S), scipy_rows(GRID, INSIDE_S), atol=1e-12)


def test_rate_rows_are_scipys_derivatives():
    np.testing.assert_allclose(GRID.rate_rows(INSIDE_S), scipy_rows(GRID, INSIDE_S, 1), atol=1e-9)


@pytest.mark.parametrize("width_s", [1e-9, 1e-4, 0.004, 0.015, 0.033, 0.11])
def test_mean_rows_are_numeric_exposure_means(width_s):
    t = np.array([0.021, 0.0555, 0.09])
    expected = np.zeros((len(t), GRID.count))
    for row, middle in enumerate(t):
        for i in range(GRID.count):
            basis, knots = scipy_basis(GRID, i), GRID.spacing_s * (GRID.first + i + np.arange(-2.0, 3.0))
            low, high = np.clip([middle - width_s / 2, middle + width_s / 2], knots[0], knots[-1])
            inner = knots[(knots > low) & (knots < high)]
            area = quad(lambda s, b=basis: float(np.nan_to_num(b(s))), low, high, points=inner if len(inner) else None)
            expected[row, i] = area[0] / width_s
    np.testing.assert_allclose(GRID.mean_rows(t, width_s), expected, atol=1e-6)


def test_mean_rows_of_no_exposure_are_the_rows():
    np.testing.assert_array_equal(GRID.mean_rows(INSIDE_S, 0.0), GRID.rows(INSIDE_S))


@given(starts, lengths, spacings, st.floats(0, 1))
def test_rows_are_a_partition_of_unity_where_the_grid_covers(start, length, spacing, share):
    grid = KnotGrid.covering(start, start + length, spacing)
    t = start + share * length
    assert grid.rows(t).sum() == pytest.approx(1.0, abs=1e-9)
    assert np.all(grid.rows(t) >= 0)
    assert grid.rate_rows(t).sum() * spacing == pytest.approx(0.0, abs=1e-9)
    width = 2 * min(t - start, start + length - t)
    assert grid.mean_rows(t, width).sum() == pytest.approx(1.0, abs=1e-6)


@given(starts, lengths, spacings)
def test_a_covering_grid_has_no_knot_to_spare(start, length, spacing):
    grid = KnotGrid.covering(start, start + length, spacing)
    without_first = KnotGrid(spacing, grid.first + 1, grid.count - 1)
    without_last = KnotGrid(spacing, grid.first, grid.count - 1)
    off_knot = abs(start / spacing - round(start / spacing)) > 1e-3
    if off_knot:  # on a knot the outermost function is just zero
        assert without_first.rows(start).sum() < 1
    if abs((start + length) / spacing - round((start + length) / spacing)) > 1e-3:
        assert without_last.rows(start + length).sum() < 1


@given(st.floats(-0.2, 0.4), st.floats(0, 0.1))
def test_a_span_holds_every_knot_that_acts(start, length):
    span = GRID.span(start, start + length)
    t = start + length * np.linspace(0, 1, 9)
    outside = np.delete(np.arange(GRID.count), np.arange(GRID.count)[span])
    assert np.all(GRID.rows(t)[:, outside] == 0)
    assert np.all(GRID.rate_rows(t)[:, outside] == 0)
    np.testing.assert_array_equal(GRID.rows(t, span), GRID.rows(t)[:, span])
    np.testing.assert_array_equal(GRID.rate_rows(t, span), GRID.rate_rows(t)[:, span])
    for width in (0.0, 0.01):
        np.testing.assert_array_equal(GRID.mean_rows(t, width, span), GRID.mean_rows(t, width)[:, span])


def test_a_sliding_grid_keeps_the_meaning_of_its_knots():
    later = KnotGrid.covering(0.06, 0.2, GRID.spacing_s)
    shared = np.arange(later.first, GRID.first + GRID.count)
    t = np.array([0.07, 0.1])
    np.testing.assert_array_equal(later.rows(t)[:, shared - later.first], GRID.rows(t)[:, shared - GRID.first])


def test_rows_keep_the_shape_of_the_times():
    t = np.zeros((2, 3)) + 0.05
    assert GRID.rows(t).shape == GRID.rate_rows(t).shape == GRID.mean_rows(t, 0.01).shape == (2, 3, GRID.count)


def test_fitted_values_are_met_at_the_knots():
    t = GRID.centres_s
    values = np.stack([np.sin(2 * np.pi * 8 * t), 0.3 - 2 * t, t * t], axis=1)
    met = GRID.rows(t[1:-1]) @ GRID.fit_values(values)
    np.testing.assert_allclose(met, values[1:-1], atol=2e-4)


def test_a_straight_line_is_fitted_exactly():
    t = GRID.centres_s
    line = np.stack([1 + 3 * t, -t, 0 * t + 5], axis=1)
    np.testing.assert_allclose(GRID.fit_values(line), line, atol=1e-12)


@pytest.mark.parametrize(("knots_per_period", "left"), [(2, 0.03), (4, 6e-5), (8, 1e-7)])
def test_what_a_fit_leaves_of_an_oscillation(knots_per_period, left):
    grid = KnotGrid(0.01, 0, 60)
    values = np.cos(2 * np.pi * np.arange(60) / knots_per_period)[:, None]
    met = grid.rows(grid.centres_s[15:-15]) @ grid.fit_values(values)
    np.testing.assert_allclose(met, values[15:-15], atol=left)
