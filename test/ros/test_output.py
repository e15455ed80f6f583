"""What subscribers get: all samples at an ordinary depth, and a publisher that never waits (fault 24)."""

from __future__ import annotations

import gc
import itertools
import time

import numpy as np
import pytest
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Imu

from .process import NodeProcess, Program
from .rig import FakePipeline, wait_until


@pytest.mark.slow  # in real time across processes: only meaningful on a machine with nothing else to do
def test_a_default_subscriber_gets_every_sample_of_a_paced_stream(rig, request):
    """Across processes, at depth 10, 30 frames per second with 30 samples each: what a burst would halve."""
    gc.collect()
    gc.freeze()  # as the node's process does
    request.addfinalizer(gc.unfreeze)
    rig.start(samples_per_frame=30)
    with Program("imu_counter", "10", context=rig.context) as counter:
        counter.wait_for("READY")
        wait_until(lambda: rig.node._output._dense.get_subscription_count() == 2)
        start_s, frames = time.monotonic(), 45
        for k in range(frames):
            wait_until(lambda k=k: time.monotonic() >= start_s + k / 30)
            rig.send()
        wait_until(lambda: len(rig.imu) == 30 * frames, "the deep subscriber")
        counter.wait_for(str(30 * frames))
    assert rig.counts()["imu.dropped"] == 0
    stamps = rig.dense_stamps()
    assert stamps == sorted(set(stamps)) == rig.path_stamps()


@pytest.mark.parametrize(("pacing", "samples"), [("burst", 90), ("off", 0)])
def test_pacing_can_be_switched_off(rig, pacing, samples):
    rig.start(imu_pacing=pacing)
    for _ in range(3):
        rig.send()
    wait_until(lambda: len(rig.paths) == 3)
    wait_until(lambda: len(rig.imu) == samples)
    assert rig.counts()["imu.sent"] == samples


def test_a_sleeping_subscriber_does_not_hold_the_publisher_up(rig):
    """Reliable, never read: publishing must not wait for it."""
    import rclpy

    sleeper = rclpy.create_node("sleeper", context=rig.context)
    sleeper.create_subscription(Imu, "dense_trajectory", lambda m: None, QoSProfile(depth=5))
    rig.start()
    wait_until(lambda: rig.node._output._dense.get_subscription_count() == 2)
    for _ in range(50):
        rig.send()
    wait_until(lambda: len(rig.imu) == 1500, "the awake subscriber")
    publish_ms = rig.node.snapshot().stage_ms["publish"]
    sleeper.destroy_node()
    assert np.median(publish_ms[-20:]) < 50, "its queue of five is full long before"


def test_depth_is_published_with_its_variance_and_calibration(rig):
    from sensor_msgs.msg import CameraInfo, Image

    from perspblur_ros.types import DepthMap

    class Deep(FakePipeline):
        def _result(self, frame):
            result = super()._result(frame)
            depth = np.full(frame.image.shape, 2.0, np.float32)
            depth[0] = np.nan
            object.__setattr__(result, "depth", DepthMap(frame.index, frame.stamp_ns, depth, depth / 10))
            return result

    got: dict[str, list] = {"depth/image": [], "depth/variance": [], "depth/camera_info": []}
    for topic, log in got.items():
        rig.probe.create_subscription(CameraInfo if topic.endswith("info") else Image, topic, log.append, 10)
    rig.start(Deep)
    wait_until(lambda: all(rig.probe.count_publishers(topic) for topic in got))
    stamp = rig.send()
    wait_until(lambda: all(got.values()), "depth, variance and calibration")
    image = got["depth/image"][0]
    assert (image.encoding, image.step, image.height) == ("32FC1", 4 * image.width, rig.image.shape[0])
    values = np.frombuffer(image.data, np.float32).reshape(rig.image.shape)
    assert np.isnan(values[0]).all()
    assert (values[1:] == 2.0).all()
    for messages in got.values():
        message_ns = messages[0].header.stamp.sec * 10**9 + messages[0].header.stamp.nanosec
        assert message_ns == stamp


def test_images_across_processes_are_all_accounted_for(rig):
    """VGA at 30 frames per second from a process of its own: published = processed + counted drops."""
    rig.start(queue_frames=4)
    rig.probe.destroy_publisher(rig.images)
    rig.probe.destroy_publisher(rig.infos)
    with Program("camera", "60", "30.0", "640", "480", context=rig.context) as camera:
        camera.wait_for("READY")
        camera.wait_for("DONE")
        source = rig.node._input.stream
        wait_until(lambda: source.arrived + source.missing == 60, "the last frame")
        wait_until(lambda: rig.node.snapshot().backlog == 0)
        counts = rig.counts()
        lost = counts["lost.middleware"] + counts["lost.overwritten"]
        dropped = sum(n for cause, n in counts.items() if cause.startswith("drop."))
        assert counts["processed"] + dropped + lost == 60
        assert counts["lost.middleware"] == 0, "the camera has the 16 MiB profile"
        assert counts["processed"] >= 10, "most of them, unless the machine is overloaded"
        wait_until(lambda: rig.counts()["published"] == counts["processed"])


@pytest.mark.slow
def test_ten_seconds_of_video_through_the_node(rig):
    """300 VGA frames at 30 Hz, the real node, a default subscriber at depth 10: each in a process of its own."""
    topics = ("-r", "image_raw:=image_raw", "-r", "camera_info:=camera_info")
    timing = ("-p", "exposure_s:=0.03", "-p", "readout_s:=0.01", "-p", "stamp_reference:=exposure_start")
    domain = rig.context.get_domain_id()
    with (
        NodeProcess("--ros-args", *topics, *timing, domain=domain) as node,
        Program("imu_counter", "10", context=rig.context) as counter,
    ):
        node.wait_for("waiting for images")
        counter.wait_for("READY")
        wait_until(lambda: rig.matched(), "the node's publishers")
        rig.probe.destroy_publisher(rig.images)
        rig.probe.destroy_publisher(rig.infos)
        with Program("camera", "300", "30.0", "640", "480", context=rig.context) as camera:
            camera.wait_for("DONE")
            wait_until(lambda: rig.status("input").message.startswith("no image on"), "the end of the stream")
            wait_until(lambda: rig.value("processing", "queue") == "0", "the queue")
            wait_until(lambda: rig.value("trajectory", "published") == rig.value("processing", "processed"), "the rest")
            wait_until(lambda: rig.value("trajectory", "published") == str(len(rig.paths)), "the last paths")
        counts = {
            item.key: int(item.value)
            for part in ("input", "processing", "trajectory")
            for item in rig.status(part).values
            if item.value.isdigit()
        }
        lost = counts.get("lost.middleware", 0) + counts.get("lost.overwritten", 0)
        assert counts["received"] + lost == 300
        assert counts["received"] == counts["processed"] + counts.get("drop.queue", 0)
        assert counts["published"] == counts["processed"]
        samples = rig.path_stamps()
        assert all(later > earlier for earlier, later in itertools.pairwise(samples))
        wait_until(lambda: len(rig.imu) == len(samples), "the deep subscriber")
        assert rig.dense_stamps() == samples
        counter.wait_for(str(len(samples)))


def test_a_message_that_cannot_be_published_is_counted(rig, monkeypatch):
    rig.start()
    monkeypatch.setattr(rig.node._output._path, "publish", lambda m: (_ for _ in ()).throw(RuntimeError("no")))
    rig.send()
    wait_until(lambda: rig.counts()["error.publish"] == 1)
    monkeypatch.undo()
    rig.send()
    wait_until(lambda: len(rig.paths) == 1)
