"""The whole pipeline on short rendered clips: order, counts, segments, faults, and what it says when it is blind."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perspblur_ros import so3
from perspblur_ros.camera import Camera
from perspblur_ros.config import from_mapping
from perspblur_ros.errors import ConfigError
from perspblur_ros.pipeline import Pipeline
from perspblur_ros.sim.clips import SimulatedClip, simulate_clip
from perspblur_ros.sim.hand_motion import hand_motion
from perspblur_ros.sim.scene import procedural, view_camera
from perspblur_ros.types import DenseSamples, FrameResult, Status

FPS, EXPOSURE_S, READOUT_S, LEVER_ARM_M = 20.0, 0.04, 0.01, (0.03, 0.02, 0.15)
PERIOD_NS = round(1e9 / FPS)
N_FRAMES = 10
TIMING = {"exposure_s": EXPOSURE_S, "readout_s": READOUT_S}
LIGHT = {"max_tracks": 60, "crossblur_patches": 24, "crossblur_pairs": 2}  # enough to run through everything quickly
ENGINE = Path(__file__).resolve().parents[1] / "engines" / "tiny"
FULL = {"max_tracks": 260, "crossblur_patches": 64, "crossblur_pairs": 3}
CAMERA = view_camera(procedural(1), 240, 180)
SHAPE = (CAMERA.height, CAMERA.width)


@cache
def clip(
    seed: int = 3, distortion: tuple[float, ...] = (), exposure_s: float = EXPOSURE_S, readout_s: float = READOUT_S
) -> SimulatedClip:
    """Half a second in a hand, some 5 px of blur."""
    return simulate_clip(
        procedural(1), hand_motion(seed, 1.5, 0.9), replace(CAMERA, distortion=distortion), N_FRAMES, FPS, exposure_s,
        readout_s, LEVER_ARM_M, start_s=0.1, seed=seed,
    )


def pipeline_of(**config) -> Pipeline:
    return Pipeline(from_mapping(TIMING | LIGHT | config))


def run(
    frames: list[np.ndarray], stamps_ns: list[int] | None = None, camera: Camera = CAMERA, **config
) -> tuple[Pipeline, list[FrameResult]]:
    pipeline, results = pipeline_of(**config), []
    stamps_ns = stamps_ns or [int(s) for s in even_stamps(len(frames))]
    for stamp_ns, image in zip(stamps_ns, frames):
        results += pipeline.add_frame(stamp_ns, image, camera)
    return pipeline, results + pipeline.flush()


@cache
def plain_run(count: int = N_FRAMES) -> tuple[Pipeline, list[FrameResult]]:
    return run(clip().frames[:count])


@cache
def full_run(lever_arm_told: bool) -> list[FrameResult]:
    return run(clip().frames, **FULL, **({"lever_arm": list(LEVER_ARM_M)} if lever_arm_told else {}))[1]


def even_stamps(count: int, first_ns: int = 1_000_000_000) -> np.ndarray:
    return first_ns + PERIOD_NS * np.arange(count)


def joined(results: list[FrameResult], name: str) -> np.ndarray:
    return np.concatenate([getattr(r.dense, name) for r in results])


def indices(results: list[FrameResult]) -> list[int]:
    return [r.dense.frame for r in results]


def drops(pipeline: Pipeline) -> int:
    return sum(n for cause, n in pipeline.counts.items() if cause.startswith("drop."))


def rate_sd(dense: DenseSamples) -> float:
    """The least standard deviation of a rate that is claimed anywhere in the frame, on the most certain axis."""
    return float(np.sqrt(np.linalg.eigvalsh(dense.cov_omega).min()))


def truth(stamp_ns: np.ndarray, c: SimulatedClip) -> tuple[np.ndarray, np.ndarray]:
    """True orientations and rates at ``stamp_ns``."""
    t, knots = (stamp_ns - c.truth_ns[0]) * 1e-9, (c.truth_ns - c.truth_ns[0]) * 1e-9
    rates = np.stack([np.interp(t, knots, c.omega[:, axis]) for axis in range(3)], axis=1)
    return so3.interpolate(t, knots, so3.from_quat_xyzw(c.q_start_from_cam)), rates


def rate_error(samples: list[DenseSamples], c: SimulatedClip) -> float:
    _, rates = truth(np.concatenate([s.stamp_ns for s in samples]), c)
    omega = np.concatenate([s.omega for s in samples])
    return float(np.linalg.norm(omega - rates, axis=1).sum() / np.linalg.norm(rates, axis=1).sum())


# --- accuracy: enough to notice that something broke ------------------------------------------------------------------


@pytest.mark.parametrize("lever_arm_told", [True, False])
def test_the_dense_rotation_is_far_better_than_interpolation(lever_arm_told):
    c, results = clip(), full_run(lever_arm_told)
    interpolated = [r.alternatives.get("interpolation", r.dense) for r in results]
    error, baseline = rate_error([r.dense for r in results], c), rate_error(interpolated, c)
    assert error < 0.35
    assert error < 0.65 * baseline
    R, rates = truth(joined(results, "stamp_ns"), c)
    estimate = so3.from_quat_xyzw(joined(results, "q_start_from_cam"))
    away = so3.log(np.swapaxes(R, 1, 2) @ R[0] @ estimate[0].T @ estimate)
    assert np.abs(away).max() < 0.025  # of some 0.15 rad
    sd = np.sqrt(np.diagonal(joined(results, "cov_omega"), axis1=1, axis2=2))
    assert np.mean(np.abs(joined(results, "omega") - rates) < 3 * sd) > 0.6


def test_lens_distortion_is_taken_into_account():
    """A barrel that shifts the corners by a dozen pixels costs little accuracy, unless nobody tells."""
    c = clip(distortion=(-0.35, 0.1, 0.0, 0.0))
    told, untold = (
        rate_error([r.dense for r in run(c.frames, camera=k, densifier="spline", lever_arm=list(LEVER_ARM_M))[1]], c)
        for k in (c.camera, CAMERA)
    )
    assert told < 0.85 * untold
    assert told < 1.4 * rate_error([r.dense for r in full_run(True)], clip())


def test_row_times_are_taken_into_account():
    """Told to be a global shutter (at the same middle of the frame), a rolling one leaves half of the rate unknown."""
    c = clip(exposure_s=0.02, readout_s=0.03)
    shutters = {"readout_s": 0.03}, {"readout_s": 0.0, "stamp_offset_s": 0.015}
    rolling, all_at_once = (
        rate_error([r.dense for r in run(c.frames, densifier="spline", exposure_s=0.02, **shutter)[1]], c)
        for shutter in shutters
    )
    assert rolling < 0.7 * all_at_once


@pytest.mark.parametrize(("densifier", "jump_rad"), [("interpolation", 1e-9), ("spline", 5e-4), ("auto", 5e-4)])
def test_orientation_is_the_integral_of_the_rate(densifier, jump_rad):
    """Within a frame exactly; from frame to frame nearly: the next solution disagrees with the last one a little."""
    results = plain_run()[1] if densifier == "auto" else run(clip().frames, densifier=densifier)[1]
    R, omega = so3.from_quat_xyzw(joined(results, "q_start_from_cam")), joined(results, "omega")
    dt = np.diff(joined(results, "stamp_ns"))[:, None] * 1e-9
    steps = so3.log(np.swapaxes(R[:-1], 1, 2) @ R[1:])
    away = np.abs(steps - (omega[1:] + omega[:-1]) / 2 * dt).max(axis=1)
    at_border = np.arange(len(away)) % 30 == 29
    assert away[~at_border].max() < 1e-5
    assert away[at_border].max() < jump_rad


def test_a_depth_map_from_outside_is_used():
    c = clip()
    told = pipeline_of(lever_arm=list(LEVER_ARM_M))
    told.add_depth(int(c.stamps_ns[0]), c.depth_m)
    misled = pipeline_of(lever_arm=list(LEVER_ARM_M))
    misled.add_depth(int(c.stamps_ns[0]), np.full(c.depth_m.shape, 0.3, np.float32))
    empty = pipeline_of(lever_arm=list(LEVER_ARM_M))
    empty.add_depth(int(c.stamps_ns[0]), np.full(c.depth_m.shape, np.nan, np.float32))
    out = []
    for pipeline in (told, misled, empty):
        results = [r for s, f in zip(c.stamps_ns[:7], c.frames) for r in pipeline.add_frame(int(s), f, CAMERA)]
        out.append([r.dense for r in results + pipeline.flush()])
    without = [r.dense for r in run(c.frames[:7], lever_arm=list(LEVER_ARM_M))[1]]
    assert rate_error(out[0], c) < 0.9 * rate_error(out[1], c)
    np.testing.assert_array_equal(out[2][5].omega, without[5].omega)


# --- order and counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_results_come_in_order_and_as_late_as_told(lag):
    pipeline, arrived = pipeline_of(lag_frames=lag), []
    for k, (stamp_ns, image) in enumerate(zip(even_stamps(N_FRAMES), clip().frames)):
        arrived += indices(pipeline.add_frame(int(stamp_ns), image, CAMERA))
        if k >= 3:  # a spline needs four frames
            assert arrived == list(range(k + 1 - lag))
    assert arrived + indices(pipeline.flush()) == list(range(N_FRAMES))
    assert pipeline.flush() == []


@pytest.mark.parametrize(("lag", "smoother"), [(2, 4), (3, 5), (8, 10)])
def test_no_frame_is_lost_at_the_longest_lag_of_a_smoother(lag, smoother):
    _, results = run(clip().frames, lag_frames=lag, smoother_frames=smoother)
    assert indices(results) == list(range(N_FRAMES))
    with pytest.raises(ConfigError, match=f"lag_frames = {lag} needs smoother_frames of at least {smoother}"):
        pipeline_of(lag_frames=lag, smoother_frames=smoother - 1)


def test_the_last_frames_are_refined_until_they_settle():
    """No later frame comes to settle them: after the flush one more step hardly moves the trajectory."""
    pipeline = pipeline_of(**FULL, lever_arm=list(LEVER_ARM_M), densifier="crossblur")
    for stamp_ns, image in zip(even_stamps(7), clip().frames):
        pipeline.add_frame(int(stamp_ns), image, CAMERA)
    running = pipeline._solved.refinement.state.c
    pipeline.flush()
    settled = pipeline._solved.refinement.state.c
    pipeline._emitted -= 1  # as if a frame still waited
    pipeline.flush()
    again = pipeline._solved.refinement.state.c
    assert np.abs(again - settled).max() * CAMERA.focal_px < 0.1
    assert np.abs(again - settled).max() <= np.abs(settled - running).max()


def test_a_stream_goes_on_after_a_flush():
    pipeline, results = run(clip().frames[:6])
    for stamp_ns, image in zip(even_stamps(N_FRAMES)[6:], clip().frames[6:]):
        results += pipeline.add_frame(int(stamp_ns), image, CAMERA)
    assert indices(results + pipeline.flush()) == list(range(N_FRAMES))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_streams_too_short_for_a_spline(n):
    _, results = run(clip().frames[:n])
    assert indices(results) == list(range(n))
    assert {r.dense.source for r in results} == {"interpolation"}
    stamps = joined(results, "stamp_ns")
    assert np.all(np.diff(stamps) > 0)
    assert np.all(np.isfinite(joined(results, "omega")))
    assert n > 1 or rate_sd(results[0].dense) > 1.0
    assert n > 1 or np.ptp(stamps) == pytest.approx(EXPOSURE_S * 1e9 * 29 / 30, abs=2)


def test_no_frames_no_results():
    pipeline = Pipeline(from_mapping({}))
    assert pipeline.flush() == []
    pipeline.reset()
    assert pipeline.flush() == []


def test_every_frame_is_a_result_or_a_counted_drop():
    c, stamps = clip(), [int(s) for s in even_stamps(N_FRAMES)]
    wrong_size = np.zeros((10, 10), np.uint8)
    sent = [*zip(stamps[:5], c.frames[:5]), (stamps[4], c.frames[4]), (stamps[2], c.frames[2]), (0, c.frames[5]),
            (stamps[5], wrong_size), (stamps[5], c.frames[5].astype(np.float32)), *zip(stamps[5:], c.frames[5:])]
    pipeline, results = run([f for _, f in sent], [s for s, _ in sent])
    assert pipeline.counts["frames"] == len(sent) == len(results) + drops(pipeline)
    assert indices(results) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    for cause in ("duplicate", "late", "zero_stamp", "size", "encoding"):
        assert pipeline.counts[f"drop.{cause}"] == 1
    np.testing.assert_array_equal(joined(results, "omega"), joined(plain_run()[1], "omega"))


TINY = Camera(64, 48, 60.0, 60.0, 31.5, 23.5)
TINY_PICTURE = np.clip(128 + 40 * np.random.default_rng(0).standard_normal((60, 80)), 0, 255).astype(np.uint8)
BLACK_TINY = np.zeros((48, 64), np.uint8)
EVENTS = (
    *("frame", "frame", "frame", "frame", "black", "small", "duplicate", "late", "gap", "jump_back", "zero", "misfit"),
    *("reset", "flush"),
)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=14), st.integers(0, 2))
def test_whatever_arrives_the_books_balance(events, lag):
    pipeline = pipeline_of(max_tracks=30, lag_frames=lag, samples_per_frame=3)
    stamp_ns, results = 10_000_000_000, []
    for k, event in enumerate(events):
        camera = replace(TINY, width=56) if event == "small" else TINY
        image = TINY_PICTURE[k % 9 : k % 9 + 48, k % 7 : k % 7 + camera.width]
        image = BLACK_TINY if event == "black" else image
        if event == "reset":
            pipeline.reset()
        elif event == "flush":
            results += pipeline.flush()
        elif event == "zero":
            results += pipeline.add_frame(0, image, camera)
        elif event == "misfit":
            results += pipeline.add_frame(stamp_ns + PERIOD_NS, image[:20], camera)
        else:
            step = {"duplicate": 0, "late": -PERIOD_NS // 2, "gap": 20 * PERIOD_NS, "jump_back": -100 * PERIOD_NS}
            arrived_ns = stamp_ns + step.get(event, PERIOD_NS)
            results += pipeline.add_frame(arrived_ns, image, camera)
            stamp_ns = stamp_ns if event in ("duplicate", "late") else arrived_ns
    results += pipeline.flush()
    assert pipeline.counts["frames"] == len(results) + drops(pipeline)
    assert indices(results) == sorted(set(indices(results)))
    for r in results:
        assert len(r.dense.stamp_ns) == 3
        assert np.all(np.diff(r.dense.stamp_ns) > 0)
        assert np.all(np.isfinite(r.dense.omega))
        assert np.all(np.isfinite(r.dense.q_start_from_cam))
        assert np.linalg.eigvalsh(r.dense.cov_omega).min() >= 0


def test_two_runs_are_identical():
    (a, first), (b, second) = plain_run(), run(clip().frames)
    for name in ("stamp_ns", "q_start_from_cam", "omega", "cov_rotation", "cov_omega"):
        np.testing.assert_array_equal(joined(first, name), joined(second, name))
    for x, y in zip(first, second):
        np.testing.assert_array_equal(x.sparse.R_start_from_cam, y.sparse.R_start_from_cam)
        assert (x.gate, x.blur_px, x.dense.source) == (y.gate, y.blur_px, y.dense.source)
    assert a.counts == b.counts


def test_a_driver_may_reuse_its_buffer():
    buffer, pipeline, results = np.empty(SHAPE, np.uint8), pipeline_of(), []
    for stamp_ns, image in zip(even_stamps(N_FRAMES), clip().frames):
        buffer[:] = image
        results += pipeline.add_frame(int(stamp_ns), buffer, CAMERA)
        buffer[:] = 0
    np.testing.assert_array_equal(joined(results + pipeline.flush(), "omega"), joined(plain_run()[1], "omega"))


def test_colour_of_equal_channels_is_grey():
    coloured = [np.repeat(f[:, :, None], 3, axis=2) for f in clip().frames]
    np.testing.assert_array_equal(joined(run(coloured)[1], "omega"), joined(plain_run()[1], "omega"))


# --- times ------------------------------------------------------------------------------------------------------------


def test_the_epoch_does_not_matter():
    now, offset_ns = plain_run()[1], 1_700_000_000_000_000_123
    later = run(clip().frames, [int(s) + offset_ns for s in even_stamps(N_FRAMES)])[1]
    np.testing.assert_array_equal(joined(later, "stamp_ns"), joined(now, "stamp_ns") + offset_ns)
    np.testing.assert_allclose(joined(later, "omega"), joined(now, "omega"), atol=1e-6)


@pytest.mark.parametrize("samples", [1, 15, 50])
def test_samples_join_from_frame_to_frame(samples):
    _, results = run(clip().frames, samples_per_frame=samples, densifier="spline")
    stamps = joined(results, "stamp_ns")
    assert len(stamps) == N_FRAMES * samples
    assert np.ptp(np.diff(stamps)) <= 2
    assert [r.sparse.frame for r in results] == indices(results)


def test_samples_of_the_exposure_only():
    _, results = run(clip().frames, sample_span="exposure", samples_per_frame=20, densifier="spline")
    mid_ns = even_stamps(N_FRAMES) + round((EXPOSURE_S + READOUT_S) / 2 * 1e9)
    for r, mid in zip(results, mid_ns):
        assert r.sparse.stamp_ns == mid
        offsets = (np.arange(20) + 0.5) / 20 - 0.5
        np.testing.assert_allclose(r.dense.stamp_ns - mid, offsets * EXPOSURE_S * 1e9, atol=1)


def test_sample_times_follow_the_stamps_meaning():
    start, mid = (joined(r, "stamp_ns") for r in (plain_run()[1], run(clip().frames, stamp_reference="mid")[1]))
    np.testing.assert_array_equal(start - mid, round((EXPOSURE_S + READOUT_S) / 2 * 1e9))


UNKNOWN_TIMING = {"exposure_s": -1.0, "readout_s": -1.0}


@pytest.mark.parametrize("fps", [120, 240])
def test_fast_streams_of_unknown_timing_lose_nothing(fps):
    stamps = [1_000_000_000 + round(k * 1e9 / fps) for k in range(N_FRAMES)]
    pipeline, results = run(clip().frames, stamps, **UNKNOWN_TIMING)
    assert drops(pipeline) == 0
    assert len(results) == N_FRAMES
    assert np.all(np.diff(joined(results, "stamp_ns")) > 0)


@pytest.mark.parametrize(("before_fps", "after_fps"), [(20, 120), (120, 20)])
def test_a_camera_may_change_its_rate_while_its_timing_is_unknown(before_fps, after_fps):
    """What is assumed of the exposure follows slowly, or the frames about the change would be out of order."""
    periods = np.repeat([1e9 / before_fps, 1e9 / after_fps], [5, 9]).astype(int)
    frames = [clip().frames[k % N_FRAMES] for k in range(len(periods))]
    stamps = (1_000_000_000 + np.cumsum(periods)).tolist()
    pipeline, results = run(frames, stamps, **UNKNOWN_TIMING, smoother_frames=6, max_tracks=30)
    assert drops(pipeline) == 0
    assert np.all(np.diff(joined(results, "stamp_ns")) > 0)


# --- which densifier --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("densifier", ["interpolation", "spline", "crossblur"])
def test_the_densifier_asked_for_is_published(densifier):
    pipeline, results = run(clip().frames, densifier=densifier)
    assert {r.dense.source for r in results} == {densifier}
    assert pipeline.counts[f"source.{densifier}"] == N_FRAMES
    for r in results:
        assert densifier not in r.alternatives
        assert densifier == "interpolation" or "interpolation" in r.alternatives
        for other in r.alternatives.values():
            np.testing.assert_array_equal(other.stamp_ns, r.dense.stamp_ns)


def test_auto_publishes_what_the_gate_lets_pass():
    pipeline, results = plain_run()
    for r in results:
        assert (r.dense.source in ("decoder", "crossblur")) == (r.gate == "accepted")
        assert r.dense.source != "interpolation"
    assert sum(n for name, n in pipeline.counts.items() if name.startswith("gate.")) == N_FRAMES


@pytest.mark.parametrize("densifier", ["auto", "decoder"])
def test_the_learned_path_is_a_candidate_where_the_engine_has_it(densifier):
    def published(**values):
        pipeline = pipeline_of(**FULL, lever_arm=list(LEVER_ARM_M), densifier=densifier, **values)
        for stamp_ns, image in zip(even_stamps(N_FRAMES), clip().frames):
            pipeline.add_frame(int(stamp_ns), image, CAMERA)
        return pipeline.counts

    assert published(engine="none")["source.decoder"] == 0
    assert published(engine="onnxruntime", engine_dir=str(ENGINE))["source.decoder"] > 0
    assert published(engine="onnxruntime", engine_dir=str(ENGINE), lag_frames=1)["source.decoder"] == 0


def test_sharp_pictures_are_left_to_the_tracks():
    """What a millisecond's exposure blurs tells less than the tracks do."""
    pipeline, results = run(clip(exposure_s=0.001).frames, exposure_s=0.001)
    assert {r.gate for r in results} == {"sharp"}
    assert pipeline.counts["source.spline"] == N_FRAMES


