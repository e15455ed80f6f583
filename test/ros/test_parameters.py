"""Parameters: declared from the one schema, refused with a sentence, changed while running (fault 32)."""

from __future__ import annotations

import math

import pytest
import yaml
from rcl_interfaces.msg import ParameterType
from rclpy.parameter import Parameter

from perspblur_ros.config import DEFAULTS, SPECS, Config, load_yaml
from perspblur_ros.ros import params
from perspblur_ros.share import share_path

from .rig import FakePipeline, wait_until

Type = Parameter.Type


def set_one(node, name, value, type_=None):
    return node.set_parameters([Parameter(name, type_ or Parameter.Type.from_parameter_value(value), value)])[0]


def test_every_parameter_is_declared_with_its_default_and_described(rig):
    node = rig.make()
    assert params.read(node) == Config()
    for name, spec in SPECS.items():
        descriptor = node.describe_parameter(name)
        assert descriptor.description.startswith(spec.doc)
        if descriptor.type == ParameterType.PARAMETER_DOUBLE:
            assert descriptor.floating_point_range, f"{name} would take NaN"
        if spec.choices:
            assert all(choice in descriptor.additional_constraints for choice in spec.choices)


DOUBLES = [name for name, default in DEFAULTS.items() if isinstance(default, float)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_double_takes_what_is_not_a_number(rig, value):
    node = rig.make()
    for name in DOUBLES:
        result = set_one(node, name, value, Type.DOUBLE)
        assert not result.successful
        assert name in result.reason
        assert str(value) in result.reason
    assert not set_one(node, "lever_arm", [0.0, value, 0.0], Type.DOUBLE_ARRAY).successful


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("exposure_s", 3.0, "3.0"),
        ("exposure_s", -0.5, "exposure_s = -0.5 is outside 0.0 to 1.0 s"),
        ("tracker", "magic", "tracker = 'magic' is none of lk, dis"),
        ("queue_frames", 0, "0"),
        ("lever_arm", [0.0, 0.1], "lever_arm has 2 numbers instead of three"),
        ("exposure_s", "long", "exposure_s"),
        ("autostart", 1, "autostart"),
    ],
)
def test_wrong_values_are_refused_by_name(rig, name, value, sentence):
    node = rig.make()
    result = set_one(node, name, value)
    assert not result.successful
    assert sentence in result.reason or "type" in result.reason
    assert params.read(node) == Config()


def test_whole_numbers_are_taken_for_floating_point_ones(rig):
    node = rig.make(exposure_s=0, lever_arm=[0, 0, 1])
    assert params.read(node).exposure_s == 0.0
    assert params.read(node).lever_arm == (0.0, 0.0, 1.0)
    assert set_one(node, "readout_s", 0).successful
    assert set_one(node, "lever_arm", [0, 1, 0]).successful
    assert params.read(node).lever_arm == (0.0, 1.0, 0.0)


def test_contradictions_are_refused(rig):
    node = rig.make(lever_arm=[0.0, 0.0, 0.1])
    result = set_one(node, "pivot_frame", "wrist")
    assert "lever_arm and pivot_frame are both given" in result.reason


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"exposure": 0.01}, "unknown parameter 'exposure'; did you mean 'exposure_s'?"),
        ({"exposure_s": math.nan}, "exposure_s = nan is not a finite number"),
        ({"exposure_s": "0.01"}, "exposure_s = '0.01' is not a number"),
        ({"lag_frames": -1}, "lag_frames = -1 is outside 0 to 8"),
        ({"lever_arm": [0.0, 0.0, 0.1], "pivot_frame": "wrist"}, "lever_arm and pivot_frame are both given"),
    ],
)
def test_wrong_overrides_keep_the_node_unconfigured(rig, capfd, overrides, sentence):
    node = rig.make(**overrides)
    node.start_automatically()
    assert node.finished
    assert node.exit_status == 1
    assert node._state_machine.current_state[1] == "unconfigured"
    wait_until(lambda: sentence in "".join(capfd.readouterr()), "the sentence")


def test_a_wrong_override_can_be_set_right(rig):
    node = rig.make(exposure_s=math.nan)
    node.start_automatically()
    assert node.finished
    assert set_one(node, "exposure_s", 0.02).successful
    node.start_automatically()
    assert node._state_machine.current_state[1] == "active"


def test_the_middlewares_own_overrides_are_left_alone(rig):
    node = rig.make(**{"use_sim_time": True, "qos_overrides./image_raw.subscription.reliability": "reliable"})
    node.start_automatically()
    assert not node.finished


def test_a_change_while_running_rebuilds_the_pipeline(rig):
    node = rig.start()
    rig.send()
    assert set_one(node, "samples_per_frame", 7).successful
    rig.send()
    wait_until(lambda: len(rig.paths) == 2)
    assert [len(path.poses) for path in rig.paths] == [30, 7]
    assert rig.counts()["reset.parameters"] == 1
    assert rig.counts()["frames"] == 2


def test_a_change_the_pipeline_cannot_make_is_refused(rig):
    class NoEngine(FakePipeline):
        def __init__(self, config):
            if config.engine == "tensorrt":
                raise params.ConfigError("engine = 'tensorrt' needs a GPU")
            super().__init__(config)

    node = rig.start(NoEngine)
    assert set_one(node, "engine", "tensorrt").reason == "engine = 'tensorrt' needs a GPU"
    rig.send()
    wait_until(lambda: len(rig.paths) == 1)
    assert node.get_parameter("engine").value == "auto"


def test_what_needs_other_subscriptions_waits_for_deactivation(rig):
    node = rig.start()
    result = set_one(node, "image_transport", "compressed")
    assert result.reason == "image_transport cannot change while the node is active; deactivate it first"
    node.trigger_deactivate()
    assert set_one(node, "image_transport", "compressed").successful
    node.trigger_activate()
    wait_until(lambda: rig.probe.count_subscribers("image_raw/compressed") == 1)


def test_changes_that_are_not_the_pipelines_keep_it(rig):
    node = rig.start()
    assert set_one(node, "imu_pacing", "off").successful
    rig.send()
    wait_until(lambda: len(rig.paths) == 1)
    assert len(rig.pipelines) == 1
    assert rig.counts()["imu.sent"] == 0


NODE_FILES = sorted(f for f in share_path("config").rglob("*.yaml") if f.parent.name != "training")


@pytest.mark.parametrize("file", NODE_FILES, ids=lambda p: p.stem)
def test_shipped_files_hold_valid_deviations_only(file):
    values = yaml.safe_load(file.read_text())["/**"]["ros__parameters"]
    load_yaml(file)
    kept = {name for name, value in values.items() if value == DEFAULTS[name]}
    assert kept - {"stamp_reference"} == set(), "these repeat a default"
