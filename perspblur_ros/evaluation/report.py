"""The report: one HTML file that needs nothing else, readable on a phone and in the dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from .. import __version__
from . import plots, tables
from .evaluate import ESTIMATE, INTERPOLATION, Comparison, verdict
from .pictures import blur_pictures
from .writers import write_text

REPORT_FILE = "report.html"
ZOOM_FRAMES = 8  # length of the close-up of the rates
MAX_PERIODS = 60  # no exposure is longer than what separates frames; guards against absurd parameters

GATE_MEANING = {
    "accepted": "blur refinement published",
    "held_out": "refused: patches kept aside did not improve",
    "energy": "refused: the motion became too wild for a hand",
    "few_patches": "refused: too few patches to judge by",
    "sharp": "no blur to speak of: tracks alone",
    "no_patches": "no textured patches to compare",
    "no_spline": "too few or incoherent tracks",
    "off": "no blur refinement",
}


def write_report(comparison: Comparison, out: Path, truth_bag: Path, command: str = "") -> Path:
    """Write report.html of a comparison into the folder ``out``; frames are taken from ``truth_bag``."""
    environment = Environment(
        loader=PackageLoader(__package__, "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        **_numbers(comparison),
        **_figures(comparison),
        pictures=blur_pictures(comparison, truth_bag),
        truth_bag=Path(truth_bag).name,
        commands=[text for text in (comparison.run.timing.get("command", ""), command) if text],
        version=__version__,
    )
    path = Path(out) / REPORT_FILE
    write_text(path, page)
    return path


def _numbers(c: Comparison) -> dict[str, Any]:
    numbers = c.metrics
    own, line = numbers["methods"][ESTIMATE], numbers["methods"][INTERPOLATION]
    return {
        "verdict": verdict(numbers),
        "tiles": _tiles(c, own, line),
        "columns": list(tables.COLUMNS),
        "methods": [(name, tables.cells(method)) for name, method in tables.methods(numbers)],
        "ours": tables.METHOD_NAMES[ESTIMATE],
        "sparse": {name: tables.number(value) for name, value in numbers["sparse"].items() if name != "frames"},
        "calibration": {
            kind: {name: tables.number(found[name], 2) for name in ("within_1sigma", "within_2sigma", "nees")}
            for kind, found in numbers["calibration"].items()
            if found["samples"]
        },
        "axes": [
            (name, *(f"{own[key][i]:.3f}" for key in ("rate_correlation", "rate_slope", "rate_bias_rad_s")))
            for i, name in enumerate("xyz")
        ],
        "truth": numbers["truth"],
        "offset_ms": f"{1e3 * numbers['truth']['time_offset_s'][ESTIMATE]:+.1f}",
        "stages": list(numbers["timing"].items()),
        "gate": [(word, n, GATE_MEANING.get(word, "")) for word, n in sorted(numbers["gate"].items())],
        "shutter": _shutter(c),
        "counts": [(cause, n) for cause, n in c.run.timing.get("counts", {}).items() if n],
        "depth": _depth(numbers["depth"]),
    }


def _tiles(c: Comparison, own: dict[str, Any], line: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Value, what it is, and the baseline's beside it."""
    tiles = [
        (tables.number(own["rate_error"]), "rate error", f"{tables.number(line['rate_error'])} interpolated"),
        (
            tables.number(own["dense_30"]["detail_error"]),
            "error of the in-frame motion",
            f"{tables.number(line['dense_30']['detail_error'])} interpolated",
        ),
        (tables.number(c.metrics["sparse"]["abs_rel"]), "sparse AbsRel", f"{c.metrics['sparse']['frames']} frames"),
    ]
    blur = c.metrics["blur_px"]
    if blur:
        tiles.append((f"{blur['median']:.1f} px", "median blur", f"up to {blur['max']:.1f} px"))
    total = c.metrics["timing"].get("total")
    if total:
        tiles.append((f"{total['p50']:.0f} ms", "per frame (median)", f"p99 {total['p99']:.0f} ms"))
    return tiles


def _figures(c: Comparison) -> dict[str, Markup | None]:
    mid_s = _mid_times_s(c)
    period_s = float(np.median(np.diff(mid_s))) if len(mid_s) > 1 else 0.1
    from_s, to_s = _busiest(c, ZOOM_FRAMES * period_s)
    half_s = min(c.metrics["truth"]["exposure_s"], MAX_PERIODS * period_s) / 2
    frame_ms = np.array(c.run.timing.get("frame_ms", []), float)
    return {
        "orientation": Markup(plots.orientation(c)),
        "rates": Markup(plots.rates(c, from_s, to_s, [(t - half_s, t + half_s) for t in mid_s])),
        "errors": Markup(plots.errors(c)),
        "spectra": Markup(plots.spectra(c, 1 / period_s)),
        "frame_times": Markup(plots.frame_times(frame_ms, 1e3 * period_s)) if len(frame_ms) > 1 else None,
    }


def _mid_times_s(c: Comparison) -> NDArray[np.float64]:
    return np.asarray((c.run.sparse.stamp_ns - c.epoch_ns) * 1e-9, float)


def _busiest(c: Comparison, length_s: float) -> tuple[float, float]:
    """The stretch of this length with the most motion."""
    estimate = c.estimates[ESTIMATE]
    t = estimate.t_s
    if t[-1] - t[0] <= length_s:
        return float(t[0]), float(t[-1])
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(estimate.omega, axis=1)[1:] * np.diff(t))])
    starts = t[t <= t[-1] - length_s]
    gained = np.interp(starts + length_s, t, travelled) - travelled[: len(starts)]
    start = float(starts[int(np.argmax(gained))])
    return start, start + length_s


def _shutter(c: Comparison) -> list[tuple[str, str, str]]:
    """Name, value, and whether it was given or estimated."""
    estimated = c.run.timing.get("estimated", [])
    parameters = c.run.parameters
    rows = []
    for name, unit in (("exposure_s", "ms"), ("readout_s", "ms"), ("stamp_offset_s", "ms")):
        if name in parameters:
            rows.append((name, f"{1e3 * parameters[name]:.2f} {unit}", "estimated" if name in estimated else "given"))
    if "stamp_reference" in parameters:
        rows.append(("stamp_reference", str(parameters["stamp_reference"]), "given"))
    if "lever_arm" in parameters:
        arm = parameters["lever_arm"]
        rows.append(("lever_arm", f"{arm} m" if arm else "not known", "given" if arm else ""))
    return rows


def _depth(depth: dict[str, Any] | None) -> dict[str, str] | None:
    if depth is None or "note" in depth:
        return {"note": depth["note"]} if depth else None
    names = {"abs_rel": "AbsRel", "delta1": "δ1", "delta2": "δ2"}
    shown = {"valid pixels": f"{100 * depth['valid_share']:.0f} %"}
    for key, name in names.items():
        if key in depth:
            shown[name] = f"{depth[key]:.3f} (constant depth {depth['constant_' + key]:.3f})"
    if "within_1sigma" in depth:
        shown["within 1σ, 2σ"] = f"{100 * depth['within_1sigma']:.0f} %, {100 * depth['within_2sigma']:.0f} %"
    return shown
