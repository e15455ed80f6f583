"""The node as a process: signals, a killed camera, memory limits, wrong command lines (faults 21, 26, 32, 34)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .process import NodeProcess, Process, Program
from .rig import next_domain, wait_until

READY = "waiting for images"
EXIT_S = 2.0


def end(node: Process, *signals: signal.Signals) -> None:
    """Send the signals; the node must end well and quickly, and give its shared memory back."""
    sent_s = time.monotonic()
    for number in signals:
        node.send(number)
    status = node.wait()
    took_s = time.monotonic() - sent_s
    text = "".join(node.output)
    assert status == 0, text
    assert "Traceback" not in text
    assert took_s < EXIT_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), "on a machine that is not overloaded"
    assert node.leaked() == set()


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGINT]],
    ids=lambda s: "+".join(n.name for n in s),
)
def test_a_signal_ends_the_node_cleanly(signals):
    with NodeProcess(domain=next_domain()) as node:
        node.wait_for(READY)
        end(node, *signals)


def test_a_second_signal_while_it_ends_changes_nothing():
    with NodeProcess(domain=next_domain()) as node:
        node.wait_for(READY)
        node.send(signal.SIGINT)
        wait_until(lambda: node.send_if_running(signal.SIGINT) is False, "the end")
        assert node.wait() == 0, "".join(node.output)


def test_a_signal_while_frames_are_processed(rig):
    topics = ("--ros-args", "-r", "image_raw:=image_raw", "-r", "camera_info:=camera_info")
    with NodeProcess(*topics, domain=rig.context.get_domain_id()) as node:
        node.wait_for(READY)
        with Program("camera", "90", "30.0", "160", "120", context=rig.context) as camera:
            camera.wait_for("READY")
            node.wait_for("images arrive")
            end(node, signal.SIGTERM)


SLOW_PIPELINE = """
import sys, time
from perspblur_ros.pipeline import Pipeline
from perspblur_ros.ros.main import main

def add_frame(self, stamp_ns, image, camera):
    print("FRAME", flush=True)
    time.sleep(20)

Pipeline.add_frame = add_frame
sys.exit(main(["--ros-args", "-r", "image_raw:=image_raw", "-r", "camera_info:=camera_info"]))
"""


def test_a_signal_does_not_wait_for_a_slow_frame(rig):
    with (
        Process([sys.executable, "-c", SLOW_PIPELINE], rig.context.get_domain_id()) as node,
        Program("camera", "30", "30.0", "160", "120", context=rig.context) as camera,
    ):
        camera.wait_for("READY")
        node.wait_for("FRAME")
        end(node, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("try_", range(25))
def test_a_signal_at_any_moment(number, try_):
    """From 0.15 s (before that the interpreter itself is starting) to well after the node is up."""
    with NodeProcess(domain=next_domain()) as node:
        time.sleep(0.15 + 0.1 * try_)  # the moment is the point of the test, there is no condition to wait for
        end(node, number)


def test_a_killed_camera_is_noticed_and_its_successor_used(rig):
    rig.start(watchdog_s=0.5)
    rig.probe.destroy_publisher(rig.images)
    rig.probe.destroy_publisher(rig.infos)
    took_s = []
    for _ in range(2):
        published = rig.counts()["published"]
        with Program("camera", "1000", "30.0", "64", "48", context=rig.context) as camera:
            camera.wait_for("READY")
            wait_until(lambda published=published: rig.counts()["published"] > published + 5, "results")
            wait_until(lambda: rig.status("input").message.endswith("frames/s"), "a healthy input")
            camera.send(signal.SIGKILL)
            camera.wait()
            killed_s = time.monotonic()
            wait_until(lambda: rig.status("input").message.startswith("no image on"), "the watchdog")
            took_s.append(time.monotonic() - killed_s)
    assert min(took_s) < 0.8, "half a second, and what the message takes; a busy machine may be late once"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "exposre_s:=0.01"], "unknown parameter 'exposre_s'; did you mean 'exposure_s'?"),
        (["-p", "exposure_s:=.nan"], "exposure_s = nan is not a finite number"),
        (["-p", "tracker:=magic"], "tracker = 'magic' is none of"),
        (["--params-file", "no_such_file.yaml"], "no_such_file.yaml"),
        (["-r", "image_raw:=not a topic"], "perspblur: "),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_a_status(arguments, sentence):
    with NodeProcess("--ros-args", *arguments, domain=next_domain()) as node:
        assert node.wait() != 0
    text = "".join(node.output)
    assert sentence in text
    assert "Traceback" not in text


def test_the_users_remapping_wins_over_the_default():
    domain = next_domain()
    with NodeProcess("--ros-args", "-r", "image_raw:=/robot/eye", "-r", "__ns:=/arm", domain=domain) as node:
        node.wait_for("waiting for images on /robot/eye")
        end(node, signal.SIGINT)
    with NodeProcess("--ros-args", "-r", "__ns:=/arm", domain=domain) as node:
        node.wait_for("waiting for images on /arm/camera/image_raw")
        end(node, signal.SIGINT)


def test_too_little_memory_to_start_is_one_line():
    """300 MB of address space do not even hold the libraries."""
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))\n"
        "from perspblur_ros.ros.main import main\n"
        "sys.exit(main([]))\n"
    )
    environment = {**os.environ, "ROS_DOMAIN_ID": str(next_domain()), "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.startswith("perspblur: ")
    assert "Traceback" not in run.stderr


def test_a_pipeline_without_memory_is_one_line(rig, capfd):
    def too_large(config):
        raise MemoryError

    node = rig.make(too_large)
    node.start_automatically()
    assert node.exit_status == 1
    assert "cannot configure: not enough memory" in capfd.readouterr().err