def test_dis_follows_points_as_well():
    c = clip()
    error = rate_error([r.dense for r in run(c.frames, tracker="dis")[1]], c)
    assert error < rate_error([r.alternatives.get("interpolation", r.dense) for r in plain_run()[1]], c)


def test_stages_are_timed():
    pipeline, _ = plain_run()
    for stage in ("buffer", "tracker", "optics", "spline", "crossblur", "densifier"):
        assert 0 < len(pipeline.stage_ms[stage]) <= 2 * N_FRAMES
        assert all(ms >= 0 for ms in pipeline.stage_ms[stage])


# --- segments ---------------------------------------------------------------------------------------------------------

SMALLER = replace(CAMERA, width=200, cx=CAMERA.cx - 20)
OTHER_LENS = replace(CAMERA, fx=CAMERA.fx * 1.001)


@pytest.mark.parametrize(("cause", "shift_ns", "camera"), [
    ("gap", 900_000_000, CAMERA),
    ("jump_back", -5_000_000_000, CAMERA),
    ("size", 0, SMALLER),
    ("intrinsics", 0, OTHER_LENS),
    ("request", 0, CAMERA),
])
def test_segments_do_not_mix(cause, shift_ns, camera):
    """Five frames, a break, five frames: each half is what it would be alone."""
    first, second = clip().frames[:5], clip().frames[5:]
    if camera is SMALLER:
        second = [np.ascontiguousarray(f[:, 20:220]) for f in second]
    stamps = even_stamps(N_FRAMES, 10_000_000_000)
    stamps[5:] += shift_ns
    pipeline, results = pipeline_of(), []
    for stamp_ns, image in zip(stamps[:5], first):
        results += pipeline.add_frame(int(stamp_ns), image, CAMERA)
    if cause == "request":
        pipeline.reset()
    for stamp_ns, image in zip(stamps[5:], second):
        results += pipeline.add_frame(int(stamp_ns), image, camera)
    results += pipeline.flush()
    assert pipeline.counts[f"reset.{cause}"] == 1
    assert indices(results) == list(range(N_FRAMES))
    alone = plain_run(5)[1] + run(second, [int(s) for s in stamps[5:]], camera)[1]
    np.testing.assert_allclose(joined(results, "omega"), joined(alone, "omega"), atol=1e-9)
    np.testing.assert_array_equal(joined(results[5:], "stamp_ns"), joined(alone[5:], "stamp_ns"))


