"""The node with the real pipeline, on rendered frames: true stamps and rates, and hard scenes (faults 17 to 19)."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image

from perspblur_ros.pipeline import Pipeline
from perspblur_ros.ros.conversions import camera_info_message, to_ns
from perspblur_ros.sim.clips import SimulatedClip, simulate_clip
from perspblur_ros.sim.hand_motion import hand_motion
from perspblur_ros.sim.scene import procedural, view_camera

from .rig import FRAME_ID, wait_until

FPS, EXPOSURE_S, READOUT_S = 30.0, 0.02, 0.005
TIMING = {"exposure_s": EXPOSURE_S, "readout_s": READOUT_S}
PERIOD_NS = round(1e9 / FPS)
START_NS = 10**12


@functools.lru_cache(maxsize=1)
def clip() -> SimulatedClip:
    scene = procedural(0, 320, 240, 200.0).grey()
    camera = view_camera(scene, 160, 120)
    return simulate_clip(scene, hand_motion(3, 1.0, 0.8), camera, 10, FPS, EXPOSURE_S, READOUT_S)


def play(rig, frames, start_ns: int = START_NS) -> list[int]:
    """Send frames through the real pipeline; returns their stamps. The last of them need the stream's end."""
    stamps = [start_ns + k * PERIOD_NS for k in range(len(frames))]
    for stamp_ns, image in zip(stamps, frames):
        rig.send(image, stamp_ns)
    rig.node._processor.reset("reset.test")
    wait_until(lambda: rig.counts()["published"] >= rig.counts()["processed"], "every frame's result")
    wait_until(lambda: len(rig.paths) == len(rig.sparse) == rig.counts()["published"])
    wait_until(lambda: len(rig.imu) == sum(len(path.poses) for path in rig.paths), "every sample")
    return stamps


@pytest.fixture
def real(rig):
    rig.start(Pipeline, queue_frames=64, lag_frames=1, **TIMING)
    camera = clip().camera
    rig.infos.publish(camera_info_message(camera, START_NS, FRAME_ID))
    wait_until(lambda: (camera.width, camera.height) in rig.node._input.calibration._cameras)
    return rig


def rates(rig) -> np.ndarray:
    return np.array([[m.angular_velocity.x, m.angular_velocity.y, m.angular_velocity.z] for m in rig.imu])


def rate_sd(rig) -> np.ndarray:
    """Standard deviation of the rate as published, per sample, over the three axes."""
    return np.array([np.sqrt(np.trace(np.reshape(m.angular_velocity_covariance, (3, 3)))) for m in rig.imu])


def test_stamps_are_those_of_the_exposure_and_increase(real):
    stamps = play(real, clip().frames)
    middle_ns = round((EXPOSURE_S + READOUT_S) / 2 * 1e9)
    assert [to_ns(m.header.stamp) - middle_ns for m in real.sparse] == stamps
    samples = real.dense_stamps()
    assert samples == real.path_stamps()
    assert all(later > earlier for earlier, later in itertools.pairwise(samples))
    for frame_ns, path in zip(stamps, real.paths):
        own = np.array([to_ns(pose.header.stamp) for pose in path.poses]) - (frame_ns + middle_ns)
        assert np.abs(own).max() <= PERIOD_NS / 2 + 1


def test_the_rates_are_those_of_the_camera(real):
    play(real, clip().frames)
    truth = clip()
    at = (np.array(real.dense_stamps()) - START_NS + int(truth.stamps_ns[0]) - truth.truth_ns[0]) * 1e-9
    t = (truth.truth_ns - truth.truth_ns[0]) * 1e-9
    true = np.stack([np.interp(at, t, axis) for axis in truth.omega.T], axis=1)
    error = np.linalg.norm(rates(real) - true, axis=1).sum() / np.linalg.norm(true, axis=1).sum()
    assert error < 0.5


def test_a_still_camera_does_not_turn(real):
    rng = np.random.default_rng(0)
    still = clip().frames[0].astype(float)
    play(real, [np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8) for _ in range(10)])
    assert np.abs(rates(real)).max() < 4 * rate_sd(real).max()
    assert np.abs(rates(real)).mean() < 0.02
    q = real.imu[-1].orientation
    assert 2 * np.arcsin(np.linalg.norm([q.x, q.y, q.z])) < 0.01, "drift"


def test_pictures_without_relation_do_not_end_it(real):
    """Motion so fast that no track survives: little confidence meanwhile, sound results soon after."""
    rng = np.random.default_rng(1)
    frames = clip().frames
    play(real, [*(rng.integers(0, 256, (120, 160), dtype=np.uint8) for _ in range(4)), *frames[:8]])
    sd = rate_sd(real).reshape(len(real.paths), -1).mean(axis=1)
    assert sd[:3].min() > 3 * np.median(sd[-4:-1])
    assert np.isfinite(rates(real)).all()


def test_a_flash_is_survived(real):
    frames = [frame.copy() for frame in clip().frames]
    frames[6] = np.clip(frames[6].astype(int) * 2 + 60, 0, 255).astype(np.uint8)
    play(real, frames)
    sd = rate_sd(real).reshape(len(real.paths), -1).mean(axis=1)
    assert sd[5:8].max() > 1.5 * np.median(sd[1:4])
    assert np.isfinite(rates(real)).all()


def test_depth_is_measured_and_published(rig):
    """Depth every few frames of the stream, at its own size with the calibration scaled to it; its doubt is stated."""
    log: dict[str, list] = {"depth/image": [], "depth/variance": [], "depth/camera_info": []}
    for topic, messages in log.items():
        kind = CameraInfo if topic.endswith("info") else Image
        rig.probe.create_subscription(kind, topic, messages.append, 10)
    rig.start(Pipeline, queue_frames=64, lag_frames=1, depth_every_frames=3, depth_width=64, engine="none",
              lever_arm=[0.02, -0.1, 0.15], **TIMING)
    camera = clip().camera
    rig.infos.publish(camera_info_message(camera, START_NS, FRAME_ID))
    wait_until(lambda: (camera.width, camera.height) in rig.node._input.calibration._cameras)
    wait_until(lambda: all(rig.probe.count_publishers(topic) for topic in log))
    stamps = play(rig, clip().frames)
    wait_until(lambda: all(len(messages) >= 2 for messages in log.values()), "two depth maps")
    for image, variance, info in zip(*log.values()):
        assert to_ns(image.header.stamp) in stamps
        assert image.header == variance.header == info.header
        assert (image.encoding, image.width, image.height) == ("32FC1", 64, 48)
        assert (info.width, info.height, info.k[0]) == (64, 48, pytest.approx(camera.fx * 64 / 160))
        depth, doubt = (np.frombuffer(message.data, np.float32) for message in (image, variance))
        assert np.all(depth > 0)
        assert np.all(np.sqrt(doubt) > 0.01 * depth)
    assert rig.node.snapshot().engine == "none"
