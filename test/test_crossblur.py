"""Cross-blur on rendered pictures of a plane whose camera path is known: residual, Jacobian, refinement and gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from synthetic_tracks import LEVER_ARM_M, Tracks, follow, swaying

from perspblur_ros import crossblur, so3
from perspblur_ros.bspline import KnotGrid
from perspblur_ros.camera import Camera
from perspblur_ros.crossblur import CrossBlur, PairTerm, Patches, Sightings, Solved, View, refine, view
from perspblur_ros.crossblur.pair import sampled
from perspblur_ros.motion_prior import knot_precision, translation_precision
from perspblur_ros.sim.render import prepare, render_frame
from perspblur_ros.sim.scene import Scene, procedural
from perspblur_ros.sim.sensor import encode_srgb
from perspblur_ros.spline_state import SplineState

CAMERA = Camera(240, 180, 210.0, 210.0, 119.5, 89.5)
EXPOSURE_S, READOUT_S, FPS = 0.04, 0.012, 20.0
DEPTH_M = 2.0
N_FRAMES, N_POINTS = 4, 150
PRIOR_RATE_RAD_S = 0.8


@dataclass(frozen=True)
class Clip:
    """Rendered frames (uint8), the true tracks in them, and the true trajectory about the path's reference."""

    frames: list[np.ndarray]
    tracks: Tracks
    state: SplineState

    @property
    def sightings(self) -> Sightings:
        ideal = self.tracks.ideal
        return Sightings(np.arange(len(ideal)), ideal, ideal, self.tracks.row_s)

    @property
    def blur_px(self) -> float:
        t = self.tracks.mid_s[:, None] + np.linspace(-0.5, 0.5, 30) * EXPOSURE_S
        return float(np.linalg.norm(self.tracks.path.rate(t)[..., :2], axis=-1).mean() * EXPOSURE_S * CAMERA.focal_px)


@cache
def clip(seed: int = 1, rate_rad_s: float = 0.7) -> Clip:
    path = swaying(seed, 0.4, rate_rad_s).centred(0.0, 0.3)
    tracks = follow(
        path, N_FRAMES, FPS, EXPOSURE_S, READOUT_S, LEVER_ARM_M, N_POINTS, 0.0, (DEPTH_M, DEPTH_M), CAMERA, seed=seed
    )
    texture = procedural(seed, 480, 360, 280.0)
    source = Camera(480, 360, 280.0, 280.0, 239.5, 179.5)
    prepared = prepare(Scene(texture.image, np.full((360, 480), DEPTH_M, np.float32), source), CAMERA)
    starts = tracks.mid_s - (EXPOSURE_S + READOUT_S) / 2
    light = [render_frame(prepared, path, t0, EXPOSURE_S, READOUT_S, LEVER_ARM_M) for t0 in starts]
    rng = np.random.default_rng(seed)
    frames = [np.clip(255 * encode_srgb(f) + rng.normal(0, 1, f.shape), 0, 255).astype(np.uint8) for f in light]
    grid = KnotGrid.covering(0.0, 0.3, 0.01)
    R = path.rotation(np.clip(grid.centres_s, 0, 0.4))
    c = grid.fit_values(so3.log(R))
    t_grid = KnotGrid.covering(grid.centres_s[0], grid.centres_s[-1], 0.15)
    rays = path_rays(tracks)
    state = SplineState(
        grid, c, t_grid, np.zeros((t_grid.count, 3)), np.arange(N_POINTS), rays, tracks.rho, float(tracks.mid_s[2]),
        LEVER_ARM_M,
    )
    return Clip(frames, tracks, state)


def path_rays(tracks: Tracks) -> np.ndarray:
    """Rays of the points in the path's reference frame, by undoing the mean motion of their first sighting."""
    k = np.argmax(np.isfinite(tracks.ideal[..., 0]), axis=1)
    j = np.arange(len(k))
    t = tracks.mid_s[k] + np.nan_to_num(tracks.row_s[j, k])
    R = tracks.path.rotation(t)
    p = R @ tracks.lever_arm_m - tracks.lever_arm_m
    v = np.einsum("nij,nj->ni", R, tracks.camera.rays(np.nan_to_num(tracks.ideal[j, k])))
    v = v / v[:, 2:] + tracks.rho[:, None] * p
    return v[:, :2] / v[:, 2:]


