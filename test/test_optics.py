"""The sparse solver against synthetic truth: exactness, bias, outliers, honest covariance, drift of the chain."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros import so3
from perspblur_ros.camera import Camera, Shutter
from perspblur_ros.displacement import moved_pixels
from perspblur_ros.optics import KeyframeChain, Sightings, at_middle_row, cascade, robust_wahba, solve_rotation, wahba
from perspblur_ros.optics.rotation import J_predicted_pixels, predicted_pixels
from perspblur_ros.types import Status

CAMERA = Camera(width=640, height=480, fx=519.0, fy=519.0, cx=319.5, cy=239.5)
STEPS = np.arange(-7, 8)
GRID = np.stack(np.meshgrid(CAMERA.cx + 40.0 * STEPS, CAMERA.cy + 30.0 * STEPS), -1).reshape(-1, 2)
RAYS = CAMERA.rays(GRID)
LEVER_ARM = np.array([0.03, 0.05, 0.25])
NO_LEVER_ARM = np.zeros(3)


def turn(rng: np.random.Generator, px: float = 20.0) -> np.ndarray:
    """A rotation vector about a random axis that moves the image by about ``px``."""
    phi = rng.normal(size=3)
    return phi * (px / CAMERA.focal_px / np.linalg.norm(phi))


def error_mrad(R_estimate: np.ndarray, phi: np.ndarray) -> float:
    return float(np.linalg.norm(so3.log(R_estimate.T @ so3.exp(phi)))) * 1e3


def room(rng: np.random.Generator) -> np.ndarray:
    """Inverse depths of points 1.5 to 4 m away."""
    return 1 / rng.uniform(1.5, 4.0, len(GRID))


vectors = st.tuples(*[st.floats(-0.2, 0.2)] * 3).map(np.array)


@given(vectors, vectors, st.floats(0.0, 2.0))
def test_jacobians_are_the_differences(phi, position, rho):
    rays, R, rho = RAYS[::23], so3.exp(phi), np.full(len(RAYS[::23]), rho)
    J_pose, J_rho = J_predicted_pixels(CAMERA, rays, R, position, rho)
    h = 1e-6
    for k in range(6):
        delta = h * np.eye(6)[k]
        ahead = predicted_pixels(CAMERA, rays, R @ so3.exp(delta[:3]), position + delta[3:], rho)
        behind = predicted_pixels(CAMERA, rays, R @ so3.exp(-delta[:3]), position - delta[3:], rho)
        np.testing.assert_allclose(J_pose[:, :, k], (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-4)
    ahead, behind = (predicted_pixels(CAMERA, rays, R, position, rho + d) for d in (h, -h))
    np.testing.assert_allclose(J_rho, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-4)


@given(vectors, st.floats(0.0, 2.0))
def test_a_tied_position_is_the_displacement_about_the_pivot(phi, rho):
    R = so3.exp(phi)
    seen = predicted_pixels(CAMERA, RAYS, R, (R - np.eye(3)) @ LEVER_ARM, np.full(len(RAYS), rho))
    np.testing.assert_allclose(seen, moved_pixels(CAMERA, GRID, R, rho, LEVER_ARM), atol=1e-8)


@given(vectors)
def test_wahba_is_exact_for_a_pure_rotation(phi):
    turned = CAMERA.rays(moved_pixels(CAMERA, GRID, so3.exp(phi), 0.5, NO_LEVER_ARM))
    assert error_mrad(wahba(RAYS, turned), phi) < 1e-6
    assert error_mrad(robust_wahba(RAYS, turned, CAMERA.focal_px), phi) < 1e-6


def test_wahba_never_returns_a_reflection():
    flat = RAYS[np.abs(RAYS[:, 1]) < 1e-9]  # points on one line leave the reflection open
    assert np.linalg.det(wahba(flat, flat)) == pytest.approx(1.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cascade_finds_small_turns_about_each_axis(axis):
    phi = 1e-4 * np.eye(3)[axis]
    turned = moved_pixels(CAMERA, GRID, so3.exp(phi), 0.0, NO_LEVER_ARM)
    np.testing.assert_allclose(cascade(CAMERA, GRID, turned), phi, atol=2e-8)


def test_cascade_is_biased_where_the_closed_form_is_not():
    rng = np.random.default_rng(1)
    biases = []
    for _ in range(30):
        phi = turn(rng)
        turned = moved_pixels(CAMERA, GRID, so3.exp(phi), 0.0, NO_LEVER_ARM)
        biases.append(np.linalg.norm(cascade(CAMERA, GRID, turned) - phi) * 1e3)
        assert error_mrad(solve_rotation(CAMERA, GRID, turned, NO_LEVER_ARM).R_ref_from_cur, phi) < 1e-6
    assert 0.1 < np.mean(biases) < 1.0


def test_a_lever_arm_misleads_three_angles_but_not_the_exact_model():
    rng = np.random.default_rng(2)
    for _ in range(20):
        phi, rho = turn(rng), room(rng)
        seen = moved_pixels(CAMERA, GRID, so3.exp(phi), rho, LEVER_ARM)
        solution = solve_rotation(CAMERA, GRID, seen, LEVER_ARM, rho, 0.0)
        assert solution.status is Status.OK
        assert error_mrad(solution.R_ref_from_cur, phi) < 1e-5
        assert error_mrad(wahba(RAYS, CAMERA.rays(seen)), phi) > 50 * error_mrad(solution.R_ref_from_cur, phi) + 0.3


@pytest.mark.parametrize("distance_m", [1.0, 10.0])
def test_depth_and_rotation_are_found_together_where_the_prior_is_wrong(distance_m):
    """The room's prior says 2.5 m; the whole scene is elsewhere."""
    rng = np.random.default_rng(3)
    errors, told, rho_errors = [], [], []
    for _ in range(20):
        phi = turn(rng, px=40.0)
        rho = np.full(len(GRID), 1 / distance_m)
        seen = moved_pixels(CAMERA, GRID, so3.exp(phi), rho, LEVER_ARM) + rng.normal(0, 0.1, GRID.shape)
        solution = solve_rotation(CAMERA, GRID, seen, LEVER_ARM)
        errors.append(error_mrad(solution.R_ref_from_cur, phi))
        told.append(np.sqrt(np.trace(solution.covariance)) * 1e3)
        rho_errors.append(np.median(np.abs(solution.rho - rho)))
    assert np.median(errors) < 0.3
    assert np.median(errors) < 2 * np.median(told)
    assert np.median(rho_errors) < 0.04


