"""Depth on the rendered evaluation clips: tracks of the real tracker on rendered blur, no depth map given.

Wide views (at least WIDE_DEG across) apart from narrow ones, where the lever arm's parallax and a slightly larger turn
look alike; and a control with the pivot in the camera, where nothing can be measured.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..sim.evaluation_set import Recipe, render
from .accuracy import chosen_recipes
from .bags import BagReader
from .clips import write_simulated
from .evaluate import evaluate
from .replay import replay
from .writers import write_text

WIDE_DEG = 45.0
CONTROLS = 2  # of the split's clips
COLUMNS = {
    "clip": "name", "view °": "view_deg", "AbsRel": "abs_rel", "δ1": "delta1", "δ2": "delta2",
    "own median": "constant_abs_rel", "always 2 m": "fixed_abs_rel", "sd": "relative_sd",
    "in 1σ": "within_1sigma", "in 2σ": "within_2sigma", "rate": "rate", "sparse": "sparse",
}


def run_depth(
    split: str, data_dir: Path | None, out: Path, assignments: Sequence[str] = (), only: str = "",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Render, replay and compare the clips of a split; write depth.json and depth.md; return the table's rows."""
    data_dir, chosen = chosen_recipes(split, data_dir, only)
    jobs = [(seed, recipe, recipe.name) for seed, recipe in chosen]
    jobs += [
        (seed, replace(recipe, lever_arm_m=(0.0, 0.0, 0.0)), f"control_{recipe.name}")
        for seed, recipe in chosen[:CONTROLS]
    ]
    rows = []
    for k, (seed, recipe, name) in enumerate(jobs):
        if on_progress:
            on_progress(k, len(jobs), name)
        rows.append(_measured(seed, recipe, name, data_dir, out, assignments))
    rows += _means(rows)
    command = shlex.join(["perspblur", "accuracy", "--depth", "--split", split, *(f"--set={a}" for a in assignments)])
    heading = f"Split `{split}`, {len(chosen)} clips, lever arm known, no depth map given. `{command}`"
    content = {"split": split, "set": list(assignments), "rows": rows}
    write_text(out / "depth.json", json.dumps(content, indent=1) + "\n")
    write_text(out / "depth.md", depth_markdown(rows, heading))
    return rows


def depth_markdown(rows: Sequence[dict[str, Any]], heading: str) -> str:
    """The table: every clip, the means of wide and narrow views, the control."""
    lines = [heading, "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in COLUMNS.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _measured(
    seed: int, recipe: Recipe, name: str, data_dir: Path, out: Path, assignments: Sequence[str]
) -> dict[str, Any]:
    with TemporaryDirectory() as scratch:
        bag = Path(scratch) / name
        write_simulated(render(recipe, data_dir, seed), bag)
        replay(bag, out / name, assignments=assignments)
        numbers = evaluate(out / name, bag).metrics
        with BagReader(bag) as reader:
            camera = next(reader.frames()).camera
    found = numbers["depth"] or {}
    return {
        "name": name,
        "view_deg": 2 * math.degrees(math.atan(camera.width / 2 / camera.fx)),
        **{key: found.get(key) for key in (*list(COLUMNS.values())[2:-2], "maps")},
        "rate": numbers["methods"]["estimate"]["rate_error"],
        "sparse": numbers["sparse"]["abs_rel"],
    }


def _means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    clips = [row for row in rows if not row["name"].startswith("control_") and row["abs_rel"] is not None]
    groups = {
        "mean of wide views": [row for row in clips if row["view_deg"] >= WIDE_DEG],
        "mean of narrow views": [row for row in clips if row["view_deg"] < WIDE_DEG],
        "mean of all": clips,
    }
    keys = [key for key in COLUMNS.values() if key != "name"]
    return [
        {"name": name, **{key: float(np.mean([row[key] for row in members])) for key in keys}}
        for name, members in groups.items() if members
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.0f}" if value >= 10 else f"{value:.3f}"
