"""The layers: lower never imports higher, components do not know each other, ROS and torch stay in their corner."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "perspblur_ros"
PACKAGE = Path(__file__).resolve().parents[1] / NAME

VOCABULARY, MATHEMATICS, COMPONENT, COMPOSITION, OFFLINE, ROS, CLI = range(7)
LAYERS = {
    **dict.fromkeys(("__init__", "camera", "config", "errors", "share", "types"), VOCABULARY),
    **dict.fromkeys(("bspline", "detail_basis", "displacement", "motion_prior", "so3", "spline_state"), MATHEMATICS),
    **dict.fromkeys(("calibration", "decoder_stage", "depth_stage", "pipeline"), COMPOSITION),
    **dict.fromkeys(("bench", "evaluation", "export", "model", "sim", "training"), OFFLINE),
    "ros": ROS,
    **dict.fromkeys(("__main__", "cli"), CLI),
}  # every other file or folder of the package is a component
WITH_TORCH = {"export", "model", "sim", "training"}
TORCH = {"onnx", "onnxscript", "safetensors", "torch", "transformers"}
WITH_RUNTIMES = {"engine"}
RUNTIMES = {"cuda", "onnxruntime", "tensorrt"}
ROS_ONLY = {"ament_index_python", "cv_bridge", "diagnostic_updater", "launch", "launch_ros", "message_filters", "rclpy"}


def layer(part: str) -> int:
    return LAYERS.get(part, COMPONENT)


def is_ros(library: str) -> bool:
    return library in ROS_ONLY or library.startswith(("tf2_", "rosidl")) or library.endswith(("_msgs", "_srvs"))


def imports(path: Path, root: Path) -> set[str]:
    """Dotted names of everything a file imports, at any depth; relative imports resolved."""
    package = [NAME, *path.relative_to(root).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def complaint(part: str, imported: str) -> str | None:
    """What is wrong with ``part`` (top-level module or folder) importing a dotted name, or None."""
    top, _, rest = imported.partition(".")
    if is_ros(top) and part != "ros":
        return f"{part} imports {top}, which only ros/ may"
    if top in TORCH and part not in WITH_TORCH:
        return f"{part} imports {top}, which only {', '.join(sorted(WITH_TORCH))} may"
    if top in RUNTIMES and part not in WITH_RUNTIMES:
        return f"{part} imports {top}, which only {', '.join(sorted(WITH_RUNTIMES))} may"
    if top != NAME or not rest:
        return None
    target = rest.split(".")[0]
    if target == part or target == "__version__":
        return None
    if layer(target) > layer(part):
        return f"{part} imports {target} of a higher layer"
    if layer(target) == layer(part) == COMPONENT:
        return f"component {part} imports component {target}"
    return None


def complaints(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        part = path.relative_to(root).parts[0].removesuffix(".py")
        found += [text for name in sorted(imports(path, root)) if (text := complaint(part, name))]
    return found


def test_the_package_keeps_its_layers():
    assert complaints(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("optics.py", "from .ring_buffer import RingBuffer", "component optics imports component ring_buffer"),
        ("optics.py", "def f():\n    from . import pipeline", "optics imports pipeline of a higher layer"),
        ("so3.py", f"import {NAME}.optics", "so3 imports optics of a higher layer"),
        ("pipeline.py", "from rclpy.node import Node", "pipeline imports rclpy, which only ros/ may"),
        ("evaluation/bags.py", "import sensor_msgs.msg", "evaluation imports sensor_msgs, which only ros/ may"),
        ("engine/ort.py", "import torch.nn", "engine imports torch, which only export, model, sim, training may"),
        ("depth_stage.py", "import onnxruntime", "depth_stage imports onnxruntime, which only engine may"),
        ("engine/ort.py", "from ..optics import cascade", "component engine imports component optics"),
        ("evaluation/bags.py", "from ..ros import node", "evaluation imports ros of a higher layer"),
    ],
)
def test_a_broken_rule_is_named(tmp_path, file, line, expected):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line, encoding="utf-8")
    assert complaints(tmp_path) == [expected]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("optics.py", "import numpy\nfrom . import so3\nfrom .types import Frame"),
        ("engine/ort.py", "from .manifest import Manifest\nfrom ..errors import EngineError"),
        ("ros/node.py", "import rclpy\nfrom ..pipeline import Pipeline"),
        ("sim/blur.py", "import torch"),
    ],
)
def test_what_the_rules_allow(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line, encoding="utf-8")
    assert complaints(tmp_path) == []


def test_importing_the_runtime_loads_neither_ros_nor_torch():
    runtime = [p.stem for p in PACKAGE.glob("*.py") if layer(p.stem) <= COMPOSITION and p.stem != "__init__"]
    program = f"import sys; from {NAME} import {', '.join(runtime)}; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name in TORCH | {"cuda", "tensorrt"} or is_ros(name)] == []