def test_orientation_goes_on_from_segment_to_segment():
    """Nothing is known of the gap, so the new segment starts where the old one ended, as it was published."""
    stamps = even_stamps(12)
    stamps[6:] += 2_000_000_000
    _, results = run(clip().frames[:6] + clip().frames[4:], [int(s) for s in stamps])
    np.testing.assert_allclose(results[6].sparse.R_start_from_cam, results[5].sparse.R_start_from_cam, atol=1e-12)
    assert np.abs(so3.log(results[5].sparse.R_start_from_cam)).max() > 0.02


def test_orientation_goes_on_where_the_source_changes():
    """The optics' chain and the splines' drift apart; what is published must not jump from one to the other."""
    frames = [*clip().frames, *[FLAT] * 8, *clip().frames[::-1]]
    _, results = run(frames, smoother_frames=6, densifier="spline")
    assert {r.dense.source for r in results} == {"spline", "interpolation"}
    R, omega = so3.from_quat_xyzw(joined(results, "q_start_from_cam")), joined(results, "omega")
    steps = so3.log(np.swapaxes(R[:-1], 1, 2) @ R[1:])
    expected = (omega[1:] + omega[:-1]) / 2 * np.diff(joined(results, "stamp_ns"))[:, None] * 1e-9
    assert np.abs(steps - expected).max() < 1e-3


