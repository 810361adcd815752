"""Pages that are made by a script are what it would make now."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path.append(str(DOCS))
import make_schedules  # type: ignore[import-not-found]  # noqa: E402

BUILD = runpy.run_path(str(DOCS / "build.py"))


def test_no_page_and_no_picture_of_a_schedule_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    assert list(make_schedules.stale(BUILD["rewritten"])) == []
    text = make_schedules.PAGE.read_text(encoding="utf-8")
    (tmp_path / "schedules.md").write_text(text.replace("Bowman", "Someone"), encoding="utf-8")
    (tmp_path / "points.json").write_text(json.dumps({**make_schedules.points(), "cosine": ""}))
    monkeypatch.setattr(make_schedules, "PAGE", tmp_path / "schedules.md")
    monkeypatch.setattr(make_schedules, "POINTS", tmp_path / "points.json")
    found = [Path(fault.split()[0]).name for fault in make_schedules.stale(BUILD["rewritten"])]
    assert found == ["schedules.md", "cosine.png"]
