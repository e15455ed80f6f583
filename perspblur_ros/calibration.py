"""Exposure, readout and stamp offset from the video itself.

readout    The track spline (``spline``) times every row. Under a wrong readout the rows of a moving picture do not fit
           one trajectory, and the tracks' robust cost rises.
exposure   Cross-blur (``crossblur``) of a spline that was fitted to tracks alone. Under a wrong exposure the predicted
           blurs of neighbouring frames do not make their pictures equal; no patch took part in the fit, so all are held
           out.
offset     The spline's body rate against a gyro: the offset with the least rate error.

Each is the minimum of a cost, averaged over windows of the video: three candidates around the present value give one
parabola per window, and the sum of the parabolas has the estimate as its vertex. Its standard deviation comes from how
far the windows disagree (the sandwich estimate), so a flat curve says "not observable" by itself.
``TimingEstimator`` does the same in the background of a stream, one candidate at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from . import crossblur
from .camera import Camera, Shutter
from .spline import SplineSolution, TrackWindow, solve

FloatArray = NDArray[np.float64]
Grey = NDArray[np.uint8]

ASSUMED_DUTY = 0.9  # of the frame period: automatic exposure indoors
ASSUMED_READOUT_S = 0.02
ASSUMED_PERIOD_S = 1 / 30

MIN_SPEED_PX_S = 20.0  # RMS; slower windows say nothing about timing
PATCHES, PAIRS = 100, 2

READOUT_STEP_S = 0.005
EXPOSURE_STEP = 0.05  # of the frame period
READOUT_SD_S, OFFSET_SD_S = 0.003, 0.005  # what is known worse than this is not known
EXPOSURE_SD = 0.08  # likewise, of the frame period
EXPOSURE_RISE = 0.02  # log residual that an error of a tenth of the period must cost; 0.005 on sharp frames
# errors that all windows share, from rendered clips: blur misleads Lucas–Kanade, and patches are smoothed
READOUT_BIAS = 0.025  # of the exposure
EXPOSURE_BIAS = 0.03  # of the frame period
EXPOSURE_BIAS_PX = 0.2  # of blur at the working scale
MIN_WINDOWS = 3
SURE_CURVATURE = 2.0  # standard errors

WINDOWS = 8  # of a recorded video
READOUTS_S = np.arange(0.0, 0.0401, 0.005)
DUTIES = np.arange(0.1, 1.01, 0.1)
OFFSETS_S = np.arange(-0.25, 0.251, 0.01)
SOLVE_ITERATIONS, PROBE_ITERATIONS = 5, 2
RATE_STEP_S = 0.005
SCALES, COARSEST = ((1, 10.0), (2, 40.0)), 4  # how far pictures are reduced, up to which motion per frame period, px

ROUNDS = 12  # that the background estimate remembers
ROUND_EVERY_FRAMES = 8
SETTLED_FACTOR = 8
SURE_SLOPE, MIN_SLOPES = 4.0, 5  # standard errors, windows
NEAR_STEPS = 3.0  # within which a probe tells of the present value
CREEP = 0.01  # of the frame period per frame


@dataclass(frozen=True)
class SolvedWindow:
    """A window of the stream, solved under the timing in force.

    raw              N × T × 2 tracked pixels, NaN where not seen; ``tracks`` holds the same as ideal pixels with times
    translation_m_s  regulariser of the free translation with which it was solved
    """

    tracks: TrackWindow
    raw: FloatArray
    camera: Camera
    solution: SplineSolution
    translation_m_s: float

    @property
    def period_s(self) -> float:
        return float(np.median(np.diff(self.tracks.mid_s)))

    @property
    def speed_px_s(self) -> float:
        """RMS speed of the picture's centre under the solved rotation."""
        mid_s = self.tracks.mid_s
        rate = self.solution.state.rate(np.linspace(mid_s[0], mid_s[-1], 4 * len(mid_s)))[:, :2]
        return float(np.sqrt(np.mean(np.sum(rate**2, axis=1)))) * self.camera.focal_px

    def under(self, exposure_s: float, readout_s: float, iterations: int) -> SolvedWindow:
        """The same window solved again, from its solution, under another timing."""
        row_s = Shutter(0, round(readout_s * 1e9)).row_offset_s(self.raw[:, :, 1], self.camera.height)
        tracks = replace(self.tracks, row_s=row_s)
        old = self.solution
        solution = solve(
            tracks, self.camera, exposure_s, old.state, amplitude=old.amplitude,
            translation_m_s=self.translation_m_s, max_iterations=iterations,
        )
        return replace(self, tracks=tracks, solution=solution)

    def track_cost(self, exposure_s: float, readout_s: float, iterations: int) -> float:
        """Robust cost of the tracks at a fixed noise level after solving again; NaN where that fails."""
        try:
            return self.under(exposure_s, readout_s, iterations).solution.data_cost
        except np.linalg.LinAlgError:
            return math.nan

    def disagreement(self, pictures: crossblur.CrossBlur, exposure_s: float) -> float:
        """Mean log residual of the newest pictures, blurred with each other's solved path, at this exposure."""
        t = self.tracks
        sightings = crossblur.Sightings(t.ids, self.raw, t.ideal, t.row_s)
        blur_px = self.speed_px_s * self.period_s
        return pictures.disagreement(
            sightings, self.solution.state, self.solution.weights, self.camera, exposure_s, blur_px
        )