# --- seeing little or nothing -----------------------------------------------------------------------------------------

BLACK, WHITE, FLAT = (np.full(SHAPE, level, np.uint8) for level in (0, 255, 117))


def lens_cap(seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(12, 5, SHAPE), 0, 255).astype(np.uint8)


def strong_noise(seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(128, 40, SHAPE), 0, 255).astype(np.uint8)


BLIND_STREAMS = {
    "black": [BLACK] * 8, "white": [WHITE] * 8, "flat": [FLAT] * 8, "lens cap": [lens_cap(k) for k in range(8)],
}


@pytest.mark.parametrize("name", BLIND_STREAMS)
def test_a_blind_stream_is_reported_as_blind(name):
    pipeline, results = run(BLIND_STREAMS[name])
    assert len(results) == pipeline.counts["blind"] == 8
    for r in results:
        assert r.sparse.status is Status.BLIND
        assert np.linalg.eigvalsh(r.sparse.covariance).min() > 0.1
        assert np.all(np.isfinite(r.dense.omega))


@pytest.mark.parametrize("name", BLIND_STREAMS)
def test_a_blind_streams_rates_are_not_trusted(name):
    _, results = run(BLIND_STREAMS[name])
    assert min(rate_sd(r.dense) for r in results) > 1.0


def test_too_few_points_are_not_trusted_either():
    picture = FLAT.copy()
    picture[80:90, 100:110] = 250
    _, results = run([np.roll(picture, 3 * k, axis=1) for k in range(8)])
    assert all(r.sparse.status is Status.FEW_POINTS for r in results)
    assert all(np.linalg.eigvalsh(r.sparse.covariance).min() > 0.1 for r in results)
    assert min(rate_sd(r.dense) for r in results) > 1.0


