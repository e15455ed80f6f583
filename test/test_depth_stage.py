"""Depth through the pipeline: measured where it can be, doubted where it cannot, and the network's part of it."""

from __future__ import annotations

import logging
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from perspblur_ros import crossblur, depth_stage
from perspblur_ros.config import Config, from_mapping
from perspblur_ros.depth_stage import DepthStage
from perspblur_ros.engine.interface import UNMEASURED_VARIANCE, interface
from perspblur_ros.engine.select import Selection
from perspblur_ros.errors import EngineError
from perspblur_ros.evaluation.depth import carried
from perspblur_ros.evaluation.metrics import depth_metrics
from perspblur_ros.pipeline import Pipeline
from perspblur_ros.sim.clips import SimulatedClip, simulate_clip
from perspblur_ros.sim.hand_motion import hand_motion
from perspblur_ros.sim.scene import procedural, view_camera
from perspblur_ros.so3 import from_quat_xyzw, interpolate
from perspblur_ros.types import DepthMap, FrameResult

ARM_M = (0.03, -0.1, 0.2)
FPS, EXPOSURE_S, N_FRAMES = 25.0, 0.02, 16
TIMING = {"exposure_s": EXPOSURE_S, "readout_s": 0.005, "densifier": "spline", "engine": "none"}


@cache
def clip(lever_arm_m: tuple[float, float, float] = ARM_M) -> SimulatedClip:
    scene = procedural(1, 360, 270, 200.0).grey()
    camera = view_camera(scene, 240, 180)
    return simulate_clip(
        scene, hand_motion(5, N_FRAMES / FPS + 0.1, 0.9), camera, N_FRAMES, FPS, EXPOSURE_S, 0.005, lever_arm_m
    )


def run(c: SimulatedClip, **parameters) -> tuple[Pipeline, list[FrameResult]]:
    pipeline = Pipeline(from_mapping({**TIMING, **parameters}))
    results = [r for stamp, image in zip(c.stamps_ns, c.frames)
               for r in pipeline.add_frame(int(stamp), image, c.camera)]
    return pipeline, results + pipeline.flush()


def maps(results: list[FrameResult]) -> list[DepthMap]:
    return [r.depth for r in results if r.depth is not None]


def truth(c: SimulatedClip, depth: DepthMap) -> np.ndarray:
    """True depth of the map's frame."""
    t = np.array([c.stamps_ns[0], c.shutter.mid_ns(depth.stamp_ns)]) * 1e-9
    R = interpolate(t, c.truth_ns * 1e-9, from_quat_xyzw(c.q_start_from_cam))
    return carried(c.depth_m, c.camera, R[1].T @ R[0], np.array(c.lever_arm_m), depth.depth_m.shape)


def numbers(c: SimulatedClip, depth: DepthMap) -> dict[str, float]:
    return depth_metrics(depth.depth_m.astype(float), truth(c, depth), depth.variance_m2.astype(float))


def test_depth_is_measured_where_the_lever_arm_is_known():
    c = clip()
    _, results = run(c, lever_arm=list(ARM_M), depth_every_frames=5)
    published = maps(results)
    assert len(published) == 3
    for result in results:
        if result.depth is not None:
            assert result.depth.frame == result.sparse.frame
            assert result.depth.stamp_ns == c.stamps_ns[result.depth.frame]
            assert result.depth.depth_m.shape == result.depth.variance_m2.shape == (120, 160)
    last = numbers(c, published[-1])
    assert last["abs_rel"] < 0.25  # of a scene that is twice as far as is assumed of any
    assert last["within_1sigma"] > 0.5
    assert last["relative_sd"] < 0.4


@pytest.mark.parametrize("told", [[], [0.0, 0.0, 0.0]], ids=["lever arm unknown", "pivot in the camera"])
def test_what_cannot_be_measured_is_not_claimed(told):
    """Metric scale without a lever arm, and everything with the pivot in the camera: as uncertain as any place."""
    c = clip((0.0, 0.0, 0.0)) if told else clip()
    _, results = run(c, lever_arm=told)
    depth = maps(results)[-1]
    relative_sd = np.sqrt(depth.variance_m2) / depth.depth_m
    assert np.median(relative_sd) > 0.6
    off = np.abs(np.log(depth.depth_m / truth(c, depth))) / relative_sd
    assert np.mean(off[np.isfinite(off)] < 2) > 0.9


