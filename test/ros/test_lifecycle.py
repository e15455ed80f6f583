"""Transitions, also the failing ones; fifty cycles leave nothing behind (fault 33)."""

from __future__ import annotations

import threading

import pytest
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.lifecycle import TransitionCallbackReturn
from std_srvs.srv import Trigger

from perspblur_ros.errors import EngineError

from .rig import FRAME_ID, FakePipeline, image_message, wait_until

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def state(node) -> str:
    return node._state_machine.current_state[1]


def test_the_whole_cycle(rig):
    node = rig.make()
    steps = [
        (node.trigger_configure, "inactive"),
        (node.trigger_activate, "active"),
        (node.trigger_deactivate, "inactive"),
        (node.trigger_cleanup, "unconfigured"),
        (node.trigger_shutdown, "finalized"),
    ]
    for step, expected in steps:
        assert step() == SUCCESS
        assert state(node) == expected


def test_a_lifecycle_manager_can_drive_it(rig):
    rig.make(autostart=False)
    rig.node.start_automatically()
    assert state(rig.node) == "unconfigured"
    change = rig.probe.create_client(ChangeState, "perspblur/change_state")
    ask = rig.probe.create_client(GetState, "perspblur/get_state")
    assert change.wait_for_service(10)
    for transition in (1, 3):  # configure, activate
        request = ChangeState.Request()
        request.transition.id = transition
        future = change.call_async(request)
        wait_until(future.done)
        assert future.result().success
    future = ask.call_async(GetState.Request())
    wait_until(future.done)
    assert future.result().current_state.id == State.PRIMARY_STATE_ACTIVE


def test_a_failing_configure_is_one_sentence_and_can_be_repeated(rig, capfd):
    faults = [EngineError("engine = 'tensorrt' is not here"), RuntimeError("broken")]

    class Fails(FakePipeline):
        def __init__(self, config):
            if faults:
                raise faults.pop(0)
            super().__init__(config)

    node = rig.make(Fails)
    for _ in range(2):
        assert node.trigger_configure() == FAILURE
        assert state(node) == "unconfigured"
        assert rig.probe.count_publishers("dense_trajectory/path") == 0 or node._output is None
    text = capfd.readouterr().err
    assert "cannot configure: engine = 'tensorrt' is not here" in text
    assert "Traceback" not in text
    assert node.trigger_configure() == SUCCESS


def test_a_failing_activate_leaves_it_inactive(rig, monkeypatch):
    from perspblur_ros.ros import node as module

    node = rig.make()
    node.trigger_configure()
    monkeypatch.setattr(module, "CameraInput", lambda *a: (_ for _ in ()).throw(RuntimeError("no topic")))
    assert node.trigger_activate() == FAILURE
    assert state(node) == "inactive"
    assert not [t for t in threading.enumerate() if t.name in ("pipeline", "imu-pacer")]
    monkeypatch.undo()
    assert node.trigger_activate() == SUCCESS


def test_nothing_is_published_while_inactive_and_a_new_activation_starts_anew(rig):
    node = rig.start(lag_frames=1)
    rig.send()
    rig.send()
    wait_until(lambda: len(rig.paths) == 1)
    node.trigger_deactivate()
    assert rig.probe.count_subscribers("image_raw") in (0, 1)
    wait_until(lambda: rig.images.get_subscription_count() == 0, "the subscription to go")
    node.trigger_activate()
    wait_until(lambda: rig.images.get_subscription_count() == 1)
    wait_until(lambda: rig.infos.get_subscription_count() == 1)
    rig.calibrate()
    before = rig.path_stamps()[-1]
    for _ in range(2):
        rig.stamp_ns += 10**9
        rig.send()
    wait_until(lambda: len(rig.paths) == 2)
    assert rig.path_stamps()[-1] > before + 10**9, "a frame of the earlier activation came out"


def test_fifty_cycles_leave_nothing_behind(rig):
    node = rig.make()

    def cycle() -> None:
        for step in (node.trigger_configure, node.trigger_activate, node.trigger_deactivate, node.trigger_cleanup):
            assert step() == SUCCESS

    cycle()
    threads = threading.active_count()
    entities = [len(list(kind)) for kind in (node.publishers, node.subscriptions, node.timers, node.services)]
    for _ in range(50):
        cycle()
    assert threading.active_count() <= threads
    assert [len(list(kind)) for kind in (node.publishers, node.subscriptions, node.timers, node.services)] == entities
    assert len(node._managed_entities) == 0


@pytest.mark.parametrize("active", [True, False])
def test_the_reset_service(rig, active):
    rig.start() if active else rig.make()
    client = rig.probe.create_client(Trigger, "perspblur/reset")
    assert client.wait_for_service(10)
    if active:
        rig.send()
    future = client.call_async(Trigger.Request())
    wait_until(future.done)
    assert future.result().success is active
    if active:
        wait_until(lambda: rig.counts()["reset.request"] == 1)
        rig.send()
        wait_until(lambda: len(rig.paths) == 2)


def test_the_last_frames_come_out_when_the_stream_ends(rig):
    rig.start(lag_frames=2, watchdog_s=0.2)
    for _ in range(3):
        rig.send()
    wait_until(lambda: len(rig.paths) == 3, "the frames that waited for later ones")


def test_a_frame_that_takes_too_long_is_abandoned_at_the_end(rig, monkeypatch):
    """Shutting down must not wait for a slow frame: the process has two seconds."""
    from perspblur_ros.ros import node as module

    gate = threading.Event()
    monkeypatch.setattr(module, "SHUTDOWN_S", 0.05)
    node = rig.start()
    rig.pipeline.work = lambda stamp_ns: gate.wait(10.0)
    rig.images.publish(image_message(rig.image, "mono8", rig.stamp_ns, FRAME_ID))
    wait_until(lambda: node._processor._worker._busy)
    assert node.trigger_shutdown() == SUCCESS
    assert state(node) == "finalized"
    gate.set()


def test_a_pipeline_that_hangs_is_given_up(rig, monkeypatch, capfd):
    from perspblur_ros.ros import processor

    gate = threading.Event()
    monkeypatch.setattr(processor, "STOP_S", 0.05)
    node = rig.start()
    rig.pipeline.work = lambda stamp_ns: gate.wait(10.0)
    rig.images.publish(image_message(rig.image, "mono8", rig.stamp_ns, FRAME_ID))
    wait_until(lambda: node._processor._worker._busy)
    assert node.trigger_deactivate() == TransitionCallbackReturn.ERROR
    assert state(node) == "unconfigured"
    assert "cannot deactivate: the pipeline did not finish its frame in time" in capfd.readouterr().err
    gate.set()
