"""Table 3 of the paper from `perspblur train ablation`: our small budgets, every seed, beside what the paper states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BagError
from .tables import number

FILE = "ablation.json"
PAPER_DEPTH = {  # its Table 3: δ1 of the depth, AbsRel and e1 of the trajectory
    "S = 6": (0.950, 0.067, 0.865),
    "S = 4": (0.946, 0.071, 0.862),
    "S = 8": (0.923, 0.078, 0.812),
    "no Cross-Window": (0.887, 0.091, 0.810),
}
PAPER_LAYERS = {"L = 3": (0.082, 0.783), "L = 4": (0.077, 0.845), "L = 5": (0.073, 0.863), "L = 6": (0.067, 0.865)}
DEPTH_COLUMNS = {  # every number of our rows that the table shows
    "all clips: score": "score",
    "pixels alone: AbsRel": "own",
    "pixels alone: δ1": "own_delta1",
    "with tracks: AbsRel": "fused",
    "with tracks: δ1": "fused_delta1",
}


def load(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    if not path.is_file():
        raise BagError(f"{path} does not exist; `perspblur train ablation --out {folder}` makes it")
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Depth networks, then decoders; every cell has a number per seed."""
    parts = [_depth([row for row in rows if row["kind"] == "depth"])]
    parts.append(_decoders([row for row in rows if row["kind"] != "depth"]))
    return "\n".join(part for part in parts if part)


def _depth(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    heads = ["parameters", *DEPTH_COLUMNS, "paper: δ1", "paper: AbsRel, e1 of its trajectory"]
    lines = ["| depth | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        of = [row for row in rows if row["name"] == name]
        delta1, abs_rel, e1 = PAPER_DEPTH[name]
        cells = [f"{of[0]['parameters']:,}".replace(",", " "), *(_seeds(of, key) for key in DEPTH_COLUMNS.values())]
        cells += [number(delta1), f"{number(abs_rel)}, {number(e1)}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    base = rows[0]
    given = {"constant": (None, base["constant"]), "tracks alone": (None, None, None, base["closed_form"])}
    for name, values in given.items():
        cells = ["", *(number(value) if value is not None else "" for value in values)]
        lines.append(f"| {name} | " + " | ".join(cells + [""] * (len(heads) - len(cells))) + " |")
    return "\n".join(lines) + "\n"


def _decoders(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["| decoder layers | parameters | pure: detail error | residual: detail error | paper: AbsRel, e1 |"]
    lines.append("|---" + "|---:" * 4 + "|")
    for name in dict.fromkeys(row["name"] for row in rows):
        of = {kind: [r for r in rows if (r["name"], r["kind"]) == (name, kind)] for kind in ("pure", "residual")}
        some = of["pure"] or of["residual"]
        paper = ", ".join(map(number, PAPER_LAYERS[name])) if name in PAPER_LAYERS else ""
        cells = [f"{some[0]['parameters']:,}".replace(",", " "), *(_seeds(of[kind], "decoded") for kind in of), paper]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, key in (("interpolation", "interpolation"), ("what it starts from", "guess")):
        found = [next((r for r in rows if r["kind"] == kind), {}) for kind in ("pure", "residual")]
        lines.append(f"| {name} | | " + " | ".join(number(row.get(key)) for row in found) + " | |")
    return "\n".join(lines) + "\n"


def _seeds(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return " / ".join(number(row[key]) for row in sorted(rows, key=lambda row: row["seed"]))
