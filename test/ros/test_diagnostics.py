"""/diagnostics: levels, the watchdog, and what is counted where (faults 21 and 38)."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from perspblur_ros.camera import Shutter
from perspblur_ros.config import Config
from perspblur_ros.ros.conversions import to_ns
from perspblur_ros.ros.diagnostics import Snapshot, statuses

from .rig import wait_until

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


def made(part: str, **fields) -> DiagnosticStatus:
    snapshot = Snapshot(**{"active": True, "config": Config(), "topic": "/image_raw", **fields})
    return next(s for s in statuses("perspblur", snapshot) if s.name == f"perspblur: {part}")


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


@pytest.mark.parametrize(
    ("part", "fields", "level", "message"),
    [
        ("input", {"rate_hz": 30.0}, OK, "30.0 frames/s"),
        ("input", {"recent": Counter({"lost.middleware": 3})}, WARN, "lately: lost.middleware 3"),
        ("input", {"recent": Counter({"drop.image": 1})}, WARN, "lately: drop.image 1"),
        ("input", {"silence": "nobody publishes /image_raw"}, ERROR, "nobody publishes /image_raw"),
        ("input", {"calibration_refusal": "K is zero"}, ERROR, "the calibration was refused: K is zero"),
        ("input", {"publishers": 2}, WARN, "/image_raw has 2 publishers"),
        ("processing", {}, OK, "keeping up"),
        ("processing", {"recent": Counter({"drop.queue": 4})}, WARN, "computing is too slow: 4 frames"),
        ("processing", {"engine_failure": "out of memory", "recent": Counter({"drop.queue": 4})}, ERROR,
         "the networks have ended, the geometry goes on alone: out of memory"),
        ("processing", {"recent": Counter({"reset.gap": 1})}, WARN, "lately: reset.gap 1"),
        ("processing", {"recent": Counter({"fallback.engine": 1})}, WARN, "lately: fallback.engine 1"),
        ("trajectory", {}, OK, "publishing"),
        ("trajectory", {"recent": Counter({"drop.not_finite": 1})}, ERROR, "lately withheld: drop.not_finite 1"),
        ("trajectory", {"recent": Counter({"status.blind": 2})}, WARN, "blind: 2 frames"),
        ("timing", {"shutter": Shutter(20_000_000, 10_000_000)}, OK, "exposure_s and readout_s estimated"),
        ("timing", {"config": Config(exposure_s=0.02, readout_s=0.0), "shutter": Shutter(1, 0)}, OK, "as configured"),
    ],
)
def test_levels(part, fields, level, message):
    status = made(part, **fields)
    assert (status.level, status.message[: len(message)]) == (level, message)


def test_everything_is_stale_while_inactive():
    snapshot = Snapshot(active=False, config=Config(), silence="x", recent=Counter({"drop.queue": 1}))
    assert {s.level for s in statuses("perspblur", snapshot)} == {STALE}


def test_the_values_carry_every_count_and_percentiles():
    counts = Counter({"received": 9, "drop.image": 2, "lost.middleware": 1, "reset.gap": 1, "gate.accepted": 4})
    stage_ms = {"tracker": [1.0, 2.0, 3.0], "spline": []}
    found = values(made("input", counts=counts))
    assert (found["received"], found["drop.image"], found["lost.middleware"]) == ("9", "2", "1")
    found = values(made("processing", counts=counts, stage_ms=stage_ms, backlog=2))
    assert (found["tracker.p50_ms"], found["queue"], found["reset.gap"]) == ("2.00", "2", "1")
    assert {"tracker.p95_ms", "tracker.p99_ms"} <= found.keys()
    found = values(made("trajectory", counts=counts, age_s=[0.1, 0.2]))
    assert found["gate.accepted"] == "4"
    assert "age.p99_ms" in found
    found = values(made("timing", shutter=Shutter(20_000_000, 10_000_000, "mid")))
    assert (found["exposure_s"], found["readout_s"], found["lever_arm"]) == ("0.020000", "0.010000", "unknown")


def test_the_node_reports_twice_a_second_in_every_state(rig):
    node = rig.make()
    wait_until(lambda: len(rig.diagnostics) >= 3)
    assert rig.status("input").level == STALE
    stamps_ns = [to_ns(message.header.stamp) for message in rig.diagnostics]
    assert 0.3e9 < min(b - a for a, b in pairwise(stamps_ns)) < 0.9e9
    node.start_automatically()
    wait_until(lambda: rig.status("input").level == ERROR, "the missing camera")
    assert rig.status("input").message.startswith(("nobody publishes /image_raw", "/image_raw has 1 publisher"))


def test_a_silent_camera_is_an_error_within_half_a_second(rig):
    rig.start(watchdog_s=0.5)
    took_s = []
    while len(took_s) < 5 and min(took_s, default=1.0) > 0.6:  # a busy machine may be late, but not every time
        rig.send()
        wait_until(lambda: rig.status("input").level != ERROR, "recovery with the first frame")
        last_s = rig.node._input.stream.last_arrival_s
        wait_until(lambda: rig.status("input").message.startswith("no image on /image_raw"), "the watchdog")
        took_s.append(time.monotonic() - last_s)
        assert rig.status("input").level == ERROR
    assert 0.4 < min(took_s) < 0.6, "half a second, and what the message takes"
    rig.send()
    wait_until(lambda: rig.status("input").level != ERROR, "recovery with the first frame")


def test_networks_that_ended_are_an_error(rig):
    rig.start()
    rig.send()
    wait_until(lambda: rig.status("processing").level == OK, "a working node")
    rig.pipelines[-1].engine_failure = "CUDA error 700"
    wait_until(lambda: rig.status("processing").level == ERROR, "the failure")
    assert rig.status("processing").message.endswith("CUDA error 700")


def test_images_elsewhere_are_named(rig):
    rig.probe.destroy_publisher(rig.images)
    rig.images = rig.probe.create_publisher(Image, "/robot/eye/image", 10)
    rig.make(watchdog_s=0.2)
    rig.node.start_automatically()
    wait_until(lambda: "-r image_raw:=/robot/eye/image" in rig.status("input").message, "the hint")


def test_every_frame_is_accounted_for(rig):
    rig.start()
    for k in range(20):
        rig.send(encoding="nonsense" if k % 5 == 0 else "mono8")
    counts = rig.counts()
    assert counts["received"] == 20 == counts["processed"] + counts["drop.image"]
    wait_until(lambda: rig.counts()["published"] == 16)
    wait_until(lambda: rig.value("input", "drop.image") == "4", "a status after the fourth unreadable frame")
    wait_until(lambda: rig.value("trajectory", "published") == "16", "a status after the last frame")
