"""The trajectory table's own arithmetic, and the pure decoder's; the streams behind it have their own tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from perspblur_ros import detail_basis as db
from perspblur_ros import so3
from perspblur_ros.camera import Camera
from perspblur_ros.config import Config
from perspblur_ros.decoder import AFTER
from perspblur_ros.engine.interface import interface
from perspblur_ros.errors import EngineError
from perspblur_ros.evaluation import ablation_table
from perspblur_ros.evaluation import trajectory_table as tt
from perspblur_ros.evaluation.bags import ImuLog
from perspblur_ros.evaluation.metrics import PER_FRAME, Motion, dense_metrics
from perspblur_ros.evaluation.pure_decoder import decoded
from perspblur_ros.sim.clips import simulate_clip
from perspblur_ros.sim.hand_motion import hand_motion
from perspblur_ros.sim.scene import procedural, view_camera
from perspblur_ros.types import DenseSamples

START_NS, PERIOD_NS, N = 1_000_000_000, 60_000_000, 8
CAMERA = Camera(64, 48, 60.0, 60.0, 31.5, 23.5)
EXPOSURE_S = PERIOD_NS * 1e-9


def phi(t_s: np.ndarray) -> np.ndarray:
    return 0.02 * np.sin(9 * t_s)[:, None] * [1.0, -0.5, 0.2]


def rotation(t_ns: np.ndarray) -> np.ndarray:
    return so3.exp(phi((t_ns - START_NS) * 1e-9))


T_NS = START_NS + 2_000_000 * np.arange(-20, 300)
TRUTH = Motion(ImuLog("", T_NS, np.zeros((len(T_NS), 3)), so3.to_quat_xyzw(rotation(T_NS))), START_NS)


def mid_ns(k: int) -> int:
    return START_NS + PERIOD_NS // 2 + k * PERIOD_NS


def result(k: int, turn: float = 0.0, share: float = 1.0) -> SimpleNamespace:
    """Frame k: its true mean, its true path shrunk about it, both turned as a whole."""
    t = mid_ns(k) + np.round(((np.arange(30) + 0.5) / 30 - 0.5) * PERIOD_NS).astype(np.int64)
    path, mean = db.path_about_mean(rotation(t))
    whole, nothing = so3.exp([0.0, turn, 0.0]), np.zeros((30, 3, 3))
    q = so3.to_quat_xyzw(whole @ mean @ so3.exp(share * path))
    dense = DenseSamples(k, t, q, np.zeros((30, 3)), nothing, nothing, "interpolation")
    sparse = SimpleNamespace(stamp_ns=mid_ns(k), R_start_from_cam=whole @ mean)
    return SimpleNamespace(sparse=sparse, dense=dense)


@pytest.mark.parametrize("per_frame", PER_FRAME)
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_the_detail_error_is_the_missing_share_whatever_the_heading(per_frame: int, turn: float) -> None:
    for share in (1.0, 0.7):
        frames = [result(k, turn, share).dense for k in range(N)]
        found = dense_metrics(tt.estimate(frames, START_NS), TRUTH, 0.0, per_frame)
        assert found["detail_error"] == pytest.approx(1 - share, abs=0.01)
        assert found["abs_rel"] < 0.1


def test_one_rotation_per_frame_is_judged_relative_to_the_first() -> None:
    results = [result(k, turn=0.3) for k in range(N)]
    found = tt.sparse_errors(results, TRUTH, START_NS, EXPOSURE_S)
    assert found["abs_rel"] < 0.01
    assert (found["e1"], found["e2"]) == (1.0, 1.0)
    results[4].sparse.R_start_from_cam = results[4].sparse.R_start_from_cam @ so3.exp([0.01, 0, 0])
    found = tt.sparse_errors(results, TRUTH, START_NS, EXPOSURE_S)
    assert found["abs_rel"] > 0.02
    assert found["e2"] == pytest.approx(1 - 1 / (N - 1))


SIZES = {
    "image_px": 16, "patch_px": 8, "width": 4, "window_frames": 2, "clip_frames": 4, "head_px": 4, "samples": 15,
    "prior_inputs": 2, "prior_unknowns": 2, "prior_weights": 1,
}


class Doubling:
    """An engine whose decoder says that the path is ``times`` as long as what it was given."""

    def __init__(self, times: float = 2.0) -> None:
        self.times = times
        graphs = {name: SimpleNamespace(inputs=i, outputs=o) for name, (i, o) in interface(SIZES).items()}
        self.manifest = SimpleNamespace(sizes=SIZES, graphs=graphs, folder="somewhere")
        self.seen: list[int] = []
        self.decoded: list[int] = []

    def run(self, graph, inputs):
        outputs = {name: np.zeros(shape, np.float32) for name, shape in self.manifest.graphs[graph].outputs.items()}
        if graph == "encoder":
            self.seen.append(len(self.seen))
        if graph == "decoder":
            self.decoded.append(len(self.seen))
            np.testing.assert_array_equal(inputs["guess"][0, :, 3:], 1)
            outputs["coefficients"][0] = self.times * (db.analysis(15) @ inputs["trajectory"][0])
        return outputs


def still_clip(exposure_s: float = EXPOSURE_S) -> SimpleNamespace:
    frames = [np.zeros((48, 64), np.uint8)] * N
    stamps_ns = START_NS + PERIOD_NS * np.arange(N)
    return SimpleNamespace(
        frames=frames, stamps_ns=stamps_ns, camera=CAMERA, exposure_s=exposure_s, readout_s=0.0, lever_arm_m=(0, 0, 0.1)
    )


def test_the_pure_decoder_gets_the_interpolation_and_says_the_path() -> None:
    clip = still_clip()
    results, engine = [result(k, turn=0.1) for k in range(N)], Doubling()
    paths = decoded(clip, results, engine)
    assert [samples.source for samples in paths] == ["interpolation", *["pure_decoder"] * (N - 2), "interpolation"]
    assert engine.decoded == [min(k + 1 + AFTER, N) for k in range(1, N - 1)]
    k = 3
    knots_s = np.array([(mid_ns(j) - mid_ns(k)) * 1e-9 for j in (k - 1, k, k + 1)])
    R = np.array([r.sparse.R_start_from_cam for r in results[k - 1 : k + 2]])
    offsets_s = (paths[k].stamp_ns - mid_ns(k)) * 1e-9
    line, mean = db.path_about_mean(so3.interpolate(offsets_s, knots_s, R))
    own = so3.log(mean.T @ so3.from_quat_xyzw(paths[k].q_start_from_cam))
    assert np.linalg.norm(own - 2 * line) < 0.15 * np.linalg.norm(line)  # four cosines of a broken line
    same = decoded(still_clip(EXPOSURE_S / 3), results, Doubling(1.0))[k]  # the frame goes on outside its exposure
    kept = so3.log(mean.T @ so3.from_quat_xyzw(same.q_start_from_cam))
    assert np.linalg.norm(kept - line) < 1e-5 * np.linalg.norm(line)
    del engine.manifest.graphs["decoder"]
    with pytest.raises(EngineError, match="somewhere holds no decoder"):
        decoded(clip, results, engine)


def test_every_way_is_run_and_judged() -> None:
    scene = procedural(1, 360, 270, 200.0).grey()
    camera, hand = view_camera(scene, 240, 180), hand_motion(5, 1.0, 0.9)
    clip = simulate_clip(scene, hand, camera, 9, 16.0, 0.06, 0.002, (0.0, -0.1, 0.1))
    found = tt.measured(clip, Config(engine="none", crossblur_patches=16))
    assert set(found["dense_30"]) == set(tt.DENSE) - {tt.PURE}
    assert set(found["sparse"]) == set(tt.SPARSE)
    assert sum(found["published"].values()) == 9
    interpolation, spline = (found["dense_30"][way]["detail_error"] for way in ("interpolation", "track spline"))
    assert 0 < spline < interpolation < 1
    text = tt.markdown([{"name": "a", "group": "60ms", **found}])
    assert "nan" not in text


def row(name: str, group: str, detail: float) -> dict:
    sparse = {"abs_rel": 0.04, "e1": 0.9, "e2": 1.0}
    dense = {"interpolation": {**sparse, "detail_error": 0.4}, "default": {**sparse, "detail_error": detail}}
    kinds = {"sparse": {"default": sparse}, **{f"dense_{n}": dense for n in PER_FRAME}}
    return {"name": name, "group": group, "published": {"spline": 1, "decoder": 3}, **kinds}


def test_the_table_has_means_of_groups_and_of_ratios() -> None:
    text = tt.markdown([row("a", "60ms", 0.2), row("b", "60ms", 0.1), row("c", "30fps", 0.3)])
    assert "| default | 0.040 | 0.900 | 1.000 | – | – | 0.040 | 0.900 | 1.000 | – | – |" in text
    assert "| default | 0.040 | 0.900 | 1.000 | 0.150 | 0.375 | 0.040 | 0.900 | 1.000 | 0.300 | 0.750 |" in text
    assert "| a | 0.400 | 0.200 | decoder 3, spline 1 |" in text


def test_ablations_show_every_seed_beside_the_papers_numbers() -> None:
    common = {"score": 0.3, "own_delta1": 0.4, "fused": 0.2, "fused_delta1": 0.7, "constant": 0.58, "closed_form": 0.21}
    depth = {"kind": "depth", "name": "S = 4", "parameters": 123456, **common}
    decoder = {"kind": "pure", "name": "L = 6", "seed": 0, "parameters": 9, "guess": 0.18, "interpolation": 0.18}
    rows = [{**depth, "seed": 1, "own": 0.6}, {**depth, "seed": 0, "own": 0.5}, {**decoder, "decoded": 0.19}]
    text = ablation_table.markdown(rows)
    assert "| S = 4 | 123 456 | 0.300 / 0.300 | 0.500 / 0.600 |" in text
    assert "| 0.946 | 0.071, 0.862 |" in text
    assert "| L = 6 | 9 | 0.190 |  | 0.067, 0.865 |" in text
    assert "| constant |  |  | 0.580 |" in text
    assert len({line.count("|") for line in text.split("\n\n")[0].splitlines()}) == 1
