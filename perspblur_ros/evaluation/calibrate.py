"""Calibrate: exposure, readout and, against a gyro, the stamp offset of a bag, from the bag itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..calibration import MIN_WINDOWS, Estimate, Recording, SolvedWindow, calibrate, gyro_offset
from ..config import UNKNOWN, Config
from ..errors import BagError
from ..pipeline import Pipeline
from ..spline import StreamSolution, TrackWindow
from .bags import BagReader, CameraFrame
from .replay import resolve_config

LEVELS, BARS = "▁▂▃▄▅▆▇█", 17


@dataclass(frozen=True)
class BagTiming:
    """What a bag says of its timing, by parameter.

    stated  what its parameters say, None where they leave it open
    """

    estimates: dict[str, Estimate]
    stated: dict[str, float | None]
    stamp_reference: str

    def parameters(self) -> dict[str, Any]:
        """The observable values as parameters, to a hundredth of a millisecond."""
        values: dict[str, Any] = {n: round(e.value_s, 5) for n, e in self.estimates.items() if e.observable}
        if "stamp_offset_s" in values:
            values["stamp_reference"] = self.stamp_reference
        return values

    def yaml(self) -> str:
        """Lines for a parameter file; what is not observable is a comment."""
        lines = [f"{name}: {value}" for name, value in self.parameters().items()]
        lines += [f"# {name}: not observable, {_verdict(e)}" for name, e in self.estimates.items() if not e.observable]
        return "\n".join(lines) + "\n"


def calibrate_bag(
    bag: Path,
    params: Path | None = None,
    assignments: Sequence[str] = (),
    image_topic: str = "",
    seconds: float = 30.0,
    on_frame: Callable[[int, int], None] | None = None,
) -> BagTiming:
    """Timing of ``bag`` from its first ``seconds``; its parameters give the lever arm and what the stamps mean.

    ``on_frame`` is called with the number of frames done and expected.
    """
    with BagReader(bag, image_topic) as reader:
        config = resolve_config(reader.parameters, params, assignments)
        recorder = _Recorder(config)
        expected = reader.count(reader.image_topic)
        for done, frame in enumerate(_first(reader.frames(), seconds), 1):
            recorder.add_frame(frame.stamp_ns, frame.image, frame.camera)
            if on_frame:
                on_frame(done, expected)
        gyro = reader.gyro()
    windows = recorder.recording.windows
    timing = calibrate(windows, config.stamp_reference, config.stamp_offset_ns)
    estimates = {"exposure_s": timing.exposure, "readout_s": timing.readout}
    if gyro is not None:
        offset = gyro_offset(timing, gyro.stamp_ns, gyro.omega)
        estimates["stamp_offset_s"] = replace(offset, value_s=config.stamp_offset_s + offset.value_s)
    if not any(e.observable for e in estimates.values()):
        raise BagError(f"bag {bag} tells nothing of its timing: {len(windows)} windows move enough to look at")
    stated = {n: None if getattr(config, n) == UNKNOWN else getattr(config, n) for n in estimates}
    return BagTiming(estimates, stated, config.stamp_reference)


def timing_table(timing: BagTiming) -> Table:
    """What ``calibrate`` prints."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("parameter", "ms", "±", "stated", "windows", "cost over candidates, ms"):
        table.add_column(column, justify="left" if " " in column or column == "parameter" else "right", no_wrap=True)
    for name, e in timing.estimates.items():
        stated = timing.stated[name]
        value, sd = (f"{1e3 * e.value_s:.1f}", f"{1e3 * e.sd_s:.1f}") if e.observable else ("–", "–")
        told = "–" if stated is None else f"{1e3 * stated:.1f}"
        table.add_row(name, value, sd, told, str(e.windows), _curve(e) if e.observable else _verdict(e))
    return table


def _verdict(e: Estimate) -> str:
    """Why there is no value."""
    return "no clear minimum" if e.windows >= MIN_WINDOWS else "too little motion"


def _curve(e: Estimate) -> str:
    """The cost as bars, from the lowest candidate to the highest; where there are many, neighbours share a bar."""
    costs = e.costs[: len(e.costs) // BARS * BARS].reshape(BARS, -1).min(axis=1) if len(e.costs) > BARS else e.costs
    share = costs / (e.costs.max() or 1.0)
    bars = "".join(LEVELS[math.ceil(s * (len(LEVELS) - 1))] for s in share)
    return f"{1e3 * e.candidates_s[0]:.0f} {bars} {1e3 * e.candidates_s[-1]:.0f}"


def _first(frames: Iterator[CameraFrame], seconds: float) -> Iterator[CameraFrame]:
    """The frames within ``seconds`` of the first."""
    first = next(frames, None)
    if first is not None:
        end_ns = first.stamp_ns + round(seconds * 1e9)
        yield from chain([first], takewhile(lambda frame: frame.stamp_ns <= end_ns, frames))


class _Recorder(Pipeline):
    """The pipeline up to the track spline, under assumed timing; every full window goes into the recording."""

    def __init__(self, config: Config) -> None:
        super().__init__(replace(config, densifier="spline", exposure_s=UNKNOWN, readout_s=UNKNOWN))
        self.recording = Recording()

    def _observe_timing(self, window: TrackWindow, raw: NDArray[np.float64], stream: StreamSolution) -> None:
        frames = [posed.frame for posed in self._posed[-len(window.mid_s) :]]
        if len(frames) == self.config.smoother_frames:
            solved = SolvedWindow(window, raw, frames[-1].camera, stream.solution, self._spline.translation_m_s)
            self.recording.add(solved, np.array([f.stamp_ns for f in frames]), [f.image for f in frames])
