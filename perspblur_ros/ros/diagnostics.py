"""What /diagnostics says: four statuses, made from a snapshot of the node.

input       rate, age, losses and drops by cause    ERROR when the camera is silent, WARN when something was lost
processing  milliseconds per stage, queue, resets   ERROR when the networks have ended, WARN when computing is too slow
trajectory  what the gate decided, what was sent    WARN when results had to be withheld
timing      exposure, readout and stamp as resolved
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from ..camera import Shutter
from ..config import UNKNOWN, Config

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE

PERCENTILES = (50, 95, 99)


@dataclass
class Snapshot:
    """Everything the statuses are made of.

    counts          since the node started, by cause; ``recent`` what was added to them lately
    age_s           stamp of a frame to the publication of its result; None where the clocks do not compare
    stage_ms        recent milliseconds per stage
    silence         why there are no images, one sentence; empty when they arrive
    engine          what runs the network, "none" without one; empty before there is a pipeline
    engine_failure  why the networks have ended, one sentence; empty while they run
    publishers      of the image topic, where messages do not say whose they are (Jazzy) and all of them are taken
    """

    active: bool
    config: Config
    counts: Mapping[str, int] = field(default_factory=Counter)
    recent: Mapping[str, int] = field(default_factory=Counter)
    silence: str = ""
    rate_hz: float = 0.0
    age_s: Sequence[float] = ()
    stage_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    backlog: int = 0
    calibration_refusal: str = ""
    shutter: Shutter | None = None
    topic: str = ""
    publishers: int = 1
    engine: str = ""
    engine_failure: str = ""


def statuses(node_name: str, snapshot: Snapshot) -> list[DiagnosticStatus]:
    """The four statuses; all STALE while the node is not active."""
    makers = {"input": _input, "processing": _processing, "trajectory": _trajectory, "timing": _timing}
    messages = []
    for part, make in makers.items():
        level, summary, values = make(snapshot)
        if not snapshot.active:
            level, summary = STALE, "the node is not active"
        messages.append(
            DiagnosticStatus(
                level=level,
                name=f"{node_name}: {part}",
                message=summary,
                hardware_id=snapshot.topic,
                values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
            )
        )
    return messages


Made = tuple[bytes, str, dict[str, Any]]


def _input(s: Snapshot) -> Made:
    values: dict[str, Any] = {"topic": s.topic, "rate_hz": f"{s.rate_hz:.2f}"}
    values |= _with_prefix(s.counts, ("received", "lost.", "drop.", "refused.", "stamps.", "error."))
    if s.silence:
        return ERROR, s.silence, values
    if s.calibration_refusal:
        return ERROR, f"the calibration was refused: {s.calibration_refusal}", values
    if s.publishers > 1:
        return WARN, f"{s.topic} has {s.publishers} publishers; one camera is expected", values
    lately = _with_prefix(s.recent, ("lost.", "drop.", "refused.", "error."))
    if lately:
        return WARN, f"lately: {_listed(lately)}", values
    return OK, f"{s.rate_hz:.1f} frames/s", values


def _processing(s: Snapshot) -> Made:
    values: dict[str, Any] = {"queue": s.backlog, "engine": s.config.engine, "provider": s.engine}
    for stage, ms in s.stage_ms.items():
        if len(ms):
            values |= {f"{stage}.p{p}_ms": f"{v:.2f}" for p, v in zip(PERCENTILES, np.percentile(ms, PERCENTILES))}
            values[f"{stage}.mean_ms"] = f"{np.mean(ms):.2f}"
    values |= _with_prefix(s.counts, ("processed", "reset.", "fallback."))
    if s.engine_failure:
        return ERROR, f"the networks have ended, the geometry goes on alone: {s.engine_failure}", values
    overrun = s.recent.get("drop.queue", 0)
    if overrun:
        return WARN, f"computing is too slow: {overrun} frames were dropped lately", values
    lately = _with_prefix(s.recent, ("reset.", "fallback."))
    if lately:
        return WARN, f"lately: {_listed(lately)}", values
    return OK, "keeping up", values


def _trajectory(s: Snapshot) -> Made:
    values: dict[str, Any] = {}
    if len(s.age_s):
        values |= {f"age.p{p}_ms": f"{1e3 * v:.1f}" for p, v in zip(PERCENTILES, np.percentile(s.age_s, PERCENTILES))}
    else:
        values["age"] = "not known: the stamps are of another clock"
    values |= _with_prefix(s.counts, ("published", "gate.", "status.", "imu."))
    withheld = _with_prefix(s.recent, ("drop.not_", "imu.dropped", "imu.not_"))
    if withheld:
        return ERROR, f"lately withheld: {_listed(withheld)}", values
    blind = s.recent.get("status.blind", 0)
    if blind:
        return WARN, f"blind: {blind} frames lately without usable texture", values
    return OK, "publishing", values


def _timing(s: Snapshot) -> Made:
    values: dict[str, Any] = {"stamp_reference": s.config.stamp_reference, "stamp_offset_s": s.config.stamp_offset_s}
    if s.shutter is None:
        return OK, "not resolved yet", values
    estimated = [name for name in ("exposure_s", "readout_s") if getattr(s.config, name) == UNKNOWN]
    values |= {
        "exposure_s": f"{s.shutter.exposure_ns * 1e-9:.6f}",
        "readout_s": f"{s.shutter.readout_ns * 1e-9:.6f}",
        "estimated": ", ".join(estimated) or "nothing",
    }
    values["lever_arm"] = list(s.config.lever_arm) or "unknown"
    return OK, f"{' and '.join(estimated)} estimated" if estimated else "as configured", values


def _with_prefix(counts: Mapping[str, int], prefixes: tuple[str, ...]) -> dict[str, int]:
    return {cause: n for cause, n in sorted(counts.items()) if n and cause.startswith(prefixes)}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {n}" for cause, n in counts.items())
