"""Points to depth maps: against a plain Gaussian process, and what must hold for any points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perspblur_ros.depth_filter import JITTER, REACH, SPREAD, UNMEASURED_VARIANCE, Grid, rasterise

GRID = Grid(12, 16, 480, 640)


def points(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform([0, 0], [640, 480], (n, 2)), rng.uniform(0.2, 1.5, n), rng.uniform(0.01, 0.1, n) ** 2


def plain_process(pixels, rho, covariance, at, level):
    """Inverse depth at one pixel and its variance: joint Gaussian with a nearly flat mean, conditioned directly."""
    flat = 1e6
    x = np.concatenate([pixels, [at]]) / 640
    prior = np.array([[SPREAD**2 * np.exp(-np.linalg.norm(a - b) / REACH) for a in x] for b in x]) + flat
    K = prior[:-1, :-1] + covariance / level**2 + JITTER * np.eye(len(rho))
    gain = np.linalg.solve(K, prior[:-1, -1])
    return level * gain @ (rho / level), level**2 * (prior[-1, -1] - gain @ prior[:-1, -1])


@pytest.mark.parametrize("shared_sd", [0.0, 0.2])
def test_a_map_is_the_posterior_of_the_process(shared_sd):
    pixels, rho, variance = points(1)
    rho, variance = rho.round(1), np.full(len(rho), 0.0025)
    covariance = np.diag(variance) + shared_sd**2 * np.outer(rho, rho)
    log_depth, log_variance = rasterise(pixels, rho, covariance, GRID)
    level = np.sort(rho)[len(rho) // 2 - 1] if shared_sd == 0 else None
    if level is None:  # the weights of the median are not equal: take it from the function's own definition
        order = np.argsort(rho)
        total = np.cumsum((1 / covariance.diagonal())[order])
        level = rho[order][np.searchsorted(total, total[-1] / 2)]
    for cell in (0, 37, 100, 191):
        mean, var = plain_process(pixels, rho, covariance, GRID.centres()[cell], level)
        assert np.exp(-log_depth.ravel()[cell]) == pytest.approx(mean, rel=1e-4)
        assert log_variance.ravel()[cell] == pytest.approx(var / mean**2, rel=1e-3)


def test_where_nothing_is_measured_nothing_is_known():
    for n in (0, 3):
        out = rasterise(np.full((n, 2), 100.0), np.full(n, np.nan), np.full(n, 0.01), GRID)
        assert out.shape == (2, 12, 16)
        assert np.all(out[0] == 0)
        assert np.all(out[1] == UNMEASURED_VARIANCE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0))
def test_a_world_of_another_size_gives_the_same_map_scaled(seed, scale):
    pixels, rho, variance = points(seed)
    near = rasterise(pixels, rho, variance, GRID)
    far = rasterise(pixels, rho / scale, variance / scale**2, GRID)
    inside = near[0] < np.log(100 / max(scale, 1)) - 0.01
    assert np.allclose((far[0] - near[0])[inside], np.log(scale), atol=1e-3)
    assert np.allclose(far[1][inside], near[1][inside], rtol=1e-2, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_every_map_is_finite_and_another_point_never_adds_doubt(seed):
    pixels, rho, variance = points(seed, 20)
    rho = np.full(20, 0.5)  # equal ones, so that the linearised variance of the log depth does not move with the mean
    fewer, more = rasterise(pixels[:-1], rho[:-1], variance[:-1], GRID), rasterise(pixels, rho, variance, GRID)
    assert np.isfinite(more).all()
    assert np.all(more[1] <= fewer[1] + 1e-6)


def test_doubt_grows_with_the_distance_to_the_points():
    log_variance = rasterise([[20.0, 240.0], [30.0, 250.0]], [0.5, 0.5], [1e-6, 1e-6], Grid(1, 16, 480, 640))[1, 0]
    assert np.all(np.diff(log_variance[1:]) > 0)


def test_an_error_that_all_points_share_does_not_average_out():
    rng = np.random.default_rng(3)
    pixels, rho, variance = rng.normal([300, 220], 2, (40, 2)), np.full(40, 0.5), np.full(40, 0.05**2)
    shared = np.eye(40) * 1e-6 + variance[0]
    assert rasterise(pixels, rho, shared, GRID)[1].min() > 0.1**2
    assert rasterise(pixels, rho, variance, GRID)[1].min() < 0.8 * 0.1**2


def test_many_cells_are_interpolated_between_fewer():
    pixels, rho, variance = points(4)
    fine = rasterise(pixels, rho, variance, Grid(96, 128, 480, 640))
    coarse = rasterise(pixels, rho, variance, Grid(24, 32, 480, 640))
    assert fine.shape == (2, 96, 128)
    means = fine[0].reshape(24, 4, 32, 4).mean(axis=(1, 3))
    assert np.median(np.abs(means - coarse[0])) < 0.02


def test_points_of_no_inverse_depth_are_far_and_not_infinite():
    log_depth, log_variance = rasterise(points(5)[0], np.zeros(40), np.full(40, 0.01), GRID)
    assert np.allclose(log_depth, np.log(100), atol=1e-3)
    assert log_variance.min() > 1
