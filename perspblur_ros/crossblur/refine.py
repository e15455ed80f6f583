"""Gauss–Newton over the newest pairs of frames, under the track spline's prior, and the gate that judges the result."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from ..bspline import KnotGrid
from ..camera import Camera
from ..spline_state import SplineState
from .pair import Comparison, PairTerm, Patches, geometries
from .pictures import PATCH, Grey, View, view

FloatArray = NDArray[np.float64]

SUBSAMPLES_PER_PX = 0.7  # of blur at the working scale
MIN_SUBSAMPLES, MAX_SUBSAMPLES = 5, 31
TEMPER = 30.0
NOISE_FLOOR, NOISE_SHARE, CONTRAST_SHARE = 0.35, 0.7, 0.15
KERNEL_SCALE2 = 4.0
MIN_CONTRAST = 1.5
MIN_TRACK_WEIGHT = 0.25
MIN_PATCHES = 8
COLD_ITERATIONS = 8
MIN_HELD_OUT = 6
LIVELY_ENERGY = 2.0  # prior energy per degree of freedom that real hand motion easily has
CONVERGED_PX = 0.05
TRACK_SHARE = 0.1  # of the tracks' information that joins the prior
TRUSTED_BLUR_PX = 9.0  # beyond it Lucas–Kanade is biased by a share of the blur, and its posterior overconfident
HELD_OUT = 4  # every fourth track
MAX_ENERGY_RATIO = 1.4
LONG_PAIR = 3  # frames between the newest and the one it is compared with besides its neighbour: against drift
PICTURES_SAY = 2.0  # times their tempered information, in the refinement: with 1 a tenth more error is left
DISAGREEMENT_FLOOR = 0.05  # of the contrast: below it, better is not more probable
POOR_START = -1.5  # mean log disagreement above which the pictures' gradients may not lead to the solution
COARSER, COARSE_STEPS = (4, 2), 3  # times smaller pictures, which lead from farther away, and steps on each


@dataclass(frozen=True)
class Sightings:
    """The track window, N tracks × T frames, the newest last: ids (N,), raw and ideal px (N, T, 2), row_s (N, T)."""

    ids: NDArray[np.int64]
    raw: FloatArray
    ideal: FloatArray
    row_s: FloatArray


@dataclass(frozen=True)
class Solved:
    """What the track spline left: state, information over (c, d), the tracks' share of it, weights (N,) of the tracks.

    rotation_precision  (count, count) prior of one axis's knots
    """

    state: SplineState
    information: FloatArray
    track_information: FloatArray
    weights: FloatArray
    rotation_precision: FloatArray


@dataclass(frozen=True)
class Refinement:
    """The refined trajectory and what the gate thought of it.

    gate             "accepted", "held_out", "energy", "few_patches"
    held_out_log     mean log ratio of the held-out patches' residuals, after to before
    """

    state: SplineState
    information: FloatArray
    gate: str
    held_out_log: float
    energy_ratio: float
    patches: int


@dataclass(frozen=True)
class Look:
    """One pair of frames, compared at one trajectory."""

    pair: PairTerm
    compared: Comparison


@dataclass(frozen=True)
class Start:
    """The newest pictures compared at the trajectory that a solution starts from.

    pairs     what is solved; held_out: what judges
    state     the solved spline, or (``warm``) one that agrees better
    before    disagreement of the held-out patches at the solved spline
    """

    pairs: list[PairTerm]
    held_out: list[PairTerm]
    before: FloatArray
    state: SplineState
    looks: list[Look]
    warm: bool

    def moved(self, state: SplineState) -> Start:
        """The same pictures compared at another trajectory."""
        return replace(self, state=state, looks=_looks(self.pairs, state), warm=True)

    @property
    def patches(self) -> int:
        return sum(len(pair.patches.tracks) for pair in (*self.pairs, *self.held_out))

    def normal_equations(self) -> tuple[FloatArray, FloatArray]:
        """Tempered information and gradient of the pictures over (c, d)."""
        return normal_equations(self.looks, self.state)

    def medians(self) -> tuple[float, float, float]:
        """Over the patches: residual and contrast (RMS, grey levels of linear light), and their ratio."""
        rms, contrast = (
            np.concatenate([getattr(look.compared, key) for look in self.looks]) for key in ("rms", "contrast")
        )
        return float(np.median(rms)), float(np.median(contrast)), float(np.median(rms / (contrast + 0.5)))


class CrossBlur:
    """Refines a spline with the pictures of the newest frames; keeps what it computed of each picture.

    patches     per pair of neighbouring frames
    pairs       how many of the newest pairs are compared
    iterations  of Gauss–Newton
    """

    def __init__(self, patches: int, pairs: int, iterations: int) -> None:
        self._patches, self._pairs, self._iterations = patches, pairs, iterations
        self.scale = 2
        self.reset()

    def reset(self) -> None:
        self._views: deque[View] = deque(maxlen=self._pairs + 1)
        self._coarse_views: list[deque[View]] = [deque(maxlen=self._pairs + 1) for _ in COARSER]
        self._last: tuple[SplineState, SplineState] | None = None  # what was solved, and its refinement

    def add_picture(self, image: Grey, mid_s: float) -> None:
        """The next frame's picture at 1/``scale``; a change of scale starts afresh."""
        if self._views and self._views[-1].scale != 1 / self.scale:
            self._views.clear()
            for views in self._coarse_views:
                views.clear()
        self._views.append(view(image, self.scale, mid_s))
        for times, views in zip(COARSER, self._coarse_views):
            views.append(view(image, times * self.scale, mid_s))

    def start(
        self, sightings: Sightings, solved: Solved, camera: Camera, exposure_s: float, blur_px: float
    ) -> Start | None:
        """Where a refinement of the solved spline starts; None where nothing can be compared.

        From the better of the solved spline and that spline moved as the last solution moved it; where neither explains
        the pictures, a few steps on coarser ones come first: their gradients reach farther.

        blur_px  length of the blur path, full-size pixels: decides on sub-samples and on how far tracks are trusted
        """
        given = (sightings, solved.state, solved.weights, camera, exposure_s, blur_px)
        pairs, held_out = self._pair_terms(self._views, *given)
        if not pairs:
            return None
        before = _disagreement(held_out, solved.state)
        state, level, warm = solved.state, _mean_log(before), False
        carried = self._carried(solved, exposure_s)
        if carried is not None:
            state, level, warm = _better(held_out, state, level, warm, carried)
        if level > POOR_START:
            near = state
            for views in self._coarse_views:
                coarse, _ = self._pair_terms(views, *given)
                if coarse:
                    near = _approached(coarse, near, solved, trusted_information(solved, blur_px))
            state, level, warm = _better(held_out, state, level, warm, near)
        return Start(pairs, held_out, before, state, _looks(pairs, state), warm)

    def refine(
        self,
        sightings: Sightings,
        solved: Solved,
        camera: Camera,
        exposure_s: float,
        blur_px: float,
        start: Start | None = None,
    ) -> Refinement | None:
        """Gauss–Newton from the start, under the spline's own prior; None where nothing can be compared."""
        start = start or self.start(sightings, solved, camera, exposure_s, blur_px)
        if start is None:
            return None
        prior = trusted_information(solved, blur_px)
        state, looks, iterations = start.state, start.looks, self._iterations
        if not start.warm:
            iterations = COLD_ITERATIONS if self._last is None else self._iterations + 1
        for k in range(iterations):
            step, H = _step(looks if k == 0 else _looks(start.pairs, state), state, solved, prior)
            state = _moved(state, step)
            if np.abs(step[: 3 * state.grid.count]).max() * camera.focal_px < CONVERGED_PX:
                break
        return self.judge(start, solved, state, H)

    def judge(self, start: Start, solved: Solved, state: SplineState, information: FloatArray) -> Refinement:
        """What the gate thinks of a trajectory; the next start is moved as far as this one was."""
        self._last = solved.state, state
        return _judged(start, state, solved, information)

    def disagreement(
        self,
        sightings: Sightings,
        state: SplineState,
        weights: FloatArray,
        camera: Camera,
        exposure_s: float,
        blur_px: float,
    ) -> float:
        """Mean log residual of the newest pictures at a spline that was fitted to tracks alone, for one exposure.

        Nothing was fitted to the pictures, so every patch is held out: the right exposure has the least. NaN where
        nothing can be compared.
        """
        pairs, held_out = self._pair_terms(self._views, sightings, state, weights, camera, exposure_s, blur_px)
        return _mean_log(_disagreement([*pairs, *held_out], state)) if pairs else float("nan")

    def _carried(self, solved: Solved, exposure_s: float) -> SplineState | None:
        """The solved spline, moved as the last solution moved it up to where two frames had settled it.

        All other knots follow as the spline's information makes it likely: what moves a frame moves the next as well.
        The same spline again goes on from its last solution.
        """
        if self._last is None or len(self._views) < 3:
            return None
        before, after = self._last
        if before is solved.state:
            return after
        grid = solved.state.grid
        step = np.zeros(len(solved.information))
        step[: 3 * grid.count] = _shared(after.c - before.c, before.grid, grid).ravel()
        first, end = before.grid.first, before.grid.first + before.grid.count
        index = np.arange(grid.first, grid.first + grid.count)
        settled_s = self._views[-3].mid_s + exposure_s / 2
        known = (index >= first) & (index < end) & (grid.centres_s <= settled_s)
        kept = np.zeros(len(step), bool)
        kept[: 3 * grid.count] = np.repeat(known, 3)
        within = solved.information[~kept]
        step[~kept] = -cho_solve(cho_factor(within[:, ~kept]), within[:, kept] @ step[kept])
        return _moved(solved.state, step)

    def _pair_terms(
        self,
        views: Sequence[View],
        sightings: Sightings,
        like: SplineState,
        weights: FloatArray,
        camera: Camera,
        exposure_s: float,
        blur_px: float,
    ) -> tuple[list[PairTerm], list[PairTerm]]:
        """The newest pairs of frames: the patches that are solved, and those that are held out."""
        subsamples = 1
        if views:
            wanted = np.ceil(SUBSAMPLES_PER_PX * blur_px * views[-1].scale)
            subsamples = int(np.clip(wanted, MIN_SUBSAMPLES, MAX_SUBSAMPLES))
        newest = min(len(views), sightings.raw.shape[1])
        compared = [(-back - 1, -back) for back in range(newest - 1, 0, -1)]
        if newest > LONG_PAIR:
            compared.append((-1 - LONG_PAIR, -1))
        pairs: list[PairTerm] = []
        held_out: list[PairTerm] = []
        for a, b in compared:
            chosen = self._chosen(views[a], sightings, weights, a, b)
            if len(chosen) < MIN_PATCHES:
                continue
            aside = sightings.ids[chosen] % HELD_OUT == HELD_OUT - 1
            for terms, j in ((pairs, chosen[~aside]), (held_out, chosen[aside])):
                if len(j):
                    patches = Patches(j, sightings.raw[j, a], sightings.ideal[j, a], sightings.row_s[j][:, [a, b]])
                    terms.append(PairTerm(views[a], views[b], patches, camera, exposure_s, subsamples, like))
        return pairs, held_out

    def _chosen(
        self, view_a: View, sightings: Sightings, weights: FloatArray, a: int, b: int
    ) -> NDArray[np.int64]:
        """Trusted, textured patches inside the first picture, spread over the tracks: rows of the window."""
        raw_a, raw_b = sightings.raw[:, a], sightings.raw[:, b]
        j = np.flatnonzero(np.isfinite(raw_a[:, 0]) & np.isfinite(raw_b[:, 0]) & (weights > MIN_TRACK_WEIGHT))
        at = (raw_a[j] + 0.5) * view_a.scale - 0.5
        height, width = view_a.contrast.shape
        margin = PATCH // 2 + 1
        inside = (at > margin).all(axis=1) & (at[:, 0] < width - 1 - margin) & (at[:, 1] < height - 1 - margin)
        j, at = j[inside], at[inside].astype(int)
        j = j[view_a.contrast[at[:, 1], at[:, 0]] > MIN_CONTRAST]
        if len(j) > self._patches:
            j = j[np.linspace(0, len(j) - 1, self._patches).astype(int)]
        return j


