"""The tracker on pictures whose motion is known to a hundredth of a pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros.errors import ConfigError
from perspblur_ros.tracker import (
    BORDER_PX,
    FORWARD_BACKWARD_PX,
    GAMMA,
    MatchDis,
    Tracker,
    _sample_flow,
    blurred_along,
    corners,
    is_blind,
    load_matcher,
    match_lk,
    query_grid,
)

WIDTH, HEIGHT = 320, 240
TABLE_FRAMES = 6
MAX_TRACKS = 120


def texture(seed: int = 0, width: int = WIDTH + 200, height: int = HEIGHT + 200) -> np.ndarray:
    """Noise of equal strength per octave from 4 to 128 px, float32 0 … 255."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for cell in (4, 8, 16, 32, 64, 128):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 25 * total, 0, 255)


BIG = texture()


def moved(shift: tuple[float, float], gain: float = 1.0) -> np.ndarray:
    """The picture whose content has moved by ``shift`` (x, y) px, uint8."""
    u, v = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    picture = cv2.remap(BIG, u + np.float32(100 - shift[0]), v + np.float32(100 - shift[1]), cv2.INTER_CUBIC)
    return np.clip(gain * picture, 0, 255).astype(np.uint8)


def tracker(max_tracks: int = MAX_TRACKS) -> Tracker:
    return Tracker(match_lk, max_tracks, TABLE_FRAMES)


def alive(table) -> np.ndarray:
    return np.isfinite(table.pixels[:, -1, 0])


@given(st.integers(50, 2000), st.integers(50, 2000), st.integers(2, 15), st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_the_query_grid_is_inside_and_has_the_axis_in_its_middle(width, height, i, x, y):
    cx, cy = x * (width - 1), y * (height - 1)
    grid = query_grid(width, height, i, cx, cy)
    n = 2 * i + 1
    assert grid.shape == (n * n, 2)
    np.testing.assert_array_equal(grid[n * i + i], [cx, cy])
    assert np.all((grid > 0) & (grid < [width - 1, height - 1]))
    by_row = grid.reshape(n, n, 2)
    assert np.all(np.diff(by_row[..., 0], axis=1) > 0)
    assert np.all(np.diff(by_row[..., 1], axis=0) > 0)


def test_the_papers_grid_is_25_by_25():
    assert len(query_grid(640, 480, 12, 319.5, 239.5)) == 625


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.37, -0.61), (5.25, 3.5), (-18.7, 11.3)])
def test_lk_follows_a_shift_to_a_fraction_of_a_pixel(shift):
    before, after = moved((0, 0)), moved(shift)
    points = corners(before, 80, 12.0, np.zeros((0, 2)))
    inside = np.all((points + shift > 30) & (points + shift < [WIDTH - 30, HEIGHT - 30]), axis=1)
    at, accepted = match_lk(before, after, points, points)
    assert accepted[inside].mean() > 0.7  # near the border the pyramid has little to hold on to
    error = np.linalg.norm(at - points - shift, axis=1)[inside & accepted]
    assert np.median(error) < 0.07
    assert np.mean(error > FORWARD_BACKWARD_PX) < 0.05  # the backward search starts at the answer, so a few slip by


@pytest.mark.parametrize("shift", [(0.37, -0.61), (5.25, 3.5), (-12.7, 8.3)])
def test_dis_follows_a_shift(shift):
    before, after = moved((0, 0)), moved(shift)
    points = corners(before, 80, 12.0, np.zeros((0, 2)))
    points = points[np.all((points + shift > 30) & (points + shift < [WIDTH - 30, HEIGHT - 30]), axis=1)]
    at, accepted = MatchDis()(before, after, points, points)
    assert accepted.mean() > 0.8
    assert np.median(np.linalg.norm(at - points - shift, axis=1)[accepted]) < 0.2


