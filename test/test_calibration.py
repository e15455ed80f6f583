"""Timing from the video itself: minima with honest deviations, synthetic tracks, a rendered bag, and the stream."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from synthetic_tracks import CAMERA, Tracks, follow, swaying
from typer.testing import CliRunner

from perspblur_ros import cli
from perspblur_ros.calibration import (
    ASSUMED_DUTY,
    ASSUMED_READOUT_S,
    CREEP,
    MIN_WINDOWS,
    READOUTS_S,
    ROUND_EVERY_FRAMES,
    ROUNDS,
    SETTLED_FACTOR,
    Demand,
    Probe,
    SolvedWindow,
    TimingEstimator,
    minimise,
    readout_demand,
    vertex,
)
from perspblur_ros.camera import Camera
from perspblur_ros.crossblur import CrossBlur
from perspblur_ros.evaluation.bags import BagWriter
from perspblur_ros.evaluation.calibrate import calibrate_bag
from perspblur_ros.evaluation.clips import convert as convert_clip
from perspblur_ros.sim.clips import SimulatedClip, simulate_clip
from perspblur_ros.sim.hand_motion import hand_motion
from perspblur_ros.sim.scene import Scene
from perspblur_ros.spline import FixedLagSpline

PERIOD_S = 0.05
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"


# --- minima ----------------------------------------------------------------------------------------------------------


@given(st.floats(-1, 1), st.floats(0.1, 100), st.floats(-1, 1), st.floats(0.001, 0.5))
def test_the_vertex_of_one_parabola_is_exact(best: float, curvature: float, at: float, step: float) -> None:
    costs = [3 + curvature * (at + d - best) ** 2 / 2 for d in (-step, 0.0, step)]
    found, _ = vertex([Probe.of(at, step, costs)] * 3)
    assert found == pytest.approx(best, abs=1e-6)


def test_the_deviation_is_what_windows_scatter() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(400):
        own = 0.3 + 0.1 * rng.standard_normal(8)  # every window has its own minimum
        curvature = rng.uniform(1, 3, 8)
        probes = [Probe.of(0.0, 0.1, [c * (d - m) ** 2 / 2 for d in (-0.1, 0, 0.1)]) for c, m in zip(curvature, own)]
        value, sd = vertex(probes)
        errors.append((value - 0.3) / sd)
    assert 0.9 < np.std(errors) < 1.25  # 8 windows: Student's t is a little wider than a Gaussian
    assert abs(np.mean(errors)) < 0.15


def test_no_minimum_no_value() -> None:
    assert vertex([Probe(0.0, 1.0, -2.0)] * 5) == (pytest.approx(math.nan, nan_ok=True), math.inf)
    assert not Demand(1.0).met([Probe(0.0, 0.0, 1.0)] * (MIN_WINDOWS - 1))
    assert Demand(1.0).met([Probe(0.0, 0.0, 1.0)] * MIN_WINDOWS)
    assert not Demand(1.0, min_curvature=2.0).met([Probe(0.0, 0.0, 1.0)] * MIN_WINDOWS)


def test_a_flat_noisy_curve_is_not_observable() -> None:
    rng = np.random.default_rng(1)
    noise = {(w, round(x, 9)): rng.standard_normal() for w in range(6) for x in np.arange(-0.02, 0.0601, 0.00125)}
    estimate = minimise(
        range(6), READOUTS_S, lambda w, x: noise.setdefault((w, round(x, 9)), rng.standard_normal()),
        lambda w, _: w, readout_demand(0.03),
    )
    assert not estimate.observable


@pytest.mark.parametrize("best", [0.0, 0.0031, 0.0177, 0.04])
@pytest.mark.parametrize("power", [1, 2])
def test_the_minimum_is_found_also_of_a_kink(best: float, power: int) -> None:
    estimate = minimise(
        range(4), READOUTS_S, lambda w, x: (1 + 0.1 * w) * abs(x - best) ** power, lambda w, _: w, Demand(0.003)
    )
    assert estimate.observable
    assert estimate.value_s == pytest.approx(best, abs=3e-4)
    assert estimate.costs.min() == 0


def test_windows_without_a_curve_are_left_out() -> None:
    def cost(w: int, x: float) -> float:
        return math.nan if w < 2 else (x - 0.02) ** 2

    estimate = minimise(range(2 + MIN_WINDOWS), READOUTS_S, cost, lambda w, _: w, Demand(0.003))
    assert (estimate.windows, estimate.observable) == (MIN_WINDOWS, True)
    estimate = minimise(range(1 + MIN_WINDOWS), READOUTS_S, cost, lambda w, _: w, Demand(0.003))
    assert (estimate.windows, estimate.observable) == (MIN_WINDOWS - 1, False)
    assert minimise([], READOUTS_S, cost, lambda w, _: w, Demand(0.003)).windows == 0


def test_a_minimum_that_runs_away_is_none() -> None:
    """Each time the windows are solved again at a value, their costs fall towards a larger one."""
    estimate = minimise([0.0] * 4, READOUTS_S, lambda w, x: (x - w - 0.02) ** 2, lambda _, x: x, Demand(0.003))
    assert not estimate.observable


# --- tracks ----------------------------------------------------------------------------------------------------------


def solved_windows(tracks: Tracks, assumed_readout_s: float, true_readout_s: float) -> list[SolvedWindow]:
    """Windows of 9 frames, solved under the assumed readout."""
    windows = []
    for first in (0, 5, 10, 15):
        truth = tracks.window(first, first + 9)
        rows = truth.row_s / true_readout_s * (CAMERA.height - 1) + (CAMERA.height - 1) / 2
        raw = np.stack([truth.ideal[..., 0], rows], axis=2)
        spline = FixedLagSpline(0.015, tracks.lever_arm_m, 1.3, 0.015, 3)
        stream = spline.add(
            truth, CAMERA, tracks.exposure_s, tracks.period_s / 2, tracks.mean_rotations(first, first + 9)
        )
        solved = SolvedWindow(truth, raw, CAMERA, stream.solution, spline.translation_m_s)
        windows.append(solved.under(tracks.exposure_s, assumed_readout_s, 6))
    return windows


@pytest.mark.parametrize(("truth_s", "assumed_s"), [(0.004, 0.02), (0.025, 0.01)])
def test_tracks_tell_the_readout(truth_s: float, assumed_s: float) -> None:
    tracks = follow(swaying(3, 2.0), 24, exposure_s=0.03, readout_s=truth_s, n_points=60)
    estimate = minimise(
        solved_windows(tracks, assumed_s, truth_s),
        READOUTS_S[:7],
        lambda w, x: w.track_cost(0.03, x, 2),
        lambda w, x: w.under(0.03, x, 4),
        readout_demand(0.03),
    )
    assert estimate.observable
    assert estimate.value_s == pytest.approx(truth_s, abs=1.5e-3)


# --- a bag -----------------------------------------------------------------------------------------------------------

EXPOSURE_S, READOUT_S, OFFSET_S = 0.032, 0.012, -0.0235


@pytest.fixture(scope="module")
def clip() -> SimulatedClip:
    rng = np.random.default_rng(5)
    size = 420, 560
    camera = Camera(size[1], size[0], 300.0, 300.0, size[1] / 2, size[0] / 2)
    coarse = [np.kron(rng.random((-(-size[0] // n), -(-size[1] // n))), np.ones((n, n))) for n in (5, 14, 40)]
    image = sum(layer[: size[0], : size[1]] for layer in coarse) / 3
    depth = 1.0 + 2.0 * np.linspace(0, 1, size[1])[None, :] * np.ones(size)
    view = Camera(320, 240, 300.0, 300.0, 159.5, 119.5)
    return simulate_clip(
        Scene(image.astype(np.float32), depth.astype(np.float32), camera), hand_motion(4, 3.5, 0.5), view, 32, 20.0,
        EXPOSURE_S, READOUT_S, (0.02, -0.05, 0.15),
    )


@pytest.fixture(scope="module")
def bag(clip: SimulatedClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip with a gyro whose clock is ahead: frames stamped t were exposed at the gyro's t + OFFSET_S."""
    path = tmp_path_factory.mktemp("calibration") / "bag"
    assert clip.margin_px > 0, "the view left the picture"
    with BagWriter(path, clip.camera, {"lever_arm": list(clip.lever_arm_m)}) as writer:
        writer.write_motion(clip.truth_ns + round(OFFSET_S * 1e9), clip.omega)
        for stamp, image in zip(clip.stamps_ns.tolist(), clip.frames):
            writer.write_image(stamp, image)
    return path