def test_without_a_lever_arm_depth_stays_what_it_was():
    rng = np.random.default_rng(4)
    seen = moved_pixels(CAMERA, GRID, so3.exp(turn(rng)), 0.5, NO_LEVER_ARM) + rng.normal(0, 0.3, GRID.shape)
    solution = solve_rotation(CAMERA, GRID, seen, NO_LEVER_ARM, 0.5, 0.2)
    np.testing.assert_allclose(solution.rho, 0.5)
    np.testing.assert_allclose(solution.rho_sd, 0.2)


@pytest.mark.parametrize("together", [False, True])
def test_thirty_percent_outliers_cost_little(together):
    """Scattered, or all moving the same way as on an object of their own."""
    rng = np.random.default_rng(5)
    clean, spoiled = [], []
    for _ in range(20):
        phi = turn(rng)
        seen = moved_pixels(CAMERA, GRID, so3.exp(phi), 0.0, NO_LEVER_ARM) + rng.normal(0, 0.3, GRID.shape)
        bad = rng.random(len(GRID)) < 0.3
        wrong = seen.copy()
        wrong[bad] += (12.0, -9.0) if together else rng.normal(0, 30.0, (np.count_nonzero(bad), 2))
        clean.append(error_mrad(solve_rotation(CAMERA, GRID, seen).R_ref_from_cur, phi))
        solution = solve_rotation(CAMERA, GRID, wrong)
        spoiled.append(error_mrad(solution.R_ref_from_cur, phi))
        assert np.mean(solution.inliers[bad]) < 0.1
        assert np.mean(solution.inliers[~bad]) > 0.95
    assert np.mean(spoiled) < 2 * np.mean(clean) + (0.3 if together else 0.0)


def known_depth(rho: np.ndarray, rng: np.random.Generator) -> dict:
    return {"rho": rho, "rho_sd": 0.0}


def rough_depth(rho: np.ndarray, rng: np.random.Generator) -> dict:
    """A depth map with 5 % of noise and the share that all its errors have in common."""
    return {"rho": rho * (1 + 0.05 * rng.normal() + 0.05 * rng.normal(size=len(rho))), "rho_sd": 0.05 * rho}


