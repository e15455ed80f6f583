"""The renderer against physics: where points go, how long they smear, what rows, depth and time reversal do."""

from __future__ import annotations

import numpy as np
import pytest

from perspblur_ros import so3
from perspblur_ros.camera import Camera
from perspblur_ros.displacement import moved_pixels
from perspblur_ros.sim import render
from perspblur_ros.sim.motion import MotionPath, constant_rate, from_rates, time_grid
from perspblur_ros.sim.scene import Scene, procedural, view_camera

LEVER_ARM_M = (0.03, -0.12, 0.2)
INSTANT_S = 1e-6
CAMERA = Camera(160, 120, 150.0, 150.0, 79.5, 59.5)


def ramp_depth(height: int, width: int) -> np.ndarray:
    """A wall seen aslant: inverse depth linear in the picture, 3 m at the left to 0.8 m at the right."""
    rho = np.linspace(1 / 3.0, 1 / 0.8, width, dtype=np.float32)
    return np.broadcast_to(1 / rho, (height, width)).copy()


def source_camera(scale: int = 2) -> Camera:
    """A camera that sees beyond ``CAMERA`` on all sides, with more pixels."""
    width, height = 240 * scale, 180 * scale
    return Camera(width, height, 150.0 * scale, 150.0 * scale, (width - 1) / 2, (height - 1) / 2)


def dots(centres: np.ndarray, camera: Camera, sd_px: float = 3.0) -> np.ndarray:
    """Gaussian dots on black at picture pixels (N, 2)."""
    u, v = np.arange(camera.width), np.arange(camera.height)
    image = np.zeros((camera.height, camera.width))
    for x, y in centres:
        image += np.exp(-0.5 * ((v[:, None] - y) ** 2 + (u - x) ** 2) / sd_px**2)
    return image.astype(np.float32)


def centroid(image: np.ndarray, near: np.ndarray, half: int = 7) -> np.ndarray:
    u0, v0 = np.round(near).astype(int)
    window = image[v0 - half : v0 + half + 1, u0 - half : u0 + half + 1]
    u, v = np.meshgrid(np.arange(u0 - half, u0 + half + 1), np.arange(v0 - half, v0 + half + 1))
    return np.array([np.sum(window * u), np.sum(window * v)]) / window.sum()


def turned(phi: tuple[float, float, float]) -> MotionPath:
    """A path that rests at the reference, then from 20 ms on at exp(phi)."""
    t = time_grid(0.04)
    R = np.where((t < 0.02)[:, None, None], np.eye(3), so3.exp(phi))
    return MotionPath(t, R, np.zeros((len(t), 3)), np.zeros((len(t), 3)))


def wave(seed: int = 0) -> MotionPath:
    """Smooth, curved motion on all axes, some 3 rad/s."""
    t = time_grid(0.1)
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    return from_rates(t, 2.0 * np.sin(2 * np.pi * 9 * t[:, None] + phase))


@pytest.mark.parametrize("phi", [(0.01, 0.0, 0.0), (0.0, -0.05, 0.0), (0.03, 0.04, 0.08)])
def test_features_move_as_the_displacement_says(phi):
    camera = source_camera()
    places = np.stack(np.meshgrid([40.0, 80.0, 120.0], [35.0, 60.0, 85.0]), axis=-1).reshape(-1, 2)
    in_picture = camera.project(CAMERA.rays(places))
    depth = ramp_depth(camera.height, camera.width)
    view = render.prepare(Scene(dots(in_picture, camera), depth, camera), CAMERA)
    frame = render.render_frame(view, turned(phi), 0.03, INSTANT_S, lever_arm_m=LEVER_ARM_M)
    rho = 1 / depth[0, np.round(in_picture[:, 0]).astype(int)]
    expected = moved_pixels(CAMERA, places, so3.exp(phi), rho, LEVER_ARM_M)
    measured = np.array([centroid(frame, at) for at in expected])
    np.testing.assert_allclose(measured, expected, atol=0.06)


def test_the_look_up_is_the_inverse_of_the_displacement():
    """Every pixel of a curved path: map it into the picture, move it by the exact model, arrive where it began."""
    camera = source_camera()
    view = render.prepare(Scene(np.ones((360, 480), np.float32), ramp_depth(360, 480), camera), CAMERA)
    path = wave()
    t = render.row_times(0.01, 0.03, 120)
    R = path.rotation(t)
    map_x, map_y, inverse_depth = render.source_map(view, R, render.camera_centre(R, path.pivot(t), LEVER_ARM_M))
    at_reference = CAMERA.project(view.source.rays(np.stack([map_x, map_y], axis=-1)))
    rho = render.sample(view.inv_depth, map_x, map_y)
    back = moved_pixels(CAMERA, at_reference, R[:, None], rho, LEVER_ARM_M)
    u, v = np.meshgrid(np.arange(160), np.arange(120))
    np.testing.assert_allclose(back, np.stack([u, v], axis=-1), atol=0.02)
    point = view.source.rays(np.stack([map_x, map_y], axis=-1)) / rho[..., None] + np.array(LEVER_ARM_M)
    depth = np.einsum("hi,hwi->hw", R[:, :, 2], point) - LEVER_ARM_M[2]
    np.testing.assert_allclose(1 / inverse_depth, depth, rtol=1e-3)


