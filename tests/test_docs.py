"""Pages that are made by a script are what it would make now."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tomli_w

from arcvae_cli.presets import resolve
from arcvae_cli.schedules.feedback import Geco

DOCS = Path(__file__).parents[1] / "docs"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)  # where its dataclass looks for its names
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(DOCS.parent)
    return module("make_schedules", monkeypatch)


def test_a_block_is_replaced_by_the_output_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module("make_schedules", monkeypatch)
    build = module("build", monkeypatch)
    block = "<!-- run: printf 'a\\n\\nb  ' -->\n```text\n$ shown\n{}```\n"
    page = "```\nkept\n```\n" + block.format("old\n") + "between\n" + block.format("")
    assert build.rewritten(page) == "```\nkept\n```\n" + block.format("a\n\nb\n") + "between\n" + block.format(
        "a\n\nb\n"
    )
    with pytest.raises(SystemExit, match="exit code 3, bad"):
        build.rewritten("<!-- run: echo bad >&2; exit 3 -->\n```\n```\n")


def test_a_stale_page_and_a_stale_picture_are_found(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Path(shutil.copytree(script.PICTURES, tmp_path / "pictures"))
    now, page = script.points(), Path(shutil.copy(script.PAGE, tmp_path / "schedules.md"))
    text = page.read_text(encoding="utf-8")
    changes = {"PICTURES": pictures, "POINTS": pictures / "points.json", "PAGE": page}
    for name, value in {**changes, "page": lambda _: text, "points": lambda: now}.items():
        monkeypatch.setattr(script, name, value)
    assert list(script.stale(str)) == []
    page.write_text(text.replace("Bowman", "Someone"), encoding="utf-8")
    (pictures / "points.json").write_text(json.dumps({**now, "cosine": now["linear"]}))
    shutil.copy(pictures / "linear.png", pictures / "parabolic.png")
    (pictures / "geco.png").unlink()
    found = [Path(fault.split()[0]).name for fault in script.stale(str)]
    assert found == ["schedules.md", "cosine.png", "geco.png", "parabolic.png"]


def test_the_record_of_a_run_is_kept(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve("geco").settings
    schedule = settings.schedule
    assert isinstance(schedule, Geco)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(tomli_w.dumps(settings.table()))
    reached = 256 * schedule.tolerance * 1.01
    values = {"train/beta": 0.25, "train/kl": 30.123456, "train/loss_reconstruction": reached, "train/exact": 0.1}
    lines = [{"kind": "epoch", "epoch": epoch, "step": 9 * epoch, **values} for epoch in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(script, "RECORDED", tmp_path / "recorded")
    script.keep(run)
    kept = [json.loads(line) for line in (tmp_path / "recorded/geco/metrics.jsonl").read_text().splitlines()]
    assert (len(kept), kept[0]["train/kl"], "train/exact" in kept[0]) == (3, 30.12346, False)
    told = " ".join(script.section("geco", Geco, tmp_path).split())
    end = f"at the end {1.01 * schedule.tolerance:.4g} for {schedule.tolerance:.4g} at beta 0.25"
    assert f"A recorded run, means of each epoch: {end}, within 5 % of the target from epoch 1 on." in told
    assert (tmp_path / "geco.png").is_file()
