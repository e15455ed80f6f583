"""Displacement of a pixel under a turn about a pivot: the exact form is the truth, everything else is held to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros import so3
from perspblur_ros.camera import Camera
from perspblur_ros.displacement import (
    J_rotation,
    J_translation,
    blur_ratio,
    displacement,
    displacement_first_order,
    moved_pixels,
    shift_off_axis,
    shift_on_axis,
)

CAMERA = Camera(640, 480, 520.0, 510.0, 322.0, 236.0)
LEVER_ARM_M = np.array([0.03, -0.12, 0.15])

pixels = st.tuples(st.floats(0, 639), st.floats(0, 479)).map(np.array)
angles = st.floats(-0.3, 0.3)
small_vectors = st.tuples(angles, angles, angles).map(np.array)
depths_m = st.floats(0.5, 100.0)


def directions() -> np.ndarray:
    """A few hundred directions of a rotation axis, (N, 3)."""
    axes = np.random.default_rng(1).standard_normal((300, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def grid() -> np.ndarray:
    u, v = np.meshgrid(np.linspace(0, 639, 7), np.linspace(0, 479, 5))
    return np.stack([u.ravel(), v.ravel()], axis=1)


@given(pixels, small_vectors, depths_m)
def test_exact_displacement_is_what_a_point_in_space_does(pixel, phi, depth_m):
    """Carry the point into the turned camera by hand: pivot at rest at −r, optical centre at −r + R r."""
    R = so3.exp(phi)
    point = depth_m * CAMERA.rays(pixel)
    pivot = -LEVER_ARM_M
    centre = pivot + R @ LEVER_ARM_M
    seen = CAMERA.project(R.T @ (point - centre))
    np.testing.assert_allclose(moved_pixels(CAMERA, pixel, R, 1 / depth_m, LEVER_ARM_M), seen, atol=1e-8)


@given(pixels, small_vectors, depths_m, depths_m)
def test_pure_rotation_moves_every_depth_alike(pixel, phi, depth_a_m, depth_b_m):
    a, b = (displacement(CAMERA, pixel, so3.exp(phi), 1 / z, (0, 0, 0)) for z in (depth_a_m, depth_b_m))
    np.testing.assert_array_equal(a, b)


def test_lever_arm_makes_near_points_move_more():
    """Near the axis the kernel is the pure-rotation one scaled by 1 + r/Z."""
    R = so3.exp([0.0, 1e-4, 0.0])
    on_axis = np.array([CAMERA.cx, CAMERA.cy])
    far = displacement(CAMERA, on_axis, R, 0.0, (0, 0, 0.2))
    near = displacement(CAMERA, on_axis, R, 1 / 0.8, (0, 0, 0.2))
    assert near[0] / far[0] == pytest.approx(1 + 0.2 / 0.8, rel=1e-3)


@pytest.mark.parametrize(("angle_rad", "error_px"), [(0.01, 0.024), (0.05, 0.6)])
def test_first_order_is_as_good_as_it_says(angle_rad, error_px):
    """Root mean square over the picture and all axes of rotation; it grows with the square of the angle."""
    phi = angle_rad * directions()[:, None]
    exact = displacement(CAMERA, grid(), so3.exp(phi), 1 / 2.0, LEVER_ARM_M)
    linear = displacement_first_order(CAMERA, grid(), phi, 1 / 2.0, LEVER_ARM_M)
    rms = np.sqrt(np.mean(np.sum((exact - linear) ** 2, axis=-1)))
    assert rms == pytest.approx(error_px, rel=0.1)


@given(pixels, small_vectors, depths_m, st.floats(0.1, 10.0))
def test_only_the_ratio_of_lever_arm_and_depth_counts(pixel, phi, depth_m, metres_per_unit):
    here = displacement(CAMERA, pixel, so3.exp(phi), 1 / depth_m, LEVER_ARM_M)
    scaled = displacement(CAMERA, pixel, so3.exp(phi), 1 / (depth_m * metres_per_unit), LEVER_ARM_M * metres_per_unit)
    np.testing.assert_allclose(scaled, here, atol=1e-9)


@given(pixels, small_vectors)
def test_J_rotation_is_the_slope_of_the_exact_projection(pixel, phi):
    """With R ← R exp(δ) the pixel moves by B δ, B taken where the point is seen."""
    R, eps = so3.exp(phi), 1e-6
    seen = moved_pixels(CAMERA, pixel, R, 0.0, (0, 0, 0))
    steps = eps * np.eye(3)
    ahead = moved_pixels(CAMERA, pixel, R @ so3.exp(steps), 0.0, (0, 0, 0))
    behind = moved_pixels(CAMERA, pixel, R @ so3.exp(-steps), 0.0, (0, 0, 0))
    np.testing.assert_allclose(J_rotation(CAMERA, seen), (ahead - behind).T / (2 * eps), rtol=1e-5, atol=1e-4)


@given(pixels, depths_m)
def test_J_translation_is_the_slope_under_a_camera_translation(pixel, depth_m):
    eps = 1e-6
    point = depth_m * CAMERA.rays(pixel)
    ahead, behind = (CAMERA.project(point - sign * eps * np.eye(3)) for sign in (1, -1))
    slope = (ahead - behind).T / (2 * eps)
    np.testing.assert_allclose(J_translation(CAMERA, pixel) / depth_m, slope, rtol=1e-5, atol=1e-4)


@given(pixels, small_vectors, depths_m)
def test_first_order_is_the_tangent_of_the_exact_form(pixel, phi, depth_m):
    eps = 1e-5
    ahead, behind = (
        displacement(CAMERA, pixel, so3.exp(sign * eps * phi), 1 / depth_m, LEVER_ARM_M) for sign in (1, -1)
    )
    slope = (ahead - behind) / (2 * eps)
    np.testing.assert_allclose(
        displacement_first_order(CAMERA, pixel, phi, 1 / depth_m, LEVER_ARM_M), slope, rtol=1e-5, atol=1e-4
    )


def test_shapes_broadcast_over_times_and_points():
    R = so3.exp(0.01 * directions()[:7, None])
    d = displacement(CAMERA, grid(), R, np.full(35, 0.5), LEVER_ARM_M)
    assert d.shape == (7, 35, 2)
    one = displacement(CAMERA, grid()[3], R[2, 0], 0.5, LEVER_ARM_M)
    np.testing.assert_allclose(d[2, 3], one)


fields = st.floats(-0.6, 0.6)


@given(angles, fields, st.floats(0.002, 2.0))
def test_corrected_equations_are_the_difference_of_two_tangents(theta, field_angle, image_distance):
    """Eqs. (1), (2), (4): a ray at field angle φ meets the image plane at v tan φ, after the turn at v tan(φ + θ)."""
    off = shift_off_axis(theta, field_angle, image_distance)
    expected = -image_distance * (np.tan(field_angle + theta) - np.tan(field_angle))
    assert off == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert shift_on_axis(theta, image_distance) == pytest.approx(-image_distance * np.tan(theta))


@given(st.floats(0.01, 0.3), fields)
def test_blur_ratio_is_off_axis_over_on_axis_shift(theta, field_angle):
    ratio = (np.tan(field_angle + theta) - np.tan(field_angle)) / np.tan(theta)
    assert blur_ratio(theta, field_angle) == pytest.approx(ratio, rel=1e-9)


@given(angles, fields)
def test_corrected_equations_agree_with_the_camera_model(theta, field_angle):
    """A pan by θ: along the image's x axis the exact displacement is Eq. (2) with v = f."""
    pixel = np.array([CAMERA.cx + CAMERA.fx * np.tan(field_angle), CAMERA.cy])
    d = displacement(CAMERA, pixel, so3.exp([0.0, -theta, 0.0]), 0.3, (0, 0, 0))
    assert d[0] == pytest.approx(-shift_off_axis(theta, field_angle, CAMERA.fx), abs=1e-9)
