"""Inverse depth of points: looked up in a map that another pose saw, and what is assumed where nothing is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros import so3
from perspblur_ros.camera import Camera
from perspblur_ros.depth_prior import ASSUMED_RHO, ASSUMED_RHO_SD, DepthPrior

CAMERA = Camera(320, 240, 260.0, 250.0, 155.0, 122.0)
EYE = np.eye(3)
GRID = np.stack(np.meshgrid(np.linspace(60, 260, 6), np.linspace(50, 190, 5)), -1).reshape(-1, 2)

small_turns = st.tuples(*[st.floats(-0.15, 0.15)] * 3).map(lambda v: so3.exp(np.array(v)))


def tilted_plane(camera: Camera, width: int, height: int) -> np.ndarray:
    """Depth map of the plane n·X = 1 with n = (0.1, −0.05, 0.5), at any resolution: 1/Z is linear in the ray."""
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    raw = np.stack([(u + 0.5) * camera.width / width - 0.5, (v + 0.5) * camera.height / height - 0.5], axis=-1)
    rays = camera.rays(camera.undistort(raw.reshape(-1, 2))).reshape(height, width, 3)
    return (1 / (rays @ (0.1, -0.05, 0.5))).astype(np.float32)


def one_sighting(R_start_from_frame: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sightings (N, 1, 2) of points (N, 3, start frame) by one camera at the pivot, and its pose."""
    return CAMERA.project(points @ R_start_from_frame)[:, None], R_start_from_frame[None]


def on_the_plane() -> np.ndarray:
    rays = CAMERA.rays(GRID)
    return rays / (rays @ (0.1, -0.05, 0.5))[:, None]


def test_without_a_map_an_ordinary_room_is_assumed():
    rho, sd, _ = DepthPrior().inverse_depths(CAMERA, GRID[:, None], EYE[None], EYE)
    np.testing.assert_array_equal(rho, np.full(len(GRID), ASSUMED_RHO))
    np.testing.assert_array_equal(sd, np.full(len(GRID), ASSUMED_RHO_SD))


@given(small_turns, small_turns, small_turns)
def test_a_plane_is_found_again_whatever_turned(R_start_from_map, R_start_from_frame, R_start_from_ref):
    """The map, the sighting and the reference each belong to another pose; the points' true depths are known."""
    prior = DepthPrior()
    prior.set_map(tilted_plane(CAMERA, 320, 240), R_start_from_map)
    points = on_the_plane() @ R_start_from_map.T  # of the plane as the map's camera sees it, in the start frame
    ideal, R_frames = one_sighting(R_start_from_frame, points)
    rho, sd, _ = prior.inverse_depths(CAMERA, ideal, R_frames, R_start_from_ref)
    truth = 1 / (points @ R_start_from_ref)[:, 2]
    np.testing.assert_allclose(rho, truth, rtol=0.003)  # half a pixel of the map's raster
    np.testing.assert_array_less(sd, 0.1 * truth + 0.011)


@pytest.mark.parametrize("size", [(160, 120), (640, 480), (80, 60)])
def test_a_map_of_another_resolution_covers_the_same_picture(size):
    prior = DepthPrior()
    prior.set_map(tilted_plane(CAMERA, *size), EYE)
    rho, *_ = prior.inverse_depths(CAMERA, GRID[:, None], EYE[None], EYE)
    np.testing.assert_allclose(rho, CAMERA.rays(GRID) @ (0.1, -0.05, 0.5), atol=0.3 / size[0])


@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_a_step_in_depth_lies_on_the_right_pixel(scale):
    """Picture columns 0 … 99 are far, whatever the map's raster."""
    depth = np.full((int(240 * scale), int(320 * scale)), 4.0, np.float32)
    depth[:, int(100 * scale) :] = 1.0
    prior = DepthPrior()
    prior.set_map(depth, EYE)
    points = np.array([[99.4, 120.0], [99.6, 120.0]])
    rho, *_ = prior.inverse_depths(CAMERA, points[:, None], EYE[None], EYE)
    np.testing.assert_allclose(rho, [0.25, 1.0])


