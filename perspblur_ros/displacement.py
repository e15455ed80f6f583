"""How a pixel moves when the camera turns about a pivot (DESIGN of the method: physics of perspective-based blur).

A point on ray m at inverse depth ρ = 1/Z, seen by a camera turned by R about a pivot that lies −r from the optical
centre (``lever_arm`` r: pivot → optical centre, metres, optical frame), appears at π(K [Rᵀ m + ρ (Rᵀ − I) r]).

With r = 0 the depth cancels exactly: pure rotation blurs all depths alike. The paper's Eqs. (2) and (4) as printed
carry a depth (``l − y²``, a length minus a squared length); the corrected forms below have ``l² + y²`` in its place
and depend on the field angle alone. Depth enters only through ρ r.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .camera import Camera

FloatArray = NDArray[np.float64]


def moved_pixels(
    camera: Camera, ideal: ArrayLike, R_ref_from_cam: ArrayLike, inverse_depth: ArrayLike, lever_arm_m: ArrayLike
) -> FloatArray:
    """Exact pixels after the rotation.

    ideal (..., 2) pixels at the reference; R_ref_from_cam (..., 3, 3); inverse_depth (...) 1/m along the optical axis;
    lever_arm_m (3,) → (..., 2) ideal pixels.
    """
    R = np.asarray(R_ref_from_cam, float)
    r = np.asarray(lever_arm_m, float)
    rho = np.asarray(inverse_depth, float)[..., None]
    point = camera.rays(ideal) + rho * r
    return camera.project(np.einsum("...ji,...j->...i", R, point) - rho * r)


def displacement(
    camera: Camera, ideal: ArrayLike, R_ref_from_cam: ArrayLike, inverse_depth: ArrayLike, lever_arm_m: ArrayLike
) -> FloatArray:
    """Exact displacement d = π(K[Rᵀm + ρ(Rᵀ − I)r]) − π(Km), pixels; arguments as ``moved_pixels``."""
    return moved_pixels(camera, ideal, R_ref_from_cam, inverse_depth, lever_arm_m) - np.asarray(ideal, float)


def J_rotation(camera: Camera, ideal: ArrayLike) -> FloatArray:
    """B(u, v): pixels per radian of a body-frame rotation; (..., 2) → (..., 2, 3).

    For fx = fy = f and (u, v) from the principal point, [[uv/f, −(f+u²/f), v], [f+v²/f, −uv/f, −u]].
    Exact for increments: with R ← R exp(δ) the pixel moves by B δ at the pixel where the point is seen.
    """
    ray = camera.rays(ideal)
    x, y = ray[..., 0], ray[..., 1]
    J = np.empty((*x.shape, 2, 3))
    J[..., 0, 0], J[..., 0, 1], J[..., 0, 2] = x * y, -(1 + x * x), y
    J[..., 1, 0], J[..., 1, 1], J[..., 1, 2] = 1 + y * y, -x * y, -x
    J[..., 0, :] *= camera.fx
    J[..., 1, :] *= camera.fy
    return J


def J_translation(camera: Camera, ideal: ArrayLike) -> FloatArray:
    """A(u, v): pixels per (metre × inverse depth) of a camera translation in its own frame; (..., 2) → (..., 2, 3).

    For fx = fy = f, [[−f, 0, u], [0, −f, v]].
    """
    ray = camera.rays(ideal)
    J = np.zeros((*ray.shape[:-1], 2, 3))
    J[..., 0, 0], J[..., 1, 1] = -camera.fx, -camera.fy
    J[..., 0, 2], J[..., 1, 2] = camera.fx * ray[..., 0], camera.fy * ray[..., 1]
    return J


def displacement_first_order(
    camera: Camera, ideal: ArrayLike, phi: ArrayLike, inverse_depth: ArrayLike, lever_arm_m: ArrayLike
) -> FloatArray:
    """d ≈ B φ + ρ A (φ × r); phi (..., 3) rad. Error about 0.02 px at 10 mrad and 0.6 px at 50 mrad (f ≈ 500 px)."""
    phi = np.asarray(phi, float)
    rho = np.asarray(inverse_depth, float)[..., None]
    v = np.cross(phi, np.asarray(lever_arm_m, float))
    return np.einsum("...ij,...j->...i", J_rotation(camera, ideal), phi) + rho * np.einsum(
        "...ij,...j->...i", J_translation(camera, ideal), v
    )


def shift_on_axis(theta_rad: ArrayLike, image_distance: ArrayLike) -> FloatArray:
    """Eq. (1): shift of the on-axis point, −v tan θ, v = l f′/(l + f′) the image distance (any length unit).

    The object distance l enters only through v, the focus distance of the sensor, which all points share.
    """
    return -np.asarray(image_distance, float) * np.tan(theta_rad)


def shift_off_axis(theta_rad: ArrayLike, field_angle_rad: ArrayLike, image_distance: ArrayLike) -> FloatArray:
    """Eq. (2), corrected: −v tan θ (l² + y²)/(l (l − y tan θ)) with tan φ = y/l, which is −v [tan(φ+θ) − tan φ]."""
    return shift_on_axis(theta_rad, image_distance) * blur_ratio(theta_rad, field_angle_rad)


def blur_ratio(theta_rad: ArrayLike, field_angle_rad: ArrayLike) -> FloatArray:
    """Eq. (4), corrected: δ_off/δ_on = (1 + tan²φ)/(1 − tan φ tan θ), a function of the field angle φ alone."""
    t = np.tan(field_angle_rad)
    return (1 + t * t) / (1 - t * np.tan(theta_rad))
