"""The launch file, where ROS 2's launch is installed; what it and ``perspblur run`` have in common, everywhere."""

from __future__ import annotations

import importlib.util

import pytest

from perspblur_ros.ros import graph, middleware
from perspblur_ros.share import share_path


def described():
    pytest.importorskip("launch_ros")
    path = share_path("launch", "pipeline.launch.py")
    spec = importlib.util.spec_from_file_location("pipeline_launch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nodes(**arguments):
    """What the launch file starts with these arguments."""
    module = described()
    from launch import LaunchContext

    context = LaunchContext()
    values = {name: default for name, (default, _) in module.ARGUMENTS.items()}
    context.launch_configurations.update({**values, **arguments})
    started = module._nodes(context)
    return context, [action for action in started if action.condition is None or action.condition.evaluate(context)]


def executables(actions) -> list[str]:
    return [getattr(action, "node_executable", "ros2") for action in actions]


def test_the_node_alone_by_default():
    assert executables(nodes()[1]) == [graph.PIPELINE]


def test_what_can_be_asked_for_beside_it():
    assert executables(nodes(demo="true")[1]) == [graph.PIPELINE, graph.CAMERA_SIMULATOR, graph.EVALUATOR]
    assert executables(nodes(bag="my_bag")[1]) == [graph.PIPELINE, "ros2"]
    assert executables(nodes(rviz="true")[1]) == [graph.PIPELINE, "rviz2"]


@pytest.mark.parametrize("camera", [path.stem for path in share_path("config", "cameras").glob("*.yaml")])
def test_presets_are_found(camera):
    assert executables(nodes(camera=camera)[1]) == [graph.PIPELINE]


def test_every_argument_is_described_and_declared():
    module = described()
    from launch.actions import DeclareLaunchArgument

    declared = [e for e in module.generate_launch_description().entities if isinstance(e, DeclareLaunchArgument)]
    assert {argument.name for argument in declared} == module.ARGUMENTS.keys()
    assert all(argument.description for argument in declared)
    presets = next(argument.choices for argument in declared if argument.name == "camera")
    assert {"", "phone", "realsense_d435_color", "uvc_webcam"} == set(presets), "others are refused with this list"


def test_the_defaults_of_launch_and_run_are_the_same():
    arguments = graph.with_defaults(["--ros-args", "-r", "image_raw:=mine"])
    assert arguments.index("image_raw:=mine") < arguments.index("image_raw:=camera/image_raw")
    module = described()
    assert module.ARGUMENTS["image"][0] == graph.REMAPPINGS[graph.IMAGE]
    assert module.ARGUMENTS["camera_info"][0] == graph.REMAPPINGS[graph.CAMERA_INFO]


@pytest.mark.parametrize("name", [middleware.FAST_DDS_2, middleware.FAST_DDS_3])
def test_a_profile_that_the_user_has_set_is_left_alone(monkeypatch, name):
    for variable in (middleware.FAST_DDS_2, middleware.FAST_DDS_3):
        monkeypatch.delenv(variable, raising=False)
    assert middleware.environment()[middleware.profile_variable()].endswith("fastdds_image_profile.xml")
    monkeypatch.setenv(name, "mine.xml")
    assert not middleware.environment().keys() & {middleware.FAST_DDS_2, middleware.FAST_DDS_3}


def test_the_remedy_names_a_file_that_exists():
    assert middleware.profile_path().is_file()
    assert str(middleware.profile_path()) in middleware.remedy()
    assert "publisher" in middleware.remedy()
