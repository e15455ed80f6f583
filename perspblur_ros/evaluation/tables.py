"""The tables of the command line, and the Markdown ones of the README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .evaluate import ESTIMATE, INTERPOLATION, PERFECT, SPLINE, verdict

METHOD_NAMES = {
    ESTIMATE: "perspblur",
    SPLINE: "track spline",
    INTERPOLATION: "interpolation",
    PERFECT: "interpolation of true means",
}
COLUMNS = {
    "rate error": ("rate_error",),
    "detail error": ("dense_30", "detail_error"),
    "AbsRel (30)": ("dense_30", "abs_rel"),
    "e1": ("dense_30", "e1"),
    "e2": ("dense_30", "e2"),
    "AbsRel (15)": ("dense_15", "abs_rel"),
}
ACCURACY_COLUMNS = {  # a line break is a space in Markdown
    "clip": "name",
    "blur\npx": "blur_px",
    "sparse\nAbsRel": "sparse_abs_rel",
    "dense\n15": "dense_15",
    "dense\n30": "dense_30",
    "detail\ninterp.": "detail_interpolation",
    "detail\nspline": "detail_spline",
    "detail\nours": "detail",
    "ours /\ninterp.": "detail_ratio",
    "rate\ninterp.": "rate_interpolation",
    "rate\nspline": "rate_spline",
    "rate\nours": "rate",
    "in 1σ": "within_1sigma",
}
TERMINAL_KEYS = (
    *("blur_px", "sparse_abs_rel", "detail_interpolation", "detail", "detail_ratio"),
    *("rate_interpolation", "rate", "within_1sigma"),
)


def number(value: Any, digits: int = 3) -> str:
    """A metric for people; a dash where there is none."""
    if isinstance(value, str):
        return value
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def methods(numbers: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and metrics of every method, ours first, then the others from best known to least."""
    found = numbers["methods"]
    order = [name for name in METHOD_NAMES if name in found]
    order += sorted(name for name in found if name not in METHOD_NAMES)
    return [(METHOD_NAMES.get(name, name), found[name]) for name in order]


def cells(method: dict[str, Any]) -> list[str]:
    """The method's row under ``COLUMNS``."""
    row = []
    for path in COLUMNS.values():
        value: Any = method
        for key in path:
            value = value[key]
        row.append(number(value))
    return row


def method_table(numbers: dict[str, Any]) -> Table:
    """What ``evaluate`` prints."""
    truth, sparse = numbers["truth"], numbers["sparse"]
    headline, sentence = verdict(numbers)
    caption = [sentence, f"Sparse AbsRel {number(sparse['abs_rel'])} over {sparse['frames']} frames."]
    offset_s = truth["time_offset_s"][ESTIMATE]
    applied = "taken off" if truth["offset_applied"] else "not applied: the truth shares the camera's clock"
    caption.append(f"Time offset to {truth['topic']}: {1e3 * offset_s:+.1f} ms, {applied}.")
    table = Table(title=headline, caption="\n".join(caption), box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for name, method in methods(numbers):
        table.add_row(name, *cells(method), style="bold" if name == METHOD_NAMES[ESTIMATE] else None)
    return table


def accuracy_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What ``accuracy`` prints: the most telling columns, one line per clip, the means at the end."""
    table = Table(
        title="Error against the truth; baselines from the same run",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    for column, key in ACCURACY_COLUMNS.items():
        if key == "name":
            table.add_column(column, no_wrap=True, max_width=17)
        elif key in TERMINAL_KEYS:
            table.add_column(column, justify="right", no_wrap=True, min_width=max(map(len, column.split("\n"))))
    for row in rows:
        cells = [_accuracy_cell(row, key) for key in ACCURACY_COLUMNS.values() if key in TERMINAL_KEYS]
        table.add_row(row["name"], *cells, style="bold" if row["name"].startswith("mean") else None)
    return table


def accuracy_markdown(rows: Sequence[dict[str, Any]], heading: str) -> str:
    """The same as Markdown for the README."""
    columns = [column.replace("\n", " ") for column in ACCURACY_COLUMNS]
    lines = [heading, "", "| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    keys = ACCURACY_COLUMNS.values()
    lines += ["| " + " | ".join(_accuracy_cell(row, key) for key in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def bench_table(result: dict[str, Any]) -> Table:
    """What ``bench`` prints."""
    speed, memory = result["speed"], result["memory_mb"]
    first, last = result["frame_ms_first_quarter"], result["frame_ms_last_quarter"]
    stream, machine = result["stream"], result["machine"]
    caption = [
        f"{machine['cpu']}, {machine['cores']} cores; {stream['size']}, {stream['frames']} frames; "
        f"{speed['cpu_ms_per_frame']:.1f} CPU-ms per frame, whole process.",
        f"Median frame {first:.1f} ms in the first quarter, {last:.1f} ms in the last; "
        f"memory {memory['first']:.0f} MB after warm-up, {memory['last']:.0f} MB at the end.",
    ]
    title = f"{speed['fps']:.1f} frames/s, {speed['real_time_ratio']:.2f} × real time at {stream['fps']:g} fps"
    table = Table(title=title, min_width=76, caption="\n".join(caption))
    table.add_column("stage")
    for column in ("p50 ms", "p95 ms", "p99 ms", "mean ms"):
        table.add_column(column, justify="right")
    for stage, ms in result["stages_ms"].items():
        table.add_row(stage, *(f"{ms[key]:.2f}" for key in ("p50", "p95", "p99", "mean")))
    return table


def network_table(result: dict[str, Any]) -> Table:
    """What ``bench --network`` prints."""
    network, machine = result["network"], result["machine"]
    stream, rerun = result["stream_ms_per_frame"], result["rerun_ms_per_frame"]
    caption = [
        f"{machine['cpu']}, {network['engine']}, {network['threads']} threads, load {machine['load']}.",
        f"From the medians, a frame of the stream takes {stream:.2f} ms, its clip run again {rerun:.1f} ms, "
        f"{rerun / stream:.1f} times as much; {result['cpu_ms_per_frame']:.2f} CPU-ms per frame.",
        f"Median frame {result['frame_ms_first_quarter']:.2f} ms in the first quarter, "
        f"{result['frame_ms_last_quarter']:.2f} ms in the last.",
    ]
    table = Table(title=f"network {network['preset']}", min_width=76, caption="\n".join(caption))
    table.add_column("graph")
    for column in ("p50 ms", "p95 ms", "p99 ms", "mean ms"):
        table.add_column(column, justify="right")
    for graph, ms in result["graphs_ms"].items():
        table.add_row(graph, *(f"{ms[key]:.2f}" for key in ("p50", "p95", "p99", "mean")))
    return table


def _accuracy_cell(row: dict[str, Any], key: str) -> str:
    return number(row[key], 1 if key == "blur_px" else 3)
