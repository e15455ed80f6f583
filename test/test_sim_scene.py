"""Scenes: loading, holes, resizing with consistent intrinsics, the frame cut from the middle; the sensor."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros.camera import Camera
from perspblur_ros.errors import BagError, FrameError
from perspblur_ros.sim.scene import (
    Scene,
    fill_holes,
    load_depth,
    load_picture,
    load_rgbd,
    motorcycle,
    procedural,
    textured_plane,
    view_camera,
)
from perspblur_ros.sim.sensor import NOISELESS, Sensor, decode_srgb, encode_srgb

CAMERA = Camera(40, 30, 35.0, 36.0, 20.5, 14.0)


@pytest.fixture
def pair(tmp_path):
    """A colour picture and a depth PNG in millimetres with a hole."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (30, 40, 3), np.uint8)
    depth_mm = rng.integers(500, 4000, (30, 40)).astype(np.uint16)
    depth_mm[10:13, 20:22] = 0
    cv2.imwrite(str(tmp_path / "rgb.png"), rgb[..., ::-1])
    cv2.imwrite(str(tmp_path / "depth.png"), depth_mm)
    return tmp_path / "rgb.png", tmp_path / "depth.png", rgb, depth_mm


def test_a_picture_with_depth(pair):
    rgb_path, depth_path, rgb, depth_mm = pair
    scene = load_rgbd(rgb_path, depth_path, 1000.0, CAMERA)
    np.testing.assert_array_equal(NOISELESS.encode(scene.image), rgb)
    seen = depth_mm > 0
    np.testing.assert_allclose(scene.depth_m[seen], depth_mm[seen] / 1000.0, rtol=1e-6)
    assert np.all(scene.depth_m > 0)


def test_a_depth_map_of_another_size_is_resampled(pair, tmp_path):
    rgb_path, _, _, _ = pair
    cv2.imwrite(str(tmp_path / "small.png"), np.full((15, 20), 2000, np.uint16))
    scene = load_rgbd(rgb_path, tmp_path / "small.png", 1000.0, CAMERA)
    np.testing.assert_allclose(scene.depth_m, np.full((30, 40), 2.0))


def test_holes_take_the_nearest_depth():
    depth = np.array([[1.0, np.nan, np.nan, 4.0], [0.0, np.inf, -3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(fill_holes(depth), [[1, 1, 4, 4], [1, 1, 4, 4]])
    with pytest.raises(FrameError, match="no valid pixel"):
        fill_holes(np.full((3, 3), np.nan, np.float32))


def test_files_that_cannot_be_used(pair, tmp_path):
    rgb_path, depth_path, _, _ = pair
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    for load in (load_picture, lambda p: load_depth(p, 1000.0)):
        for name in ("absent.png", "broken.png"):
            with pytest.raises(BagError, match=f"{name} cannot be read"):
                load(tmp_path / name)
    with pytest.raises(BagError, match="uint16 pixels"):
        load_picture(depth_path)
    with pytest.raises(BagError, match="not 16-bit"):
        load_depth(rgb_path, 1000.0)
    with pytest.raises(BagError, match="scale 0"):
        load_depth(depth_path, 0.0)
    with pytest.raises(FrameError, match="differ in size"):
        load_rgbd(rgb_path, depth_path, 1000.0, Camera(41, 30, 35.0, 36.0, 20.5, 14.0))


def test_a_scene_needs_every_depth_and_no_distortion():
    image = np.zeros((30, 40), np.float32)
    with pytest.raises(FrameError, match="not positive finite"):
        Scene(image, np.zeros((30, 40), np.float32), CAMERA)
    with pytest.raises(FrameError, match="no distortion"):
        Scene(image, np.ones((30, 40), np.float32), Camera(40, 30, 35.0, 36.0, 20.5, 14.0, (0.1, 0, 0, 0)))


def test_the_motorcycle_stands_where_the_calibration_says():
    """The nearest disparity is 60 px, the farthest 7: 994.978 px × 0.193001 m / (disparity + 31.086)."""
    scene = motorcycle()
    assert scene.image.shape == (500, 741, 3)
    assert scene.depth_m.min() == pytest.approx(994.978 * 0.193001 / (59.909 + 31.086), rel=1e-3)
    assert scene.depth_m.max() == pytest.approx(994.978 * 0.193001 / (7.191 + 31.086), rel=1e-3)


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.5])
def test_resizing_keeps_every_ray_on_its_feature(scale):
    scene = procedural(2, 300, 220, 200.0)
    u, v = np.meshgrid(np.arange(300.0), np.arange(220.0))
    image = np.exp(-((u - 200) ** 2 + (v - 60) ** 2) / 50).astype(np.float32)
    resized = Scene(image, scene.depth_m, scene.camera).resized(scale)
    weights = resized.image / resized.image.sum()
    u, v = np.meshgrid(np.arange(resized.camera.width), np.arange(resized.camera.height))
    at = np.array([np.sum(weights * u), np.sum(weights * v)])
    np.testing.assert_allclose(resized.camera.rays(at), scene.camera.rays([200.0, 60.0]), atol=0.05 / 200)


@given(st.integers(50, 300), st.integers(40, 300), st.floats(0.0, 0.45))
def test_the_frame_looks_through_the_middle_of_the_picture(width, height, margin):
    camera = Camera(320, 200, 250.0, 240.0, 150.0, 110.0)
    scene = textured_plane(np.zeros((200, 320)), 2.0, camera)
    frame = view_camera(scene, width, height, margin)
    corners = np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]])
    in_picture = camera.project(frame.rays(corners))
    np.testing.assert_allclose(in_picture.mean(axis=0), [159.5, 99.5], atol=1e-9)
    kept = np.array([in_picture[0, 0] + 0.5, in_picture[0, 1] + 0.5]) / [320, 200]
    assert kept.min() == pytest.approx(margin, abs=1e-9)


