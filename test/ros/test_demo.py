"""The nodes beside the pipeline's: simulated camera, recorder, evaluator, and the demo that joins them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image, Imu

from perspblur_ros.errors import BagError, ConfigError
from perspblur_ros.evaluation.bags import BagReader, BagWriter
from perspblur_ros.evaluation.evaluate import load_run
from perspblur_ros.evaluation.writers import read_dense, read_sparse
from perspblur_ros.ros import demo
from perspblur_ros.ros.camera_simulator import CameraSimulator
from perspblur_ros.ros.conversions import to_ns
from perspblur_ros.ros.evaluator import Evaluator, RateWindow, rate_error
from perspblur_ros.ros.recorder import Recorder, Recording, write_recording

from .rig import CAMERA, HEIGHT, WIDTH, Spinner, wait_until

FRAMES, PERIOD_NS, START_NS = 12, 40_000_000, 1_000_000_000


@pytest.fixture
def bag(tmp_path):
    """Twelve frames at 25 Hz, and a truth that turns at a constant 0.5 rad/s about y."""
    path = tmp_path / "bag"
    rng = np.random.default_rng(0)
    stamps = START_NS + np.arange(-20, 520, 2) * 1_000_000
    half = 0.25 * (stamps - stamps[0]) * 1e-9
    q = np.stack([0 * half, np.sin(half), 0 * half, np.cos(half)], axis=1)
    with BagWriter(path, CAMERA, {"exposure_s": 0.02, "readout_s": 0.005}) as writer:
        writer.write_motion(stamps, np.tile([0.0, 0.5, 0.0], (len(stamps), 1)), q)
        for k in range(FRAMES):
            writer.write_image(START_NS + k * PERIOD_NS, rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
    return path


class Camera:
    """A simulated camera on a thread of its own."""

    def __init__(self, rig, bag, **parameters) -> None:
        overrides = [Parameter(name, value=value) for name, value in {"bag": str(bag), **parameters}.items()]
        self.node = CameraSimulator(context=rig.context, parameter_overrides=overrides)
        self._spinner = Spinner(rig.context, self.node)

    def __enter__(self) -> CameraSimulator:
        return self.node

    def __exit__(self, *exception) -> None:
        self._spinner.close()
        self.node.destroy_node()


def test_the_simulated_camera_plays_a_bag_at_its_rate_in_the_present(rig, bag):
    images: list[Image] = []
    infos: list[CameraInfo] = []
    truth: list[Imu] = []
    for kind, topic, log in ((CameraInfo, "camera_info", infos), (Imu, "ground_truth/imu", truth)):
        rig.probe.create_subscription(kind, topic, log.append, 1000)
    with Camera(rig, bag, loop=False) as camera:
        wait_until(lambda: rig.probe.count_publishers("image_raw") == 2)
        assert not infos, "nothing is sent before somebody listens to the images"
        rig.probe.create_subscription(Image, "image_raw", images.append, 1000)
        wait_until(lambda: camera.finished, "the end of the bag")
        assert camera.exit_status == 0
        wait_until(lambda: len(images) == FRAMES and len(truth) == 270, "all messages")
        now_ns = rig.probe.get_clock().now().nanoseconds
    stamps = np.array([to_ns(m.header.stamp) for m in images])
    assert (np.diff(stamps) == PERIOD_NS).all()
    assert 0 < now_ns - stamps[-1] < 10 * 10**9
    assert {m.header.frame_id for m in images} == {"camera_optical_frame"}
    first_truth = to_ns(truth[0].header.stamp)
    assert first_truth - stamps[0] == -20_000_000, "one constant moves images and truth alike"
    assert truth[0].angular_velocity.y == 0.5
    assert infos[0].k[0] == CAMERA.fx


def test_a_looping_camera_goes_on(rig, bag):
    stamps: list[int] = []
    rig.probe.create_subscription(Image, "image_raw", lambda m: stamps.append(to_ns(m.header.stamp)), 1000)
    with Camera(rig, bag, loop=True, rate=20.0):
        wait_until(lambda: len(stamps) > FRAMES, "the second round")
    assert stamps == sorted(stamps)


def test_a_misspelt_parameter_of_the_camera_is_refused(rig, bag):
    with pytest.raises(ConfigError, match="unknown parameter 'lop'; did you mean 'loop'"):
        CameraSimulator(context=rig.context, parameter_overrides=[Parameter("lop", value=False)])


def test_a_missing_bag_is_one_sentence(rig, tmp_path, capfd):
    with Camera(rig, tmp_path / "nothing", wait_for_subscriber=False) as camera:
        wait_until(lambda: camera.finished)
        assert camera.exit_status == 1
    assert "does not exist" in capfd.readouterr().err


def test_the_recorder_writes_what_replay_writes(rig, tmp_path):
    recorder = Recorder(context=rig.context)
    spinner = Spinner(rig.context, recorder)
    rig.start(samples_per_frame=15, watchdog_s=0.5)
    wait_until(recorder.matched, "the node's publishers")
    sent = [rig.send() for _ in range(5)]
    wait_until(lambda: len(recorder.recording.imu) == 75 and len(recorder.recording.status) == 5)
    wait_until(recorder.quiet, "the end")
    wait_until(lambda: recorder.recording.diagnostics["trajectory"].get("published") == "5")
    spinner.close()
    recorder.destroy_node()
    shift = sent[0] - START_NS
    write_recording(recorder.recording, tmp_path, {"exposure_s": 0.02}, shift, "a test")
    dense, sparse = read_dense(tmp_path / "dense_trajectory.csv"), read_sparse(tmp_path / "sparse_trajectory.csv")
    assert (dense.stamp_ns + shift).tolist() == rig.dense_stamps()
    assert dense.frame.tolist() == sorted([0, 1, 2, 3, 4] * 15)
    assert set(dense.source) == {"interpolation"}
    np.testing.assert_allclose(dense.q_start_from_cam[:, 3], 1.0)
    np.testing.assert_allclose(dense.sd_rotation, 1e-2)
    np.testing.assert_allclose(sparse.sd_rotation, 1e-2)
    run = load_run(tmp_path)
    assert [row["status"] for row in run.frames] == ["ok"] * 5
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert timing["frames"]["out"] == 5
    assert timing["counts"]["published"] == 5
    assert {"p50", "p95", "p99", "mean"} == timing["stages_ms"]["total"].keys()


def test_a_recording_of_nothing_is_refused(tmp_path):
    with pytest.raises(BagError, match="published no trajectory"):
        write_recording(Recording(), tmp_path, {}, 0, "")


def imu(stamp_ns: int, rate: float) -> Imu:
    message = Imu()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    message.angular_velocity.y = rate
    return message


def test_the_rate_error_of_a_known_difference():
    estimate, truth = RateWindow(), RateWindow()
    assert rate_error(estimate, truth) is None
    for k in range(100):
        truth.add(imu(10**9 + k * 2_000_000, 0.001 * k))
        estimate.add(imu(10**9 + k * 1_500_000 + 1, 1.1 * 0.001 * 0.75 * k))
    assert rate_error(estimate, truth) == pytest.approx(0.1, abs=1e-3)
    assert rate_error(truth, truth) == 0.0


def test_the_window_forgets_the_past_and_what_came_before_a_jump_back():
    window = RateWindow()
    for k in range(200):
        window.add(imu(k * 10**8, 1.0))
    assert len(window) == 101
    window.add(imu(5, 1.0))
    assert len(window) == 1


def test_the_evaluator_compares_while_both_run(rig, capfd):
    node = Evaluator(context=rig.context)
    for k in range(10):
        node.truth.add(imu(10**9 + k, 1.0))
        node.estimate.add(imu(10**9 + k, 0.8))
    node._report()
    node.destroy_node()
    assert "rate error 0.200 over 10 samples" in capfd.readouterr().err


def test_the_demo_runs_from_rendering_to_report(tmp_path, monkeypatch):
    """The whole demo on small pictures: two processes, real middleware, the real pipeline, a report."""
    monkeypatch.setattr(demo, "WIDTH", 160)
    monkeypatch.setattr(demo, "HEIGHT", 120)
    monkeypatch.delenv("ROS_DOMAIN_ID")
    report = demo.run_demo(tmp_path / "out", seconds=1.0)
    assert report.stat().st_size > 10_000
    run = load_run(tmp_path / "out")
    frames = run.timing["frames"]
    assert frames["in"] == 15 == frames["out"] + frames["dropped"]
    assert frames["out"] >= 8, "all of them, unless the machine is overloaded"
    assert len(run.dense.stamp_ns) == frames["out"] * 30
    with BagReader(tmp_path / "out" / "bag") as reader:
        first = next(reader.frames()).stamp_ns
    after = (run.sparse.stamp_ns[0] - first - 31_000_000) * 1e-9 * demo.FPS
    assert abs(after - round(after)) < 1e-6, "mid-exposure of the middle row"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["methods"]["estimate"]["rate_error"] < 1.0
    demo._prepared(tmp_path / "out")
    assert not (tmp_path / "out" / "bag").exists(), "a second run replaces the first"


def test_the_demo_does_not_write_over_a_file(tmp_path):
    file = tmp_path / "precious"
    file.write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        demo.run_demo(file, 1.0)
    assert file.read_text() == "x"
