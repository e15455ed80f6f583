"""Gauss–Newton over the newest pairs of frames, under the track spline's prior, and the gate that judges the result."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from ..bspline import KnotGrid
from ..camera import Camera
from ..spline_state import SplineState
from .pair import Comparison, Geometry, PairTerm, Patches
from .pictures import PATCH, Grey, View, view

FloatArray = NDArray[np.float64]

SUBSAMPLES_PER_PX = 1.5  # of blur at the working scale
MIN_SUBSAMPLES, MAX_SUBSAMPLES = 7, 31
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
DISAGREEMENT_FLOOR = 0.05  # of the contrast: below it, better is not more probable


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
    guess_gate       likewise of the guess that was given, "" without one
    guess_held_out_log
    """

    state: SplineState
    information: FloatArray
    gate: str
    held_out_log: float
    energy_ratio: float
    patches: int
    guess_gate: str = ""
    guess_held_out_log: float = 0.0


@dataclass(frozen=True)
class AtSpline:
    """The newest pictures compared at the track spline: tempered information H and gradient g over (c, d).

    rms, contrast, ratio  medians over the patches: residual and contrast (grey levels of linear light), their ratio
    """

    pairs: list[PairTerm]
    disagreement: list[FloatArray]
    H: FloatArray
    g: FloatArray
    rms: float
    contrast: float
    ratio: float

    @property
    def patches(self) -> int:
        return sum(len(d) for d in self.disagreement)


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
        self._last: tuple[SplineState, SplineState] | None = None  # what was solved, and its refinement

    def add_picture(self, image: Grey, mid_s: float) -> None:
        """The next frame's picture at 1/``scale``; a change of scale starts afresh."""
        if self._views and self._views[-1].scale != 1 / self.scale:
            self._views.clear()
        self._views.append(view(image, self.scale, mid_s))

    def at_spline(
        self, sightings: Sightings, solved: Solved, camera: Camera, exposure_s: float, blur_px: float
    ) -> AtSpline | None:
        """What a Gauss–Newton step from the solved spline starts from; None where nothing can be compared."""
        pairs = self._pair_terms(sightings, solved.state, solved.weights, camera, exposure_s, blur_px)
        if not pairs:
            return None
        looks = _looks(pairs, solved.state)
        H, g = normal_equations(looks, solved.state)
        rms, contrast = (np.concatenate([getattr(look.compared, key) for look in looks]) for key in ("rms", "contrast"))
        medians = (float(np.median(values)) for values in (rms, contrast, rms / (contrast + 0.5)))
        return AtSpline(pairs, [look.compared.disagreement for look in looks], H, g, *medians)

    def refine(
        self,
        sightings: Sightings,
        solved: Solved,
        camera: Camera,
        exposure_s: float,
        blur_px: float,
        at_spline: AtSpline | None = None,
        guess: SplineState | None = None,
    ) -> Refinement | None:
        """Gauss–Newton from the solved spline, under its own prior; None where nothing can be compared.

        blur_px  length of the blur path, full-size pixels: decides on sub-samples and on how far tracks are trusted
        guess    another trajectory to start from, where it agrees better with the pictures
        """
        if at_spline is None:
            pairs = self._pair_terms(sightings, solved.state, solved.weights, camera, exposure_s, blur_px)
            before = _disagreement(pairs, solved.state)
        else:
            pairs, before = at_spline.pairs, at_spline.disagreement
        if not pairs:
            return None
        prior = trusted_information(solved, blur_px)
        state, iterations, looks = solved.state, COLD_ITERATIONS, None
        least, of_guess = _mean_log(before), None
        starts = [] if guess is None else [guess]
        if self._last is not None:
            starts.append(self._carried(solved.state, *self._last))
        for start in starts:
            tried = _looks(pairs, start)
            disagreement = [look.compared.disagreement for look in tried]
            of_guess = disagreement if start is guess else of_guess
            if _mean_log(disagreement) < least:
                state, iterations, looks, least = start, self._iterations, tried, _mean_log(disagreement)
        for _ in range(iterations):
            H, g = normal_equations(looks or _looks(pairs, state), state)
            looks = None
            H = H + prior
            step = -cho_solve(cho_factor(H), g + prior @ (_flat(state) - _flat(solved.state)))
            state = _moved(state, step)
            if np.abs(step[: 3 * state.grid.count]).max() * camera.focal_px < CONVERGED_PX:
                break
        self._last = solved.state, state
        gate, held_out_log, energy_ratio, patches = _judged(pairs, before, _disagreement(pairs, state), state, solved)
        refinement = Refinement(state, H, gate, held_out_log, energy_ratio, patches)
        if guess is None or of_guess is None:
            return refinement
        gate, held_out_log, _, _ = _judged(pairs, before, of_guess, guess, solved)
        return replace(refinement, guess_gate=gate, guess_held_out_log=held_out_log)

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
        pairs = self._pair_terms(sightings, state, weights, camera, exposure_s, blur_px)
        return _mean_log(_disagreement(pairs, state)) if pairs else float("nan")

    @staticmethod
    def _carried(solved: SplineState, before: SplineState, after: SplineState) -> SplineState:
        """The solved spline, moved by what the last refinement moved the knots that both know."""
        c = solved.c + _shared(after.c - before.c, before.grid, solved.grid)
        if solved.lever_arm_m is not None:
            return replace(solved, c=c)
        d = solved.d + _shared(after.d - before.d, before.translation_grid, solved.translation_grid)
        return replace(solved, c=c, d=d)

    def _pair_terms(
        self,
        sightings: Sightings,
        like: SplineState,
        weights: FloatArray,
        camera: Camera,
        exposure_s: float,
        blur_px: float,
    ) -> list[PairTerm]:
        views = list(self._views)
        subsamples = 1
        if views:
            wanted = np.ceil(SUBSAMPLES_PER_PX * blur_px * views[-1].scale)
            subsamples = int(np.clip(wanted, MIN_SUBSAMPLES, MAX_SUBSAMPLES))
        terms = []
        newest = min(len(views), sightings.raw.shape[1])
        compared = [(-back - 1, -back) for back in range(newest - 1, 0, -1)]
        if newest > LONG_PAIR:
            compared.append((-1 - LONG_PAIR, -1))
        for a, b in compared:
            patches = self._chosen(views[a], sightings, weights, a, b)
            if len(patches.tracks) >= MIN_PATCHES:
                terms.append(PairTerm(views[a], views[b], patches, camera, exposure_s, subsamples, like))
        return terms

    def _chosen(self, view_a: View, sightings: Sightings, weights: FloatArray, a: int, b: int) -> Patches:
        """Trusted, textured patches inside the first picture, spread over the tracks."""
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
        row_s = sightings.row_s[j][:, [a, b]]
        return Patches(j, raw_a[j], sightings.ideal[j, a], row_s, sightings.ids[j] % HELD_OUT == HELD_OUT - 1)


