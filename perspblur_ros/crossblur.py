"""Cross-blur: two frames, each blurred with the other's path, show the same picture.

For frames a and b of one scene, mean_s I_a(x + u_b(s)) = mean_s I_b(x + u_a(s)), u the displacement of the point along
each frame's own path about its mean. No sharp image is needed; the residual's Jacobian by the spline's knots is the
image gradient times B (and A). The residual is taken on small patches around tracked points, each with the one
displacement of its centre, so depth, translation and row time come in for free. Patches are compared without their mean
and contrast, in linear light, tempered: neighbouring pixels are far from independent.

A quarter of the tracks is held out: a refinement that does not explain them better, or that strains the prior (motions
that no patch can see), is refused by the gate.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from . import so3
from .bspline import KnotGrid
from .camera import Camera
from .displacement import J_rotation, J_translation
from .spline_state import SplineState

FloatArray = NDArray[np.float64]
Grey = NDArray[np.uint8]

PATCH = 7
SUBSAMPLES_PER_PX = 1.5  # of blur at the working scale
MIN_SUBSAMPLES, MAX_SUBSAMPLES = 7, 31
TEMPER = 30.0
NOISE_FLOOR, NOISE_SHARE, CONTRAST_SHARE = 0.35, 0.7, 0.15
KERNEL_SCALE2 = 4.0
MIN_CONTRAST = 1.5
MIN_TRACK_WEIGHT = 0.25
MIN_PATCHES = 8
COLD_ITERATIONS = 3
MIN_HELD_OUT = 6
LIVELY_ENERGY = 2.0  # prior energy per degree of freedom that real hand motion easily has
CONVERGED_PX = 0.05
TRACK_SHARE = 0.1  # of the tracks' information that joins the prior while they are trustworthy
TRUSTED_BLUR_PX = 9.0  # beyond it Lucas–Kanade is biased and its posterior overconfident
HELD_OUT = 4  # every fourth track
MAX_ENERGY_RATIO = 1.4
DISAGREEMENT_FLOOR = 0.05  # of the contrast: below it, better is not more probable
GAMMA = 2.2

_LINEAR = (np.linspace(0, 1, 256) ** GAMMA * 255).astype(np.float32)


@dataclass(frozen=True)
class View:
    """One frame as the refinement sees it: times in seconds from the segment's origin.

    picture   h × w × 3 float32: linear light and its two gradients at the working scale
    light     h × w, its first channel
    contrast  h × w float32, RMS contrast of the patch around every pixel
    """

    picture: NDArray[np.float32]
    light: NDArray[np.float32]
    contrast: NDArray[np.float32]
    scale: float
    mid_s: float


def view(image: Grey, scale: int, mid_s: float) -> View:
    """Linearise, reduce by ``scale`` and differentiate."""
    f: NDArray[Any] = cv2.LUT(image, _LINEAR)
    if scale > 1:
        f = cv2.resize(f, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    f = cv2.GaussianBlur(f, (0, 0), 0.8)
    gradients: list[NDArray[Any]] = [cv2.Scharr(f, -1, dx, 1 - dx, scale=1 / 32) for dx in (1, 0)]
    mean = cv2.blur(f, (PATCH, PATCH))
    contrast = np.sqrt(np.maximum(cv2.blur(f * f, (PATCH, PATCH)) - mean * mean, 0))
    picture: NDArray[Any] = cv2.merge([f, *gradients])
    return View(picture, np.asarray(f, np.float32), contrast, 1 / scale, mid_s)


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
class Patches:
    """Tracks seen in two frames, the later last.

    tracks (P,) rows of the track window; raw, ideal (P, 2) pixels in the first frame
    row_s (P, 2) row times in both frames, relative to the frames' own
    """

    tracks: NDArray[np.int64]
    raw: FloatArray
    ideal: FloatArray
    row_s: FloatArray
    held_out: NDArray[np.bool_]


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


@dataclass
class _Geometry:
    """Both frames' paths for every patch: displacements (P, S, 2) raw px and what moves them."""

    path_a: FloatArray  # about its mean
    path_b: FloatArray  # about the anchor, the tracked point in the first frame
    rows_a: FloatArray  # (P, S, knots) about their mean
    rows_b: FloatArray  # about frame a's mean
    t_rows_a: FloatArray
    t_rows_b: FloatArray
    G_a: FloatArray  # (P, 2, 3) px per rad
    G_b: FloatArray
    T_a: FloatArray  # (P, 2, 3) px per m
    T_b: FloatArray
    knots: slice


