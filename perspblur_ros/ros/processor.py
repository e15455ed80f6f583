"""The pipeline on its own thread: pictures in, published results out, and every frame accounted for."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from ..config import Config
from ..types import FrameResult
from .input import Picture
from .log import Reporter
from .worker import Worker

PROCESSED = "processed"
DROP_QUEUE, DROP_STOPPED, DROP_DEPTH_QUEUE = "drop.queue", "drop.deactivated", "drop.depth_queue"
DROP_ERROR, DROP_MEMORY = "drop.error", "drop.memory"

MEMORY = 300  # frames, for the percentiles
STOP_S = 10.0  # no frame takes longer; a pipeline that hangs must not hang a transition


class Pipeline(Protocol):
    """What is needed of ``perspblur_ros.pipeline.Pipeline``."""

    counts: Counter[str]
    stage_ms: Any  # recent milliseconds by stage
    shutter: Any

    @property
    def engine_name(self) -> str: ...
    @property
    def engine_failure(self) -> str: ...
    def add_frame(self, stamp_ns: int, image: Any, camera: Any) -> list[FrameResult]: ...
    def add_depth(self, stamp_ns: int, depth_m: Any) -> None: ...
    def flush(self) -> list[FrameResult]: ...
    def reset(self) -> None: ...


class Processor:
    """Feeds one pipeline from one thread; everything that touches the pipeline happens there.

    ``deliver(result, frame_id)`` gets every result in order, on the thread; it returns False when the result was not
    fit to be published, which resets the pipeline. submitted = processed + drop.queue + drop.error + drop.memory +
    drop.deactivated + what is waiting (``backlog``).
    """

    def __init__(self, pipeline: Pipeline, report: Reporter, deliver: Callable[[FrameResult, str], bool]) -> None:
        self._pipeline = pipeline
        self._report = report
        self._deliver = deliver
        self._frame_id = ""
        self._counts_before: Counter[str] = Counter()  # of pipelines that were replaced
        self._frame_ms: deque[float] = deque(maxlen=MEMORY)
        self._publish_ms: deque[float] = deque(maxlen=MEMORY)
        self._worker: Worker[Picture] | None = None

    def start(self, config: Config) -> None:
        self._pipeline.flush()  # what an earlier activation left behind
        self._pipeline.reset()
        self._worker = Worker(self._process, config.queue_frames, self._finish_segment, config.watchdog_s, "pipeline")
        self._worker.start()

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """End after the frame being worked on; False when that did not happen in time."""
        if self._worker is None:
            return True
        left = self._worker.stop(timeout_s)
        self._report.count(DROP_STOPPED, left)
        stopped = not self._worker.alive
        self._worker = None
        if not stopped:  # its thread lives on with us, and must not keep the node and its shared memory
            self._deliver = _abandoned
        return stopped

    def submit(self, picture: Picture) -> None:
        if self._worker is None:
            return
        dropped = self._worker.submit(picture)
        if dropped:
            sentence = "frames arrive faster than they are processed; the oldest is left out"
            self._report.warn(DROP_QUEUE, sentence, dropped)

    def add_depth(self, stamp_ns: int, depth_m: NDArray[Any]) -> None:
        if self._worker and not self._worker.request("depth", lambda: self._pipeline.add_depth(stamp_ns, depth_m)):
            self._report.count(DROP_DEPTH_QUEUE)

    def reset(self, cause: str) -> None:
        if self._worker:
            self._report.count(cause)
            self._worker.request("reset", self._finish_segment)

    def replace(self, pipeline: Pipeline, cause: str) -> None:
        """Go on with another pipeline; the stream starts anew."""

        def swap() -> None:
            self._counts_before += self._pipeline.counts
            self._pipeline = pipeline

        self._report.count(cause)
        if self._worker:
            self._worker.request("replace", swap)
        else:
            swap()

    @property
    def backlog(self) -> int:
        return self._worker.backlog if self._worker else 0

    @property
    def engine_name(self) -> str:
        return self._pipeline.engine_name

    @property
    def engine_failure(self) -> str:
        return self._pipeline.engine_failure

    @property
    def shutter(self) -> Any:
        return self._pipeline.shutter

    def counts(self) -> Counter[str]:
        return self._counts_before + Counter(dict(self._pipeline.counts))

    def stage_ms(self) -> dict[str, Sequence[float]]:
        """Recent wall milliseconds by stage; "total" is a whole frame of the pipeline, "publish" comes after it."""
        own = {"total": list(self._frame_ms), "publish": list(self._publish_ms)}
        return {**own, **{k: list(v) for k, v in dict(self._pipeline.stage_ms).items()}}

    def _process(self, picture: Picture) -> None:
        started_s = time.perf_counter()
        self._frame_id = picture.frame_id
        try:
            results = self._pipeline.add_frame(picture.stamp_ns, picture.image, picture.camera)
        except MemoryError:
            self._give_up(DROP_MEMORY, f"the frame stamped {picture.stamp_ns} ns did not fit into memory")
            return
        except Exception as error:
            self._give_up(DROP_ERROR, f"the frame stamped {picture.stamp_ns} ns could not be processed: {error!r}")
            return
        self._frame_ms.append(1e3 * (time.perf_counter() - started_s))
        self._report.count(PROCESSED)
        self._publish(results)

    def _finish_segment(self) -> None:
        """No frame for a while, or a reset: what waited for a successor is final."""
        try:
            self._publish(self._pipeline.flush())
            self._pipeline.reset()
        except Exception as error:
            self._report.error("error.flush", f"the last frames could not be finished: {error!r}")

    def _publish(self, results: list[FrameResult]) -> None:
        started_s = time.perf_counter()
        try:
            fit = [self._deliver(result, self._frame_id) for result in results]
        except Exception as error:
            self._report.error("error.publish", f"a result could not be published: {error!r}")
            return
        if results:
            self._publish_ms.append(1e3 * (time.perf_counter() - started_s))
        if not all(fit):
            self._pipeline.reset()

    def _give_up(self, cause: str, sentence: str) -> None:
        self._report.error(cause, sentence)
        self._pipeline.reset()


def _abandoned(result: FrameResult, frame_id: str) -> bool:
    """Nobody waits for this result any more."""
    return True
