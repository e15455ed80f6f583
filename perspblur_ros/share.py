"""Where the files beside the code lie: ``config/``, ``engines/``, ``launch/``.

In a checkout they stand next to the package; pip and colcon install them under ``<prefix>/share/perspblur_ros``,
with the prefix above the package's own folder (virtual environment, user site, colcon's install tree, ``--target``).
"""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def share_path(*parts: str) -> Path:
    """Path of an installed file or folder, e.g. ``share_path("engines", "tiny")``; ConfigError when it is missing."""
    for root in (_PACKAGE.parent, *(parent / "share" / _PACKAGE.name for parent in _PACKAGE.parents)):
        if (root / "package.xml").is_file():
            path = root.joinpath(*parts)
            if path.exists():
                return path
    raise ConfigError(f"{'/'.join(parts)} was not installed with {_PACKAGE.name}; reinstall the package")
