"""The report's figures as inline SVG. Colours are the page's own (CSS variables), so figures follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, FuncFormatter, NullLocator
from numpy.typing import NDArray
from scipy.signal import welch

from .. import so3
from .evaluate import ESTIMATE, INTERPOLATION, Comparison
from .metrics import RATE_STEP_S, Estimate, Motion

FloatArray = NDArray[np.float64]

AXES = ("x · tilt", "y · pan", "z · roll")
# stand-ins that matplotlib can handle; each becomes a CSS variable of the page
INK, FAINT, TRUTH, OURS, LINE, BAD = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--rule)",
    TRUTH: "var(--truth)",
    OURS: "var(--ours)",
    LINE: "var(--baseline)",
    BAD: "var(--bad)",
}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11.5,
    "svg.fonttype": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "path.simplify_threshold": 0.3,
}
_BROAD: Any = {"linewidth": 2.6, "alpha": 0.55}  # the truth, behind the estimate
_WIDTH_IN = 9.6
MAX_POINTS = 2500
MAX_BINS = 300


def orientation(c: Comparison) -> str:
    """Rotation vector relative to the first frame, degrees, per axis: estimate with its 2σ band, truth."""
    estimate, offset = c.estimates[ESTIMATE], c.offsets_s[ESTIMATE]
    true = np.degrees(so3.log(_relative(c.truth.rotation(estimate.t_s + offset), estimate)))
    own = np.degrees(so3.log(_relative(estimate.R, estimate)))
    true[~c.truth.covers(estimate.t_s + offset)] = np.nan
    figure, panels = _panels(3, 5.6)
    for axis, panel in enumerate(panels):
        for part in map(_thinned, _stretches(estimate)):
            t, degrees = estimate.t_s[part], _broken(own[part, axis])
            band = 2 * np.degrees(estimate.sd_rotation[part, axis])
            panel.fill_between(t, degrees - band, degrees + band, color=OURS, alpha=0.22, linewidth=0)
            first = part.start == 0  # only one stretch gets a place in the legend
            panel.plot(t, _broken(true[part, axis]), color=TRUTH, label="truth" if first else None, **_BROAD)
            panel.plot(t, degrees, color=OURS, label="perspblur, ±2σ" if first else None, linewidth=1.3)
        panel.set_ylabel(f"{AXES[axis]}  [°]")
    _finish(panels)
    return _svg(figure, "orientation")


def rates(c: Comparison, from_s: float, to_s: float, exposures: Iterable[tuple[float, float]]) -> str:
    """Angular rate per axis over a short stretch; shaded: when the shutter was open."""
    figure, panels = _panels(3, 5.6)
    truth, offset = c.truth, c.offsets_s[ESTIMATE]
    spans = [(a, b) for a, b in exposures if b > from_s and a < to_s]
    for axis, panel in enumerate(panels):
        for a, b in spans:
            panel.axvspan(max(a, from_s), min(b, to_s), color=FAINT, alpha=0.35, linewidth=0)
        t = np.arange(from_s, to_s, 0.001)
        t = t[truth.covers(t + offset)]
        panel.plot(t, truth.rate(t + offset)[:, axis], color=TRUTH, label="truth", **_BROAD)
        for name, colour, label in ((INTERPOLATION, LINE, "interpolated"), (ESTIMATE, OURS, "perspblur, ±2σ")):
            estimate = c.estimates[name]
            part = (estimate.t_s >= from_s) & (estimate.t_s <= to_s)
            t, w = estimate.t_s[part], estimate.omega[part, axis]
            if name == ESTIMATE:
                band = 2 * estimate.sd_omega[part, axis]
                panel.fill_between(t, w - band, w + band, color=OURS, alpha=0.18, linewidth=0)
            panel.plot(t, w, color=colour, label=label, linewidth=1.3 if name == ESTIMATE else 1.1)
        panel.set_ylabel(f"{AXES[axis]}  [rad/s]")
        panel.set_xlim(from_s, to_s)
        panel.grid(axis="x", visible=False)
    _finish(panels)
    return _svg(figure, "rates")


def errors(c: Comparison) -> str:
    """Mean rate error per bin of time, and the accumulated orientation error."""
    figure, panels = _panels(2, 4.2)
    for name, colour, label in ((INTERPOLATION, LINE, "interpolated"), (ESTIMATE, OURS, "perspblur")):
        estimate, offset = c.estimates[name], c.offsets_s[name]
        inside = c.truth.covers(estimate.t_s + offset)
        t = estimate.t_s[inside]
        w = np.linalg.norm(estimate.omega[inside] - c.truth.rate(t + offset), axis=1)
        grid, binned = _binned(t, w, max(0.1, (t[-1] - t[0]) / MAX_BINS))
        panels[0].step(grid, binned, where="mid", color=colour, label=label)
        part = _thinned(slice(0, len(t)))
        drift = _drift_mrad(estimate, c.truth, offset)[inside]
        panels[1].plot(t[part], drift[part], color=colour, label=label, linewidth=1.1)
    panels[0].set_ylabel("rate  [rad/s]")
    panels[1].set_ylabel("orientation  [mrad]")
    for panel in panels:
        panel.set_ylim(bottom=0)
    _finish(panels)
    return _svg(figure, "errors")


def spectra(c: Comparison, frame_rate_hz: float) -> str:
    """Power spectral density of the rate, summed over the axes, and of the error that is left."""
    estimate, offset = c.estimates[ESTIMATE], c.offsets_s[ESTIMATE]
    grid = np.arange(estimate.t_s[0], estimate.t_s[-1], RATE_STEP_S)
    grid = grid[c.truth.covers(grid + offset)]
    true = c.truth.rate(grid + offset)
    figure, (panel,) = _panels(1, 3.3)
    lines = [(true, TRUTH, "truth", 2.6, 0.55)]
    for name, colour, label in ((INTERPOLATION, LINE, "interpolated"), (ESTIMATE, OURS, "perspblur")):
        e = c.estimates[name]
        lines.append((_at(grid, e), colour, label, 1.3, 1.0))
    for values, colour, label, width, alpha in lines:
        f, density = _psd(values)
        panel.loglog(f, density, color=colour, label=label, linewidth=width, alpha=alpha)
    f, density = _psd(_at(grid, estimate) - true)
    panel.loglog(f, density, color=OURS, linestyle=(0, (2, 2)), linewidth=1.1, label="error of perspblur")
    peak = float(_psd(true)[1].max())
    panel.axvline(frame_rate_hz / 2, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    panel.text(1.03 * frame_rate_hz / 2, 2e-6 * peak, "half the frame rate", fontsize=10, color=INK)
    panel.set_xlabel("frequency  [Hz]")
    panel.set_ylabel("(rad/s)² / Hz")
    panel.set_ylim(1e-6 * peak, 3 * peak)
    panel.set_xlim(f[0], 100)
    panel.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
    panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    _legend(panel, 4)
    return _svg(figure, "spectra")


def frame_times(frame_ms: FloatArray, period_ms: float) -> str:
    """Wall time of every frame against the camera's period."""
    figure, (panel,) = _panels(1, 2.3)
    panel.plot(np.arange(len(frame_ms)), frame_ms, color=OURS, linewidth=1.0)
    panel.axhline(period_ms, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    panel.text(len(frame_ms), period_ms, "frame period", ha="right", va="bottom", fontsize=10, color=INK)
    panel.set_ylim(0, 1.15 * max(period_ms, float(np.percentile(frame_ms, 99))))
    panel.set_xlabel("frame")
    panel.set_ylabel("[ms]")
    return _svg(figure, "frame-times")


def _panels(rows: int, height_in: float) -> tuple[Figure, list[Axes]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(axes)


def _finish(panels: list[Axes]) -> None:
    panels[-1].set_xlabel("time  [s]")
    panels[0].figure.align_ylabels(panels)  # type: ignore[union-attr]
    _legend(panels[0], 4)


def _legend(panel: Axes, columns: int) -> None:
    panel.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=1.6,
        frameon=False,
        labelcolor=INK,
    )


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element that takes its colours from the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r'id="(figure|patch|axes|line2d|text|matplotlib|xtick|ytick|FillBetween|legend)[^"]*"', "", text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)


