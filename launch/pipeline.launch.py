"""Start the node, and what is asked for beside it.

    ros2 launch perspblur_ros pipeline.launch.py                        # the node, for a camera called /camera
    ros2 launch perspblur_ros pipeline.launch.py demo:=true rviz:=true  # with a simulated camera and its truth
    ros2 launch perspblur_ros pipeline.launch.py bag:=my_bag            # with a bag played beside it
    ros2 launch perspblur_ros pipeline.launch.py camera:=phone params_file:=my.yaml image:=/phone/image_raw

``--show-args`` lists every argument. ``perspblur run`` starts the same node where ROS 2's launch is not installed.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node

from launch import LaunchContext, LaunchDescription
from perspblur_ros.ros import graph, middleware
from perspblur_ros.share import share_path

ARGUMENTS = {
    "params_file": ("", "parameter file over everything else; only deviations from the defaults need to stand in it"),
    "camera": ("", "camera preset"),
    "image": (graph.REMAPPINGS[graph.IMAGE], "image topic (for image_transport: compressed without /compressed)"),
    "camera_info": (graph.REMAPPINGS[graph.CAMERA_INFO], "its camera_info topic"),
    "demo": ("false", "true: a simulated camera under hand motion, with its truth and a running comparison"),
    "bag": ("", "rosbag2 folder to play, with its clock"),
    "rviz": ("false", "true: RViz with the trajectory"),
    "namespace": ("", "namespace of all nodes"),
    "use_sim_time": ("", "true: take the time from /clock; default: true with bag, else false"),
    "autostart": ("true", "false: stay unconfigured until a lifecycle manager configures and activates the node"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def generate_launch_description() -> LaunchDescription:
    presets = [path.stem for path in sorted(share_path("config", "cameras").glob("*.yaml"))]
    choices = {"camera": ["", *presets]}
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text, choices=choices.get(name))
        for name, (default, text) in ARGUMENTS.items()
    ]
    # for everything that is started here: images are lost on the publisher's side
    variables = [SetEnvironmentVariable(name, value) for name, value in middleware.environment().items()]
    return LaunchDescription([*arguments, *variables, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    demo, bag = values["demo"].lower() == "true", values["bag"]
    sim_time = values["use_sim_time"] or str(bool(bag))
    common = {
        "package": graph.PACKAGE,
        "namespace": values["namespace"],
        "output": "screen",
        "arguments": ["--ros-args", "--log-level", values["log_level"]],
    }
    files = [str(share_path("config", "demo.yaml"))] if demo else []
    files += [str(share_path("config", "cameras", f"{values['camera']}.yaml"))] if values["camera"] else []
    files += [values["params_file"]] if values["params_file"] else []
    switches = {"use_sim_time": sim_time.lower() == "true", "autostart": values["autostart"].lower() == "true"}
    pipeline = LifecycleNode(
        **common,
        executable=graph.PIPELINE,
        name=graph.NODE_NAME,
        parameters=[*files, switches],
        remappings=[(graph.IMAGE, values["image"]), (graph.CAMERA_INFO, values["camera_info"])],
    )
    beside = [Node(**common, executable=name, name=name) for name in (graph.CAMERA_SIMULATOR, graph.EVALUATOR)]
    player = ExecuteProcess(cmd=["ros2", "bag", "play", bag, "--clock"], output="screen")
    layout = str(share_path("config", "trajectory.rviz"))
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", layout],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return [pipeline, *(beside if demo else []), *([player] if bag else []), rviz]