# --- minima ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """One window's cost around a value: cost(x) ≈ slope (x − at) + curvature (x − at)² / 2."""

    at: float
    slope: float
    curvature: float

    @classmethod
    def of(cls, at: float, step: float, costs: Sequence[float] | FloatArray) -> Probe:
        """From the costs at ``at − step``, ``at``, ``at + step``."""
        before, here, after = costs
        return cls(at, (after - before) / (2 * step), (before - 2 * here + after) / step**2)


def vertex(probes: Sequence[Probe]) -> tuple[float, float]:
    """Minimum of the sum of the parabolas and its standard deviation; (nan, inf) where the sum has no minimum."""
    at, slope, curvature = np.array([(p.at, p.slope, p.curvature) for p in probes]).reshape(-1, 3).T
    total = curvature.sum()
    if not total > 0:
        return math.nan, math.inf
    best = float((curvature * at - slope).sum() / total)
    scores = slope + curvature * (best - at)
    n = len(probes)
    return best, float(np.sqrt(np.sum(scores**2) * n / max(n - 1, 1)) / total)


@dataclass(frozen=True)
class Demand:
    """When the windows' agreement suffices.

    max_sd_s       standard deviation, from the spread between the windows and
    bias_s         the error that all windows share
    min_curvature  of the windows' mean cost, per s²
    """

    max_sd_s: float
    bias_s: float = 0.0
    min_curvature: float = 0.0

    def has_minimum(self, probes: Sequence[Probe]) -> bool:
        """Whether the curves bend upwards beyond chance; where they are noise, the spread of minima means nothing."""
        if len(probes) < MIN_WINDOWS:
            return False
        curvature, error = _mean([p.curvature for p in probes])
        return curvature > max(self.min_curvature, SURE_CURVATURE * error)

    def met(self, probes: Sequence[Probe]) -> bool:
        return self.has_minimum(probes) and self.sd_s(probes) < self.max_sd_s

    def sd_s(self, probes: Sequence[Probe]) -> float:
        return math.hypot(vertex(probes)[1], self.bias_s)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def exposure_demand(period_s: float, speed_px_s: float, scale: float) -> Demand:
    """For pictures that move at ``speed_px_s`` and were reduced by ``scale``."""
    bias_s = math.hypot(EXPOSURE_BIAS * period_s, EXPOSURE_BIAS_PX * scale / max(speed_px_s, MIN_SPEED_PX_S))
    return Demand(EXPOSURE_SD * period_s, bias_s, 2 * EXPOSURE_RISE / (0.1 * period_s) ** 2)


def readout_demand(exposure_s: float) -> Demand:
    return Demand(READOUT_SD_S, READOUT_BIAS * exposure_s)


@dataclass(frozen=True)
class Estimate:
    """What the windows say of one quantity, seconds.

    sd_s                 from the spread between the windows and what they share
    candidates_s, costs  the coarse curve: mean over the windows above its minimum
    observable           whether the value may be used
    """

    value_s: float
    sd_s: float
    windows: int
    candidates_s: FloatArray
    costs: FloatArray
    observable: bool


Window = TypeVar("Window")


