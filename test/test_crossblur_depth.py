"""Inverse depth by cross-blur: the residual between frames far apart, its Jacobian, and a rendered clip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_tracks import swaying

from perspblur_ros import so3
from perspblur_ros.bspline import KnotGrid
from perspblur_ros.camera import Camera, Shutter
from perspblur_ros.crossblur import anchored, blur_depths, inverse_depth
from perspblur_ros.crossblur.anchored import OFFSETS, Anchor, AnchoredComparison, AnchoredPair
from perspblur_ros.crossblur.pictures import View
from perspblur_ros.displacement import moved_pixels
from perspblur_ros.motion_prior import knot_precision
from perspblur_ros.sim.motion import MotionPath
from perspblur_ros.sim.render import prepare, render_depth, render_frame
from perspblur_ros.sim.scene import Scene, procedural
from perspblur_ros.sim.sensor import encode_srgb
from perspblur_ros.spline_state import SplineState

CAMERA = Camera(320, 240, 220.0, 220.0, 159.5, 119.5)
BARREL = replace(CAMERA, distortion=(-0.1, 0.01, 0.001, -0.001, 0.0))
SHUTTER = Shutter(40_000_000, 8_000_000)
ARM_M = np.array([0.05, -0.12, 0.2])
FPS, FRAMES = 16.0, 8
MID_S = SHUTTER.mid_ns(0) * 1e-9 + np.arange(FRAMES) / FPS
GRID = KnotGrid.covering(0.0, MID_S[-1] + 0.04, 0.015)
OFFSETS_S = (np.arange(5) - 2) / 5 * 0.04


def knots(path: MotionPath) -> np.ndarray:
    """Of a path about its own reference."""
    return GRID.fit_values(so3.log(path.rotation(np.clip(GRID.centres_s, 0, path.duration_s))))


def waves(seed: int, mid_s: float, camera: Camera = CAMERA) -> View:
    """A picture of a few waves, with its exact gradients."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: camera.height // 2, : camera.width // 2].astype(float)
    light, by_x, by_y = 100.0 + 0 * x, 0 * x, 0 * x
    for kx, ky, phase in zip(*rng.uniform(-0.25, 0.25, (2, 6)), rng.uniform(0, 6, 6)):
        light += 15 * np.sin(kx * x + ky * y + phase)
        by_x += 15 * kx * np.cos(kx * x + ky * y + phase)
        by_y += 15 * ky * np.cos(kx * x + ky * y + phase)
    picture = np.stack([light, by_x, by_y], axis=-1).astype(np.float32)
    return View(picture, picture[..., 0].copy(), picture[..., 0].copy(), 0.5, mid_s)


def smooth_pair(camera: Camera = CAMERA, rate: float = 0.5) -> tuple[AnchoredPair, np.ndarray, np.ndarray]:
    """A pair of frames far apart, a path and inverse depths."""
    rng = np.random.default_rng(3)
    raw = rng.uniform([60, 60], [camera.width - 60, camera.height - 60], (12, 2))
    c = knots(swaying(4, 0.6, rate).centred(0.0, 0.5))
    anchor = Anchor(waves(1, MID_S[1], camera), raw, camera, SHUTTER, GRID, OFFSETS_S)
    pair = AnchoredPair(anchor, waves(2, MID_S[6], camera), GRID, c)
    return pair, c, rng.uniform(0.3, 1.0, 12)


def compare(pair: AnchoredPair, c: np.ndarray, rho: np.ndarray, arm_m: np.ndarray = ARM_M, **how) -> AnchoredComparison:
    return pair.compare(c, pair.anchor.placed(c, rho, arm_m), **how)


