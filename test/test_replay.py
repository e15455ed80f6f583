"""Replay: clip → bag → files, the same every time, with a stand-in for the pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from fake_pipeline import EPOCH, PERIOD_NS, FakePipeline
from test_metrics import EPOCH as SHAKE_EPOCH
from test_metrics import shake

from perspblur_ros.camera import Camera
from perspblur_ros.config import Config
from perspblur_ros.errors import BagError, ConfigError
from perspblur_ros.evaluation.bags import BagReader, BagWriter
from perspblur_ros.evaluation.clips import EPOCH_S, convert, read_clip, write_simulated
from perspblur_ros.evaluation.evaluate import evaluate
from perspblur_ros.evaluation.replay import replay, resolve_config
from perspblur_ros.evaluation.writers import read_dense, read_sparse
from perspblur_ros.sim.clips import simulate_clip
from perspblur_ros.sim.hand_motion import hand_motion
from perspblur_ros.sim.scene import procedural, view_camera

CAMERA = Camera(64, 48, 80.0, 80.0, 31.5, 23.5)
N = 12
FILES = ("dense_trajectory.csv", "dense_interpolation.csv", "dense_spline.csv", "sparse_trajectory.csv", "frames.csv")
LOG = replace(shake(3), stamp_ns=shake(3).stamp_ns - SHAKE_EPOCH + EPOCH)


def make_bag(path: Path, stamps: list[int] | None = None, parameters: dict | None = None) -> Path:
    rng = np.random.default_rng(0)
    with BagWriter(path, CAMERA, parameters or {"exposure_s": 0.05, "readout_s": 0.002}) as writer:
        writer.write_motion(LOG.stamp_ns, LOG.omega, LOG.q_ref_from_cam)
        writer.write_depth(EPOCH, np.full((48, 64), 3.0, np.float32))
        for stamp in stamps or [EPOCH + k * PERIOD_NS for k in range(N)]:
            writer.write_image(stamp, rng.integers(0, 255, (48, 64), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bag(tmp_path_factory.mktemp("replay") / "bag")


def run(bag: Path, out: Path, **options):
    sinks: list[FakePipeline] = []

    def make(config: Config) -> FakePipeline:
        sinks.append(FakePipeline(config, LOG, with_depth=options.get("with_depth", False)))
        return sinks[0]

    arguments = {name: value for name, value in options.items() if name != "with_depth"}
    return replay(bag, out, make_sink=make, **arguments), sinks[0]


def test_a_run_leaves_its_files(bag: Path, tmp_path: Path) -> None:
    seen = []
    result, _ = run(
        bag, tmp_path / "run", on_frame=lambda done, of: seen.append((done, of)), command="perspblur replay"
    )
    assert seen[-1] == (N, N)
    assert (result.frames_in, result.frames_out) == (N, N)
    dense = read_dense(tmp_path / "run" / "dense_trajectory.csv")
    assert len(dense.stamp_ns) == 30 * N
    assert np.allclose(dense.q_start_from_cam[0], [0, 0, 0, 1], atol=1e-9)
    assert set(dense.source) == {"crossblur", "spline"}
    assert np.array_equal(np.unique(dense.frame), np.arange(N))
    for baseline in ("interpolation", "spline"):  # every frame, also those that the baseline won
        other = read_dense(tmp_path / "run" / f"dense_{baseline}.csv")
        assert np.array_equal(other.stamp_ns, dense.stamp_ns)
        assert set(other.source) == {baseline}
    refused = read_dense(tmp_path / "run" / "dense_crossblur.csv")
    assert np.unique(refused.frame).tolist() == [0, 5, 10]
    sparse = read_sparse(tmp_path / "run" / "sparse_trajectory.csv")
    assert sparse.stamp_ns[0] == EPOCH + (50_000_000 + 2_000_000) // 2
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["frames"] == {"in": N, "out": N, "dropped": 0, "refused": {}}
    assert timing["counts"] == {"frames": N}
    assert timing["command"] == "perspblur replay"
    assert set(timing["stages_ms"]) == {"tracker", "spline", "total"}
    assert timing["stages_ms"]["spline"]["p50"] == 4.0
    assert len(timing["frame_ms"]) == N
    resolved = yaml.safe_load((tmp_path / "run" / "resolved_params.yaml").read_text())
    assert resolved["exposure_s"] == pytest.approx(0.05)
    assert set(resolved) == set(Config.__dataclass_fields__)


def test_two_runs_give_the_same_bytes(bag: Path, tmp_path: Path) -> None:
    run(bag, tmp_path / "a")
    run(bag, tmp_path / "b")
    run(bag, tmp_path / "b")  # also over an older run
    for name in (*FILES, "resolved_params.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_bag_s_parameters_are_overridden_by_file_and_by_set(tmp_path: Path) -> None:
    file = tmp_path / "camera.yaml"
    file.write_text("/**:\n  ros__parameters:\n    readout_s: 0.03\n    samples_per_frame: 20\n")
    config = resolve_config({"exposure_s": 0.05, "readout_s": 0.01}, file, ["samples_per_frame=15"])
    assert (config.exposure_s, config.readout_s, config.samples_per_frame) == (0.05, 0.03, 15)
    assert resolve_config({}, None, []) == Config()
    with pytest.raises(ConfigError, match="did you mean 'exposure_s'"):
        resolve_config({"exposure": 1}, None, [])


def test_what_was_not_given_is_called_estimated(tmp_path: Path) -> None:
    run(make_bag(tmp_path / "bag", parameters={"stamp_reference": "mid"}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "timing.json").read_text())["estimated"] == ["exposure_s", "readout_s"]


def test_depth_is_fed_when_it_is_asked_for_and_written_when_there_is_any(bag: Path, tmp_path: Path) -> None:
    _, sink = run(bag, tmp_path / "a")
    assert sink.depths == []
    assert not (tmp_path / "a" / "depth").exists()
    _, sink = run(bag, tmp_path / "b", assignments=["depth_topic=/ground_truth/depth"], with_depth=True)
    assert sink.depths == [EPOCH]
    with np.load(tmp_path / "b" / "depth" / f"{EPOCH}.npz") as content:
        assert content["depth_m"].shape == content["variance"].shape == (48, 64)
    with pytest.raises(BagError, match="no depth topic '/nowhere'"):
        run(bag, tmp_path / "c", assignments=["depth_topic=/nowhere"])
    assert not list((tmp_path / "c").glob("*.csv"))


def test_drops_and_resets_are_counted_where_they_happen(tmp_path: Path) -> None:
    stamps = [EPOCH + k * PERIOD_NS for k in (0, 1, 2, 2, 3, 9, 10, 11)]
    result, _ = run(make_bag(tmp_path / "bag", stamps), tmp_path / "run")
    assert result.resets == [5]
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["frames"] == {"in": 8, "out": 7, "dropped": 1, "refused": {}}
    assert timing["counts"]["drop.late"] == 1
    assert timing["resets"] == [5]


def test_a_bag_without_a_usable_frame_leaves_no_trajectory(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", [0, 0])
    with pytest.raises(BagError, match=r"no frame of bag .* gave a result .*drop\.late"):
        run(bag, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_evaluate_reads_what_replay_wrote(bag: Path, tmp_path: Path) -> None:
    run(bag, tmp_path / "run", with_depth=True)
    comparison = evaluate(tmp_path / "run", bag)
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    methods = numbers["methods"]
    assert set(methods) == {"estimate", "interpolation", "spline", "perfect_means"}
    assert numbers["left_out"] == ["crossblur"]
    assert methods["estimate"]["rate_error"] < methods["spline"]["rate_error"] < methods["interpolation"]["rate_error"]
    assert numbers["truth"]["offset_applied"] is False
    assert numbers["truth"]["exposure_s"] == 0.05
    assert numbers["sparse"]["abs_rel"] < 1e-6
    assert numbers["sparse"]["frames"] == N
    assert 0.6 < numbers["calibration"]["rate"]["within_1sigma"] < 0.76
    assert numbers["depth"]["abs_rel"] < 0.03  # a plane, seen from where the map's frame was exposed
    assert numbers["gate"] == {"accepted": 9, "held_out": 3}
    assert comparison.metrics["frames"] == N


def test_evaluate_needs_only_the_two_trajectories(bag: Path, tmp_path: Path) -> None:
    run(bag, tmp_path / "run")
    for name in ("timing.json", "frames.csv", "resolved_params.yaml", "dense_interpolation.csv", "dense_spline.csv"):
        (tmp_path / "run" / name).unlink()
    numbers = evaluate(tmp_path / "run", bag, tmp_path / "out").metrics
    assert set(numbers["methods"]) == {"estimate", "interpolation", "perfect_means"}
    line, perfect = (numbers["methods"][name]["rate_error"] for name in ("interpolation", "perfect_means"))
    assert line == pytest.approx(perfect, rel=0.05)  # the stand-in's means are the true ones
    assert (tmp_path / "out" / "metrics.json").is_file()
    (tmp_path / "run" / "sparse_trajectory.csv").unlink()
    with pytest.raises(BagError, match=r"sparse_trajectory\.csv does not exist"):
        evaluate(tmp_path / "run", bag)


@pytest.mark.parametrize(
    ("name", "text"), [("timing.json", "{"), ("timing.json", '{"resets": 3}'), ("frames.csv", "a\n")]
)
def test_damaged_side_files_are_named(bag: Path, tmp_path: Path, name: str, text: str) -> None:
    run(bag, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(BagError, match=name):
        evaluate(tmp_path / "run", bag)


def make_clip(folder: Path, meta: dict | None = None, frames: str | None = None, gyro: str | None = None) -> Path:
    (folder / "frames").mkdir(parents=True)
    for k in range(3):
        cv2.imwrite(str(folder / "frames" / f"{k}.png"), np.full((48, 64, 3), (10 * k, 20, 200), np.uint8))
    lines = "file,t_s,exposure_s\n" + "".join(f"frames/{k}.png,{0.04 * k:.6f},\n" for k in range(3))
    (folder / "frames.csv").write_text(frames or lines)
    (folder / "gyro_cam.csv").write_text(gyro or "t_s,wx_rad_s,wy_rad_s,wz_rad_s\n-0.5,1,2,3\n0.0,1,2,3\n0.5,4,5,6\n")
    known = {"K": [[80, 0, 31.5], [0, 81, 23.5], [0, 0, 1]], "size": [64, 48], "distortion": None}
    (folder / "meta.json").write_text(json.dumps(known if meta is None else meta))
    return folder


def test_a_clip_becomes_a_bag(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip")
    convert(clip, tmp_path / "raw")
    convert(clip, tmp_path / "small", compressed=True)
    for name in ("raw", "small"):
        with BagReader(tmp_path / name) as reader:
            frames = list(reader.frames(rgb=True))
            log = reader.truth()
            assert reader.parameters == {}
        assert [f.stamp_ns for f in frames] == [EPOCH_S * 10**9 + k * 40_000_000 for k in range(3)]
        assert frames[2].image[0, 0].tolist() == [200, 20, 20]
        assert frames[0].camera.fy == 81
        assert log.stamp_ns[0] == EPOCH_S * 10**9 - 500_000_000
        assert log.omega[2].tolist() == [4, 5, 6]
        assert log.q_ref_from_cam is None


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"exposure_s": 0.02, "readout_s": 0.0245, "time_offset_s": 0.022}, {"exposure_s": 0.02, "readout_s": 0.0245}),
        ({"exposure_s": "0.0049-0.0059 (log)", "readout_s": "unknown"}, {"exposure_s": pytest.approx(0.0054)}),
        ({"exposure": "not recorded", "readout_s": None}, {}),
        ({"stamp_reference": "mid", "stamp_offset_s": -0.045}, {"stamp_reference": "mid", "stamp_offset_s": -0.045}),
        ({"stamp_reference": "whatever"}, {}),
    ],
)
def test_only_what_the_clip_states_becomes_a_parameter(tmp_path: Path, meta: dict, expected: dict) -> None:
    K = [[80, 0, 31.5], [0, 80, 23.5], [0, 0, 1]]
    assert read_clip(make_clip(tmp_path / "clip", {"K": K, "size": [64, 48], **meta})).parameters == expected


def test_exposures_of_the_frames_win_and_a_focal_length_is_enough(tmp_path: Path) -> None:
    frames = "file,t_s,exposure_s\nframes/0.png,0,0.01\nframes/1.png,0.04,0.03\nframes/2.png,0.08,0.02\n"
    clip = read_clip(make_clip(tmp_path / "clip", {"f_px_movie": 90.0, "exposure_s": 0.5}, frames))
    assert clip.parameters == {"exposure_s": 0.02}
    assert (clip.camera.fx, clip.camera.cx, clip.camera.cy) == (90.0, 31.5, 23.5)


GOOD_META = {"K": [[80, 0, 31.5], [0, 81, 23.5], [0, 0, 1]], "size": [64, 48]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"meta": {}}, "neither K nor a focal length"),
        ({"meta": {**GOOD_META, "K": [[1, 2]]}}, "not a 3 x 3 matrix"),
        ({"meta": {**GOOD_META, "K": [[0, 0, 0]] * 3}}, "focal length"),
        ({"meta": {**GOOD_META, "distortion": "none"}}, "distortion"),
        ({"meta": {**GOOD_META, "size": [640, 480]}}, "64 x 48 pixels, but meta.json says 640 x 480"),
        ({"frames": "file,t_s\nframes/0.png,nan\n"}, "line 2: 'nan'"),
        ({"frames": "file,t_s\nframes/9.png,0\n"}, "frames/9.png, which does not exist"),
        ({"frames": "file,t_s\n../../secret.png,0\n"}, "not inside the clip folder"),
        ({"frames": "file,t_s\nframes/0.png,1\nframes/1.png,1\n"}, "goes back in line 3"),
        ({"frames": "file\nframes/0.png\n"}, "no column t_s"),
        ({"frames": "file,t_s\n"}, "no lines"),
        ({"frames": "file,t_s\nframes.csv,0\n"}, "not a picture"),
        ({"gyro": "t_s,wx_rad_s,wy_rad_s,wz_rad_s\n0,1,2,inf\n"}, "line 2: 'inf'"),
        ({"gyro": "t_s,wx_rad_s,wy_rad_s,wz_rad_s\n1,1,2,3\n0,1,2,3\n"}, "goes back in line 3"),
        ({"gyro": "t,x,y,z\n1,1,2,3\n"}, "no column t_s"),
        ({"gyro": "t_s,wx_rad_s,wy_rad_s,wz_rad_s\n-5000,1,2,3\n"}, "more than 1000 s before"),
    ],
)
def test_a_wrong_clip_is_one_sentence_and_no_bag(tmp_path: Path, change: dict, says: str) -> None:
    clip = make_clip(tmp_path / "clip", **change)
    with pytest.raises(BagError, match=says):
        convert(clip, tmp_path / "bag")
    assert not (tmp_path / "bag").exists()


def test_missing_parts_of_a_clip_are_named(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"clip folder .* does not exist"):
        read_clip(tmp_path / "nowhere")
    for name in ("frames.csv", "meta.json"):
        clip = make_clip(tmp_path / f"without_{name}")
        (clip / name).unlink()
        with pytest.raises(BagError, match=f"{name} does not exist"):
            read_clip(clip)
    clip = make_clip(tmp_path / "bad_json")
    (clip / "meta.json").write_text("[1]")
    with pytest.raises(BagError, match="JSON object"):
        read_clip(clip)
    clip = make_clip(tmp_path / "no_gyro")
    (clip / "gyro_cam.csv").unlink()
    assert len(read_clip(clip).gyro_ns) == 0


@pytest.mark.data
@pytest.mark.parametrize("name", ["zoltan_room_A", "lhaippp_car", "deepgyro_pan"])
def test_the_recorded_clips_can_be_read(data_dir: Path, name: str) -> None:
    clip = read_clip(data_dir / "clips" / name)
    assert len(clip.files) > 5
    assert len(clip.gyro_ns) > 10
    known = {
        "zoltan_room_A": set(),
        "lhaippp_car": {"exposure_s", "readout_s"},
        "deepgyro_pan": {"exposure_s", "readout_s"},
    }
    assert set(clip.parameters) == known[name]


def test_the_real_pipeline_is_deterministic_and_beats_interpolation(tmp_path: Path) -> None:
    scene = procedural(seed=1).grey()
    camera = view_camera(scene, 320, 240)
    path = hand_motion(4, 1.2, rate_rms_rad_s=0.5)
    clip = simulate_clip(scene, path, camera, 12, 16.0, 0.06, 0.002, (0.0, -0.1, 0.15))
    write_simulated(clip, tmp_path / "bag")
    for name in ("a", "b"):
        replay(tmp_path / "bag", tmp_path / name, assignments=["depth_topic=/ground_truth/depth"])
    names = sorted(path.name for path in (tmp_path / "a").glob("*.csv"))
    assert {"dense_trajectory.csv", "dense_interpolation.csv", "sparse_trajectory.csv", "frames.csv"} <= set(names)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    numbers = evaluate(tmp_path / "a", tmp_path / "bag").metrics
    assert numbers["frames"] == 12
    assert numbers["methods"]["estimate"]["rate_error"] < 0.8 * numbers["methods"]["interpolation"]["rate_error"]
