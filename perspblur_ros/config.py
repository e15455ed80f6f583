"""Every parameter of the package, once: name, default, unit, range and meaning.

The ROS parameters, the YAML files, ``--set key=value`` and the table in the README are all made from ``Config``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml

from .camera import STAMP_REFERENCES
from .errors import ConfigError

UNKNOWN = -1.0  # exposure_s, readout_s: "not known, estimate it"


@dataclass(frozen=True)
class Spec:
    """What is allowed for one parameter. ``low``/``high`` are inclusive; ``also`` is one extra legal value."""

    doc: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    also: float | None = None


def _p(default: Any, doc: str, **spec: Any) -> Any:
    return field(default=default, metadata={"spec": Spec(doc, **spec)})


@dataclass(frozen=True)
class Config:
    """All parameters; frozen, so a running pipeline cannot drift from what was validated."""

    # camera timing
    stamp_reference: str = _p(
        "exposure_start", "the instant a frame's stamp means (see docs/timing.md)", choices=STAMP_REFERENCES
    )
    stamp_offset_s: float = _p(0.0, "added to every frame's stamp", unit="s", low=-1.0, high=1.0)
    exposure_s: float = _p(
        UNKNOWN, "exposure of one row; -1 estimates it while running", unit="s", low=0.0, high=1.0, also=UNKNOWN
    )
    readout_s: float = _p(
        UNKNOWN, "first to last row, 0 = global shutter; -1 estimates it", unit="s", low=0.0, high=0.2, also=UNKNOWN
    )
    # geometry
    lever_arm: tuple[float, ...] = _p(
        (), "pivot → optical centre x, y, z in the optical frame; empty = unknown", unit="m", low=-10.0, high=10.0
    )
    pivot_frame: str = _p("", "TF frame of the pivot, looked up once instead of lever_arm (needs tf2_ros)")
    depth_topic: str = _p("", "topic of a metric depth image (32FC1, 16UC1 mm) to use as the depth map; empty = none")
    # windows
    window_frames: int = _p(6, "S, frames per window of the network", low=2, high=16)
    clip_frames: int = _p(30, "T, frames that the ring buffer holds", low=6, high=120)
    max_gap_s: float = _p(0.2, "a longer gap between frames starts a new segment", unit="s", low=0.02, high=5.0)
    # tracking
    tracker: str = _p("lk", "point tracker; external takes tracker_callable", choices=("lk", "dis", "external"))
    tracker_callable: str = _p(
        "", "module:name of your own point matcher (see docs/trackers.md), e.g. around CoTracker or TAPNext"
    )
    grid_half_count: int = _p(12, "i: points are as far apart as those of a (2i+1)² grid", low=2, high=40)
    max_tracks: int = _p(260, "points followed at a time", low=30, high=2000)
    # sparse and dense trajectory
    samples_per_frame: int = _p(30, "dense samples per frame", low=1, high=200)
    sample_span: str = _p(
        "period", "samples cover the frame period or only the exposure", choices=("period", "exposure")
    )
    lag_frames: int = _p(2, "a frame is published when this many later frames have arrived", low=0, high=8)
    densifier: str = _p(
        "auto", "auto lets the gate decide", choices=("auto", "interpolation", "spline", "decoder", "crossblur")
    )
    smoother_frames: int = _p(12, "frames solved together by the track spline", low=3, high=40)
    knot_spacing_s: float = _p(0.015, "spacing of the rotation knots", unit="s", low=0.002, high=0.1)
    smoother_iterations: int = _p(2, "Gauss-Newton steps of the track spline per frame", low=1, high=20)
    crossblur_patches: int = _p(64, "patches compared per pair of frames", low=8, high=400)
    crossblur_pairs: int = _p(3, "newest pairs of neighbouring frames that are compared", low=1, high=12)
    crossblur_iterations: int = _p(2, "Gauss-Newton steps of the cross-blur refinement per frame", low=1, high=10)
    hand_motion_amplitude: float = _p(
        1.3, "prior rate amplitude relative to the measured frame-to-frame rate", low=0.1, high=10.0
    )
    translation_amplitude_m_s: float = _p(
        0.02, "regulariser of the free translation; loosens itself for a vehicle", unit="m/s", low=0.0001, high=10.0
    )
    # depth
    depth_every_frames: int = _p(
        6, "frames between depth maps; a network has its own cadence, the windows it was trained with", low=1, high=120
    )
    depth_from_pictures: bool = _p(
        True, "measure depth in the blurred pictures (a sixth of a second per map on one core), not by the tracks alone"
    )
    depth_width: int = _p(160, "width of the depth maps; the height follows the picture's shape", low=16, high=1920)
    # engine
    engine: str = _p(
        "auto", "inference engine of the learned depth", choices=("auto", "tensorrt", "onnxruntime", "none")
    )
    engine_dir: str = _p("", "folder with the exported graphs; empty = the shipped tiny preset")
    # ROS
    image_transport: str = _p("raw", "how images arrive", choices=("raw", "compressed"))
    image_reliability: str = _p("best_effort", "image subscription", choices=("best_effort", "reliable"))
    imu_pacing: str = _p(
        "paced", "dense samples are spread over the frame, sent at once, or not sent", choices=("paced", "burst", "off")
    )
    autostart: bool = _p(True, "configure and activate without a lifecycle manager")
    publish_blind: bool = _p(True, "publish blind frames with a large covariance instead of leaving them out")
    watchdog_s: float = _p(0.5, "no frame for this long is an ERROR in /diagnostics", unit="s", low=0.05, high=60.0)
    queue_frames: int = _p(2, "frames that may wait for the worker; the oldest is dropped and counted", low=1, high=64)

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, check(item.name, getattr(self, item.name)))
        if self.lever_arm and self.pivot_frame:
            raise ConfigError("lever_arm and pivot_frame are both given; only one can say where the pivot is")
        if (self.tracker == "external") != bool(self.tracker_callable):
            raise ConfigError(
                f"tracker = '{self.tracker}' and tracker_callable = '{self.tracker_callable}' do not go together: "
                "external needs a callable, and only external takes one"
            )
        if self.lag_frames > self.smoother_frames - 2:  # a frame is published with its neighbours, from one window
            raise ConfigError(
                f"lag_frames = {self.lag_frames} needs smoother_frames of at least {self.lag_frames + 2}, "
                f"not {self.smoother_frames}"
            )

    @property
    def exposure_ns(self) -> int | None:
        return None if self.exposure_s == UNKNOWN else round(self.exposure_s * 1e9)

    @property
    def readout_ns(self) -> int | None:
        return None if self.readout_s == UNKNOWN else round(self.readout_s * 1e9)

    @property
    def stamp_offset_ns(self) -> int:
        return round(self.stamp_offset_s * 1e9)


SPECS: dict[str, Spec] = {f.name: f.metadata["spec"] for f in fields(Config)}
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Config) if f.default is not MISSING}


def check(name: str, value: Any) -> Any:
    """Return ``value`` in the parameter's own type, or raise ConfigError with one sentence that names it."""
    if name not in SPECS:
        near = get_close_matches(str(name)[:60], SPECS, n=1)
        raise ConfigError(f"unknown parameter {_shown(name)}" + (f"; did you mean '{near[0]}'?" if near else ""))
    spec, default = SPECS[name], DEFAULTS[name]
    if isinstance(default, tuple):
        return _check_lever_arm(name, value, spec)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} = {_shown(value)} is not true or false")
        return value
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ConfigError(f"{name} = {_shown(value)} is not a text")
        if spec.choices and value not in spec.choices:
            raise ConfigError(f"{name} = {_shown(value)} is none of {', '.join(spec.choices)}")
        return value
    return _check_number(name, value, spec, integer=isinstance(default, int))