def test_a_good_guess_carries_lk_across_a_leap():
    """Without a guess the pyramid (20 × 15 px at its top) loses them."""
    far = (90.0, 60.0)
    before, after = moved((0, 0)), moved(far)
    points = corners(before, 60, 12.0, np.zeros((0, 2)))
    points = points[np.all((points + far > 30) & (points + far < [WIDTH - 30, HEIGHT - 30]), axis=1)]
    guided, accepted = match_lk(before, after, points, points + far + 1.5)
    assert accepted.mean() > 0.9
    assert np.median(np.linalg.norm(guided - points - far, axis=1)[accepted]) < 0.05
    _, accepted = match_lk(before, after, points, points)
    assert accepted.mean() < 0.5


@pytest.mark.parametrize("match", [match_lk, MatchDis()], ids=["lk", "dis"])
def test_what_vanished_is_not_accepted(match):
    before, after = moved((0, 0)), texture(99)[:HEIGHT, :WIDTH].astype(np.uint8)
    points = corners(before, 80, 12.0, np.zeros((0, 2)))
    _, accepted = match(before, after, points, points)
    assert accepted.mean() < 0.2


def test_corners_keep_their_distance_from_each_other_the_border_and_what_is_taken():
    image, taken = moved((0, 0)), np.array([[160.0, 120.0], [60.0, 50.0]])
    found = corners(image, 40, 24.0, taken)
    assert len(found) == 40
    distances = np.linalg.norm(found[:, None] - found, axis=2) + 1e9 * np.eye(len(found))
    assert distances.min() > 18  # refinement moves a corner by a few pixels
    assert np.linalg.norm(found[:, None] - taken, axis=2).min() > 10
    assert np.all((found > BORDER_PX - 3) & (found < np.array([WIDTH, HEIGHT]) + 2 - BORDER_PX))