def test_a_moving_pivot_shifts_near_things_by_their_own_parallax():
    path = constant_rate((0, 0, 0), 0.1)
    path = MotionPath(path.t_s, path.R_ref_from_cam, path.omega, path.pivot_m + np.array([0.02, 0.0, 0.0]))
    camera = source_camera()
    centre = np.array([[camera.cx, camera.cy]])
    for depth_m in (0.5, 4.0):
        depth = np.full((360, 480), depth_m, np.float32)
        view = render.prepare(Scene(dots(centre, camera), depth, camera), CAMERA)
        frame = render.render_frame(view, path, 0.0, INSTANT_S)
        expected = np.array([CAMERA.cx - CAMERA.fx * 0.02 / depth_m, CAMERA.cy])
        np.testing.assert_allclose(centroid(frame, expected), expected, atol=0.05)


@pytest.mark.parametrize("rate", [1.0, 4.0])
def test_a_steady_pan_smears_an_edge_over_f_omega_E(rate):
    """The profile across a step is the integral of a box of f ω E, rounded by the aperture: widths add in variance."""
    exposure_s = 0.03
    camera = source_camera()
    image = np.zeros((360, 480), np.float32)
    image[:, 240:] = 1.0
    view = render.prepare(Scene(image, np.full((360, 480), 2.0, np.float32), camera), CAMERA)
    path = constant_rate((0, rate, 0), 0.1).centred(0.02, 0.02 + exposure_s)
    row = render.render_frame(view, path, 0.02, exposure_s)[60]
    still = render.render_frame(view, constant_rate((0, 0, 0), 0.1), 0.02, exposure_s)[60]
    box_variance = _spread(np.diff(row)) - _spread(np.diff(still))
    assert np.sqrt(12 * box_variance) == pytest.approx(CAMERA.fx * rate * exposure_s, rel=0.02)


def _spread(weights: np.ndarray) -> float:
    x = np.arange(len(weights))
    mean = np.sum(weights * x) / weights.sum()
    return float(np.sum(weights * (x - mean) ** 2) / weights.sum())


def test_without_a_lever_arm_depth_is_invisible():
    scene = procedural(3, 300, 220, 200.0)
    flat = Scene(scene.image, np.full_like(scene.depth_m, 2.0), scene.camera)
    a, b = (render.render_frame(render.prepare(s, CAMERA), wave(), 0.01, 0.04, 0.02) for s in (scene, flat))
    np.testing.assert_array_equal(a, b)


def test_with_a_lever_arm_depth_shows():
    scene = procedural(3, 300, 220, 200.0)
    flat = Scene(scene.image, np.full_like(scene.depth_m, 2.0), scene.camera)
    a, b = (
        render.render_frame(render.prepare(s, CAMERA), wave(), 0.01, 0.04, lever_arm_m=LEVER_ARM_M)
        for s in (scene, flat)
    )
    assert np.abs(a - b).max() > 0.01


def test_time_reversal_inside_one_frame_is_invisible():
    view = render.prepare(procedural(1, 300, 220, 200.0), CAMERA)
    path = wave(2)
    forwards = render.render_frame(view, path, 0.0, path.duration_s, lever_arm_m=LEVER_ARM_M)
    backwards = render.render_frame(view, path.reversed(), 0.0, path.duration_s, lever_arm_m=LEVER_ARM_M)
    np.testing.assert_allclose(backwards, forwards, atol=2e-5)


def test_readout_shears_a_vertical_line_by_f_omega_readout():
    camera = source_camera()
    image = np.exp(-0.5 * ((np.arange(480) - camera.cx) / 3.0) ** 2).astype(np.float32)
    view = render.prepare(
        Scene(np.broadcast_to(image, (360, 480)).copy(), np.full((360, 480), 2.0, np.float32), camera), CAMERA
    )
    rate, readout_s = 2.0, 0.03
    path = constant_rate((0, rate, 0), 0.1).centred(0.02, 0.02 + readout_s)
    frame = render.render_frame(view, path, 0.02, INSTANT_S, readout_s)
    u = np.arange(160)
    at = (frame @ u) / frame.sum(axis=1)
    assert at[0] - at[-1] == pytest.approx(CAMERA.fx * rate * readout_s, rel=0.005)
    lines = np.polyfit(np.arange(120), at, 1)
    np.testing.assert_allclose(at, np.polyval(lines, np.arange(120)), atol=0.05)


