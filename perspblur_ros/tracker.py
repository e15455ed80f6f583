"""Point tracking, frame to frame: the query grid, OpenCV's pyramidal Lucas–Kanade or DIS flow, and the track table.

The paper's queries are a (2i+1)² grid that includes the on-axis point (``query_grid``). What is followed here are the
strongest corners at that grid's spacing, on a locally normalised picture so that dark parts contribute too: a point
without texture tells nothing. A track keeps its id for life.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError

FloatArray = NDArray[np.float64]
Grey = NDArray[np.uint8]

FORWARD_BACKWARD_PX = 0.7
BORDER_PX = 8
LK_WINDOW_PX = 31
LK_LEVELS = 4
LK_LEVELS_BACK = 2  # the way back starts at its end
LK_ITERATIONS, LK_CONVERGED_PX = 30, 0.03  # finer steps change no result by more than the noise does
MIN_CORNER_SHARE = 0.004  # of the strongest corner's response
GAMMA = 2.2
BLIND_CONTRAST = 2.0  # grey levels; below this RMS the picture carries nothing

_TO_LIGHT = (np.linspace(0, 1, 256) ** GAMMA).astype(np.float32)


class PointMatcher(Protocol):
    """Follows points from one picture to another."""

    def __call__(self, before: Grey, after: Grey, points: FloatArray, guess: FloatArray) -> tuple[FloatArray, NDArray]:
        """points, guess (N, 2) raw pixels → (positions in ``after`` (N, 2), accepted (N,) bool)."""


def query_grid(width: int, height: int, half_count: int, cx: float, cy: float) -> FloatArray:
    """The paper's query points: (2i+1)² uniform points with the on-axis point (cx, cy) in the middle, (N, 2)."""
    steps = np.arange(-half_count, half_count + 1) / (half_count + 1)
    x = cx + np.where(steps < 0, cx, width - 1 - cx) * steps
    y = cy + np.where(steps < 0, cy, height - 1 - cy) * steps
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def match_lk(
    before: Grey,
    after: Grey,
    points: FloatArray,
    guess: FloatArray,
    levels: int = LK_LEVELS,
) -> tuple[FloatArray, NDArray]:
    """Pyramidal Lucas–Kanade with a forward–backward check."""
    options: dict[str, Any] = {
        "winSize": (LK_WINDOW_PX, LK_WINDOW_PX),
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, LK_ITERATIONS, LK_CONVERGED_PX),
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
    }
    start = points.astype(np.float32).reshape(-1, 1, 2)
    forth, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, start, guess.astype(np.float32).reshape(-1, 1, 2), maxLevel=levels, **options
    )
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(
        after, before, forth, start.copy(), maxLevel=min(levels, LK_LEVELS_BACK), **options
    )
    consistent = np.linalg.norm((back - start)[:, 0], axis=1) < FORWARD_BACKWARD_PX
    return forth[:, 0].astype(float), (found.ravel() > 0) & (found_back.ravel() > 0) & consistent


class MatchDis:
    """Dense inverse search flow, sampled at the points; cheaper per point when there are many."""

    def __init__(self) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, before: Grey, after: Grey, points: FloatArray, guess: FloatArray) -> tuple[FloatArray, NDArray]:
        forth = points + _sample_flow(self._flow.calc(before, after, None), points)
        back = forth + _sample_flow(self._flow.calc(after, before, None), forth)
        return forth, np.linalg.norm(back - points, axis=1) < FORWARD_BACKWARD_PX


def _sample_flow(flow: NDArray, points: FloatArray) -> FloatArray:
    at = points.astype(np.float32)[None]  # one row: OpenCV 4 and 5 differ in what they make of a vector
    nothing: Any = None  # both coordinates are in the first map
    sampled: NDArray[Any] = cv2.remap(flow, at, nothing, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return sampled[0].astype(float)


def load_matcher(kind: str, module_and_name: str) -> PointMatcher:
    """The matcher of a name: "lk", "dis", or "external" with the user's own ``module:name``, imported only now.

    Raises ConfigError in one sentence where that cannot be imported or called.
    """
    if kind == "dis":
        return MatchDis()
    if kind == "lk":
        return match_lk
    module, _, name = module_and_name.partition(":")
    try:
        matcher = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"tracker_callable '{module_and_name}' cannot be imported: {error}") from None
    if not callable(matcher):
        raise ConfigError(f"tracker_callable '{module_and_name}' is not callable")
    return matcher


def is_blind(image: Grey) -> bool:
    """Dark, saturated or flat: too little contrast to see motion."""
    small = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    return float(small.std()) < BLIND_CONTRAST


def corners(image: Grey, count: int, spacing_px: float, taken: FloatArray) -> FloatArray:
    """Up to ``count`` corners at least ``spacing_px`` apart and away from ``taken`` (M, 2); (N, 2)."""
    f = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.float32)
    mean = cv2.blur(f, (25, 25))
    deviation = np.sqrt(np.maximum(cv2.blur(f * f, (25, 25)) - mean * mean, 0)) + 4
    normalised = np.clip(128 + 40 * (f - mean) / deviation, 0, 255).astype(np.uint8)
    mask = np.full(normalised.shape, 255, np.uint8)
    margin = BORDER_PX // 2 + 1
    mask[:margin], mask[-margin:], mask[:, :margin], mask[:, -margin:] = 0, 0, 0, 0
    for x, y in taken / 2:
        cv2.circle(mask, (round(x), round(y)), round(spacing_px * 0.6 / 2), 0, -1)
    found = cv2.goodFeaturesToTrack(normalised, count, MIN_CORNER_SHARE, spacing_px / 2, mask=mask, blockSize=5)
    if found is None:
        return np.zeros((0, 2))
    fine = cv2.cornerSubPix(normalised, found, (3, 3), (-1, -1), (cv2.TERM_CRITERIA_COUNT, 5, 0.0))
    return fine[:, 0].astype(float) * 2 + 0.5