@pytest.mark.parametrize("camera", [CAMERA, BARREL], ids=["pinhole", "distorted"])
def test_the_jacobian_is_that_of_the_residual(camera, monkeypatch):
    """But for the change of the warp, which is left out as small. Steps well above the 1/32 pixel of OpenCV's remap."""
    pair, c, rho = smooth_pair(camera)
    warps = []
    warp_of = anchored.turn_of_picture
    monkeypatch.setattr(anchored, "turn_of_picture", lambda *at: warps.append(warp_of(*at)) or warps[0])
    found = compare(pair, c, rho)
    assert found.seen.all()
    columns = np.concatenate([np.arange(s.start, s.stop) for s in pair.columns()])
    steps = np.random.default_rng(5).normal(0, 1, (8, *c.shape))
    analytic = np.array([found.by_knots @ step.ravel()[columns] for step in steps])
    ahead, behind = (np.array([compare(pair, c + s * 1e-3 * x, rho).residual for x in steps]) for s in (1, -1))
    numeric = (ahead - behind) / 2e-3
    assert np.linalg.norm(analytic - numeric) < 0.08 * np.linalg.norm(numeric)
    assert np.sum(analytic * numeric) == pytest.approx(np.sum(numeric**2), rel=0.03)
    ahead, behind = (compare(pair, c, rho + s * 0.05).residual for s in (1, -1))
    numeric = (ahead - behind) / 0.1
    assert np.linalg.norm(found.by_rho - numeric) < 0.08 * np.linalg.norm(numeric)
    assert np.sum(found.by_rho * numeric) == pytest.approx(np.sum(numeric**2), rel=0.03)


def test_without_the_path_the_rest_is_the_same():
    pair, c, rho = smooth_pair()
    full, alone = compare(pair, c, rho), compare(pair, c, rho, path_too=False)
    assert alone.by_knots.shape[2] == 0
    np.testing.assert_allclose(alone.residual, full.residual, atol=1e-4)
    np.testing.assert_allclose(alone.by_rho, full.by_rho, atol=1e-3)


def test_patches_are_read_where_a_slow_twin_reads_them():
    """Every sub-sample of every patch by itself: the point's path in both frames, and the patch's warp by two rays."""
    pair, c, rho = smooth_pair()
    placed = pair.anchor.placed(c, rho, ARM_M)
    of_a, of_b, _ = pair._readings(placed.own, placed.points.along(pair.exposure, c), path_too=False)
    a, b = pair.anchor.exposure, pair.exposure
    for j in range(len(rho)):
        R_a = so3.exp(a.mean[j] @ c[a.knots])

        def path(pixel, exposure, j=j, R_a=R_a):
            R = so3.exp(exposure.rows[j] @ c[exposure.knots])
            return moved_pixels(CAMERA, pixel, R_a.T @ R, rho[j], ARM_M)

        x_a, x_b = path(pair.anchor.raw[j], a), path(pair.anchor.raw[j], b)
        warp = np.stack([
            (path(pair.anchor.raw[j] + d, b).mean(axis=0) - path(pair.anchor.raw[j] - d, b).mean(axis=0)) / 2
            for d in np.eye(2)
        ], axis=1)
        at_a = x_a.mean(axis=0) - (x_b - x_b.mean(axis=0)) @ np.linalg.inv(warp).T
        at_b = x_b.mean(axis=0) - (x_a - x_a.mean(axis=0)) @ warp.T
        np.testing.assert_allclose(of_a.centres[j], (at_a + 0.5) / 2 - 0.5, atol=0.02)
        np.testing.assert_allclose(of_b.centres[j], (at_b + 0.5) / 2 - 0.5, atol=0.02)
        np.testing.assert_allclose(OFFSETS @ of_b.warp[j].T, OFFSETS @ warp.T, atol=0.02)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 3.0), st.floats(0.1, 1.0))
def test_without_a_lever_arm_no_depth_shows(rho, rate):
    pair, c, _ = smooth_pair(rate=rate)
    found, other = (compare(pair, c, np.full(12, value), np.zeros(3)) for value in (rho, 0.5))
    np.testing.assert_allclose(found.residual, other.residual, atol=2e-2)
    assert np.abs(found.by_rho).max() < 1e-3


def test_what_is_known_of_depth_falls_with_the_lever_arm():
    """Information goes with the arm's square."""
    information = []
    for share in (1.0, 0.1):
        pair, c, rho = smooth_pair()
        information.append(np.sum(compare(pair, c, rho, share * ARM_M).by_rho ** 2, axis=1))
    assert 30 < np.median(information[0] / information[1]) < 300