def _better(
    held_out: list[PairTerm], state: SplineState, level: float, warm: bool, other: SplineState
) -> tuple[SplineState, float, bool]:
    """Whichever state agrees better, how well, and whether it is a warm one, as ``other`` is."""
    agreed = _mean_log(_disagreement(held_out, other))
    return (other, agreed, True) if agreed < level else (state, level, warm)


def _approached(pairs: list[PairTerm], state: SplineState, solved: Solved, prior: FloatArray) -> SplineState:
    """A few steps on the pairs' pictures."""
    for _ in range(COARSE_STEPS):
        state = _moved(state, _step(_looks(pairs, state), state, solved, prior)[0])
    return state


def _step(
    looks: list[Look], state: SplineState, solved: Solved, prior: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """One Gauss–Newton step over (c, d) under the track spline's prior, and the information it is made with."""
    H, g = normal_equations(looks, state)
    H, g = PICTURES_SAY * H + prior, PICTURES_SAY * g
    return -cho_solve(cho_factor(H), g + prior @ (_flat(state) - _flat(solved.state))), H


def _disagreement(pairs: list[PairTerm], state: SplineState) -> FloatArray:
    """Of all patches of the pairs, one after the other."""
    if not pairs:
        return np.zeros(0)
    return np.concatenate([pair.disagreement(g) for pair, g in zip(pairs, geometries(pairs, state))])


def _mean_log(disagreement: FloatArray) -> float:
    """Zero of nothing."""
    return float(np.log(disagreement + DISAGREEMENT_FLOOR).sum()) / max(len(disagreement), 1)


def trusted_information(solved: Solved, blur_px: float) -> FloatArray:
    """What of the track spline's information stays the prior beside the pictures."""
    share = TRACK_SHARE * min(1.0, TRUSTED_BLUR_PX / max(blur_px, 1e-9)) ** 2
    return solved.information - (1 - share) * solved.track_information


def _judged(start: Start, state: SplineState, solved: Solved, information: FloatArray) -> Refinement:
    """The gate: do the held-out patches agree better, without motion that the prior finds far too lively?"""
    after = _disagreement(start.held_out, state)
    ratio = np.log(after + DISAGREEMENT_FLOOR) - np.log(start.before + DISAGREEMENT_FLOOR)
    energy, energy_before = (_energy(s, solved.rotation_precision) for s in (state, solved.state))
    mean = float(ratio.mean()) if len(ratio) else 0.0
    standard_error = float(ratio.std()) / np.sqrt(max(len(ratio) / 3, 1))
    if len(ratio) < MIN_HELD_OUT:
        gate = "few_patches"
    elif mean >= -2 * standard_error:
        gate = "held_out"
    elif energy > MAX_ENERGY_RATIO * max(energy_before, LIVELY_ENERGY):
        gate = "energy"
    else:
        gate = "accepted"
    return Refinement(state, information, gate, mean, energy / max(energy_before, 1e-12), len(ratio))


def _looks(pairs: list[PairTerm], state: SplineState) -> list[Look]:
    return [Look(pair, pair.compare(g)) for pair, g in zip(pairs, geometries(pairs, state))]


def normal_equations(looks: list[Look], state: SplineState) -> tuple[FloatArray, FloatArray]:
    """Tempered photometric information and gradient over (c, d)."""
    n_rot = 3 * state.grid.count
    n = n_rot + (3 * state.translation_grid.count if state.lever_arm_m is None else 0)
    H, gradient = np.zeros((n, n)), np.zeros(n)
    floor = max(NOISE_FLOOR, NOISE_SHARE * float(np.median(np.concatenate([look.compared.rms for look in looks]))))
    for look in looks:
        H_pair, gradient_pair = _pair_equations(look, floor)
        columns = look.pair.columns(translation_from=n_rot)
        H[np.ix_(columns, columns)] += H_pair
        gradient[columns] += gradient_pair
    return H, gradient


def _pair_equations(look: Look, floor: float) -> tuple[FloatArray, FloatArray]:
    """One pair's share, over its own knots."""
    c = look.compared
    sigma2 = floor**2 + (CONTRAST_SHARE * c.contrast) ** 2
    root = np.sqrt(1 / (1 + c.rms**2 / sigma2 / KERNEL_SCALE2) / sigma2 / TEMPER).astype(np.float32)
    J = (c.jacobian * root[:, None, None]).reshape(-1, c.jacobian.shape[2])
    return J.T @ J, J.T @ (c.residual * root[:, None]).ravel()


def _shared(values: FloatArray, old: KnotGrid, new: KnotGrid) -> FloatArray:
    """Knot values (old.count, 3) carried to another part of the same grid; zero where they were not known."""
    out = np.zeros((new.count, values.shape[1]))
    index = np.arange(max(old.first, new.first), min(old.first + old.count, new.first + new.count))
    out[index - new.first] = values[index - old.first]
    return out


def _flat(state: SplineState) -> FloatArray:
    return np.concatenate([state.c.ravel(), state.d.ravel()]) if state.lever_arm_m is None else state.c.ravel()


def _moved(state: SplineState, step: FloatArray) -> SplineState:
    n_rot = 3 * state.grid.count
    d = state.d + step[n_rot:].reshape(-1, 3) if state.lever_arm_m is None else state.d
    return replace(state, c=state.c + step[:n_rot].reshape(-1, 3), d=d)


def _energy(state: SplineState, precision: FloatArray) -> float:
    c = state.c - state.c.mean(axis=0)
    return float(np.sum(c * (precision @ c)) / c.size)