def test_noise_is_not_trusted():
    _, results = run([strong_noise(k) for k in range(8)], **FULL)
    omega, sd = joined(results, "omega"), np.sqrt(np.diagonal(joined(results, "cov_omega"), axis1=1, axis2=2))
    assert np.mean(np.abs(omega) < 2 * sd) > 0.7
    assert not any(r.gate == "accepted" for r in results)


@pytest.mark.parametrize("blind", [BLACK, FLAT, lens_cap(0)], ids=["black", "flat", "lens cap"])
def test_blind_frames_within_a_stream(blind):
    """Nothing is known while blind; what is said then is wide, and afterwards all is well again."""
    frames = list(clip(seed=4).frames)
    frames[5] = frames[6] = blind
    pipeline, results = run(frames)
    assert indices(results) == list(range(N_FRAMES))
    assert pipeline.counts["blind"] == 2
    assert np.median([rate_sd(r.dense) for r in results[:4]]) < 0.3
    assert min(rate_sd(r.dense) for r in results[5:7]) > 1.0
    assert [r.sparse.status for r in results].count(Status.BLIND) == 2
    assert np.all(np.isfinite(joined(results, "omega")))


def test_a_view_between_two_blind_ones_says_nothing():
    """One picture between lens caps shows no motion, however well its corners are seen."""
    frames = [*clip().frames[:6], lens_cap(0), clip().frames[7], lens_cap(1), lens_cap(2)]
    _, results = run(frames)
    assert min(rate_sd(r.dense) for r in results[6:]) > 1.0


def test_a_camera_that_rests_says_so():
    """One sharp view with fresh noise: no rate, and no confidence that is not earned."""
    sharp, rng = clip().frames[0].astype(float), np.random.default_rng(0)
    still = [np.clip(sharp + rng.normal(0, 2, SHAPE), 0, 255).astype(np.uint8) for _ in range(8)]
    _, results = run(still)
    omega, sd = joined(results, "omega"), np.sqrt(np.diagonal(joined(results, "cov_omega"), axis1=1, axis2=2))
    assert np.abs(omega).max() < 0.02
    assert np.mean(np.abs(omega) < 2 * sd) > 0.8
    assert max(r.blur_px for r in results) < 0.2