def _shown(value: Any) -> str:
    """A value for a sentence; never long, whatever a file holds (YAML aliases can stand for gigabytes)."""
    short = Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    return short.repr(value)


def _check_number(name: str, value: Any, spec: Spec, integer: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} = {_shown(value)} is not a number")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ConfigError(f"{name} is a whole number of {value.bit_length()} bits, which is too large")
    if not math.isfinite(value):
        raise ConfigError(f"{name} = {_shown(value)} is not a finite number")
    if integer and int(value) != value:
        raise ConfigError(f"{name} = {_shown(value)} is not a whole number")
    if spec.also is not None and value == spec.also:
        return float(value)
    low = -math.inf if spec.low is None else spec.low
    high = math.inf if spec.high is None else spec.high
    if not low <= value <= high:
        unit = f" {spec.unit}" if spec.unit else ""
        raise ConfigError(f"{name} = {value} is outside {spec.low} to {spec.high}{unit}")
    return int(value) if integer else float(value)


def _check_lever_arm(name: str, value: Any, spec: Spec) -> tuple[float, ...]:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        raise ConfigError(f"{name} = {_shown(value)} is not a list of three numbers")
    if len(value) not in (0, 3):
        raise ConfigError(f"{name} has {len(value)} numbers instead of three")
    return tuple(_check_number(name, float(v) if isinstance(v, int) else v, spec, integer=False) for v in value)


def from_mapping(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """``base`` (default: the defaults) with ``values`` put over it; unknown names are refused."""
    checked = {name: check(name, value) for name, value in values.items()}
    return replace(base or Config(), **checked)


def load_yaml(path: Path, base: Config | None = None) -> Config:
    """Read a parameter file: plain ``name: value`` lines, or a ROS 2 file (``/**: ros__parameters:``).

    A ROS file may hold several nodes; the parameters of ``/**`` and ``perspblur`` are taken. At most 1 MB.
    """
    return from_mapping(read_parameters(path), base)


def read_parameters(path: Path) -> dict[str, Any]:
    """The ``name: value`` pairs of a parameter file, not yet checked."""
    if not path.is_file():
        raise ConfigError(f"parameter file {path} does not exist")
    if path.stat().st_size > 1_000_000:
        raise ConfigError(f"parameter file {path} is larger than 1 MB")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # bad dates and bytes are ValueErrors
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"parameter file {path} is not valid YAML: {first_line}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise ConfigError(f"parameter file {path} does not hold 'name: value' lines")
    sections = [v for k, v in data.items() if k.strip("/") in ("**", "perspblur") and isinstance(v, dict)]
    if not sections:
        return data
    merged: dict[str, Any] = {}
    for section in sections:
        parameters = section.get("ros__parameters")
        if not isinstance(parameters, dict):
            raise ConfigError(f"parameter file {path} names a node without 'ros__parameters'")
        merged.update(parameters)
    merged.pop("use_sim_time", None)
    return merged


def parse_assignment(text: str) -> tuple[str, Any]:
    """``key=value`` of a ``--set`` option; the value is YAML (0.06, true, [0, 0, 0.2], mid)."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text} is not of the form key=value")
    try:
        return name.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {name}: {_shown(value)} is not a value") from None