def minimise(
    windows: Sequence[Window],
    candidates_s: FloatArray,
    cost: Callable[[Window, float], float],
    again: Callable[[Window, float], Window],
    demand: Demand,
) -> Estimate:
    """Minimum of the mean cost: over evenly spaced candidates first, then twice over a finer curve about it.

    again  solves a window again at a value, so that the costs around it start from there. Windows without a finite
           curve are left out.
    """
    curves = _curves(windows, candidates_s, cost)
    finite = np.all(np.isfinite(curves), axis=1)
    kept, curves = [w for w, whole in zip(windows, finite) if whole], curves[finite]
    if len(kept) < MIN_WINDOWS:
        return Estimate(math.nan, math.inf, len(kept), candidates_s, np.zeros(len(candidates_s)), False)
    mean, low, high = curves.mean(axis=0), candidates_s[0], candidates_s[-1]
    value = _lowest(candidates_s, mean)
    for reach in (candidates_s[1] - low) * np.array([1.0, 0.5]):
        value = float(np.clip(value, low, high))
        kept = [again(w, value) for w in kept]
        fine_s = value + reach * np.linspace(-1, 1, 5)
        curves = _curves(kept, fine_s, cost)
        value = _lowest(fine_s, curves.mean(axis=0))
        probes = [Probe.of(fine_s[2], reach, curve[::2]) for curve in curves]
    without_one = [_lowest(fine_s, np.delete(curves, k, axis=0).mean(axis=0)) for k in range(len(kept))]
    sd_s = math.hypot(np.std(without_one) * math.sqrt(len(kept) - 1), demand.bias_s)  # the jackknife's
    inside = fine_s[0] < value < fine_s[-1]
    observable = inside and demand.has_minimum(probes) and sd_s < demand.max_sd_s
    return Estimate(float(np.clip(value, low, high)), sd_s, len(kept), candidates_s, mean - mean.min(), observable)


def _curves(windows: Sequence[Window], at_s: FloatArray, cost: Callable[[Window, float], float]) -> FloatArray:
    """Costs (windows, candidates)."""
    return np.array([[cost(w, x) for x in at_s] for w in windows]).reshape(-1, len(at_s))


def _lowest(at_s: FloatArray, costs: FloatArray) -> float:
    """Where the parabola through the lowest point and its neighbours has its vertex; the point itself at an end."""
    k = int(np.argmin(costs))
    if not 0 < k < len(costs) - 1:
        return float(at_s[k])
    probe = Probe.of(float(at_s[k]), float(at_s[1] - at_s[0]), costs[k - 1 : k + 2])
    return probe.at - probe.slope / probe.curvature if probe.curvature > 0 else probe.at


# --- a recorded video ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RecordedWindow:
    """A window with what calibration needs beside it.

    stamp_ns  T, as the frames came
    newest    the last ``PAIRS + 1`` pictures
    """

    solved: SolvedWindow
    stamp_ns: NDArray[np.int64]
    newest: tuple[Grey, ...]

    def under(self, exposure_s: float, readout_s: float) -> RecordedWindow:
        return replace(self, solved=self.solved.under(exposure_s, readout_s, SOLVE_ITERATIONS))

    def track_cost(self, exposure_s: float, readout_s: float) -> float:
        return self.solved.track_cost(exposure_s, readout_s, PROBE_ITERATIONS)

    def disagreement(self, exposure_s: float, scale: int) -> float:
        pictures = crossblur.CrossBlur(PATCHES, PAIRS, iterations=1)
        pictures.scale = scale
        for image, mid_s in zip(self.newest, self.solved.tracks.mid_s[-len(self.newest) :]):
            pictures.add_picture(image, float(mid_s))
        return self.solved.disagreement(pictures, exposure_s)

    def rate(self, shutter: Shutter) -> tuple[NDArray[np.int64], FloatArray]:
        """Times (ns) and body rates (rad/s) between the second and the last but one frame, every 5 ms."""
        mid_s = self.solved.tracks.mid_s
        t = np.arange(mid_s[1], mid_s[-2], RATE_STEP_S)
        first_ns = shutter.mid_ns(int(self.stamp_ns[0]))
        return first_ns + np.round((t - mid_s[0]) * 1e9).astype(np.int64), self.solved.solution.state.rate(t)