def test_pictures_measure_depth_better_than_tracks():
    c = clip()
    by_tracks, by_pictures = (
        [numbers(c, depth) for depth in maps(run(c, lever_arm=list(ARM_M), depth_every_frames=5, densifier=d)[1])]
        for d in ("spline", "crossblur")
    )
    assert by_pictures[-1]["abs_rel"] < 0.1
    assert all(ours["abs_rel"] < 0.7 * theirs["abs_rel"] for ours, theirs in zip(by_pictures, by_tracks))
    assert by_pictures[-1]["relative_sd"] < 0.8 * by_tracks[-1]["relative_sd"]
    assert by_pictures[-1]["within_1sigma"] > 0.5


def test_pictures_are_left_alone_where_only_tracks_are_wanted(monkeypatch):
    monkeypatch.setattr(crossblur, "blur_depths", None)  # to call it would be a TypeError
    pipeline, results = run(
        clip(), lever_arm=list(ARM_M), depth_every_frames=5, densifier="crossblur", depth_from_pictures=False
    )
    assert maps(results)
    assert pipeline.counts["fallback.depth_from_tracks"] == 0


def test_where_pictures_agree_on_no_depth_the_tracks_tell_it(monkeypatch):
    monkeypatch.setattr(crossblur, "blur_depths", lambda *told: None)
    pipeline, results = run(clip(), lever_arm=list(ARM_M), densifier="crossblur")
    assert pipeline.counts["fallback.depth_from_tracks"] == len(maps(results)) > 0
    assert numbers(clip(), maps(results)[-1])["relative_sd"] < 0.4


@pytest.mark.parametrize("densifier", ["spline", "crossblur"])
def test_without_motion_nothing_is_measured(densifier):
    c = clip()
    pipeline = Pipeline(from_mapping({**TIMING, "lever_arm": list(ARM_M), "densifier": densifier}))
    results = [r for stamp in c.stamps_ns for r in pipeline.add_frame(int(stamp), c.frames[0], c.camera)]
    depth = maps(results)[-1]
    assert np.median(np.sqrt(depth.variance_m2) / depth.depth_m) > 0.6


def test_measured_depth_helps_the_rotation_unless_a_map_was_given():
    """Where it is certain the tracks are told of it; a map from outside is not overwritten; a new segment forgets."""
    c = clip()
    pipeline, results = run(c, lever_arm=list(ARM_M))
    told = pipeline._depth._depth_m
    last = maps(results)[-1]
    certain = np.sqrt(last.variance_m2) < 0.3 * last.depth_m
    np.testing.assert_array_equal(np.isfinite(told), certain)
    assert certain.any()
    pipeline.reset()
    pipeline.add_frame(int(c.stamps_ns[-1]) + 40_000_000, c.frames[-1], c.camera)
    assert pipeline._depth._depth_m is None
    assert run(c)[0]._depth._depth_m is None  # lever arm unknown
    given = Pipeline(from_mapping({**TIMING, "lever_arm": list(ARM_M)}))
    given.add_depth(int(c.stamps_ns[0]), c.depth_m)
    for stamp, image in zip(c.stamps_ns, c.frames):
        given.add_frame(int(stamp), image, c.camera)
    assert given._depth._depth_m is c.depth_m


# --- the network ------------------------------------------------------------------------------------------------------

SIZES = {
    "image_px": 32, "patch_px": 8, "width": 4, "window_frames": 3, "clip_frames": 6, "head_px": 8, "samples": 5,
    "prior_inputs": 2, "prior_unknowns": 2, "prior_weights": 1,
}