def test_a_bag_tells_exposure_readout_and_offset(bag: Path, tmp_path: Path) -> None:
    out = tmp_path / "params.yaml"
    result = CliRunner().invoke(cli.app, ["calibrate", str(bag), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "windows" in result.output
    values = yaml.safe_load(out.read_text())
    assert values["exposure_s"] == pytest.approx(EXPOSURE_S, abs=0.1 * PERIOD_S)
    assert values["readout_s"] == pytest.approx(READOUT_S, abs=3e-3)
    assert values["stamp_offset_s"] == pytest.approx(OFFSET_S, abs=3e-3)
    assert values["stamp_reference"] == "exposure_start"


def test_what_is_not_seen_is_said(tmp_path: Path) -> None:
    camera = Camera(96, 64, 80.0, 80.0, 47.5, 31.5)
    image = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    with BagWriter(tmp_path / "still", camera) as writer:
        for k in range(16):
            writer.write_image(10**9 + k * 50_000_000, image)
    result = CliRunner().invoke(cli.app, ["calibrate", str(tmp_path / "still")])
    assert result.exit_code == 1
    assert "tells nothing of its timing: 0 windows" in str(result.exception)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("name", "exposure_s"), [("zoltan_room_A", 0.04), ("lhaippp_car", None)])
def test_real_clips(tmp_path: Path, name: str, exposure_s: float | None) -> None:
    """Both cameras read out in about 30 ms; the car's frames are sharp (5 ms), so their exposure cannot be seen."""
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent")
    convert_clip(DATA / name, tmp_path / "bag", compressed=True)
    estimates = calibrate_bag(tmp_path / "bag").estimates
    assert estimates["readout_s"].observable
    assert estimates["readout_s"].value_s == pytest.approx(0.0305, abs=0.003)
    assert estimates["exposure_s"].observable == (exposure_s is not None)
    if exposure_s is not None:
        assert estimates["exposure_s"].value_s == pytest.approx(exposure_s, abs=0.004)
    assert estimates["stamp_offset_s"].sd_s < 0.002


# --- a stream --------------------------------------------------------------------------------------------------------


class Scenery:
    """A window whose costs are known: a kink at the true exposure, a parabola at the true readout, and noise."""

    speed_px_s = 200.0

    def __init__(self, exposure_s: float, readout_s: float, noise: float, rng: np.random.Generator) -> None:
        self._exposure_s = exposure_s + 0.002 * rng.standard_normal()
        self._readout_s = readout_s + 0.002 * rng.standard_normal()
        self._noise, self._rng = noise, rng

    def disagreement(self, _: object, exposure_s: float) -> float:
        far = abs(exposure_s - self._exposure_s) / PERIOD_S
        return math.log(0.1 + far) + self._noise * self._rng.standard_normal()

    def track_cost(self, _: float, readout_s: float, iterations: int) -> float:
        assert iterations == 1, "the stream has no time for more"
        return 1e7 * (readout_s - self._readout_s) ** 2 + self._noise * self._rng.standard_normal()


def watch(
    estimator: TimingEstimator, frames: int, exposure_s: float, readout_s: float, noise: float = 0.005
) -> list[tuple[int, int]]:
    """What the estimator holds true after every frame."""
    rng = np.random.default_rng(2)
    estimator.learn_period(round(PERIOD_S * 1e9))
    estimator.assume()
    resolved = [estimator.resolved]
    for _ in range(frames):
        estimator.observe(Scenery(exposure_s, readout_s, noise, rng), CrossBlur(1, 1, 1))  # type: ignore[arg-type]
        resolved.append(estimator.resolved)
    return resolved


@pytest.mark.parametrize(("exposure_s", "readout_s"), [(0.045, 0.001), (0.015, 0.033)])
def test_the_stream_learns_both(exposure_s: float, readout_s: float) -> None:
    estimator = TimingEstimator(None, None, 30)
    assert (estimator.exposure_sd_s, estimator.readout_sd_s) == (math.inf, math.inf)
    resolved = watch(estimator, 400, exposure_s, readout_s)
    assert resolved[0] == (round(ASSUMED_DUTY * PERIOD_S * 1e9), round(ASSUMED_READOUT_S * 1e9))
    assert resolved[-1][0] * 1e-9 == pytest.approx(exposure_s, abs=0.003)
    assert resolved[-1][1] * 1e-9 == pytest.approx(readout_s, abs=0.0015)
    assert estimator.exposure_sd_s < 0.004
    assert estimator.readout_sd_s < 0.003
    assert watch(TimingEstimator(None, None, 30), 400, exposure_s, readout_s) == resolved


@pytest.mark.parametrize("samples", [1, 30, 200])
def test_time_stamps_stay_in_order(samples: int) -> None:
    steps = np.abs(np.diff(watch(TimingEstimator(None, None, samples), 200, 0.01, 0.001), axis=0))
    assert steps.max() <= CREEP * PERIOD_S * 1e9 + 1
    assert (steps.sum(axis=1) / 2).max() < PERIOD_S * 1e9 / samples  # how far a frame's middle can move


def test_what_is_given_stays() -> None:
    assert set(watch(TimingEstimator(7_000_000, 9_000_000, 30), 60, 0.02, 0.03)) == {(7_000_000, 9_000_000)}
    resolved = watch(TimingEstimator(7_000_000, None, 30), 200, 0.02, 0.03)
    assert {exposure for exposure, _ in resolved} == {7_000_000}
    assert resolved[-1][1] * 1e-9 == pytest.approx(0.03, abs=0.0015)


def test_noise_moves_nothing() -> None:
    estimator = TimingEstimator(None, None, 30)
    assert len(set(watch(estimator, 60, 0.02, 0.03, noise=1e6))) == 1
    assert estimator.exposure_sd_s == math.inf


def test_a_round_costs_one_solution_a_frame_and_becomes_rare() -> None:
    estimator, costly = TimingEstimator(45_000_000, None, 30), []

    class Counting(Scenery):
        def track_cost(self, exposure_s: float, readout_s: float, iterations: int) -> float:
            costly[-1] += 1
            return super().track_cost(exposure_s, readout_s, iterations)

    estimator.learn_period(round(PERIOD_S * 1e9))
    estimator.assume()
    rng = np.random.default_rng(3)
    for _ in range(ROUND_EVERY_FRAMES * ROUNDS * 3):
        costly.append(0)
        estimator.observe(Counting(0.045, 0.02, 0.005, rng), CrossBlur(1, 1, 1))  # type: ignore[arg-type]
    assert max(costly) == 1
    third = len(costly) // 3
    assert sum(costly[-third:]) < sum(costly[:third]) / (SETTLED_FACTOR / 2)


def test_still_windows_are_not_asked() -> None:
    estimator = TimingEstimator(None, None, 30)
    still = Scenery(0.02, 0.03, 0.0, np.random.default_rng(0))
    still.speed_px_s = 1.0
    for _ in range(100):
        estimator.observe(still, CrossBlur(1, 1, 1))  # type: ignore[arg-type]
    assert estimator.readout_sd_s == math.inf