def _power_of_ten(value: float, _: int | None = None) -> str:
    exponent = round(float(np.log10(value)))
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _stretches(estimate: Estimate) -> list[slice]:
    starts = np.flatnonzero(np.diff(estimate.segment, prepend=-1))
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(estimate.segment)])]


def _thinned(part: slice) -> slice:
    """Of a long stretch, every n-th sample: more points than pixels only make the file heavy."""
    return slice(part.start, part.stop, max(1, (part.stop - part.start) // MAX_POINTS))


def _broken(degrees: FloatArray) -> FloatArray:
    """A curve that is interrupted where the rotation vector jumps by a turn."""
    out = degrees.copy()
    out[1:][np.abs(np.diff(degrees)) > 180] = np.nan
    return out


def _relative(R: FloatArray, estimate: Estimate) -> FloatArray:
    """Rotations relative to the mean over the first frame of each stretch."""
    out = np.empty_like(R)
    for part in _stretches(estimate):
        first_frame = estimate.frame[part] == estimate.frame[part.start]
        out[part] = so3.mean(R[part][first_frame]).T @ R[part]
    return out


def _drift_mrad(estimate: Estimate, truth: Motion, offset_s: float) -> FloatArray:
    true = _relative(truth.rotation(estimate.t_s + offset_s), estimate)
    return 1e3 * np.linalg.norm(so3.log(np.swapaxes(true, -1, -2) @ _relative(estimate.R, estimate)), axis=1)


def _binned(t: FloatArray, values: FloatArray, width_s: float) -> tuple[FloatArray, FloatArray]:
    bins = np.floor(t / width_s).astype(int)
    kept = np.unique(bins)
    return (kept + 0.5) * width_s, np.array([values[bins == b].mean() for b in kept])


def _at(grid: FloatArray, estimate: Estimate) -> FloatArray:
    return np.stack([np.interp(grid, estimate.t_s, estimate.omega[:, i]) for i in range(3)], axis=-1)


def _psd(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    f, density = welch(values, fs=1 / RATE_STEP_S, nperseg=min(len(values), 256), axis=0, detrend="constant")
    return f[1:], density[1:].sum(axis=1)