class FakeEngine:
    """Says two metres everywhere, sure to a tenth, and fuses nothing."""

    name = "fake"

    def __init__(self) -> None:
        shapes = interface(SIZES)
        graphs = {name: SimpleNamespace(inputs=i, outputs=o) for name, (i, o) in shapes.items()}
        self.manifest = SimpleNamespace(sizes=SIZES, graphs=graphs)
        self.calls: Counter[str] = Counter()
        self.measured: list[np.ndarray] = []
        self.broken = False
        self.fails_after = float("inf")  # frames

    def run(self, graph, inputs):
        if self.calls["encoder"] >= self.fails_after:
            raise EngineError("the GPU is lost")
        self.calls[graph] += 1
        outputs = {name: np.zeros(shape, np.float32) for name, shape in self.manifest.graphs[graph].outputs.items()}
        if graph == "head":
            self.measured.append(inputs["measured"][0].copy())
            outputs["log_depth"][:] = np.nan if self.broken else np.log(2.0)
            outputs["log_variance"][:] = np.log(0.01)
        return outputs

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(depth_stage, "_selected", lambda config: Selection(fake))
    return fake


def test_the_network_sees_every_frame_once_and_describes_the_start_of_its_chain(engine):
    pipeline, results = run(clip(), lever_arm=list(ARM_M))
    assert engine.calls["encoder"] == N_FRAMES
    assert pipeline.engine_name == "fake"
    published = maps(results)
    assert [d.frame for d in published] == [0, 0, 3, 6, 9]  # windows of three, two in the chain
    for depth in published:
        assert depth.stamp_ns == clip().stamps_ns[depth.frame]
        assert depth.depth_m.shape == (120, 160)
        np.testing.assert_allclose(depth.depth_m, 2.0, rtol=1e-5)
        np.testing.assert_allclose(depth.variance_m2, 0.04, rtol=1e-5)


def test_the_network_is_given_what_was_measured_of_the_frame_it_describes(engine):
    c = clip()
    _, results = run(c, lever_arm=list(ARM_M))
    log_depth, variance = engine.measured[-1]
    true = cv2.resize(truth(c, maps(results)[-1]), (8, 8), interpolation=cv2.INTER_NEAREST)
    seen = np.isfinite(true)
    assert np.median(variance) < 0.2
    assert np.median(np.abs(log_depth - np.log(true))[seen]) < 0.3
    run(c)  # lever arm unknown
    assert np.all(engine.measured[-1][1] == UNMEASURED_VARIANCE)


@pytest.mark.parametrize("told", [list(ARM_M), []], ids=["measured", "lever arm unknown"])
def test_what_was_fused_can_be_looked_at(engine, told):
    stage = run(clip(), lever_arm=told)[0].depth_stage
    np.testing.assert_array_equal(stage.fused.measured, engine.measured[-1])
    np.testing.assert_array_equal(stage.fused.own, 0)
    assert run(clip(), lever_arm=told, depth_every_frames=5)[0].engine_failure == ""


def test_a_network_that_ends_says_why_and_the_geometry_goes_on(engine, caplog):
    engine.fails_after = 7
    pipeline, results = run(clip(), lever_arm=list(ARM_M))
    assert pipeline.engine_failure == "the GPU is lost"
    assert [record.getMessage() for record in caplog.records] == ["the network has ended: the GPU is lost"]
    assert len(results) == N_FRAMES
    assert [d.frame for d in maps(results)] == [0, 0]


def test_a_network_that_gives_no_number_gives_no_map(engine):
    engine.broken = True
    pipeline, results = run(clip(), lever_arm=list(ARM_M))
    assert maps(results) == []
    assert pipeline.counts["fallback.network_depth"] > 0


def test_an_engine_that_was_asked_for_must_be_there(tmp_path):
    with pytest.raises(EngineError, match="holds no exported network"):
        DepthStage(Config(engine="onnxruntime", engine_dir=str(tmp_path)), Counter())


def test_auto_goes_without_an_engine_with_one_warning(tmp_path: Path, caplog):
    counts: Counter[str] = Counter()
    with caplog.at_level(logging.WARNING):
        stage = DepthStage(Config(engine="auto", engine_dir=str(tmp_path)), counts)
    assert len(caplog.records) == 1
    assert stage.engine_name == "none"
    assert counts["fallback.engine"] == 1