def test_a_margin_that_leaves_nothing():
    with pytest.raises(FrameError, match=r"margin 0\.5"):
        view_camera(procedural(0, 300, 220, 200.0), 100, 80, 0.5)


def test_a_longer_lens_on_the_same_picture():
    scene = procedural(0, 300, 220, 200.0)
    tele = scene.with_focal_scaled(4.0)
    assert (tele.camera.fx, tele.camera.cx) == (800.0, scene.camera.cx)
    assert view_camera(tele, 100, 80).fx == pytest.approx(4 * view_camera(scene, 100, 80).fx)


def test_procedural_scenes_are_textured_reproducible_and_three_dimensional():
    a, b = procedural(5), procedural(5)
    np.testing.assert_array_equal(a.image, b.image)
    assert np.std(a.image) > 0.05
    assert a.depth_m.min() < 2.0 < 4.0 < a.depth_m.max()
    assert np.abs(a.image - procedural(6).image).max() > 0.1


def test_grey_is_luminance():
    scene = textured_plane(np.ones((30, 40, 3), np.float32) * [1.0, 0.5, 0.0], 2.0, CAMERA)
    np.testing.assert_allclose(scene.grey().image, np.full((30, 40), 0.2126 + 0.5 * 0.7152), rtol=1e-5)
    assert scene.grey().grey().image.shape == (30, 40)


def test_srgb_there_and_back():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(np.round(encode_srgb(decode_srgb(levels)) * 255), levels)
    assert decode_srgb(levels)[188] == pytest.approx(0.5, abs=0.005)


def test_noise_has_the_variance_of_shot_and_read_noise():
    sensor = Sensor(full_well_e=10000.0, read_noise_e=8.0)
    rng = np.random.default_rng(0)
    for level in (0.0, 0.01, 0.5):
        noisy = sensor.add_noise(np.full((400, 400), level, np.float32), rng)
        assert noisy.mean() == pytest.approx(level, abs=3e-5)
        assert noisy.var() == pytest.approx(level / 10000.0 + (8.0 / 10000.0) ** 2, rel=0.03)


def test_default_noise_is_about_one_grey_level_at_mid_grey():
    mid_grey = np.full((200, 200), 0.21, np.float32)
    picture = Sensor().expose(mid_grey, np.random.default_rng(1))
    assert 0.7 < picture.std() < 1.5
    assert picture.mean() == pytest.approx(127, abs=2)


def test_the_sensor_saturates_and_can_be_linear():
    ramp = np.array([[-0.1, 0.0, 0.25, 1.0, 3.0]], np.float32)
    np.testing.assert_array_equal(Sensor(gamma=1.0).encode(ramp), [[0, 0, 64, 255, 255]])
    np.testing.assert_array_equal(Sensor(gamma=2.0).encode(ramp), [[0, 0, 128, 255, 255]])
    np.testing.assert_array_equal(NOISELESS.add_noise(ramp, np.random.default_rng(0)), ramp)