def test_corners_are_on_corners():
    """Cells of a chessboard; the picture is halved inside, which must not shift the corners found."""
    white = (np.indices((HEIGHT, WIDTH)) // 32).sum(axis=0) % 2
    image = cv2.GaussianBlur((60 + 120 * white).astype(np.uint8), (0, 0), 1.0)
    found = corners(image, 40, 20.0, np.zeros((0, 2)))
    to_corner = (found - 31.5 + 16) % 32 - 16
    assert len(found) > 20
    assert np.median(np.abs(to_corner)) < 0.25


def test_corners_are_found_in_the_dark_half_too():
    image = moved((0, 0))
    image[:, : WIDTH // 2] //= 4
    found = corners(image, 120, 12.0, np.zeros((0, 2)))
    assert (found[:, 0] < WIDTH / 2).sum() > 0.25 * len(found)


def test_ids_belong_to_the_same_point_for_life():
    t, origin = tracker(), {}
    for k in range(10):
        shift = np.array([2.3, -1.1]) * k
        table = t.add(moved(tuple(shift)))
        for name, pixel in zip(table.ids[alive(table)], table.pixels[alive(table), -1]):
            place = origin.setdefault(int(name), pixel - shift)
            np.testing.assert_allclose(pixel - shift, place, atol=0.5)
    assert len(origin) > MAX_TRACKS  # some left the picture and fresh ones came


def test_the_table_is_bounded_and_without_duplicates():
    t = tracker()
    for k in range(20):
        table = t.add(moved((4.0 * k, 1.5 * k)))
        assert table.pixels.shape[1] == min(k + 1, TABLE_FRAMES)
        assert alive(table).sum() <= MAX_TRACKS
        assert len(table.ids) <= MAX_TRACKS * TABLE_FRAMES
        assert len(np.unique(table.ids)) == len(table.ids)
        assert np.isfinite(table.pixels[:, :, 0]).any(axis=1).all()
        np.testing.assert_array_equal(np.isnan(table.pixels[..., 0]), np.isnan(table.pixels[..., 1]))
    assert alive(table).sum() > 0.8 * MAX_TRACKS


def test_a_track_that_ended_does_not_come_back():
    t = tracker()
    t.add(moved((0, 0)))
    t.add(moved((1, 0)))
    lost = t.add(np.full((HEIGHT, WIDTH), 90, np.uint8))
    assert not alive(lost).any()
    ended = set(lost.ids)
    again = t.add(moved((1, 0)))
    assert alive(again).any()
    assert not ended & set(again.ids[alive(again)])


def test_a_picture_that_is_skipped_ends_every_track():
    t = tracker()
    t.add(moved((0, 0)))
    before = t.add(moved((1, 0)))
    t.skip()
    np.testing.assert_array_equal(t.table.ids, before.ids)  # what was seen stays, one frame further back
    np.testing.assert_array_equal(t.table.pixels[:, :-1], before.pixels)
    assert not alive(t.table).any()
    again = t.add(moved((1, 0)))
    assert alive(again).sum() > 0.8 * MAX_TRACKS
    assert not set(before.ids) & set(again.ids[alive(again)])
    for _ in range(TABLE_FRAMES):
        t.skip()
    assert len(t.table.ids) == 0


def test_tracks_near_the_border_end():
    t = tracker()
    for k in range(6):
        table = t.add(moved((6.0 * k, 0)))
        followed = alive(table) & (np.isfinite(table.pixels[..., 0]).sum(axis=1) > 1)
        now = table.pixels[followed, -1]
        assert np.all((now > BORDER_PX) & (now < np.array([WIDTH, HEIGHT]) - 1 - BORDER_PX))


def test_predictions_are_taken_as_guesses():
    """A leap too far for the pyramid is followed when the caller predicts it."""
    leap = np.array([95.0, 0.0])
    t = tracker()
    table = t.add(moved((0, 0)))
    guided = t.add(moved(tuple(leap)), predicted=table.pixels[:, -1] + leap + 1)
    kept = np.isin(guided.ids, table.ids) & alive(guided)
    stays = (table.pixels[:, -1] + leap < [WIDTH - 30, HEIGHT]).all(axis=1)
    assert kept.sum() > 0.8 * stays.sum()
    moved_by = guided.pixels[kept, -1] - guided.pixels[kept, -2]
    np.testing.assert_allclose(np.median(moved_by, axis=0), leap, atol=0.05)


def test_reset_starts_afresh():
    t = tracker()
    t.add(moved((0, 0)))
    t.reset()
    assert len(t.table.ids) == 0
    table = t.add(moved((60, 60)))
    assert table.pixels.shape[1] == 1
    assert table.ids.min() == 0


def test_a_changed_exposure_does_not_lose_the_points():
    t = tracker()
    first = t.add(moved((0, 0)))
    second = t.add(moved((3, 2), gain=0.75))
    assert np.isin(first.ids, second.ids[alive(second)]).mean() > 0.75


def curved_path(seed: int, length_px: float) -> np.ndarray:
    """Where a point goes during one exposure, (21, 2) px about its mean."""
    rng = np.random.default_rng(seed)
    s = np.linspace(-1, 1, 21)[:, None]
    path = s * rng.normal(size=2) + 0.5 * s**2 * rng.normal(size=2)
    path *= length_px / np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    return path - path.mean(axis=0)


def exposed(shift: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The moved picture, collected along a path in linear light."""
    light = np.mean([(moved(tuple(shift + step)) / 255.0) ** GAMMA for step in path], axis=0)
    return np.round(255 * light ** (1 / GAMMA)).astype(np.uint8)


def test_blur_along_a_path_is_the_mean_of_shifted_pictures():
    path = curved_path(2, 14.0)
    blurred = blurred_along(moved((0, 0)), path)
    assert blurred.shape == (HEIGHT // 2, WIDTH // 2)
    expected = cv2.resize(exposed(np.zeros(2), path), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    inner = (slice(10, -10), slice(10, -10))
    assert np.abs(blurred.astype(float) - expected)[inner].mean() < 1.5
    mirrored = cv2.resize(exposed(np.zeros(2), -path), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert np.abs(blurred.astype(float) - mirrored)[inner].mean() > 2.5  # the path has a direction
    no_path = blurred_along(moved((0, 0)), np.zeros((1, 2)))
    expected = cv2.resize(moved((0, 0)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert np.abs(no_path.astype(float) - expected)[inner].mean() < 1.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_known_paths_take_the_bias_off_tracks(seed):
    """Two blurs of 12 px that bend differently: the points' means are where the shift says, plain tracking is off."""
    shift, paths = np.array([6.0, -4.0]), [curved_path(10 * seed + k, 12.0) for k in range(2)]
    before, after = exposed(np.zeros(2), paths[0]), exposed(shift, paths[1])
    t = tracker()
    started = t.add(before)
    first = dict(zip(started.ids.tolist(), started.pixels[:, -1]))

    def errors() -> np.ndarray:
        here = alive(t.table) & np.isin(t.table.ids, list(first))
        origin = np.array([first[name] for name in t.table.ids[here].tolist()])
        return np.linalg.norm(t.table.pixels[here, -1] - origin - shift, axis=1)

    t.add(after)
    plain = errors()
    found = t.retrack(before, after, *paths)
    again = errors()
    assert found > 0.7 * len(plain)
    assert len(again) >= len(plain)
    assert np.median(again) < 0.6 * np.median(plain)
    assert np.median(again) < 0.15


def test_following_again_needs_something_to_follow():
    t, path = tracker(), curved_path(0, 8.0)
    assert t.retrack(BLACK, BLACK, path, path) == 0
    t.add(moved((0, 0)))
    assert t.retrack(moved((0, 0)), moved((0, 0)), path, path) == 0  # a single frame has no step
    t.reset()
    t.add(BLACK)
    t.add(BLACK)
    assert t.retrack(BLACK, BLACK, path, path) == 0


BLACK, WHITE = np.zeros((HEIGHT, WIDTH), np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)
RAMP_FREE = np.full((HEIGHT, WIDTH), 117, np.uint8)
SENSOR_NOISE = np.clip(np.random.default_rng(3).normal(20, 4, (HEIGHT, WIDTH)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("image", [BLACK, WHITE, RAMP_FREE, SENSOR_NOISE], ids=["black", "white", "flat", "noise"])
def test_pictures_that_carry_nothing_are_blind(image):
    assert is_blind(image)


def test_ordinary_and_dim_pictures_are_not_blind():
    assert not is_blind(moved((0, 0)))
    assert not is_blind(moved((0, 0), gain=0.15))


@pytest.mark.parametrize("image", [BLACK, WHITE, RAMP_FREE], ids=["black", "white", "flat"])
def test_pictures_without_texture_give_no_tracks(image):
    t = tracker()
    for _ in range(3):
        assert len(t.add(image).ids) == 0


def nudged(before, after, points, guess):
    """An external matcher for the test below: everything moved by one pixel to the right."""
    return points + np.array([1.0, 0.0]), np.ones(len(points), bool)


def test_an_external_matcher_is_loaded_by_name():
    matcher = load_matcher("external", f"{__name__}:nudged")
    at, good = matcher(None, None, np.zeros((2, 2)), np.zeros((2, 2)))
    np.testing.assert_array_equal(at, [[1, 0], [1, 0]])
    assert good.all()


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_name", "math:pi", "math"])
def test_an_external_matcher_that_cannot_be_had_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        load_matcher("external", name)


def test_a_flow_field_is_read_at_every_point():
    """One value per point, bilinear: x + 2 y is exact."""
    y, x = np.mgrid[:40, :60].astype(np.float32)
    points = np.random.default_rng(0).uniform(1, 38, (7, 2))
    sampled = _sample_flow(np.stack([x + 2 * y, x], axis=-1), points)
    np.testing.assert_allclose(sampled, np.stack([points @ (1, 2), points[:, 0]], axis=1), atol=0.1)