@pytest.mark.parametrize("outliers", [0.0, 0.3])
@pytest.mark.parametrize("depth", [known_depth, rough_depth])
def test_the_covariance_is_honest(depth, outliers):
    """The mean of e' C^-1 e / 3 over many trials is one."""
    rng = np.random.default_rng(6)
    nees = []
    for _ in range(80):
        phi, rho = turn(rng), room(rng)
        R = so3.exp(phi)
        seen = moved_pixels(CAMERA, GRID, R, rho, LEVER_ARM) + rng.normal(0, 0.3, GRID.shape)
        bad = rng.random(len(GRID)) < outliers
        seen[bad] += rng.normal(0, 30.0, (np.count_nonzero(bad), 2))
        solution = solve_rotation(CAMERA, GRID, seen, LEVER_ARM, **depth(rho, rng))
        e = so3.log(solution.R_ref_from_cur.T @ R)
        nees.append(e @ np.linalg.solve(solution.covariance, e) / 3)
    assert 0.7 < np.mean(nees) < 1.4


def test_an_unknown_translation_does_not_leak_into_the_rotation_unnoticed():
    rng = np.random.default_rng(7)
    free, rigid, nees = [], [], []
    for _ in range(60):
        phi, rho, p = turn(rng), room(rng), rng.normal(0, 0.01, 3)
        R = so3.exp(phi)
        seen = predicted_pixels(CAMERA, RAYS, R, p, rho) + rng.normal(0, 0.3, GRID.shape)
        solution = solve_rotation(CAMERA, GRID, seen, translation_sd_m=0.01)
        e = so3.log(solution.R_ref_from_cur.T @ R)
        nees.append(e @ np.linalg.solve(solution.covariance, e) / 3)
        free.append(np.linalg.norm(e) * 1e3)
        rigid.append(error_mrad(solve_rotation(CAMERA, GRID, seen).R_ref_from_cur, phi))
    assert np.mean(free) < 0.3 * np.mean(rigid)
    assert 0.6 < np.mean(nees) < 1.6


def test_row_times_are_corrected_to_first_order():
    """A camera turning at 1 rad/s while 480 rows are read in 20 ms."""
    omega = np.array([0.5, -0.8, 0.3])
    row_s = Shutter(exposure_ns=0, readout_ns=20_000_000).row_offset_s(GRID[:, 1], CAMERA.height)
    R_rows = so3.exp(row_s[:, None] * omega)
    skewed = moved_pixels(CAMERA, GRID, R_rows, 0.4, LEVER_ARM)
    assert np.abs(skewed - GRID).max() > 3.0
    upright = at_middle_row(CAMERA, skewed, row_s, omega, np.full(len(GRID), 0.4), LEVER_ARM)
    assert np.abs(upright - GRID).max() < 0.06


@pytest.mark.parametrize("count", [0, 3, 7])
def test_too_few_points_are_a_status_and_a_large_covariance(count):
    solution = solve_rotation(CAMERA, GRID[:count], GRID[:count])
    assert solution.status is Status.FEW_POINTS
    assert np.all(np.diag(solution.covariance) > 1.0)
    assert solution.inliers.shape == (count,)


def test_points_that_were_not_seen_are_left_out():
    phi = np.array([0.01, -0.02, 0.005])
    seen = moved_pixels(CAMERA, GRID, so3.exp(phi), 0.0, NO_LEVER_ARM)
    seen[::2] = np.nan
    solution = solve_rotation(CAMERA, GRID, seen)
    assert error_mrad(solution.R_ref_from_cur, phi) < 1e-6
    assert not solution.inliers[::2].any()
    assert np.isnan(solution.residual_px[::2]).all()


def test_points_in_one_spot_leave_the_roll_open():
    spot = CAMERA.cx + np.random.default_rng(8).normal(0, 0.5, (40, 2)) - (0, 80)
    noisy = spot + np.random.default_rng(9).normal(0, 0.1, spot.shape)
    sd = np.sqrt(np.diag(solve_rotation(CAMERA, spot, noisy).covariance))
    assert sd[2] > 20 * max(sd[0], sd[1])


