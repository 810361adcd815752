"""Pages that are made by a script are what it would make now."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import tomli_w

from arcvae_cli.presets import resolve
from arcvae_cli.schedules.feedback import Geco

DOCS = Path(__file__).parents[1] / "docs"
sys.path.append(str(DOCS))
import make_schedules  # type: ignore[import-not-found]  # noqa: E402

BUILD = runpy.run_path(str(DOCS / "build.py"))


def test_a_block_is_replaced_by_the_output_of_its_command() -> None:
    block = "<!-- run: printf 'a\\n\\nb  ' -->\n```text\n$ shown\n{}```\n"
    page = "```\nkept\n```\n" + block.format("old\n") + "between\n" + block.format("")
    made = block.format("a\n\nb\n")
    assert BUILD["rewritten"](page) == "```\nkept\n```\n" + made + "between\n" + made


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


def test_the_record_of_a_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve("geco").settings
    assert isinstance(settings.schedule, Geco)
    (tmp_path / "config.toml").write_text(tomli_w.dumps(settings.table()))
    reached = 256 * settings.schedule.tolerance * 1.01
    values = {"train/beta": 0.25, "train/kl": 30.123456, "train/loss_reconstruction": reached, "train/exact": 0.1}
    lines = [{"kind": "epoch", "epoch": epoch, "step": 9 * epoch, **values} for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(make_schedules, "RECORDED", tmp_path / "recorded")
    make_schedules.keep(tmp_path)
    text = " ".join(make_schedules.section("geco", Geco, tmp_path).split())
    assert f"at the end {1.01 * settings.schedule.tolerance:.4g} for {settings.schedule.tolerance:.4g} at" in text
    assert "within 5 % of the target from epoch 1 on." in text and (tmp_path / "geco.png").is_file()