@pytest.mark.parametrize("hole", [np.nan, 0.0, -1.0])
def test_holes_and_what_lies_outside_fall_back_to_the_room(hole):
    depth = np.full((240, 320), 2.0, np.float32)
    depth[100:140, 140:180] = hole
    prior = DepthPrior()
    prior.set_map(depth, so3.exp([0.0, 0.5, 0.0]))  # the map looks to the side: the picture's left is not in it
    R = so3.exp([0.0, 0.5, 0.0])
    points = np.array([[160.0, 120.0], [40.0, 120.0], [160.0, 60.0]])
    rho, sd, _ = prior.inverse_depths(CAMERA, points[:, None], R[None], R)
    assert (rho[0], sd[0]) == (ASSUMED_RHO, ASSUMED_RHO_SD)
    np.testing.assert_allclose(rho[1:], 0.5)
    rho, sd, _ = prior.inverse_depths(CAMERA, points[1:2, None], EYE[None], EYE)
    assert (rho[0], sd[0]) == (ASSUMED_RHO, ASSUMED_RHO_SD)


def test_rays_that_point_backwards_are_not_looked_up():
    prior = DepthPrior()
    prior.set_map(np.full((240, 320), 2.0, np.float32), EYE)
    behind = so3.exp([0.0, np.pi, 0.0])
    rho, sd, _ = prior.inverse_depths(CAMERA, GRID[:, None], behind[None], behind)
    assert np.all(rho == ASSUMED_RHO)
    assert np.all(sd == ASSUMED_RHO_SD)


@pytest.mark.parametrize("lens", [
    {"distortion": (-0.3, 0.1, 0.001, -0.002)},
    {"distortion": (0.1, -0.02, 0.0, 0.0), "fisheye": True},
], ids=["barrel", "fisheye"])
def test_a_map_has_its_cameras_distortion(lens):
    camera, R = replace(CAMERA, **lens), so3.exp([0.02, -0.1, 0.03])
    prior = DepthPrior()
    prior.set_map(tilted_plane(camera, 320, 240), EYE)
    points = on_the_plane()
    rho, *_ = prior.inverse_depths(camera, camera.project(points @ R)[:, None], R[None], EYE)
    np.testing.assert_allclose(rho, 1 / points[:, 2], rtol=0.004)


@pytest.mark.parametrize("lens", [
    {},
    {"distortion": (-0.3, 0.1, 0.001, -0.002)},
    {"distortion": (-0.2, 0.06, 0.0, 0.0, -0.01, 0.05, 0.0, 0.0)},
    {"distortion": (0.1, -0.02, 0.0, 0.0), "fisheye": True},
], ids=["none", "barrel", "rational", "fisheye"])
def test_distorting_undoes_undistorting(lens):
    camera = replace(CAMERA, **lens)
    np.testing.assert_allclose(camera.distort(camera.undistort(GRID)), GRID, atol=0.01)


def test_a_lens_model_that_folds_over_is_not_believed():
    """Far outside the picture a barrel's polynomial comes back inside; nothing is seen there."""
    camera = replace(CAMERA, distortion=(-0.4, 0.0, 0.0, 0.0))
    assert np.all(np.isnan(camera.distort([[1500.0, 122.0], [155.0, -2000.0]])))
    assert len(camera.distort(np.zeros((0, 2)))) == 0


def test_the_newest_sighting_counts():
    prior = DepthPrior()
    prior.set_map(tilted_plane(CAMERA, 320, 240), EYE)
    turned = so3.exp([0.0, 0.1, 0.0])
    points = on_the_plane()
    misleading, newest = CAMERA.project(points) + 40.0, CAMERA.project(points @ turned)
    ideal = np.stack([misleading, newest, np.full(GRID.shape, np.nan)], axis=1)
    rho, *_ = prior.inverse_depths(CAMERA, ideal, np.stack([EYE, turned, EYE]), EYE)
    np.testing.assert_allclose(rho, 1 / points[:, 2], rtol=0.003)


def test_no_points_are_no_trouble():
    prior = DepthPrior()
    prior.set_map(np.full((240, 320), 2.0, np.float32), EYE)
    rho, sd, _ = prior.inverse_depths(CAMERA, np.zeros((0, 1, 2)), EYE[None], EYE)
    assert rho.shape == sd.shape == (0,)
