"""Points to depth maps: against a plain Gaussian process, and what must hold for any points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perspblur_ros import so3
from perspblur_ros.camera import Camera
from perspblur_ros.depth_filter import (
    JITTER,
    MAX_POINTS,
    PRIOR_RHO,
    REACH,
    SPREAD,
    UNMEASURED_VARIANCE,
    DepthFilter,
    Grid,
    Points,
    own_and_scale,
    rasterise,
    with_prior,
)
from perspblur_ros.displacement import moved_pixels

UNIT = Camera(2, 2, 1.0, 1.0, 0.0, 0.0)
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


def test_a_map_is_the_posterior_of_the_process():
    pixels, rho, variance = points(1)
    variance[:] = 0.0025
    log_depth, log_variance = rasterise(pixels, rho, variance, GRID)
    level = np.sort(rho)[len(rho) // 2 - 1]
    for cell in (0, 37, 100, 191):
        mean, var = plain_process(pixels, rho, np.diag(variance), GRID.centres()[cell], level)
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


def test_an_error_that_all_points_share_is_in_every_cell():
    pixels, rho, variance = points(3)
    alone, shared = rasterise(pixels, rho, variance, GRID), rasterise(pixels, rho, variance, GRID, 0.04)
    np.testing.assert_array_equal(alone[0], shared[0])
    np.testing.assert_allclose(shared[1], alone[1] + 0.04, rtol=1e-5)


def test_a_covariance_is_taken_apart_into_own_and_shared_errors():
    _, rho, variance = points(3)
    own, scale_variance = own_and_scale(rho, np.diag(variance) + 0.05**2 * np.outer(rho, rho))
    assert scale_variance == pytest.approx(0.05**2, rel=0.1)
    np.testing.assert_allclose(own, variance, rtol=0.05, atol=0.05**2 * 0.1)


def test_the_prior_counts_only_where_little_is_measured():
    log_depth, variance = with_prior(np.array([[[1.5, 1.5, 0.0]], [[1e-4, 1e3, UNMEASURED_VARIANCE]]]))
    assert log_depth[0, 0] == pytest.approx(1.5, abs=1e-3)
    assert variance[0, 0] == pytest.approx(1e-4, rel=1e-2)
    assert log_depth[0, 1:] == pytest.approx(-np.log(PRIOR_RHO), abs=0.01)
    assert variance[0, 2] == pytest.approx(1.0, rel=0.01)


# --- over time --------------------------------------------------------------------------------------------------------

ARM_M = np.array([0.03, -0.1, 0.15])


def seen(seed: int, n: int = 60) -> tuple[Points, np.ndarray]:
    """Points of a scene as the start frame sees them, and their true inverse depths."""
    rng = np.random.default_rng(seed)
    rho = rng.uniform(0.3, 1.0, n)
    return Points(np.arange(n), rng.uniform(-0.5, 0.5, (n, 2)), rho, np.full(n, 0.02**2), 0.01), rho


turns = st.tuples(*[st.floats(-0.2, 0.2)] * 3).map(lambda v: so3.exp(np.array(v)))


@settings(max_examples=30, deadline=None)
@given(turns, turns)
def test_points_turn_as_the_exact_displacement_says(R_start_from_a, R_start_from_b):
    points, _ = seen(0)
    a = points.seen_from(R_start_from_a.T, ARM_M)
    expected = moved_pixels(UNIT, UNIT.project(np.c_[points.rays, np.ones(60)]), R_start_from_a, points.rho, ARM_M)
    np.testing.assert_allclose(UNIT.project(np.c_[a.rays, np.ones(60)]), expected, atol=1e-9)
    direct = points.seen_from(R_start_from_b.T, ARM_M)
    by_a = a.seen_from(R_start_from_b.T @ R_start_from_a, ARM_M)
    np.testing.assert_allclose(by_a.rays, direct.rays, atol=1e-9)
    np.testing.assert_allclose(by_a.rho, direct.rho, atol=1e-9)


def test_windows_of_other_data_add_up_and_the_same_window_twice_does_not():
    truth, _ = seen(1)
    for share, expected in ((1.0, 0.5), (1e-6, 1.0)):
        fused = DepthFilter(ARM_M)
        for _ in range(2):
            fused.add(truth, np.eye(3), share, 0.0)
        points = fused.points(np.eye(3))
        np.testing.assert_allclose(points.variance, expected * truth.variance, rtol=0.01)
        assert points.scale_variance == pytest.approx(expected * truth.scale_variance, rel=0.01)


def test_over_time_depths_and_their_scale_become_better_and_know_it():
    truth, rho = seen(2)
    rng, fused, errors = np.random.default_rng(0), DepthFilter(ARM_M), []
    for k in range(30):
        R = so3.exp(0.1 * np.sin([0.3 * k, 0.5 * k, 0.2 * k]))
        here = truth.seen_from(R.T, ARM_M)
        noisy = (here.rho + 0.1 * rng.standard_normal(60)) * np.exp(0.2 * rng.standard_normal())
        fused.add(replace(here, rho=noisy, variance=np.full(60, 0.01), scale_variance=0.04), R, 1.0, 0.03)
        points = fused.points(np.eye(3))
        errors.append(np.abs(points.rho - rho).mean())
    assert np.mean(errors[-5:]) < 0.3 * np.mean(errors[:3])
    error = points.rho - rho
    assert np.mean(np.abs(error) < np.sqrt(points.variance + points.scale_variance * points.rho**2)) > 0.4


def test_points_that_are_lost_are_remembered_with_growing_doubt_and_the_memory_is_bounded():
    fused, (points, _) = DepthFilter(ARM_M), seen(3)
    fused.add(points, np.eye(3), 1.0, 0.0)
    for k in range(1, 20):
        fused.add(replace(points, ids=points.ids + 60 * k, rho=points.rho), np.eye(3), 1.0, 1.0)
    kept = fused.points(np.eye(3))
    assert len(kept.ids) == MAX_POINTS
    assert np.all(np.diff(kept.ids) > 0)
    lost = kept.variance[kept.ids < 60 * 19]
    assert lost.min() > points.variance[0]
    fused.reset()
    assert fused.points(np.eye(3)) is None


def test_many_points_are_merged_with_little_change():
    rng = np.random.default_rng(6)
    pixels = rng.uniform([0, 0], [640, 480], (600, 2))
    truth = 0.5 + 0.2 * np.sin(pixels[:, 0] / 100) + 0.1 * pixels[:, 1] / 480
    rho = truth + 0.05 * rng.standard_normal(600)
    merged = rasterise(pixels, rho, np.full(600, 0.05**2), GRID)
    fewer = rasterise(pixels[::3], rho[::3], np.full(200, 0.05**2), GRID)
    centres = GRID.centres()
    true_log = -np.log(0.5 + 0.2 * np.sin(centres[:, 0] / 100) + 0.1 * centres[:, 1] / 480)
    assert np.abs(merged[0].ravel() - true_log).mean() < np.abs(fewer[0].ravel() - true_log).mean()
    assert merged[1].mean() < fewer[1].mean()


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


def test_points_with_negative_ids_are_never_taken_for_known_ones():
    """Two windows' nameless points stay apart, whatever their names; known ones are fused."""
    eye, n = np.eye(3), 6
    ids = np.array([-3, -2, -1, 4, 5, 6])
    first = Points(ids, np.zeros((n, 2)), np.full(n, 0.5), np.full(n, 0.01), 0.0)
    second = Points(ids, np.zeros((n, 2)), np.full(n, 0.5), np.full(n, 0.01), 0.0)
    stream = DepthFilter(np.zeros(3))
    stream.add(first, eye, 1.0, 0.1)
    stream.add(second, eye, 1.0, 0.1)
    kept = stream.points(eye)
    assert kept is not None
    assert np.sum(kept.ids < 0) == 6
    assert np.sum(kept.ids >= 0) == 3
    assert kept.variance[kept.ids >= 0].max() < 0.008 < kept.variance[kept.ids < 0].min()
