"""Compiled TensorRT plans on disk. A plan that was not built for exactly this, or does not load, is built again.

A plan is executable code, so that only the user's own files are read, and only with the hash that was noted when they
were written. Nothing is ever read half-written.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import EngineError
from .interface import Shapes

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on."""

    onnx_sha256: str
    tensorrt: str
    gpu: str  # name and compute capability
    driver: str
    precision: str
    shapes: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def shapes_text(inputs: Shapes) -> str:
    """``image 1x3x128x128, camera 1x8``."""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in inputs.items())


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/perspblur/engines``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perspblur" / "engines"


class PlanCache:
    """A folder of plans with a note beside each."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def load_or_build(
        self, key: PlanKey, load: Callable[[bytes], Loaded | None], build: Callable[[], bytes]
    ) -> tuple[Loaded, bool]:
        """The loaded plan, and whether it had to be built. ``load`` returns None for a plan that it cannot use."""
        plan = self.read(key)
        if plan is not None:
            loaded = load(plan)
            if loaded is not None:
                return loaded, False
        self._check_writable()  # before minutes of compiling, not after
        plan = build()
        loaded = load(plan)
        if loaded is None:
            raise EngineError(f"TensorRT {key.tensorrt} does not load the plan that it has just built for {key.gpu}")
        self._write(key, plan)
        return loaded, True

    def read(self, key: PlanKey) -> bytes | None:
        """The plan as it was written for this key, or None."""
        path = self._path(key)
        try:
            note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if os.name == "posix" and path.stat().st_uid != os.getuid():
                return None
            plan = path.read_bytes()
        except (OSError, ValueError):
            return None
        if not isinstance(note, dict) or note.get("key") != asdict(key):
            return None
        return plan if note.get("sha256") == hashlib.sha256(plan).hexdigest() else None

    def _write(self, key: PlanKey, plan: bytes) -> None:
        """Plan and note, each whole or not at all."""
        path = self._path(key)
        note = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest()}
        _write_whole(path, plan)
        _write_whole(path.with_suffix(".json"), json.dumps(note, indent=1).encode())

    def _check_writable(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise EngineError(
                f"the plan cache {self.folder} cannot be written ({reason}); set XDG_CACHE_HOME"
            ) from None

    def _path(self, key: PlanKey) -> Path:
        return self.folder / f"{key.digest}.plan"


def _write_whole(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