def test_every_row_sees_its_own_window():
    """A row of a rolling frame is that row of a global one whose exposure begins when the row's does."""
    view = render.prepare(procedural(4, 300, 220, 200.0), CAMERA)
    path, exposure_s, readout_s = wave(5), 0.02, 0.05
    rolling = render.render_frame(view, path, 0.01, exposure_s, readout_s, LEVER_ARM_M, n_subframes=30)
    for row in (0, 50, 119):
        t0_s = 0.01 + readout_s * row / 119
        alone = render.render_frame(view, path, t0_s, exposure_s, 0.0, LEVER_ARM_M, n_subframes=30)
        np.testing.assert_allclose(rolling[row], alone[row], atol=1e-6)


def test_light_is_conserved():
    """Blurring in linear light moves energy, it does not make or lose any."""
    camera = source_camera()
    view = render.prepare(
        Scene(dots(np.array([[camera.cx, camera.cy]]), camera), np.full((360, 480), 2.0, np.float32), camera), CAMERA
    )
    still = render.render_frame(view, constant_rate((0, 0, 0), 0.1), 0.0, 0.03)
    path = constant_rate((1.0, 3.0, 0), 0.1).centred(0.0, 0.03)
    blurred = render.render_frame(view, path, 0.0, 0.03)
    assert blurred.max() < 0.7 * still.max()
    assert blurred.sum() == pytest.approx(still.sum(), rel=0.01)


def test_sampling_leaves_no_trace_of_the_pixel_phase():
    """Bilinear interpolation softens between pixels; over an oversampled, blurred picture that is not measurable."""
    view = render.prepare(procedural(6, 300, 220, 200.0), CAMERA)
    strengths = []
    for phase in np.linspace(0, 1, 9):
        path = turned((0.0, phase / CAMERA.fx, 0.0))
        frame = render.render_frame(view, path, 0.03, INSTANT_S)
        strengths.append(np.var(np.diff(frame[10:-10, 10:-10], axis=1)))
    assert np.ptp(strengths) / np.mean(strengths) < 0.03


def test_enough_subframes_for_the_blur():
    view = render.prepare(procedural(1, 300, 220, 200.0), CAMERA)
    still, fast = constant_rate((0, 0, 0), 0.1), constant_rate((0, 10.0, 0), 0.1)
    assert render.subframes(view, still, 0.0, 0.05, 0.0, LEVER_ARM_M) == render.MIN_SUBFRAMES
    assert render.subframes(view, fast, 0.0, 0.05, 0.0, (0, 0, 0)) >= CAMERA.fx * 10.0 * 0.05


def test_more_subframes_change_nothing():
    view = render.prepare(procedural(1, 300, 220, 200.0), CAMERA)
    path = wave()
    n = render.subframes(view, path, 0.0, 0.06, 0.01, LEVER_ARM_M)
    frame, finer = (render.render_frame(view, path, 0.0, 0.06, 0.01, LEVER_ARM_M, k) for k in (n, 4 * n))
    assert np.abs(frame - finer).max() < 0.5 / 255


def test_a_distorting_lens_bends_the_picture_as_its_model_says():
    camera = Camera(160, 120, 150.0, 150.0, 79.5, 59.5, (-0.3, 0.1, 0.0, 0.0))
    source = source_camera()
    raw = np.array([[20.0, 20.0], [140.0, 30.0], [80.0, 60.0]])
    in_picture = source.project(CAMERA.rays(camera.undistort(raw)))
    view = render.prepare(Scene(dots(in_picture, source), ramp_depth(360, 480), source), camera)
    frame = render.render_frame(view, constant_rate((0, 0, 0), 0.1), 0.0, INSTANT_S)
    np.testing.assert_allclose([centroid(frame, at) for at in raw], raw, atol=0.1)


def test_depth_of_the_turned_view():
    """Facing a wall aslant: the depth along the moving axis changes as the wall's geometry says."""
    camera = source_camera()
    view = render.prepare(Scene(np.ones((360, 480), np.float32), np.full((360, 480), 2.0, np.float32), camera), CAMERA)
    phi = np.array([0.0, 0.1, 0.0])
    for lever_arm_m in ((0.0, 0.0, 0.0), LEVER_ARM_M):
        R, r = so3.exp(phi), np.array(lever_arm_m)
        depth = render.render_depth(view, turned((0.0, 0.1, 0.0)), 0.03, lever_arm_m)
        centre = R @ r - r
        u, v = np.meshgrid(np.arange(160.0), np.arange(120.0))
        along = CAMERA.rays(np.stack([u, v], axis=-1)) @ R.T
        np.testing.assert_allclose(depth, (2.0 - centre[2]) / along[..., 2], rtol=1e-4)


def test_margin_counts_down_to_the_border():
    scene = procedural(0, 320, 240, 200.0)
    camera = view_camera(scene, 160, 120, margin=0.25)
    view = render.prepare(scene, camera)
    still = constant_rate((0, 0, 0), 0.1)
    assert render.margin_px(view, still, 0.0, 0.1) == pytest.approx(60, abs=1)
    assert render.margin_px(view, turned((0, 0.5, 0)), 0.0, 0.04) < 0
