"""The folder of an exported network: graphs with hashes, sizes and shapes. What does not fit is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EngineError
from .interface import OPTIONAL, REQUIRED, Shapes, interface

FORMAT = 1
FILE_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1_000_000


@dataclass(frozen=True)
class Graph:
    """One ONNX file. ``probe``: mean and rms of each output on ``probe.probe_inputs``, as measured at export."""

    path: Path
    sha256: str
    inputs: Shapes
    outputs: Shapes
    probe: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A checked folder."""

    folder: Path
    preset: str
    version: str  # of the package that exported it
    precision: str  # of the matrix products: float32, float16 or bfloat16
    sizes: Mapping[str, Any]
    graphs: Mapping[str, Graph]
    training: Mapping[str, Any]
    data: tuple[Mapping[str, str], ...]  # name, source and licence of what it was trained on


def load_manifest(folder: Path) -> Manifest:
    """Read and check a folder; EngineError with one sentence for whatever does not fit."""
    raw = _read(folder)
    if raw.get("format") != FORMAT:
        raise EngineError(f"{folder / FILE_NAME} has format {raw.get('format')!r:.40}, this version reads {FORMAT}")
    try:
        sizes, entries = dict(raw["sizes"]), dict(raw["graphs"])
        expected = interface(sizes)
        manifest = Manifest(
            folder,
            str(raw["preset"]),
            str(raw["version"]),
            str(raw.get("precision", "float32")),
            sizes,
            {name: _graph(folder, name, entry, expected[name]) for name, entry in entries.items() if name in expected},
            dict(raw.get("training", {})),
            tuple(raw.get("data", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__} {error}"[:120]
        raise EngineError(f"{folder / FILE_NAME} is incomplete or malformed: {reason}") from None
    if unknown := sorted(set(entries) - {*REQUIRED, *OPTIONAL}):
        raise EngineError(f"{folder / FILE_NAME} names unknown graphs: {', '.join(unknown)[:80]}")
    if missing := [name for name in REQUIRED if name not in manifest.graphs]:
        raise EngineError(f"{folder / FILE_NAME} lacks the graph {', '.join(missing)}")
    return manifest


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE_NAME
    if not path.is_file():
        raise EngineError(f"{folder} holds no exported network: {FILE_NAME} is missing")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise EngineError(f"{path} is larger than 1 MB")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path} is not JSON: {str(error)[:80]}") from None
    if not isinstance(raw, dict):
        raise EngineError(f"{path} is not a table")
    return raw


def _graph(folder: Path, name: str, entry: Mapping[str, Any], expected: tuple[Shapes, Shapes]) -> Graph:
    path = folder / entry["file"]
    if path.name != entry["file"]:
        raise EngineError(f"{folder / FILE_NAME}: the file of graph {name} is not a plain name: {entry['file']!r:.60}")
    if not path.is_file():
        raise EngineError(f"{path} is missing")
    inputs, outputs = _shapes(entry["inputs"]), _shapes(entry["outputs"])
    for kind, stated, wanted in (("inputs", inputs, expected[0]), ("outputs", outputs, expected[1])):
        if stated != wanted:
            raise EngineError(f"{folder / FILE_NAME}: the {kind} of {name} are {stated}, its sizes ask for {wanted}")
    sha256 = file_sha256(path)
    if sha256 != entry["sha256"]:
        raise EngineError(f"{path} is not the file that was exported: its SHA-256 begins {sha256[:12]}")
    probe = {key: (float(mean), float(rms)) for key, (mean, rms) in entry.get("probe", {}).items()}
    return Graph(path, sha256, inputs, outputs, probe)


def _shapes(stated: Mapping[str, Any]) -> Shapes:
    return {str(name): tuple(int(size) for size in shape) for name, shape in stated.items()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