def blurred_along(image: Grey, path_px: FloatArray) -> Grey:
    """The picture blurred along a path (S, 2) px about its mean, in linear light; half the size of ``image``."""
    light = cv2.resize(cv2.LUT(image, _TO_LIGHT), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    path = path_px / 2
    reach = int(np.ceil(np.abs(path).max(initial=0.0))) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for x, y in reach - path:
        i, j = int(y), int(x)
        b, a = y - i, x - j
        kernel[i : i + 2, j : j + 2] += np.outer((1 - b, b), (1 - a, a)) / len(path)
    blurred = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.clip(255 * np.power(np.maximum(blurred, 0), 1 / GAMMA) + 0.5, 0, 255).astype(np.uint8)


def _inside(points: FloatArray, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which points (N, 2) keep off the picture's border."""
    high = np.array([shape[1], shape[0]]) - 1 - BORDER_PX
    return np.all((points > BORDER_PX) & (points < high), axis=1)


@dataclass(frozen=True)
class TrackTable:
    """Tracks over the last T frames: ids (N,), pixels (N, T, 2) raw, NaN where not seen; the newest frame is last."""

    ids: NDArray[np.int64]
    pixels: FloatArray


class Tracker:
    """Keeps up to ``max_tracks`` points alive over a sliding table of ``table_frames`` frames.

    Points are as far apart as those of a (2i+1)² grid over the picture, i = ``grid_half_count``.
    """

    def __init__(self, matcher: PointMatcher, max_tracks: int, table_frames: int, grid_half_count: int = 12) -> None:
        self._match, self._max_tracks, self._table_frames = matcher, max_tracks, table_frames
        self._grid_half_count = grid_half_count
        self.reset()

    def reset(self) -> None:
        self._previous: Grey | None = None
        self._next_id = 0
        self.table = TrackTable(np.zeros(0, np.int64), np.zeros((0, 0, 2)))

    def skip(self) -> None:
        """The next picture shows nothing: every track ends before it."""
        self._append(np.full((len(self.table.ids), 2), np.nan))

    def add(self, image: Grey, predicted: FloatArray | None = None) -> TrackTable:
        """Follow the points into ``image``; ``predicted`` (N, 2) are guesses for the present table's rows or None."""
        ids, pixels = self.table.ids, self.table.pixels
        column = np.full((len(ids), 2), np.nan)
        if self._previous is not None and len(ids):
            alive = np.flatnonzero(np.isfinite(pixels[:, -1, 0]))
            if len(alive):
                start = pixels[alive, -1]
                guess = start if predicted is None else predicted[alive]
                column[alive] = self._followed(self._previous, image, start, guess)
        self._append(column)
        self._replenish(image)
        self._previous = image
        return self.table

    def retrack(self, before: Grey, after: Grey, path_before: FloatArray, path_after: FloatArray) -> int:
        """Follow the newest step again with each picture blurred along the other's path, (S, 2) px about its mean.

        Both then carry the same blur, which takes away most of the bias that unlike blurs put on Lucas–Kanade, and many
        points that were lost are found. Returns how many points were found again or anew.
        """
        pixels = self.table.pixels
        if pixels.shape[1] < 2:
            return 0
        known = np.flatnonzero(np.isfinite(pixels[:, -2, 0]))
        if len(known) == 0:
            return 0
        start, now = pixels[known, -2], pixels[known, -1]
        moved = np.isfinite(now[:, 0])
        step = np.median(now[moved] - start[moved], axis=0) if moved.any() else np.zeros(2)
        guess = np.where(moved[:, None], now, start + step)
        a, b = blurred_along(before, path_after), blurred_along(after, path_before)
        half, found = match_lk(a, b, (start + 0.5) / 2 - 0.5, (guess + 0.5) / 2 - 0.5, levels=LK_LEVELS - 1)
        found &= _inside(half, b.shape)
        pixels[known[found], -1] = (half[found] + 0.5) * 2 - 0.5
        return int(found.sum())

    def _append(self, column: FloatArray) -> None:
        """One more frame at the table's end, (N, 2); tracks that are nowhere to be seen any more are forgotten."""
        pixels = np.concatenate([self.table.pixels, column[:, None]], axis=1)[:, -self._table_frames :]
        keep = np.isfinite(pixels[:, :, 0]).any(axis=1)
        self.table = TrackTable(self.table.ids[keep], pixels[keep])

    def _followed(self, before: Grey, after: Grey, start: FloatArray, guess: FloatArray) -> FloatArray:
        position, accepted = self._match(before, after, start, guess)
        return np.where((accepted & _inside(position, after.shape))[:, None], position, np.nan)

    def _replenish(self, image: Grey) -> None:
        newest = self.table.pixels[:, -1]
        alive = newest[np.isfinite(newest[:, 0])]
        missing = self._max_tracks - len(alive)
        if missing < 0.1 * self._max_tracks:
            return
        height, width = image.shape
        spacing = max(6.0, np.sqrt(width * height) / (2 * self._grid_half_count + 1))
        fresh = corners(image, missing, spacing, alive)
        column = np.full((len(fresh), self.table.pixels.shape[1], 2), np.nan)
        column[:, -1] = fresh
        new_ids = self._next_id + np.arange(len(fresh))
        self._next_id += len(fresh)
        self.table = TrackTable(
            np.concatenate([self.table.ids, new_ids]), np.concatenate([self.table.pixels, column])
        )
