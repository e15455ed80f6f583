"""Rotations: exponential and logarithm from zero to half a turn, Jacobians against differences, interpolation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation, Slerp

from perspblur_ros import so3

unit = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array).filter(lambda v: np.linalg.norm(v) > 0.1)
axes = unit.map(lambda v: v / np.linalg.norm(v))
angles = st.one_of(st.floats(0, 3.1), st.floats(0, 1e-3), st.sampled_from([0.0, 1e-12, 1e-8, 9.9e-5, 1.01e-4]))
vectors = st.builds(lambda axis, angle: axis * angle, axes, angles)


@given(vectors)
def test_exp_is_the_matrix_exponential(phi):
    np.testing.assert_allclose(so3.exp(phi), expm(so3.hat(phi)), atol=1e-13)


@given(vectors)
def test_exp_gives_a_rotation(phi):
    R = so3.exp(phi)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-13)
    assert np.linalg.det(R) == pytest.approx(1.0)


@given(vectors)
def test_log_undoes_exp(phi):
    np.testing.assert_allclose(so3.log(so3.exp(phi)), phi, atol=1e-9)


@given(axes, st.sampled_from([np.pi - 1e-3, np.pi - 1e-7, np.pi, np.pi + 1e-7, np.pi + 0.5]))
def test_log_near_half_a_turn_stays_a_log(axis, angle):
    R = so3.exp(axis * angle)
    phi = so3.log(R)
    assert np.linalg.norm(phi) <= np.pi + 1e-9
    np.testing.assert_allclose(so3.exp(phi), R, atol=1e-7)


@given(unit, unit)
def test_hat_is_the_cross_product(v, w):
    np.testing.assert_allclose(so3.hat(v) @ w, np.cross(v, w), atol=1e-14)


@given(vectors)
def test_J_right_against_differences(phi):
    eps = 1e-6
    R_inverse = so3.exp(phi).T
    slope = np.stack(
        [so3.log(R_inverse @ so3.exp(phi + d)) - so3.log(R_inverse @ so3.exp(phi - d)) for d in eps * np.eye(3)], axis=1
    ) / (2 * eps)
    np.testing.assert_allclose(so3.J_right(phi), slope, atol=1e-7)


@given(vectors)
def test_J_right_inv_is_the_inverse(phi):
    np.testing.assert_allclose(so3.J_right_inv(phi) @ so3.J_right(phi), np.eye(3), atol=1e-9)


@pytest.mark.parametrize("angle", [0.5e-4, 0.99e-4, 1.01e-4, 2e-4])
def test_both_sides_of_the_switch_to_the_series(angle):
    phi = angle * np.array([0.48, -0.6, 0.64])
    K = so3.hat(phi)
    np.testing.assert_allclose(so3.exp(phi), expm(K), atol=1e-15)
    np.testing.assert_allclose(so3.J_right(phi), np.eye(3) - K / 2 + K @ K / 6 - K @ K @ K / 24, atol=1e-11)


@given(vectors)
def test_quaternions_there_and_back(phi):
    R = so3.exp(phi)
    q = so3.to_quat_xyzw(R)
    assert np.linalg.norm(q) == pytest.approx(1.0)
    np.testing.assert_allclose(so3.from_quat_xyzw(q), R, atol=1e-12)
    np.testing.assert_allclose(np.abs(q[3]), np.cos(np.linalg.norm(phi) / 2), atol=1e-9)


def test_batches_keep_their_shape():
    phi = np.random.default_rng(0).normal(0, 0.5, (2, 5, 3))
    R = so3.exp(phi)
    assert R.shape == (2, 5, 3, 3)
    assert so3.log(R).shape == (2, 5, 3)
    assert so3.to_quat_xyzw(R).shape == (2, 5, 4)
    np.testing.assert_allclose(so3.exp(phi[1, 3]), R[1, 3])
    np.testing.assert_allclose(so3.from_quat_xyzw(so3.to_quat_xyzw(R)), R, atol=1e-12)


@given(st.lists(vectors, min_size=2, max_size=6), st.integers(0, 2**31))
def test_interpolation_is_slerp(phis, seed):
    knots_s = np.cumsum(np.random.default_rng(seed).uniform(0.01, 0.1, len(phis)))
    R = so3.exp(np.array(phis))
    t_s = np.linspace(knots_s[0], knots_s[-1], 17)
    expected = Slerp(knots_s, Rotation.from_matrix(R))(t_s).as_matrix()
    np.testing.assert_allclose(so3.interpolate(t_s, knots_s, R), expected, atol=1e-7)


def test_interpolation_holds_the_ends_and_takes_one_knot():
    R = so3.exp(np.array([[0.0, 0.1, 0.0], [0.0, 0.2, 0.3]]))
    np.testing.assert_allclose(so3.interpolate([-5.0, 0.0, 9.0], [0.0, 1.0], R), R[[0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(so3.interpolate([-1.0, 2.0], [0.5], R[:1]), R[[0, 0]])


@given(vectors, st.floats(0.0, 0.2), axes)
def test_mean_of_a_symmetric_pair_is_their_middle(phi, half_angle, axis):
    middle = so3.exp(phi)
    pair = np.stack([middle @ so3.exp(axis * half_angle), middle @ so3.exp(-axis * half_angle)])
    np.testing.assert_allclose(so3.mean(pair), middle, atol=1e-9)
    np.testing.assert_allclose(so3.mean(pair, weights=[1.0, 0.0]), pair[0], atol=1e-9)


@given(vectors, unit)
def test_rotate_is_the_matrix_times_the_vector(phi, v):
    np.testing.assert_allclose(so3.rotate(phi, v), so3.exp(phi) @ v, atol=1e-13)


def test_rotate_broadcasts():
    phi, v = np.full((4, 1, 3), 0.1), np.ones((5, 3))
    np.testing.assert_allclose(so3.rotate(phi, v), np.einsum("nkij,kj->nki", so3.exp(phi), v), atol=1e-15)