@dataclass(frozen=True)
class Clip:
    """Rendered frames of a slanted wall, the knots of the true path, and lattice points of every frame as tracks."""

    images: list[np.ndarray]
    raw: np.ndarray
    state: SplineState
    depth_at_reference_m: np.ndarray

    def found(self, **changes) -> inverse_depth.BlurDepths | None:
        state = replace(self.state, **changes)
        precision = knot_precision(GRID.count, GRID.spacing_s) / 0.8**2
        ids = np.arange(len(self.raw))
        return blur_depths(self.images, MID_S, ids, self.raw, state, precision, CAMERA, SHUTTER, 2)

    def errors(self, found: inverse_depth.BlurDepths) -> tuple[np.ndarray, np.ndarray]:
        """Relative error of inverse depth, and the same in stated deviations."""
        pixels = np.rint(found.rays * CAMERA.fx + (CAMERA.cx, CAMERA.cy)).astype(int)
        inside = np.all((pixels >= 0) & (pixels < (CAMERA.width, CAMERA.height)), axis=1)
        true = 1 / self.depth_at_reference_m[pixels[inside, 1], pixels[inside, 0]]
        off = found.rho[inside] - true
        variance = found.variance[inside] + found.scale_variance * true**2
        return off / true, off / np.sqrt(variance)


@cache
def clip() -> Clip:
    path = swaying(2, 0.6, 0.8).centred(0.0, MID_S[-1])
    source = Camera(640, 480, 330.0, 330.0, 319.5, 239.5)
    depth = np.broadcast_to(np.linspace(1.0, 2.5, 640, dtype=np.float32), (480, 640))
    scene = Scene(procedural(7, 640, 480, 330.0).image, np.ascontiguousarray(depth), source)
    prepared = prepare(scene, CAMERA)
    rng = np.random.default_rng(0)
    images = []
    for mid_s in MID_S:
        light = render_frame(prepared, path, mid_s - 0.024, 0.04, 0.008, ARM_M)
        noisy = 255 * encode_srgb(light) + rng.normal(0, 1, light.shape)
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    lattice = np.stack(np.meshgrid(np.arange(20, 300, 20.0), np.arange(20, 220, 20.0)), axis=-1).reshape(-1, 2)
    raw = np.concatenate([np.repeat(lattice[:, None], FRAMES, axis=1)])
    ref_s = float(MID_S[FRAMES // 2])
    t_grid = KnotGrid.covering(0.0, 0.5, 0.15)
    R_ref = path.rotation(np.array([ref_s]))[0]
    c = GRID.fit_values(so3.log(R_ref.T @ path.rotation(np.clip(GRID.centres_s, 0, path.duration_s))))
    state = SplineState(
        GRID, c, t_grid, np.zeros((t_grid.count, 3)), np.arange(len(raw)), np.zeros((len(raw), 2)),
        np.full(len(raw), 0.6), ref_s, ARM_M,
    )
    return Clip(images, raw, state, render_depth(prepared, path, ref_s, ARM_M))


def test_depths_and_path_are_found_from_a_wrong_start():
    """Half a pixel off the path, no relief at all, and the level wrong: pictures tell better."""
    true = clip().state
    rng = np.random.default_rng(1)
    wrong = true.c + GRID.fit_values(np.cumsum(rng.normal(0, 6e-4, (GRID.count, 3)), axis=0))
    found = clip().found(c=wrong, rho=np.full(len(true.rho), 0.4))
    assert found is not None
    relative, in_sd = clip().errors(found)
    assert np.median(np.abs(relative)) < 0.06
    assert abs(np.median(relative)) < 0.04
    assert np.mean(np.abs(in_sd) < 1) > 0.6
    rows = GRID.mean_rows(MID_S, 0.04)

    def off_px(c: np.ndarray) -> float:
        e = rows @ (c - true.c)
        return float(np.sqrt(np.mean((e - e.mean(axis=0)) ** 2))) * CAMERA.focal_px

    assert off_px(found.c) < 0.5 * off_px(wrong)


@pytest.mark.parametrize("start_rho", [0.2, 1.5])
def test_the_scene_s_level_may_start_far_off(start_rho):
    found = clip().found(rho=np.full(len(clip().state.rho), start_rho))
    assert found is not None
    assert abs(np.median(clip().errors(found)[0])) < 0.06


def test_patches_between_the_tracks_have_ids_of_their_own():
    found = clip().found()
    assert found is not None
    assert len(np.unique(found.ids)) == len(found.ids)
    assert np.sum(found.ids < 0) > 50


def test_pictures_without_texture_or_of_something_else_tell_nothing():
    flat = replace(clip(), images=[np.full((240, 320), 90, np.uint8)] * FRAMES)
    assert flat.found() is None
    rng = np.random.default_rng(2)
    noise = [cv2.GaussianBlur(rng.uniform(0, 255, (240, 320)), (0, 0), 3).astype(np.uint8) for _ in range(FRAMES)]
    stretched = [cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX) for picture in noise]
    assert replace(clip(), images=stretched).found() is None
