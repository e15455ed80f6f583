"""The lifecycle node: images in, rotation out.

configure validates, builds the pipeline and the publishers; activate subscribes and starts the threads; deactivate and
cleanup undo them. Three threads: the executor's (callbacks), the worker's (the pipeline), the pacer's.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from ..config import UNKNOWN, Config
from ..errors import ConfigError, PerspBlurError
from ..pipeline import Pipeline
from ..types import FrameResult
from . import graph, params, processor
from .diagnostics import Snapshot
from .input import OTHER_CLOCK_S, CameraInput, Picture
from .log import LogForwarder, Reporter
from .middleware import remedy
from .monitor import TICK_S, Monitor
from .output import TrajectoryOutput
from .processor import Processor
from .tf_lookup import LeverArmLookup

DROP_NO_TRANSFORM = "drop.no_transform"
SHUTDOWN_S = 1.0

# How soon the computing thread must let the pacer in. At Python's 5 ms a subscriber of depth 10 lost 1 to 3 % of 900
# samples per second beside a busy thread, at this 0 to 0.1 %.
SWITCH_S = 0.0005

OPENCV_THREADS = 2  # the tracker gains a third of its time by the second; a larger pool would fight the other threads

# these need other subscriptions or threads, so they take effect with the next activation
ONLY_INACTIVE = {"image_transport", "image_reliability", "depth_topic", "pivot_frame", "queue_frames", "autostart"}
NOT_THE_PIPELINES = ONLY_INACTIVE | {"imu_pacing", "publish_blind", "watchdog_s"}


class PerspBlurNode(LifecycleNode):
    """``make_pipeline`` builds what computes; ``options`` go to rclpy's node."""

    def __init__(
        self,
        name: str = graph.NODE_NAME,
        make_pipeline: Callable[[Config], processor.Pipeline] = Pipeline,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        cv2.setNumThreads(OPENCV_THREADS)
        sys.setswitchinterval(SWITCH_S)
        self.finished, self.exit_status = False, 0
        self._make_pipeline = make_pipeline
        self.report = Reporter(self.get_logger())
        self._forwarder = LogForwarder(self.get_logger())
        logging.getLogger(graph.PACKAGE).addHandler(self._forwarder)
        self._refused = params.declare(self)
        params.validate_changes(self, self._judge, self._apply)
        self._config = Config()
        self._candidate: tuple[Config, processor.Pipeline | None] | None = None
        self._output: TrajectoryOutput | None = None
        self._processor: Processor | None = None
        self._input: CameraInput | None = None
        self._lookup: LeverArmLookup | None = None
        self._lever_arm: tuple[float, float, float] | None = None  # found in TF
        self._ages_s: deque[float] = deque(maxlen=300)
        self._last_mid_ns = 0
        self._active_since_s = 0.0
        self._monitor = Monitor(self, self.snapshot)
        self._reset_service = self.create_service(Trigger, "~/reset", self._on_reset)
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False),
            post_callback=lambda jump: self._reset("reset.clock"),
        )

    def start_automatically(self) -> None:
        """Configure and activate, unless ``autostart`` is off; a failure ends the process, since nobody would retry."""
        if not self.get_parameter("autostart").value:
            return
        steps = (self.trigger_configure, self.trigger_activate)
        if not all(step() == TransitionCallbackReturn.SUCCESS for step in steps):
            self.finished, self.exit_status = True, 1

    # transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("configure", self._configure, undo=self._free)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._transition("activate", self._activate, undo=self._deactivate)
        if result == TransitionCallbackReturn.SUCCESS:
            super().on_activate(state)  # enables the publishers
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._transition("deactivate", self._deactivate) != TransitionCallbackReturn.SUCCESS:
            return TransitionCallbackReturn.ERROR  # half active is no state; on_error frees what there is
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("clean up", self._free)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("shut down", self._stop_all)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("recover", self._stop_all)

    def destroy_node(self) -> None:
        self._stop_all()
        self._jump.unregister()
        logging.getLogger(graph.PACKAGE).removeHandler(self._forwarder)
        super().destroy_node()

    def _transition(
        self, verb: str, work: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """Run ``work``; a failure is one sentence in the log, and leaves nothing half done."""
        try:
            work()
        except Exception as error:
            self.get_logger().error(f"cannot {verb}: {_sentence(error)}")
            if undo:
                undo()
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        if self._refused:
            raise ConfigError("; ".join(self._refused.values()))
        self._config = params.read(self)
        self._lever_arm = None
        if self._config.pivot_frame:
            self._lookup = LeverArmLookup(self, self._config.pivot_frame)
        self._output = TrajectoryOutput(self, self.report)
        pipeline = self._make_pipeline(self._config)
        self._processor = Processor(pipeline, self.report, self._deliver)

    def _activate(self) -> None:
        assert self._output is not None
        assert self._processor is not None
        self._ages_s.clear()
        self._output.start(self._config)
        self._processor.start(self._config)
        self._active_since_s = time.monotonic()
        self._input = CameraInput(self, self._config, self.report, self._on_picture, self._processor.add_depth)
        self.get_logger().info(_timing(self._config))
        self.get_logger().info(f"waiting for images on {self._input.topic}")

    def _deactivate(self) -> None:
        if not self._stop(processor.STOP_S):
            raise PerspBlurError("the pipeline did not finish its frame in time")

    def _free(self) -> None:
        self._processor = None
        if self._output:
            self._output.destroy()
            self._output = None
        if self._lookup:
            self._lookup.destroy()
            self._lookup = None

    def _stop(self, timeout_s: float) -> bool:
        """Unsubscribe and end the threads; False when the frame being worked on took longer."""
        if self._input:
            self._input.destroy()
            self._input = None
        stopped = self._processor.stop(timeout_s) if self._processor else True
        if self._output:
            self._output.stop()
        return stopped

    def _stop_all(self) -> None:
        """For good: a frame that is still being worked on is abandoned with its thread."""
        self._stop(SHUTDOWN_S)
        self._free()

    # frames

    def _on_picture(self, picture: Picture) -> None:
        if self._processor and (self._lookup is None or self._has_lever_arm(picture.frame_id)):
            self._processor.submit(picture)

    def _has_lever_arm(self, optical_frame: str) -> bool:
        """Look the lever arm up until it is found; the pipeline is then built with it."""
        assert self._lookup is not None
        assert self._processor is not None
        if self._lever_arm is None:
            self._lever_arm = self._lookup.find(optical_frame)
            if self._lever_arm is None:
                pivot = self._config.pivot_frame
                self.report.warn(
                    DROP_NO_TRANSFORM, f"images wait for the transform between {pivot} and {optical_frame}"
                )
                return False
            self.get_logger().info(f"lever arm {self._lever_arm} m from {self._config.pivot_frame}")
            self._processor.replace(self._make_pipeline(self._with_lever_arm(self._config)), "reset.lever_arm")
        return True

    def _deliver(self, result: FrameResult, frame_id: str) -> bool:
        """Publish one result; runs on the worker's thread."""
        if self._output is None:
            return True
        mid_ns = result.sparse.stamp_ns
        span_s = (mid_ns - self._last_mid_ns) * 1e-9
        if not 0 < span_s <= self._config.max_gap_s:
            span_s = float(result.dense.stamp_ns[-1] - result.dense.stamp_ns[0]) * 1e-9
        if mid_ns < self._last_mid_ns:
            self._output.restart()
        self._last_mid_ns = mid_ns
        self.report.count(f"status.{result.sparse.status.name.lower()}")
        info = self._input.calibration.message if self._input else None
        fit = self._output.publish(result, frame_id, span_s, info)
        age_s = (self.get_clock().now().nanoseconds - mid_ns) * 1e-9
        if abs(age_s) < OTHER_CLOCK_S:
            self._ages_s.append(age_s)
        return fit

    def _reset(self, cause: str) -> None:
        if self._processor:
            self._processor.reset(cause)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._input is not None
        response.message = "the stream starts anew" if response.success else "the node is not active"
        self._reset("reset.service")
        return response

    # parameters

    def _judge(self, config: Config, names: set[str]) -> None:
        """Refuse what cannot change now; build the new pipeline here, since only that shows whether it can be had."""
        fixed = sorted(names & ONLY_INACTIVE)
        if fixed and self._input:
            raise ConfigError(f"{fixed[0]} cannot change while the node is active; deactivate it first")
        rebuild = bool(names - NOT_THE_PIPELINES) and self._processor is not None
        self._candidate = (config, self._make_pipeline(self._with_lever_arm(config)) if rebuild else None)

    def _apply(self, names: set[str]) -> None:
        self._refused = {name: text for name, text in self._refused.items() if name not in names}
        if self._candidate is None:
            return
        self._config, pipeline = self._candidate
        self._candidate = None
        if self._output:
            self._output.configure(self._config)
        if self._processor and pipeline:
            self._processor.replace(pipeline, "reset.parameters")

    def _with_lever_arm(self, config: Config) -> Config:
        return replace(config, lever_arm=self._lever_arm, pivot_frame="") if self._lever_arm else config

    # diagnostics

    def snapshot(self) -> Snapshot:
        """The node's state for /diagnostics."""
        source, worker = self._input, self._processor
        counts = Counter(self.report.counts)
        shot = Snapshot(active=source is not None, config=self._with_lever_arm(self._config), counts=counts)
        if worker:
            counts.update(worker.counts())
            shot.stage_ms, shot.backlog, shot.shutter = worker.stage_ms(), worker.backlog, worker.shutter
            shot.engine, shot.engine_failure = worker.engine_name, worker.engine_failure
        if self._output:
            counts["imu.sent"], counts["imu.dropped"] = self._output.imu_counts()
        if source:
            shot.topic, shot.rate_hz = source.topic, source.stream.rate_hz()
            if not source.stream.knows_publishers:
                shot.publishers = source.publisher_count()
            shot.calibration_refusal = source.calibration.refusal
            counts["lost.overwritten"] = source.stream.overwritten
            shot.silence = self._silence(source)
        shot.age_s = list(self._ages_s)
        return shot

    def _silence(self, source: CameraInput) -> str:
        """Why there are no images, told before the watchdog's time is over; empty when they arrive."""
        silent_s = min(source.stream.silent_s(), time.monotonic() - self._active_since_s)
        if silent_s + TICK_S < self._config.watchdog_s:
            return ""
        publishers = source.publisher_count()
        if publishers == 0:
            return f"nobody publishes {source.topic}{self._elsewhere(source.topic)}"
        if source.stream.last_arrival_s is None:
            lost = source.stream.middleware_lost
            why = f"; {lost} were lost by the middleware, {remedy()}" if lost else ""
            return f"{source.topic} has {publishers} publisher(s), but no image has arrived yet{why}"
        return f"no image on {source.topic} for {silent_s:.1f} s, last stamp {source.last_stamp_ns} ns"

    def _elsewhere(self, topic: str) -> str:
        """Where images are instead."""
        own = {topic, *(self.resolve_topic_name(name) for name in (graph.DEPTH, graph.DEPTH_VARIANCE))}
        others = [
            name
            for name, types in self.get_topic_names_and_types()
            if "sensor_msgs/msg/Image" in types and name not in own and self.count_publishers(name)
        ]
        return f"; there are images on {', '.join(others[:3])} (-r {graph.IMAGE}:={others[0]})" if others else ""


def _timing(config: Config) -> str:
    """The timing in force, for the log: what was given and what is estimated."""
    parts = [f"stamps mean {config.stamp_reference}"]
    for name in ("exposure_s", "readout_s"):
        value = getattr(config, name)
        parts.append(f"{name} {value}" if value != UNKNOWN else f"{name} is estimated")
    return ", ".join([*parts, f"lever_arm {list(config.lever_arm) or config.pivot_frame or 'unknown'}"])


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    return str(error) if isinstance(error, PerspBlurError) else repr(error)