@dataclass(frozen=True)
class _Comparison:
    """Normalised patches (P, n), their contrast (P,), both pictures' gradients (P, S, n, 2) and gains (P,).

    per_power  (P,) 1 / (2 n · common power), for the derivative of the normalisation
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    contrast: NDArray[np.float32]
    per_power: NDArray[np.float32]
    gradient_a: NDArray[np.float32]
    gradient_b: NDArray[np.float32]
    gain_a: NDArray[np.float32]
    gain_b: NDArray[np.float32]

    @property
    def residual(self) -> NDArray[np.float32]:
        return self.a - self.b

    @property
    def rms(self) -> FloatArray:
        return np.sqrt((self.residual**2).mean(axis=1))


class PairTerm:
    """The cross-blur residual of one pair of neighbouring frames."""

    def __init__(self, a: View, b: View, patches: Patches, camera: Camera, exposure_s: float, subsamples: int) -> None:
        self.a, self.b, self.patches, self.camera = a, b, patches, camera
        self.exposure_s = exposure_s
        self.offsets_s = ((np.arange(subsamples) + 0.5) / subsamples - 0.5) * exposure_s
        q = np.arange(PATCH) - PATCH // 2
        self.q = np.stack(np.meshgrid(q, q), axis=-1).reshape(-1, 2).astype(np.float32)

    def geometry(self, state: SplineState) -> _Geometry:
        P = self.patches
        t_a = self.a.mid_s + P.row_s[:, 0, None] + self.offsets_s
        t_b = self.b.mid_s + P.row_s[:, 1, None] + self.offsets_s
        knots = state.grid.span(float(t_a.min()), float(t_b.max()))
        rows_a, rows_b = state.grid.rows(t_a, knots), state.grid.rows(t_b, knots)
        t_rows_a, t_rows_b = state.translation_grid.rows(t_a), state.translation_grid.rows(t_b)
        c = state.c[knots]
        R_a, R_b = so3.exp(rows_a @ c), so3.exp(rows_b @ c)
        p_a = state.position(t_rows_a, R_a)
        p_b = state.position(t_rows_b, R_b)
        mean_a, t_mean_a = rows_a.mean(axis=1), t_rows_a.mean(axis=1)
        R_mean = so3.exp(mean_a @ c)
        p_mean = p_a.mean(axis=1)
        anchor = np.einsum("nij,nj->ni", R_mean, self.camera.rays(P.ideal))
        rho = self._rho_in_a(state, R_mean, p_mean)

        def seen(R: FloatArray, p: FloatArray) -> FloatArray:
            v = anchor[:, None] - rho[:, None, None] * (p - p_mean[:, None])
            return self.camera.project(np.einsum("nsji,nsj->nsi", R, v))

        x_a, x_b = seen(R_a, p_a), seen(R_b, p_b)
        G_a, T_a = self._sensitivity(x_a.mean(axis=1), rho, R_mean, state)
        mid_b = len(self.offsets_s) // 2
        G_b, T_b = self._sensitivity(x_b.mean(axis=1), rho, R_b[:, mid_b], state)
        return _Geometry(
            path_a=x_a - x_a.mean(axis=1, keepdims=True),
            path_b=x_b - P.ideal[:, None],
            rows_a=rows_a - mean_a[:, None],
            rows_b=rows_b - mean_a[:, None],
            t_rows_a=t_rows_a - t_mean_a[:, None],
            t_rows_b=t_rows_b - t_mean_a[:, None],
            G_a=G_a,
            G_b=G_b,
            T_a=T_a,
            T_b=T_b,
            knots=knots,
        )

    def _rho_in_a(self, state: SplineState, R: FloatArray, p: FloatArray) -> FloatArray:
        """Inverse depth of every patch in frame a."""
        j = self.patches.tracks
        m = np.concatenate([state.ray[j], np.ones((len(j), 1))], axis=1) - state.rho[j, None] * p
        return state.rho[j] / np.maximum(np.einsum("nji,nj->ni", R, m)[:, 2], 0.2)

    def _sensitivity(
        self, ideal: FloatArray, rho: FloatArray, R: FloatArray, state: SplineState
    ) -> tuple[FloatArray, FloatArray]:
        """Pixels per radian of the rotation spline and per metre of the translation spline."""
        A = J_translation(self.camera, ideal) * rho[:, None, None]
        G = J_rotation(self.camera, ideal)
        if state.lever_arm_m is not None:
            return G - A @ so3.hat(state.lever_arm_m), np.zeros_like(G)
        return G, A @ np.swapaxes(R, 1, 2)

    def compare(self, g: _Geometry) -> _Comparison:
        """Both blurred patches compared, with what their gradients contribute."""
        at_a, at_b = self._centres(g)
        a, b = self._sampled(self.a.picture, at_a), self._sampled(self.b.picture, at_b)
        n_a, n_b, gain, power, contrast = _normalised(a[..., 0].mean(axis=1), b[..., 0].mean(axis=1))
        return _Comparison(n_a, n_b, contrast, 0.5 / (len(self.q) * power), a[..., 1:], b[..., 1:], gain, 1 / gain)

    def disagreement(self, g: _Geometry) -> FloatArray:
        """Residual of every patch relative to its contrast (P,): a long path averages both away, and proves nothing."""
        at_a, at_b = self._centres(g)
        a, b = self._sampled(self.a.light, at_a), self._sampled(self.b.light, at_b)
        n_a, n_b, _, power, _ = _normalised(a[..., 0].mean(axis=1), b[..., 0].mean(axis=1))
        return np.sqrt(((n_a - n_b) ** 2).mean(axis=1) / power)

    def _centres(self, g: _Geometry) -> tuple[FloatArray, FloatArray]:
        """Where the patches of both frames are read, (P, S, 2) working pixels: each along the other's path."""
        s = self.a.scale
        anchor = (self.patches.raw + 0.5) * s - 0.5
        mean_b = g.path_b.mean(axis=1)
        at_a = anchor[:, None] - (g.path_b - mean_b[:, None]) * s
        return at_a, (anchor + mean_b * s)[:, None] - g.path_a * s

    def _sampled(self, picture: NDArray[np.float32], centres: FloatArray) -> NDArray[np.float32]:
        """Patches around centres (P, S, 2): (P, S, n, channels)."""
        P, S = centres.shape[:2]
        at = (centres.astype(np.float32)[:, :, None] + self.q).reshape(P, -1, 2)
        nothing: Any = None  # both coordinates are in the first map
        out: NDArray[Any] = cv2.remap(picture, at, nothing, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return out.reshape(P, S, len(self.q), -1)

    def jacobian(self, g: _Geometry, compared: _Comparison, free_translation: bool) -> NDArray[np.float32]:
        """∂residual (P, n, 3·knots + 3·translation knots) by the spline's knots."""
        of_a, of_b = self._contracted(compared, g.G_a, g.G_b, g.rows_a, g.rows_b)
        if free_translation:
            by_translation = self._contracted(compared, g.T_a, g.T_b, g.t_rows_a, g.t_rows_b)
            of_a, of_b = (np.concatenate(both, axis=2) for both in zip((of_a, of_b), by_translation))
        J = of_a - of_b
        J -= J.mean(axis=1, keepdims=True)  # as from the patches
        # bringing both to one contrast: r = a √(n_b/n_a) − b √(n_a/n_b), n = √(mean i² + 1)
        brighter = compared.b[:, None] @ of_b - compared.a[:, None] @ of_a
        return J + (compared.a + compared.b)[:, :, None] * (brighter * compared.per_power[:, None, None])

    def _contracted(
        self, compared: _Comparison, G_a: FloatArray, G_b: FloatArray, rows_a: FloatArray, rows_b: FloatArray
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What moves each blurred patch, its own gain in, (P, n, knots · 3) twice.

        Of a's: −mean_s ∇I_a G_b (b_b(s) − b̄_b); of b's: mean ∇I_b G_b b̄_b − mean_s ∇I_b G_a b_a(s).
        """
        P, S, n, _ = compared.gradient_a.shape
        K = rows_a.shape[2]
        gain_a, gain_b = (k[:, None, None] * np.float32(self.a.scale) for k in (compared.gain_a, compared.gain_b))
        G_a, G_b = G_a.astype(np.float32), G_b.astype(np.float32)
        mean_b = rows_b.mean(axis=1).astype(np.float32)
        about_b = (rows_b - rows_b.mean(axis=1, keepdims=True)).astype(np.float32)
        # sum over s first, per pixel and gradient direction; the 2 × 3 sensitivity afterwards
        along_b = np.matmul(about_b.transpose(0, 2, 1), compared.gradient_a.reshape(P, S, n * 2)) / S
        along_a = np.matmul(rows_a.astype(np.float32).transpose(0, 2, 1), compared.gradient_b.reshape(P, S, n * 2)) / S
        shift = mean_b[:, :, None] * compared.gradient_b.mean(axis=1).reshape(P, 1, n * 2)
        of_a = along_b.reshape(P, K * n, 2) @ (-G_b * gain_a)
        of_b = shift.reshape(P, K * n, 2) @ (G_b * gain_b)
        of_b -= along_a.reshape(P, K * n, 2) @ (G_a * gain_b)
        return tuple(J.reshape(P, K, n, 3).transpose(0, 2, 1, 3).reshape(P, n, K * 3) for J in (of_a, of_b))


def _normalised(i_a: NDArray[np.float32], i_b: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Patches (P, n) brought to no mean and one contrast; the first's gain, the common power, the RMS contrast (P,)."""
    i_a, i_b = i_a - i_a.mean(axis=1, keepdims=True), i_b - i_b.mean(axis=1, keepdims=True)
    power_a, power_b = (i_a**2).mean(axis=1), (i_b**2).mean(axis=1)
    gain = ((power_b + 1) / (power_a + 1)) ** 0.25
    common_power = np.sqrt((power_a + 1) * (power_b + 1))
    return i_a * gain[:, None], i_b / gain[:, None], gain, common_power, np.sqrt((power_a + power_b) / 2)


def _noise(contrast: NDArray[np.float32], floor: float) -> NDArray[np.float32]:
    """Standard deviation per patch: a floor, and a share of its contrast."""
    return np.sqrt(floor**2 + (CONTRAST_SHARE * contrast) ** 2)


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

    def refine(
        self, sightings: Sightings, solved: Solved, camera: Camera, exposure_s: float, blur_px: float
    ) -> Refinement | None:
        """Gauss–Newton from the solved spline, under its own prior; None where nothing can be compared.

        blur_px  length of the blur path, full-size pixels: decides on sub-samples and on how far tracks are trusted
        """
        pairs = self._pair_terms(sightings, solved.weights, camera, exposure_s, blur_px)
        if not pairs:
            return None
        share = TRACK_SHARE if blur_px < TRUSTED_BLUR_PX else 0.0
        prior = solved.information - (1 - share) * solved.track_information
        state, floor = solved.state, NOISE_FLOOR
        before = _disagreement(pairs, solved.state)
        iterations = COLD_ITERATIONS
        if self._last is not None:
            carried = self._carried(solved.state, *self._last)
            if _mean_log(_disagreement(pairs, carried)) < _mean_log(before):
                state, iterations = carried, self._iterations
        for _ in range(iterations):
            geometries = [pair.geometry(state) for pair in pairs]
            compared = [pair.compare(g) for pair, g in zip(pairs, geometries)]
            floor = max(NOISE_FLOOR, NOISE_SHARE * float(np.median(np.concatenate([c.rms for c in compared]))))
            H, g = _normal_equations(pairs, geometries, compared, state, floor)
            H = H + prior
            step = -cho_solve(cho_factor(H), g + prior @ (_flat(state) - _flat(solved.state)))
            state = _moved(state, step)
            if np.abs(step[: 3 * state.grid.count]).max() * camera.focal_px < CONVERGED_PX:
                break
        self._last = solved.state, state
        return _judged(pairs, before, state, solved, H)

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
        pairs = self._pair_terms(sightings, weights, camera, exposure_s, blur_px)
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
        self, sightings: Sightings, weights: FloatArray, camera: Camera, exposure_s: float, blur_px: float
    ) -> list[PairTerm]:
        views = list(self._views)
        subsamples = 1
        if views:
            wanted = np.ceil(SUBSAMPLES_PER_PX * blur_px * views[-1].scale)
            subsamples = int(np.clip(wanted, MIN_SUBSAMPLES, MAX_SUBSAMPLES))
        terms = []
        for back in range(min(len(views), sightings.raw.shape[1]) - 1, 0, -1):
            a, b = views[-back - 1], views[-back]
            patches = self._chosen(a, sightings, weights, -back - 1)
            if len(patches.tracks) >= MIN_PATCHES:
                terms.append(PairTerm(a, b, patches, camera, exposure_s, subsamples))
        return terms

    def _chosen(self, a: View, sightings: Sightings, weights: FloatArray, k: int) -> Patches:
        """Trusted, textured patches inside the picture, spread over the tracks."""
        raw_a, raw_b = sightings.raw[:, k], sightings.raw[:, k + 1]
        j = np.flatnonzero(np.isfinite(raw_a[:, 0]) & np.isfinite(raw_b[:, 0]) & (weights > MIN_TRACK_WEIGHT))
        at = (raw_a[j] + 0.5) * a.scale - 0.5
        height, width = a.contrast.shape
        margin = PATCH // 2 + 1
        inside = (at > margin).all(axis=1) & (at[:, 0] < width - 1 - margin) & (at[:, 1] < height - 1 - margin)
        j, at = j[inside], at[inside].astype(int)
        j = j[a.contrast[at[:, 1], at[:, 0]] > MIN_CONTRAST]
        if len(j) > self._patches:
            j = j[np.linspace(0, len(j) - 1, self._patches).astype(int)]
        row_s = sightings.row_s[j, k : k + 2] if k + 2 else sightings.row_s[j, k:]
        return Patches(j, raw_a[j], sightings.ideal[j, k], row_s, sightings.ids[j] % HELD_OUT == HELD_OUT - 1)


def _disagreement(pairs: list[PairTerm], state: SplineState) -> list[FloatArray]:
    return [pair.disagreement(pair.geometry(state)) for pair in pairs]


def _mean_log(rms: list[FloatArray]) -> float:
    return float(np.mean(np.log(np.concatenate(rms) + DISAGREEMENT_FLOOR)))


def _judged(
    pairs: list[PairTerm], before: list[FloatArray], state: SplineState, solved: Solved, information: FloatArray
) -> Refinement:
    """The gate: do the held-out patches agree better, without motion that the prior finds far too lively?"""
    held = np.concatenate([pair.patches.held_out for pair in pairs])
    after = _disagreement(pairs, state)
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
    return Refinement(state, information, gate, mean, energy / max(energy_before, 1e-12), len(ratio))


def _normal_equations(
    pairs: list[PairTerm], geometries: list[_Geometry], compared: list[_Comparison], state: SplineState, floor: float
) -> tuple[FloatArray, FloatArray]:
    """Tempered photometric information and gradient over (c, d), held-out patches left aside."""
    n_rot = 3 * state.grid.count
    free = state.lever_arm_m is None
    n = n_rot + (3 * state.translation_grid.count if free else 0)
    H, gradient = np.zeros((n, n)), np.zeros(n)
    for pair, g, c in zip(pairs, geometries, compared):
        sigma2 = _noise(c.contrast, floor) ** 2
        e2 = c.rms**2 / sigma2
        weight = np.where(pair.patches.held_out, 0.0, 1 / (1 + e2 / KERNEL_SCALE2) / sigma2 / TEMPER)
        root = np.sqrt(weight).astype(np.float32)
        J = (pair.jacobian(g, c, free) * root[:, None, None]).reshape(c.residual.size, -1)
        r = (c.residual * root[:, None]).ravel()
        columns = np.concatenate([np.arange(3 * g.knots.start, 3 * g.knots.stop), np.arange(n_rot, n)])
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
