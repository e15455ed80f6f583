"""Accuracy on the rendered evaluation clips: every number of the README's tables from one command.

The clips are rendered from pictures and gyro recordings in the data folder (``sim.evaluation_set``); the depth map and
the lever arm are given to the pipeline, as on a robot with a depth camera and a known mount.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import BagError
from ..sim.evaluation_set import Recipe, recipes, render
from .bags import TRUTH_DEPTH_TOPIC
from .clips import write_simulated
from .evaluate import ESTIMATE, INTERPOLATION, SPLINE, evaluate
from .replay import replay
from .tables import accuracy_markdown
from .writers import write_text

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"  # beside a checkout


def run_split(
    split: str,
    data_dir: Path | None,
    out: Path,
    assignments: Sequence[str] = (),
    only: str = "",
    bags: Path | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Render, replay and compare the clips of a split; write accuracy.json and accuracy.md; return the table's rows.

    With ``bags`` the rendered bags are kept in that folder and those already there are used again.
    """
    data_dir, chosen = chosen_recipes(split, data_dir, only)
    rows = []
    for k, (seed, recipe) in enumerate(chosen):
        if on_progress:
            on_progress(k, len(chosen), recipe.name)
        with TemporaryDirectory() as scratch:
            bag = Path(bags or scratch) / recipe.name
            if not bag.exists():
                bag.parent.mkdir(parents=True, exist_ok=True)
                write_simulated(render(recipe, data_dir, seed), bag)
            rows.append(measure(recipe.name, bag, out / recipe.name, assignments))
    rows += means(rows)
    write_text(
        out / "accuracy.json", json.dumps({"split": split, "set": list(assignments), "rows": rows}, indent=1) + "\n"
    )
    command = shlex.join(["perspblur", "accuracy", "--split", split, *(f"--set={text}" for text in assignments)])
    heading = (
        f"Split `{split}`, {len(chosen)} clips; lever arm and depth map given; interp. = linear interpolation of the "
        f"tracked frame means, spline = the track spline alone, both from the same run. `{command}`"
    )
    write_text(out / "accuracy.md", accuracy_markdown(rows, heading))
    return rows


def chosen_recipes(split: str, data_dir: Path | None, only: str) -> tuple[Path, list[tuple[int, Recipe]]]:
    """The data folder, and the split's clips with ``only`` in their names, each with its seed; BagError without any."""
    folder = Path(data_dir or DATA)
    if not folder.is_dir():
        raise BagError(f"data folder {folder} does not exist")
    chosen = [(seed, recipe) for seed, recipe in enumerate(recipes(split)) if only in recipe.name]
    if not chosen:
        raise BagError(f"no clip of split {split} has '{only}' in its name")
    return folder, chosen


def measure(name: str, bag: Path, out: Path, assignments: Sequence[str] = ()) -> dict[str, Any]:
    """One bag through replay and evaluate; the run stays in ``out``."""
    replay(bag, out, assignments=[f"depth_topic={TRUTH_DEPTH_TOPIC}", *assignments])
    return row(name, evaluate(out, bag).metrics)


def row(name: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """The table's line of one clip."""
    found = numbers["methods"]
    own, line, spline = found[ESTIMATE], found[INTERPOLATION], found.get(SPLINE)
    return {
        "name": name,
        "blur_px": (numbers["blur_px"] or {}).get("mean"),
        "sparse_abs_rel": numbers["sparse"]["abs_rel"],
        "detail_interpolation": line["dense_30"]["detail_error"],
        "detail_spline": spline["dense_30"]["detail_error"] if spline else None,
        "detail": own["dense_30"]["detail_error"],
        "detail_ratio": own["dense_30"]["detail_error"] / line["dense_30"]["detail_error"],
        "rate_interpolation": line["rate_error"],
        "rate_spline": spline["rate_error"] if spline else None,
        "rate": own["rate_error"],
        "dense_15": own["dense_15"]["abs_rel"],
        "dense_30": own["dense_30"]["abs_rel"],
        "within_1sigma": numbers["calibration"]["rate"].get("within_1sigma"),
    }


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over the clips of each group (the part of the name before the first underscore) and over all."""
    groups = sorted({row["name"].split("_")[0] for row in rows})
    chosen = {f"mean {group}": [row for row in rows if row["name"].startswith(group + "_")] for group in groups}
    if len(groups) > 1:
        chosen["mean of all"] = list(rows)
    return [{"name": name, **_mean(members)} for name, members in chosen.items()]


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key in rows[0] if key != "name"]
    return {key: None if any(r[key] is None for r in rows) else float(np.mean([r[key] for r in rows])) for key in keys}
