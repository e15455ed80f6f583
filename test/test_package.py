"""What packaging must keep true: one version, every installed file found, no dead extras."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import perspblur_ros
from perspblur_ros import share
from perspblur_ros.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("file", "pattern"), [("package.xml", r"<version>(.+)</version>"), ("CITATION.cff", r"(?m)^version: (.+)$")]
)
def test_one_version_everywhere(file, pattern):
    assert re.search(pattern, (ROOT / file).read_text(encoding="utf-8")).group(1) == perspblur_ros.__version__


def test_shared_files_are_found_in_a_checkout():
    assert share.share_path("package.xml") == ROOT / "package.xml"


@pytest.mark.parametrize("library", ["lib/python3.12/site-packages", "lib/python3/dist-packages", "."])
def test_shared_files_are_found_in_an_installation(tmp_path, monkeypatch, library):
    monkeypatch.setattr(share, "_PACKAGE", (tmp_path / library / "perspblur_ros").resolve())
    folder = tmp_path / "share" / "perspblur_ros"
    folder.mkdir(parents=True)
    (folder / "package.xml").touch()
    assert share.share_path("package.xml") == folder / "package.xml"


def test_a_missing_shared_file_is_named():
    with pytest.raises(ConfigError, match="engines/huge was not installed"):
        share.share_path("engines", "huge")