def _disagreement(pairs: list[PairTerm], state: SplineState) -> list[FloatArray]:
    return [pair.disagreement(pair.geometry(state)) for pair in pairs]


def _mean_log(rms: list[FloatArray]) -> float:
    return float(np.mean(np.log(np.concatenate(rms) + DISAGREEMENT_FLOOR)))


def trusted_information(solved: Solved, blur_px: float) -> FloatArray:
    """What of the track spline's information stays the prior beside the pictures."""
    share = TRACK_SHARE * min(1.0, TRUSTED_BLUR_PX / max(blur_px, 1e-9)) ** 2
    return solved.information - (1 - share) * solved.track_information


def _judged(
    pairs: list[PairTerm],
    before: list[FloatArray],
    after: list[FloatArray],
    state: SplineState,
    solved: Solved,
) -> tuple[str, float, float, int]:
    """The gate: do the held-out patches agree better, without motion that the prior finds far too lively?

    Returns the decision, the mean log ratio of the held-out residuals, the ratio of the energies, and their number.
    """
    held = np.concatenate([pair.patches.held_out for pair in pairs])
    ratio = np.log(np.concatenate(after) + DISAGREEMENT_FLOOR) - np.log(np.concatenate(before) + DISAGREEMENT_FLOOR)
    ratio = ratio[held]
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
    return gate, mean, energy / max(energy_before, 1e-12), len(ratio)


@dataclass(frozen=True)
class Look:
    """One pair of frames, compared at one trajectory."""

    pair: PairTerm
    geometry: Geometry
    compared: Comparison


def _looks(pairs: list[PairTerm], state: SplineState) -> list[Look]:
    geometries = [pair.geometry(state) for pair in pairs]
    return [Look(pair, g, pair.compare(g)) for pair, g in zip(pairs, geometries)]


def normal_equations(looks: list[Look], state: SplineState) -> tuple[FloatArray, FloatArray]:
    """Tempered photometric information and gradient over (c, d), held-out patches left aside."""
    n_rot = 3 * state.grid.count
    n = n_rot + (3 * state.translation_grid.count if state.lever_arm_m is None else 0)
    H, gradient = np.zeros((n, n)), np.zeros(n)
    floor = max(NOISE_FLOOR, NOISE_SHARE * float(np.median(np.concatenate([look.compared.rms for look in looks]))))
    for pair, g, c in ((look.pair, look.geometry, look.compared) for look in looks):
        sigma2 = floor**2 + (CONTRAST_SHARE * c.contrast) ** 2
        weight = 1 / (1 + c.rms**2 / sigma2 / KERNEL_SCALE2) / sigma2 / TEMPER
        root = np.where(pair.patches.held_out, 0.0, np.sqrt(weight)).astype(np.float32)
        J = (pair.jacobian(g, c) * root[:, None, None]).reshape(c.residual.size, -1)
        r = (c.residual * root[:, None]).ravel()
        columns = np.concatenate([np.arange(3 * pair.knots.start, 3 * pair.knots.stop), np.arange(n_rot, n)])
        H[np.ix_(columns, columns)] += J.T @ J
        gradient[columns] += J.T @ r
    return H, gradient


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