class Recording:
    """Keeps the ``count`` liveliest full windows of a video, overlapping by half at most, in time order."""

    def __init__(self, count: int = WINDOWS) -> None:
        self._count = count
        self._last_ns = 0
        self.windows: list[RecordedWindow] = []

    def add(self, solved: SolvedWindow, stamp_ns: NDArray[np.int64], newest: Sequence[Grey]) -> None:
        """A solved window, its frames' stamps (T,), and at least the last ``PAIRS + 1`` pictures, which are copied."""
        speed = solved.speed_px_s
        if speed < MIN_SPEED_PX_S or stamp_ns[len(stamp_ns) // 2] < self._last_ns:
            return
        if len(self.windows) == self._count:
            slowest = min(self.windows, key=lambda window: window.solved.speed_px_s)
            if speed <= slowest.solved.speed_px_s:
                return
            self.windows.remove(slowest)
        pictures = tuple(image.copy() for image in newest[-PAIRS - 1 :])
        self.windows.append(RecordedWindow(solved, stamp_ns, pictures))
        self._last_ns = int(stamp_ns[-1])


@dataclass(frozen=True)
class Timing:
    """What a video says of its own timing, and its windows solved under it."""

    exposure: Estimate
    readout: Estimate
    windows: list[RecordedWindow]
    shutter: Shutter


def calibrate(windows: Sequence[RecordedWindow], stamp_reference: str, stamp_offset_ns: int) -> Timing:
    """Readout first, which hardly depends on the exposure; then the exposure. What is not observable stays assumed."""
    period_s = min((float(np.diff(w.stamp_ns).min()) * 1e-9 for w in windows), default=ASSUMED_PERIOD_S)
    exposure_s = ASSUMED_DUTY * period_s
    readout = minimise(
        windows,
        READOUTS_S,
        lambda w, x: w.track_cost(exposure_s, x),
        lambda w, x: w.under(exposure_s, x),
        readout_demand(exposure_s),
    )
    readout_s = readout.value_s if readout.observable else ASSUMED_READOUT_S
    windows = [w.under(exposure_s, readout_s) for w in windows]
    speed_px_s = float(np.median([w.solved.speed_px_s for w in windows])) if windows else 0.0
    scale = next((scale for scale, most_px in SCALES if speed_px_s * period_s < most_px), COARSEST)
    exposure = minimise(
        windows,
        DUTIES * period_s,
        lambda w, x: w.disagreement(x, scale),
        lambda w, x: w.under(x, readout_s),
        exposure_demand(period_s, speed_px_s, scale),
    )
    exposure_s = exposure.value_s if exposure.observable else exposure_s
    shutter = Shutter(round(exposure_s * 1e9), round(readout_s * 1e9), stamp_reference, stamp_offset_ns)
    return Timing(exposure, readout, [w.under(exposure_s, readout_s) for w in windows], shutter)


def gyro_offset(timing: Timing, gyro_ns: NDArray[np.int64], omega: FloatArray) -> Estimate:
    """Offset d with the least rate error of the video's ω̂(t) against the gyro's ω(t + d): to be added to the stamps.

    gyro_ns N increasing; omega N × 3 rad/s, optical axes
    """
    epoch_ns = int(gyro_ns[0])
    gyro_s = (gyro_ns - epoch_ns) * 1e-9

    def cost(w: RecordedWindow, offset_s: float) -> float:
        t_ns, rate = w.rate(timing.shutter)
        t = (t_ns - epoch_ns) * 1e-9 + offset_s
        if t[0] < gyro_s[0] or t[-1] > gyro_s[-1]:
            return math.nan
        true = np.stack([np.interp(t, gyro_s, omega[:, axis]) for axis in range(3)], axis=1)
        return float(np.linalg.norm(rate - true, axis=1).sum())

    return minimise(timing.windows, OFFSETS_S, cost, lambda w, _: w, Demand(OFFSET_SD_S))


# --- a stream --------------------------------------------------------------------------------------------------------


class TimingEstimator:
    """Refines in the background of a stream what is not known of its timing.

    A round takes one window and tries a few candidates on it, at most one costly one per frame; once the values are
    settled, rounds become rare. The resolved values creep towards the estimates, slower than the dense samples follow
    each other, so that time stamps stay in order. Nothing depends on the clock: the same stream, the same values.

    exposure_ns, readout_ns  None where not known
    samples_per_frame        of the dense trajectory: decides on how slowly the values may move
    """

    def __init__(self, exposure_ns: int | None, readout_ns: int | None, samples_per_frame: int) -> None:
        self._period_s = ASSUMED_PERIOD_S
        self._creep = min(CREEP, 0.5 / samples_per_frame)
        self._exposure_known, self._readout_known = exposure_ns is not None, readout_ns is not None
        self._exposure_s = ASSUMED_DUTY * ASSUMED_PERIOD_S if exposure_ns is None else exposure_ns * 1e-9
        self._readout_s = ASSUMED_READOUT_S if readout_ns is None else readout_ns * 1e-9
        self._exposure, self._readout = _Descent(), _Descent()
        self._speed_px_s, self._scale = 0.0, 1  # of the last round
        self._round: Iterator[None] = iter(())
        self._wait_frames = ROUND_EVERY_FRAMES

    def learn_period(self, period_ns: int) -> None:
        """The frame period; ``resolved`` follows slowly."""
        self._period_s = period_ns * 1e-9

    def assume(self) -> None:
        """A stream begins: what is not known, and was not measured yet, as a share of the frame period."""
        if not self._exposure_known and not self._exposure.probes:
            self._exposure_s = ASSUMED_DUTY * self._period_s
        if not self._readout_known and not self._readout.probes:
            self._readout_s = min(ASSUMED_READOUT_S, self._period_s)

    @property
    def resolved(self) -> tuple[int, int]:
        """Exposure and readout to use now, nanoseconds."""
        return round(self._exposure_s * 1e9), round(self._readout_s * 1e9)

    @property
    def exposure_sd_s(self) -> float:
        """Standard deviation of the estimate; 0 where the exposure was given, infinite while it is only assumed."""
        return 0.0 if self._exposure_known else self._exposure.sd_s(self._exposure_s, self._exposure_demand())

    @property
    def readout_sd_s(self) -> float:
        """Likewise of the readout."""
        return 0.0 if self._readout_known else self._readout.sd_s(self._readout_s, readout_demand(self._exposure_s))

    def observe(self, window: SolvedWindow, pictures: crossblur.CrossBlur) -> None:
        """The newest window, solved under ``resolved``, and the pictures that it ends with."""
        if self._exposure_known and self._readout_known:
            return
        self._wait_frames -= 1
        if next(self._round, _DONE) is _DONE and self._wait_frames <= 0 and window.speed_px_s > MIN_SPEED_PX_S:
            self._wait_frames = ROUND_EVERY_FRAMES * (SETTLED_FACTOR if self._settled() else 1)
            self._round = self._candidates(window, pictures)
            next(self._round)
        self._move()

    def _candidates(self, window: SolvedWindow, pictures: crossblur.CrossBlur) -> Iterator[None]:
        """One round, a step per frame."""
        exposure_s, readout_s = self._exposure_s, self._readout_s
        if not self._exposure_known:
            step, self._speed_px_s, self._scale = EXPOSURE_STEP * self._period_s, window.speed_px_s, pictures.scale
            self._exposure.add(
                exposure_s, step, [window.disagreement(pictures, exposure_s + d) for d in (-step, 0.0, step)]
            )
            yield
        if not self._readout_known:
            costs = []
            for d in (-READOUT_STEP_S, 0.0, READOUT_STEP_S):
                costs.append(window.track_cost(exposure_s, readout_s + d, iterations=1))
                yield
            self._readout.add(readout_s, READOUT_STEP_S, costs)

    def _exposure_demand(self) -> Demand:
        return exposure_demand(self._period_s, self._speed_px_s, self._scale)

    def _settled(self) -> bool:
        """Whether what is sought has been watched from where it is for long."""
        return (self._exposure_known or self._exposure.settled(self._exposure_s)) and (
            self._readout_known or self._readout.settled(self._readout_s)
        )

    def _move(self) -> None:
        """A small step towards what the probes say, if they say anything."""
        most_s = self._creep * self._period_s
        exposure_s, readout_s = self._exposure_s, self._readout_s
        if not self._exposure_known:
            wanted_s = ASSUMED_DUTY * self._period_s
            if self._exposure.probes:
                wanted_s = self._exposure.target(exposure_s, self._exposure_demand())
            self._exposure_s += _limited(min(max(wanted_s, 0.0), self._period_s) - exposure_s, most_s)
        if not self._readout_known:
            wanted_s = self._readout.target(readout_s, readout_demand(exposure_s))
            self._readout_s += _limited(min(max(wanted_s, 0.0), self._period_s) - readout_s, most_s)


class _Descent:
    """The last probes of one quantity, and where they say it should go. Only probes near its present value count."""

    def __init__(self) -> None:
        self.probes: deque[Probe] = deque(maxlen=ROUNDS)
        self._step = 0.0

    def add(self, at: float, step: float, costs: Sequence[float]) -> None:
        if np.all(np.isfinite(costs)):
            self.probes.append(Probe.of(at, step, costs))
            self._step = step

    def target(self, value: float, demand: Demand) -> float:
        """The vertex where it is known; a step downhill where only the slope is; else the present value."""
        near = self._near(value)
        if demand.met(near):
            return vertex(near)[0]
        if len(near) < MIN_SLOPES:
            return value
        slope, error = _mean([p.slope for p in near])
        return value - math.copysign(self._step, slope) if abs(slope) > SURE_SLOPE * error else value

    def sd_s(self, value: float, demand: Demand) -> float:
        near = self._near(value)
        return demand.sd_s(near) if demand.met(near) else math.inf

    def settled(self, value: float) -> bool:
        return len(self.probes) == ROUNDS and all(abs(p.at - value) < self._step for p in self.probes)

    def _near(self, value: float) -> list[Probe]:
        return [p for p in self.probes if abs(p.at - value) < NEAR_STEPS * self._step]


def _limited(step: float, most: float) -> float:
    return min(max(step, -most), most)


_DONE = object()
