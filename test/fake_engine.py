"""An engine in numpy whose graphs are small fixed functions, and a manifest for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from perspblur_ros.engine.interface import interface
from perspblur_ros.engine.manifest import FILE_NAME, FORMAT, Manifest, load_manifest

SIZES = {
    "image_px": 16,
    "patch_px": 8,
    "width": 3,
    "window_frames": 2,
    "clip_frames": 6,
    "head_px": 4,
    "samples": 5,
    "prior_inputs": 7,
    "prior_unknowns": 4,
    "prior_weights": 1,
}


def write_folder(folder: Path) -> dict:
    """A complete folder whose graphs are not ONNX; returns the manifest as written."""
    folder.mkdir(exist_ok=True)
    raw = {"format": FORMAT, "preset": "fake", "version": "0", "sizes": SIZES, "graphs": {}}
    for name, (inputs, outputs) in interface(SIZES).items():
        content = name.encode()
        (folder / f"{name}.onnx").write_bytes(content)
        raw["graphs"][name] = {
            "file": f"{name}.onnx",
            "sha256": hashlib.sha256(content).hexdigest(),
            "inputs": inputs,
            "outputs": outputs,
        }
    write_manifest(folder, raw)
    return raw


def write_manifest(folder: Path, raw: dict) -> None:
    (folder / FILE_NAME).write_text(json.dumps(raw), encoding="utf-8")


def fake_manifest(folder: Path) -> Manifest:
    write_folder(folder)
    return load_manifest(folder)


class FakeEngine:
    """Every graph mixes its inputs with fixed random matrices, so that each one and their order matter."""

    name = "numpy"

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.closed = False

    def run(self, graph, inputs):
        entry = self.manifest.graphs[graph]
        for name, shape in entry.inputs.items():
            assert inputs[name].shape == shape, name
            assert inputs[name].dtype == np.float32, name
        flat = np.concatenate([np.ravel(inputs[name]) for name in entry.inputs])
        outputs = {}
        for k, (name, shape) in enumerate(entry.outputs.items()):
            rng = np.random.default_rng([k, *graph.encode()])
            mix = rng.normal(size=(int(np.prod(shape)), len(flat))) / np.sqrt(len(flat))
            outputs[name] = np.tanh(mix @ flat).astype(np.float32).reshape(shape)
        return outputs

    def close(self):
        self.closed = True