def through_the_means(truth: SplineState, tracks: Tracks) -> SplineState:
    """What interpolating the frames' mean rotations knows of the truth."""
    means = truth.grid.mean_rows(tracks.mid_s, EXPOSURE_S) @ truth.c
    t = truth.grid.centres_s
    c = np.stack([np.interp(t, tracks.mid_s, means[:, axis]) for axis in range(3)], axis=1)
    return replace(truth, c=c)


def pair(
    clip: Clip,
    scale: int = 2,
    subsamples: int = 15,
    frames: list[np.ndarray] | None = None,
    like: SplineState | None = None,
) -> PairTerm:
    """Frames 1 and 2 with every patch that lies well inside both."""
    frames = frames or clip.frames
    a, b = (view(frames[k], scale, float(clip.tracks.mid_s[k])) for k in (1, 2))
    at = clip.tracks.ideal[:, 1:3]
    j = np.flatnonzero(np.all((at > 30) & (at < [CAMERA.width - 30, CAMERA.height - 30]), axis=(1, 2)))
    patches = Patches(j, at[j, 0], at[j, 0], clip.tracks.row_s[j, 1:3])
    return PairTerm(a, b, patches, CAMERA, EXPOSURE_S, subsamples, like or clip.state)


# --- the view ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_view_is_linear_light_on_the_reduced_raster(scale):
    """A ramp in linear light: its value at a working pixel is that at the full-size pixels' common centre."""
    u, v = np.meshgrid(np.arange(160), np.arange(120))
    light = 0.2 + 0.003 * u + 0.002 * v
    image = np.round(255 * light ** (1 / crossblur.GAMMA)).astype(np.uint8)
    seen = view(image, scale, 1.5)
    rows, columns = np.indices(seen.light.shape)
    expected = 255 * (0.2 + 0.003 * ((columns + 0.5) * scale - 0.5) + 0.002 * ((rows + 0.5) * scale - 0.5))
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(seen.light[inner], expected[inner], atol=1.0)  # rounding to 8 bits
    slopes = 255 * scale * np.array([0.003, 0.002])
    np.testing.assert_allclose(seen.picture[inner][..., 1:].mean(axis=(0, 1)), slopes, rtol=0.02)
    np.testing.assert_array_equal(seen.picture[..., 0], seen.light)
    assert (seen.scale, seen.mid_s) == (1 / scale, 1.5)


def test_contrast_is_the_patchs_standard_deviation():
    seen = view(clip().frames[0], 2, 0.0)
    half = crossblur.PATCH // 2
    for row, column in ((20, 30), (50, 61), (70, 100)):
        patch = seen.light[row - half : row + half + 1, column - half : column + half + 1]
        assert seen.contrast[row, column] == pytest.approx(patch.std(), rel=1e-3, abs=0.01)


# --- the residual against explicit loops ------------------------------------------------------------------------------


