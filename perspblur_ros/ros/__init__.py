"""The ROS 2 layer: the only place that knows rclpy and messages.

main.py           the process: signals, executor loop, exit status
graph.py          names and remappings, the same for ``ros2 launch`` and ``perspblur run``
middleware.py     what Fast DDS and malloc need
node.py           the lifecycle node; params.py: ``Config`` as ROS parameters
input.py          images in; calibration.py: camera_info; stream.py: losses; tf_lookup.py: the lever arm from TF
processor.py      the pipeline on its own thread (worker.py)
output.py         trajectories out; pacing.py spreads them over the frame
monitor.py        the watchdog and /diagnostics (diagnostics.py)
conversions.py    messages ↔ arrays; log.py: counting with a voice
camera_simulator.py, evaluator.py, recorder.py    nodes beside it; demo.py: all of them together
"""
