"""The camera as the node sees it: calibration, publishers, clocks, transports (faults 6, 9, 12, 22)."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from perspblur_ros.ros.conversions import camera_info_message, header, image_message, to_time

from .rig import CAMERA, FRAME_ID, HEIGHT, PERIOD_NS, WIDTH, FakePipeline, wait_until


class Remembers(FakePipeline):
    """Keeps the cameras and depths it was given."""

    def __init__(self, config):
        super().__init__(config)
        self.cameras = []

    def add_frame(self, stamp_ns, image, camera):
        self.cameras.append(camera)
        return super().add_frame(stamp_ns, image, camera)


def test_frames_without_calibration_are_counted_and_the_remedy_named(rig, capfd):
    rig.make(lag_frames=0)
    rig.node.start_automatically()
    wait_until(lambda: rig.images.get_subscription_count() == 1)
    rig.probe.destroy_publisher(rig.infos)
    wait_until(lambda: rig.node.count_publishers("camera_info") == 0)
    for _ in range(3):
        rig.send()
    assert rig.counts()["drop.no_camera_info"] == 3
    text = capfd.readouterr().err
    assert text.count("drop.no_camera_info") == 1, "said once, not for every frame"
    assert "nobody publishes /camera_info" in text
    assert "-r camera_info:=" in text


def test_a_bad_calibration_changes_nothing(rig):
    rig.start(Remembers)
    rig.send()
    bad = camera_info_message(CAMERA, 0, FRAME_ID)
    bad.k = np.full(9, np.nan)
    rig.infos.publish(bad)
    wait_until(lambda: rig.counts()["refused.camera_info"] == 1)
    rig.send()
    assert rig.pipeline.cameras == [CAMERA, CAMERA]
    wait_until(lambda: rig.status("input").message.startswith("the calibration was refused"))
    assert rig.status("input").level == b"\x02"
    rig.calibrate()
    wait_until(lambda: rig.status("input").level != b"\x02", "the error to be over")


def test_a_real_change_of_the_calibration_starts_a_new_segment(rig):
    rig.start(Remembers)
    rig.send()
    zoomed = replace(CAMERA, fx=80.0, fy=80.0)
    rig.infos.publish(camera_info_message(zoomed, 0, FRAME_ID))
    wait_until(lambda: rig.node._input.calibration.camera(WIDTH, HEIGHT) == zoomed)
    rig.send()
    assert rig.counts()["reset.intrinsics"] == 1
    assert rig.pipeline.cameras[-1] == zoomed


def test_a_calibration_of_another_size_is_not_used(rig, capfd):
    rig.start()
    rig.send(np.zeros((HEIGHT // 2, WIDTH // 2), np.uint8))
    assert rig.counts()["drop.camera_info_size"] == 1
    assert "the image is 32 x 24, but the calibration is for 64 x 48" in capfd.readouterr().err


def test_one_of_two_publishers_is_followed(rig, capfd):
    rig.start(max_gap_s=5.0)  # after which the second would be followed
    rig.send()
    second = rig.probe.create_publisher(Image, "image_raw", 10)
    wait_until(lambda: second.get_subscription_count() == 1)
    second.publish(image_message(rig.image, "mono8", rig.stamp_ns + PERIOD_NS // 2, FRAME_ID))
    if not rig.node._input.stream.knows_publishers:
        wait_until(lambda: "has 2 publishers" in rig.status("input").message, "the warning")
        pytest.skip("this distribution does not say who published a message")
    wait_until(lambda: rig.counts()["drop.other_publisher"] == 1)
    wait_until(lambda: "drop.other_publisher 1" in rig.status("input").message, "the warning")
    rig.send()
    assert rig.counts()["processed"] == 2
    assert "a second publisher" in capfd.readouterr().err


def test_a_restarted_publisher_is_followed_at_once(rig):
    rig.start(max_gap_s=0.02)
    rig.send()
    rig.probe.destroy_publisher(rig.images)
    rig.images = rig.probe.create_publisher(Image, "image_raw", 10)
    wait_until(lambda: rig.images.get_subscription_count() == 1)
    wait_until(lambda: rig.node._input.stream.silent_s() > 0.02)
    rig.stamp_ns += 10**9
    rig.send()
    wait_until(lambda: len(rig.paths) == 2)
    assert rig.counts()["drop.other_publisher"] == 0


def test_stamps_of_another_clock_are_told_once_and_used(rig, capfd):
    rig.start()
    for _ in range(3):
        rig.send()
    wait_until(lambda: len(rig.paths) == 3)
    assert capfd.readouterr().err.count("h from this machine's clock") == 1
    wait_until(lambda: rig.status("trajectory").values)
    values = {item.key: item.value for item in rig.status("trajectory").values}
    assert values["age"].startswith("not known")


def test_stamps_of_this_clock_give_ages(rig):
    rig.start()
    rig.stamp_ns = rig.probe.get_clock().now().nanoseconds
    rig.send()
    wait_until(lambda: "age.p50_ms" in {item.key for item in rig.status("trajectory").values}, "the age")


def test_a_simulated_clock_that_jumps_back_resets(rig):
    rig.start(use_sim_time=True)
    clock = rig.probe.create_publisher(Clock, "/clock", 10)
    wait_until(lambda: clock.get_subscription_count() == 1)

    def tick(seconds: float) -> None:
        clock.publish(Clock(clock=to_time(round(seconds * 1e9))))
        wait_until(lambda: rig.node.get_clock().now().nanoseconds == round(seconds * 1e9))

    tick(100.0)
    rig.send()
    tick(108.0)
    assert rig.counts()["reset.clock"] == 0, "forward is no reason"
    tick(48.0)
    wait_until(lambda: rig.counts()["reset.clock"] == 1)
    rig.stamp_ns -= 60 * 10**9
    rig.send()
    wait_until(lambda: len(rig.paths) == 2)


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_compressed_images(rig, kind):
    rig.make(lag_frames=0, image_transport="compressed")
    rig.node.start_automatically()
    images = rig.probe.create_publisher(CompressedImage, "image_raw/compressed", 10)
    wait_until(lambda: images.get_subscription_count() == 1)
    wait_until(lambda: rig.infos.get_subscription_count() == 1)
    rig.calibrate()
    blob = cv2.imencode(kind, rig.image)[1].tobytes()
    for data, cause in ((blob, "processed"), (blob[: len(blob) // 2], "drop.image"), (b"", "drop.image")):
        before = rig.counts()[cause]
        rig.stamp_ns += PERIOD_NS
        images.publish(CompressedImage(header=header(rig.stamp_ns, FRAME_ID), format=kind[1:], data=data))
        wait_until(lambda cause=cause, before=before: rig.counts()[cause] == before + 1, cause)


def test_the_compressed_topic_follows_the_remapping(rig):
    rig.make(cli=("-r", "image_raw:=/robot/eye/image"), image_transport="compressed")
    rig.node.start_automatically()
    wait_until(lambda: rig.probe.count_subscribers("/robot/eye/image/compressed") == 1)


def test_an_incompatible_publisher_is_named(rig, capfd):
    from rclpy.qos import QoSProfile, ReliabilityPolicy

    rig.make(image_reliability="reliable")
    rig.node.start_automatically()
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    rig.probe.create_publisher(Image, "image_raw", best_effort)
    wait_until(lambda: rig.counts()["error.qos"] == 1)
    assert "set image_reliability to best_effort" in capfd.readouterr().err


def test_depth_images_reach_the_pipeline(rig):
    rig.start(depth_topic="/depth_camera/image")
    depths = rig.probe.create_publisher(Image, "/depth_camera/image", 10)
    wait_until(lambda: depths.get_subscription_count() == 1)
    millimetres = np.full((HEIGHT, WIDTH), 1500, np.uint16)
    depths.publish(image_message(millimetres, "16UC1", 5_000_000_000, FRAME_ID))
    wait_until(lambda: rig.pipeline.depths == [5_000_000_000])
    depths.publish(image_message(rig.image, "rgb8", 6_000_000_000, FRAME_ID))
    wait_until(lambda: rig.counts()["drop.depth"] == 1)


def test_a_pivot_frame_without_tf_is_refused(rig, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    node = rig.make(pivot_frame="wrist")
    node.start_automatically()
    assert node.exit_status == 1
    assert "pivot_frame = 'wrist' needs tf2_ros" in capfd.readouterr().err


def test_the_lever_arm_is_looked_up_in_tf(rig, monkeypatch):
    """With a stand-in for tf2_ros, which the wheels do not have: only its documented calls are used."""
    known: dict[tuple[str, str], tuple[float, float, float]] = {}

    class TransformException(Exception):
        pass

    class Buffer:
        def lookup_transform(self, target, source, time):
            if (target, source) not in known:
                raise TransformException
            x, y, z = known[target, source]
            return SimpleNamespace(transform=SimpleNamespace(translation=SimpleNamespace(x=x, y=y, z=z)))

    class TransformListener:
        def __init__(self, buffer, node):
            pass

        def unregister(self):
            known.clear()

    fake = SimpleNamespace(TransformException=TransformException, Buffer=Buffer, TransformListener=TransformListener)
    monkeypatch.setitem(sys.modules, "tf2_ros", fake)
    rig.start(pivot_frame="wrist")
    rig.send()
    assert rig.counts()["drop.no_transform"] == 1
    known[FRAME_ID, "wrist"] = (0.0, 0.1, -0.2)  # the wrist is behind and below the camera
    rig.send()
    wait_until(lambda: len(rig.paths) == 1)
    assert rig.pipeline.config.lever_arm == (0.0, -0.1, 0.2)
    rig.node.trigger_deactivate()
    rig.node.trigger_cleanup()
    assert not known