def bilinear(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """On OpenCV's raster of 1/32 px."""
    x, y = round(x * 32) / 32, round(y * 32) / 32
    j, i = int(np.floor(x)), int(np.floor(y))
    a, b = x - j, y - i
    return (
        (1 - a) * (1 - b) * picture[i, j] + a * (1 - b) * picture[i, j + 1]
        + (1 - a) * b * picture[i + 1, j] + a * b * picture[i + 1, j + 1]
    )


def blurred_patch(seen: View, centre: np.ndarray, path: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """The warped patch around ``centre`` (raw px) of the picture blurred along ``path`` (S, 2), raw px."""
    half = crossblur.PATCH // 2
    at = (centre + 0.5) * seen.scale - 0.5
    patch = np.zeros((crossblur.PATCH, crossblur.PATCH))
    for step in path * seen.scale:
        for row in range(-half, half + 1):
            for column in range(-half, half + 1):
                patch[row + half, column + half] += bilinear(seen.light, *(at - step + warp @ [column, row]))
    return patch / len(path)


def where_seen(
    term: PairTerm, state: SplineState, n: int, t: np.ndarray, beside: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """Pixels (S, 2) of patch n's point at the times t; the point is where frame a saw it on average, or ``beside``."""
    rotation = [so3.exp(state.grid.rows(s) @ state.c) for s in term.a.mid_s + term.patches.row_s[n, 0] + term.offsets_s]
    position = np.mean([R @ state.lever_arm_m - state.lever_arm_m for R in rotation], axis=0)
    phi = np.mean([so3.log(rotation[0].T @ R) for R in rotation], axis=0)
    R_mean = rotation[0] @ so3.exp(phi)
    ray = term.camera.rays(term.patches.ideal[n] + beside)
    m = np.append(state.ray[term.patches.tracks[n]], 1.0) - state.rho[term.patches.tracks[n]] * position
    point = position + R_mean @ ray * (R_mean.T @ m)[2] / state.rho[term.patches.tracks[n]]
    pixels = []
    for s in t:
        R = so3.exp(state.grid.rows(s) @ state.c)
        pixels.append(term.camera.project(R.T @ (point - R @ state.lever_arm_m + state.lever_arm_m)))
    return np.array(pixels)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_residual_is_that_of_explicit_loops(scale):
    """Each picture blurred along the other's path, sampled pixel by pixel, mean and contrast removed."""
    term, state = pair(clip(), scale, subsamples=7), clip().state
    compared = term.compare(term.geometry(state))
    fast = term.disagreement(term.geometry(state))
    for n in (0, 7, 20):
        row_s = term.patches.row_s[n]
        x_a = where_seen(term, state, n, term.a.mid_s + row_s[0] + term.offsets_s)
        t_b = term.b.mid_s + row_s[1] + term.offsets_s
        x_b = where_seen(term, state, n, t_b)
        sides = [[where_seen(term, state, n, t_b, step) for step in np.eye(2) * sign] for sign in (0.5, -0.5)]
        warp = np.stack([(right - left).mean(axis=0) for right, left in zip(*sides)], axis=1)
        i_a = blurred_patch(term.a, term.patches.raw[n], (x_b - x_b.mean(axis=0)) @ np.linalg.inv(warp).T, np.eye(2))
        shift = x_b.mean(axis=0) - term.patches.ideal[n]
        i_b = blurred_patch(term.b, term.patches.raw[n] + shift, (x_a - x_a.mean(axis=0)) @ warp.T, warp)
        i_a, i_b = i_a - i_a.mean(), i_b - i_b.mean()
        n_a, n_b = np.sqrt(i_a.var() + 1), np.sqrt(i_b.var() + 1)
        common = np.sqrt(n_a * n_b)
        expected = (i_a / n_a - i_b / n_b) * common
        tolerance = 0.02 * np.abs(i_a).max()  # a 1/32 px of the look-up may round the other way
        np.testing.assert_allclose(compared.residual[n], expected.ravel(), atol=tolerance)
        assert fast[n] == pytest.approx(np.sqrt(np.mean(compared.residual[n] ** 2)) / common, rel=0.05)


def test_both_pictures_agree_at_the_truth_only():
    term, truth = pair(clip()), clip().state
    contrast = term.compare(term.geometry(truth)).contrast
    at_truth, interpolated = (
        term.disagreement(term.geometry(s)) for s in (truth, through_the_means(truth, clip().tracks))
    )
    assert np.median(at_truth / contrast) < 0.1
    assert np.median(interpolated) > 2 * np.median(at_truth)


def test_reversing_time_within_both_frames_is_seen():
    """Within one frame it is not; between two frames the far ends of their paths tell."""
    term, truth = pair(clip()), clip().state
    mirrored = replace(truth, c=2 * (truth.grid.mean_rows(clip().tracks.mid_s[1], EXPOSURE_S) @ truth.c) - truth.c)
    at_truth, reversed_ = (np.median(term.disagreement(term.geometry(s))) for s in (truth, mirrored))
    assert reversed_ > 2 * at_truth


# --- the Jacobian -----------------------------------------------------------------------------------------------------


def smooth_pictures() -> list[np.ndarray]:
    """Slow waves, so that the picture's gradient at the sample stands for the whole step."""
    u, v = np.meshgrid(np.arange(CAMERA.width), np.arange(CAMERA.height))
    waves = [np.sin(u / 9 + v / 23 + k) + np.sin(v / 11 - u / 31 - k) for k in range(N_FRAMES)]
    return [(128 + 45 * w).astype(np.uint8) for w in waves]


def patches_without_mean(term: PairTerm, state: SplineState) -> list[np.ndarray]:
    """Both blurred patches (P, n), their contrast still in them."""
    g = term.geometry(state)
    places = zip((term.a, term.b), term._centres(g), (term._q, term._warped(g)))
    blurred = [sampled(seen.light, at, q).mean(axis=2) for seen, at, q in places]
    return [i - i.mean(axis=1, keepdims=True) for i in blurred]


def numeric_jacobian(term: PairTerm, state: SplineState, name: str, columns: np.ndarray, h: float) -> np.ndarray:
    """∂residual (P, n, columns) by central differences of the knots ``name``."""

    def residual(sign: float, column: int) -> np.ndarray:
        knots = getattr(state, name).copy()
        knots.flat[column] += sign * h
        a, b = patches_without_mean(term, replace(state, **{name: knots}))
        rms = [np.sqrt((i**2).mean(axis=1, keepdims=True) + 1) for i in (a, b)]
        return a * np.sqrt(rms[1] / rms[0]) - b * np.sqrt(rms[0] / rms[1])

    return np.stack([(residual(1, i) - residual(-1, i)) / (2 * h) for i in columns], axis=2)


@pytest.mark.parametrize("lever_arm_m", [LEVER_ARM_M, None], ids=["lever arm", "free translation"])
def test_the_jacobian_is_the_difference_of_the_residual(lever_arm_m):
    rng = np.random.default_rng(0)
    truth = clip().state
    d = 0.01 * rng.normal(size=truth.d.shape)
    state = replace(truth, lever_arm_m=lever_arm_m, d=d, rho=rng.uniform(0.3, 1.5, N_POINTS))
    term = pair(clip(), 2, 9, smooth_pictures(), state)
    g = term.geometry(state)
    free = lever_arm_m is None
    columns = term.columns(translation_from=3 * state.grid.count)
    J = term.compare(g).jacobian[..., np.argsort(columns)].astype(float)
    turning = np.sort(columns[columns < 3 * state.grid.count])
    moving = np.sort(columns[columns >= 3 * state.grid.count]) - 3 * state.grid.count
    assert (len(moving) > 0) == free
    n_rot = len(turning)
    rotation = numeric_jacobian(term, state, "c", turning, 2e-3)
    assert np.linalg.norm(J[..., :n_rot] - rotation) < 0.07 * np.linalg.norm(rotation)
    if free:
        translation = numeric_jacobian(term, state, "d", moving, 5e-3)
        elsewhere = np.setdiff1d(np.arange(state.d.size), moving)
        assert np.linalg.norm(numeric_jacobian(term, state, "d", elsewhere, 5e-3)) < 1e-6
        assert np.linalg.norm(J[..., n_rot:] - translation) < 0.07 * np.linalg.norm(translation)


# --- refinement and gate ----------------------------------------------------------------------------------------------


def solved(state: SplineState, weights: np.ndarray | None = None, rate_rad_s: float = PRIOR_RATE_RAD_S) -> Solved:
    """A track spline that knows its prior and, within a milliradian, where the frames' mean rotations are."""
    Q = knot_precision(state.grid.count, state.grid.spacing_s) / rate_rad_s**2
    means = state.grid.mean_rows(clip().tracks.mid_s, EXPOSURE_S)
    information = np.kron(Q + means.T @ means * 1e6, np.eye(3))
    if state.lever_arm_m is None:
        t_grid = state.translation_grid
        Qt = translation_precision(t_grid.count, t_grid.spacing_s, 0.05, 0.15) + 1e4 * np.eye(t_grid.count)
        n = len(information)
        information = np.pad(information, (0, 3 * t_grid.count))
        information[n:, n:] = np.kron(Qt, np.eye(3))
    weights = np.ones(N_POINTS) if weights is None else weights
    return Solved(state, information, np.zeros_like(information), weights, Q)


def refiner(pictures: list[np.ndarray], scale: int = 2, patches: int = 100) -> CrossBlur:
    refiner = CrossBlur(patches, pairs=3, iterations=2)
    refiner.scale = scale
    for image, mid_s in zip(pictures, clip().tracks.mid_s):
        refiner.add_picture(image, float(mid_s))
    return refiner


def rate_error(state: SplineState, seed: int = 1) -> float:
    """Over the middle frames' exposures."""
    tracks = clip(seed).tracks
    t = (tracks.mid_s[1:3, None] + np.linspace(-0.5, 0.5, 30) * EXPOSURE_S).ravel()
    truth = tracks.path.rate(t)
    return float(np.linalg.norm(state.rate(t) - truth, axis=1).sum() / np.linalg.norm(truth, axis=1).sum())


@pytest.mark.parametrize("seed", [1, 2])
def test_refinement_finds_the_path_inside_the_frames(seed):
    c = clip(seed)
    start = through_the_means(c.state, c.tracks)
    out = refiner(c.frames).refine(c.sightings, solved(start), CAMERA, EXPOSURE_S, c.blur_px)
    assert out.gate == "accepted"
    assert out.held_out_log < -0.2
    assert rate_error(out.state, seed) < 0.5 * rate_error(start, seed)
    assert out.information.shape == (3 * start.grid.count,) * 2
    assert np.linalg.eigvalsh(out.information - solved(start).information).min() > -1e-6 * out.information.max()


def test_a_free_translation_is_refined_as_well():
    c = clip()
    start = replace(through_the_means(c.state, c.tracks), lever_arm_m=None)
    out = refiner(c.frames).refine(c.sightings, solved(start), CAMERA, EXPOSURE_S, c.blur_px)
    assert out.gate == "accepted"
    assert rate_error(out.state) < 0.7 * rate_error(start)
    assert np.abs(out.state.d - start.d).max() > 1e-4


def test_the_newest_frame_is_compared_with_an_older_one_too():
    c = clip()
    given = (c.sightings, c.state, np.ones(N_POINTS), CAMERA, EXPOSURE_S, c.blur_px)
    used = refiner(c.frames)
    pairs, held_out = used._pair_terms(used._views, *given)
    solving, judging = ({t for pair in terms for t in pair.patches.tracks} for terms in (pairs, held_out))
    assert not solving & judging
    frames = [(float(pair.a.mid_s), float(pair.b.mid_s)) for pair in pairs]
    mid_s = [float(t) for t in c.tracks.mid_s]
    assert frames == [*pairwise(mid_s), (mid_s[0], mid_s[3])]


def test_pictures_that_have_nothing_in_common_are_refused():
    """Each frame shows another scene than its neighbours: what fits some patches does not fit the held-out ones."""
    c = clip()
    frames = [clip(1 + k % 2).frames[k] for k in range(N_FRAMES)]
    out = refiner(frames).refine(c.sightings, solved(c.state), CAMERA, EXPOSURE_S, c.blur_px)
    assert out.gate != "accepted"


def test_noise_is_refused():
    c, rng = clip(), np.random.default_rng(0)
    noise = [np.clip(rng.normal(128, 40, (CAMERA.height, CAMERA.width)), 0, 255).astype(np.uint8) for _ in range(4)]
    out = refiner(noise).refine(c.sightings, solved(c.state), CAMERA, EXPOSURE_S, c.blur_px)
    assert out is None or out.gate != "accepted"


def test_nothing_better_than_the_truth_is_found():
    """From the truth the refinement stays, whatever the gate then says."""
    c = clip()
    out = refiner(c.frames).refine(c.sightings, solved(c.state), CAMERA, EXPOSURE_S, c.blur_px)
    assert rate_error(out.state) < 0.1
    assert rate_error(out.state) < 0.3 * rate_error(through_the_means(c.state, c.tracks))


def test_motion_that_the_prior_finds_far_too_lively_is_refused():
    """The start stands still, the pictures insist on motion, and the gate's prior expects next to none."""
    c = clip()
    still = replace(c.state, c=np.zeros_like(c.state.c))
    unhurried = solved(still)
    unhurried = replace(unhurried, rotation_precision=unhurried.rotation_precision * 10**2)
    out = refiner(c.frames).refine(c.sightings, unhurried, CAMERA, EXPOSURE_S, c.blur_px)
    assert out.held_out_log < -0.2
    assert out.gate == "energy"


def test_any_trajectory_can_be_judged_and_is_the_next_start():
    c = clip()
    start = solved(through_the_means(c.state, c.tracks))
    given = (c.sightings, start, CAMERA, EXPOSURE_S, c.blur_px)
    used = refiner(c.frames)
    cold = used.start(*given)
    assert used.judge(cold, start, c.state, start.information).gate == "accepted"
    warm = used.start(*given)
    assert warm.warm
    settled = c.state.grid.centres_s <= c.tracks.mid_s[-3] + EXPOSURE_S / 2
    np.testing.assert_allclose(warm.state.c[settled], c.state.c[settled])
    assert np.abs(warm.state.c[~settled] - start.state.c[~settled]).max() > 1e-4  # and the rest follows
    rms, contrast, ratio = warm.medians()
    assert rms < cold.medians()[0]
    assert 0 < ratio < 2 * rms / contrast
    assert CrossBlur(100, 3, 1).start(*given) is None


@pytest.mark.parametrize("times", [4, 4.5])
def test_coarser_pictures_lead_where_the_gradients_do_not_reach(monkeypatch, times):
    """The start is off by several times what interpolation misses."""
    c = clip(2)
    means = through_the_means(c.state, c.tracks)
    far = solved(replace(c.state, c=means.c + (times - 1) * (means.c - c.state.c)), rate_rad_s=3 * PRIOR_RATE_RAD_S)
    given = (c.sightings, far, CAMERA, EXPOSURE_S, c.blur_px)
    found = refiner(c.frames).refine(*given)
    monkeypatch.setattr(refine, "POOR_START", np.inf)
    fine_alone = refiner(c.frames).refine(*given)
    assert rate_error(found.state, 2) < 0.8 * rate_error(fine_alone.state, 2)


def test_held_out_patches_have_no_say():
    """Another course through the held-out tracks' pictures changes the verdict, not the refinement."""
    c = clip()
    start = through_the_means(c.state, c.tracks)
    held = np.arange(N_POINTS) % crossblur.HELD_OUT == crossblur.HELD_OUT - 1
    raw = np.where(held[:, None, None], c.tracks.ideal[:, :, ::-1] * [1.0, 0.7], c.tracks.ideal)
    elsewhere = replace(c.sightings, raw=raw)
    whole, misled = (
        refiner(c.frames, patches=N_POINTS).refine(s, solved(start), CAMERA, EXPOSURE_S, c.blur_px)
        for s in (c.sightings, elsewhere)
    )
    assert misled.held_out_log > 0.5 * whole.held_out_log
    np.testing.assert_array_equal(misled.state.c, whole.state.c)


def test_nothing_to_compare_is_none():
    c = clip()
    one = CrossBlur(100, 3, 2)
    assert one.refine(c.sightings, solved(c.state), CAMERA, EXPOSURE_S, c.blur_px) is None
    one.add_picture(c.frames[0], 0.05)
    assert one.refine(c.sightings, solved(c.state), CAMERA, EXPOSURE_S, c.blur_px) is None
    distrusted = solved(c.state, np.full(N_POINTS, 0.1))
    assert refiner(c.frames).refine(c.sightings, distrusted, CAMERA, EXPOSURE_S, c.blur_px) is None
    flat = [np.full((CAMERA.height, CAMERA.width), 90, np.uint8)] * 4
    assert refiner(flat).refine(c.sightings, solved(c.state), CAMERA, EXPOSURE_S, c.blur_px) is None


def test_reset_and_a_change_of_scale_start_afresh():
    c = clip()
    used, start = refiner(c.frames), solved(through_the_means(c.state, c.tracks))
    first = used.refine(c.sightings, start, CAMERA, EXPOSURE_S, c.blur_px)
    again = used.refine(c.sightings, start, CAMERA, EXPOSURE_S, c.blur_px)
    assert not np.array_equal(again.state.c, first.state.c)  # it went on from where it had ended
    used.reset()
    assert used.refine(c.sightings, start, CAMERA, EXPOSURE_S, c.blur_px) is None
    for image, mid_s in zip(c.frames, c.tracks.mid_s):
        used.add_picture(image, float(mid_s))
    afresh = used.refine(c.sightings, start, CAMERA, EXPOSURE_S, c.blur_px)
    np.testing.assert_array_equal(afresh.state.c, first.state.c)
    used.scale = 4
    used.add_picture(c.frames[-1], float(c.tracks.mid_s[-1]))
    assert used.refine(c.sightings, solved(c.state), CAMERA, EXPOSURE_S, c.blur_px) is None


def test_the_right_exposure_makes_the_pictures_agree_best():
    c = clip()
    told = [0.2, 0.6, 1.0, 1.25]
    score = [
        refiner(c.frames).disagreement(c.sightings, c.state, np.ones(N_POINTS), CAMERA, x * EXPOSURE_S, c.blur_px)
        for x in told
    ]
    assert told[int(np.argmin(score))] == 1.0


def test_a_still_camera_keeps_still():
    still = replace(clip().state, c=np.zeros_like(clip().state.c))
    sharp = [clip().frames[0]] * N_FRAMES
    at = np.broadcast_to(clip().tracks.ideal[:, :1], (N_POINTS, N_FRAMES, 2))
    row_s = np.broadcast_to(clip().tracks.row_s[:, :1], (N_POINTS, N_FRAMES))
    out = refiner(sharp).refine(
        Sightings(np.arange(N_POINTS), at, at, row_s), solved(still), CAMERA, EXPOSURE_S, blur_px=0.0
    )
    assert np.abs(out.state.rate(clip().tracks.mid_s)).max() < 0.01