@given(st.integers(0, 2**32 - 1))
def test_noise_for_tracks_gives_finite_and_humble_output(seed):
    rng = np.random.default_rng(seed)
    ref, cur = (rng.uniform((0, 0), (640, 480), (40, 2)) for _ in range(2))
    solution = solve_rotation(CAMERA, ref, cur, LEVER_ARM)
    assert np.isfinite(solution.R_ref_from_cur).all()
    assert np.linalg.det(solution.R_ref_from_cur) == pytest.approx(1.0)
    assert np.sqrt(np.trace(solution.covariance)) > 0.02


class Scene:
    """Points all around a camera that turns, tracked while in view, with noise that stays with each point."""

    def __init__(self, seed: int, noise_px: float, readout_ns: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        rays = self.rng.normal(size=(6_000, 3))
        self.rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        self.noise_px, self.shutter = noise_px, Shutter(exposure_ns=0, readout_ns=readout_ns)

    def sightings(self, frame: int, R: np.ndarray, omega: np.ndarray) -> Sightings:
        middle = self.rays @ R
        ids = np.flatnonzero((middle[:, 2] > 0.3) & (np.abs(middle[:, :2] / middle[:, 2:]) < (0.6, 0.45)).all(axis=1))
        row_s = self.shutter.row_offset_s(CAMERA.project(middle[ids])[:, 1], CAMERA.height)
        at_row = np.einsum("nji,nj->ni", so3.exp(row_s[:, None] * omega), middle[ids])
        ideal = CAMERA.project(at_row) + self.rng.normal(0, self.noise_px, (len(ids), 2))
        unknown = np.full(len(ids), np.nan)
        return Sightings(frame, frame * 33_000_000, 0.0, CAMERA, ids, ideal, row_s, unknown, unknown)


def pan(frame: int) -> np.ndarray:
    """Shake about one direction, with a slow turn that leaves it."""
    t = frame * 0.033
    return so3.exp([0.02 * np.sin(9 * t), 0.3 * t, 0.01 * np.sin(5 * t)])


def chained_pairs(seen: list[Sightings]) -> np.ndarray:
    """The last frame's rotation from frame pairs alone, R_start_from_cam."""
    R = np.eye(3)
    for a, b in pairwise(seen):
        _, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
        R = R @ robust_wahba(CAMERA.rays(a.ideal[i]), CAMERA.rays(b.ideal[j]), CAMERA.focal_px)
    return R


def test_keyframes_drift_less_than_frame_pairs():
    chain_errors2, pair_errors2, nees = [], [], []
    for seed in range(5):
        scene, chain = Scene(seed, noise_px=0.3), KeyframeChain(temper=1.0)
        seen = [scene.sightings(k, pan(k), np.zeros(3)) for k in range(100)]
        poses = [chain.add(s) for s in seen]
        assert all(p.status is Status.OK for p in poses)
        assert 2 <= chain.keyframes < 8
        e = so3.log(poses[-1].R_start_from_cam.T @ pan(0).T @ pan(99))
        chain_errors2.append(e @ e)
        pair_errors2.append(np.sum(so3.log(chained_pairs(seen).T @ pan(0).T @ pan(99)) ** 2))
        nees.append(e @ np.linalg.solve(poses[-1].covariance, e) / 3)
    assert np.mean(chain_errors2) < 0.5 * np.mean(pair_errors2)
    assert 0.2 < np.mean(nees) < 2.5


def test_a_steady_camera_never_leaves_its_first_keyframe():
    scene, chain = Scene(seed=11, noise_px=0.3), KeyframeChain()
    poses = [chain.add(scene.sightings(k, so3.exp([0.01 * np.sin(k), 0, 0]), np.zeros(3))) for k in range(50)]
    assert chain.keyframes == 1
    early, late = (np.trace(poses[k].covariance) for k in (2, 49))
    assert late == pytest.approx(early, rel=0.5)


def chain_errors(readout_ns: int, told: bool) -> list[float]:
    """Errors, rad, of a chain that watches an oscillating pan; ``told`` says whether it knows the row times."""
    scene, chain, errors = Scene(seed=12, noise_px=0.1, readout_ns=readout_ns), KeyframeChain(), []
    rate = np.array([0.2, 1.0, 0.0])
    for k in range(30):
        t = k * 0.033
        R = so3.exp(rate * np.sin(3 * t) / 3)
        seen = scene.sightings(k, R, rate * np.cos(3 * t))
        pose = chain.add(seen if told else replace(seen, row_s=np.zeros(len(seen.ids))))
        errors.append(float(np.linalg.norm(so3.log(pose.R_start_from_cam.T @ R))))
    return errors


def test_the_chain_corrects_row_times():
    untold, told = (np.mean(chain_errors(20_000_000, told)) for told in (False, True))
    assert told < 0.15 * untold
    assert told < 5e-4


@pytest.mark.parametrize("frames", [1, 4], ids=["the keyframe alone", "frames after it"])
def test_times_that_were_assumed_too_early_are_made_good(frames):
    """The same poses as if the right times had been known: rates, and with them row times, go by time differences."""
    scene, late_ns = Scene(seed=17, noise_px=0.1, readout_ns=20_000_000), 9_000_000
    rate = np.array([0.2, 1.0, 0.0])
    seen = [scene.sightings(k, so3.exp(rate * np.sin(0.1 * k) / 3), rate * np.cos(0.1 * k)) for k in range(8)]
    early = [replace(s, mid_ns=s.mid_ns - late_ns) for s in seen[:frames]]

    def later_poses(told: list[Sightings], by_ns: int | None = None) -> np.ndarray:
        chain = KeyframeChain()
        for s in told:
            chain.add(s)
        if by_ns is not None:
            chain.shift(by_ns)
        return np.array([chain.add(s).R_start_from_cam for s in seen[frames:]])

    known = later_poses(seen[:frames])
    np.testing.assert_allclose(later_poses(early, late_ns), known, atol=1e-12)
    assert np.abs(later_poses(early) - known).max() > 1e-5


def test_blur_and_shared_errors_widen_the_covariance():
    scene = Scene(seed=16, noise_px=0.3)
    seen = [scene.sightings(k, so3.exp([0.033 * k, 0, 0]), np.zeros(3)) for k in range(3)]

    def variance(exposure_s: float, **options: float) -> float:
        chain = KeyframeChain(**options)
        poses = [chain.add(replace(s, exposure_s=exposure_s)) for s in seen]
        return float(poses[-1].covariance[0, 0])

    alone = variance(0.0, temper=1.0)
    assert variance(0.0, temper=10.0) == pytest.approx(10 * alone, rel=0.01)
    assert variance(0.03, temper=1.0, blur_bias=0.1) == pytest.approx(alone + (0.1 * 0.03) ** 2, rel=0.02)


def blank(frame: int) -> Sightings:
    none = np.zeros(0)
    return Sightings(frame, frame * 33_000_000, 0.0, CAMERA, np.zeros(0, int), np.zeros((0, 2)), none, none, none)


def test_a_blind_frame_repeats_the_last_pose_and_says_so():
    scene, chain = Scene(seed=13, noise_px=0.1), KeyframeChain()
    seen = [scene.sightings(k, pan(k), np.zeros(3)) for k in range(6)]
    before = [chain.add(s) for s in seen[:3]][-1]
    blind = chain.add(blank(3))
    assert blind.status is Status.FEW_POINTS
    np.testing.assert_allclose(blind.R_start_from_cam, before.R_start_from_cam)
    assert np.trace(blind.covariance) > 3.0
    after = chain.add(seen[4])  # the same tracks again: nothing was lost
    assert after.status is Status.OK
    assert np.trace(after.covariance) < 1e-6


def test_new_tracks_after_a_cut_go_on_from_the_last_pose_without_claiming_to_know_it():
    scene, chain = Scene(seed=14, noise_px=0.1), KeyframeChain()
    poses = [chain.add(scene.sightings(k, pan(k), np.zeros(3))) for k in range(3)]
    chain.cut()
    again = chain.add(scene.sightings(3, pan(90), np.zeros(3)))
    np.testing.assert_allclose(again.R_start_from_cam, poses[-1].R_start_from_cam)
    assert np.trace(again.covariance) > 3.0
    assert np.trace(chain.add(scene.sightings(4, pan(91), np.zeros(3))).covariance) > 3.0


def test_a_stream_that_starts_blind_starts_with_its_first_points():
    scene, chain = Scene(seed=15, noise_px=0.1), KeyframeChain()
    assert chain.add(blank(0)).status is Status.FEW_POINTS
    first = chain.add(scene.sightings(1, pan(1), np.zeros(3)))
    assert first.status is Status.OK
    np.testing.assert_allclose(first.R_start_from_cam, np.eye(3))
