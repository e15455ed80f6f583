"""docs/faults.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TEST = Path(__file__).parent
PAGE = TEST.parent / "docs" / "faults.md"


def test_every_named_test_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    defined = {name for path in TEST.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert named - defined == set()


def test_every_required_row_is_there():
    rows = {int(n) for n in re.findall(r"(?m)^\| (\d+) \|", PAGE.read_text(encoding="utf-8"))}
    assert rows == {*range(1, 27), *range(28, 37), 38}
