"""Pages that are made by a script are what it would make now."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli_w
from matplotlib.figure import Figure

from arcvae_cli.presets import resolve
from arcvae_cli.schedules.feedback import Geco

SCRIPT = Path(__file__).parents[1] / "docs" / "make_schedules.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_schedules", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where its dataclass looks for its names
    monkeypatch.chdir(SCRIPT.parents[1])
    spec.loader.exec_module(module)
    savefig = Figure.savefig

    def without_drawing(
        figure: Figure, *arguments: Any, **options: Any
    ) -> None:  # only the text in the PNG is compared
        figure.clear()
        figure.set_size_inches(0.1, 0.1)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", without_drawing)
    return module


def test_a_stale_page_and_a_stale_picture_are_found(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(script.stale()) == [], "the page as it is: run `make docs`"
    pictures = Path(shutil.copytree(script.PICTURES, tmp_path / "pictures"))
    page = Path(shutil.copy(script.PAGE, tmp_path / "schedules.md"))

    def made(folder: Path, text: str = page.read_text(encoding="utf-8"), source: Path = script.PICTURES) -> str:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return text

    for name, value in {"PICTURES": pictures, "PAGE": page, "page": made}.items():
        monkeypatch.setattr(script, name, value)
    page.write_text(page.read_text(encoding="utf-8").replace("Bowman", "Someone"), encoding="utf-8")
    shutil.copy(pictures / "linear.png", pictures / "cosine.png")
    shutil.copy(pictures / "linear.png", pictures / "parabolic.png")
    (pictures / "geco.png").unlink()
    found = [Path(fault.split()[0]).name for fault in script.stale()]
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
    assert script.points(tmp_path / "geco.png") is not None
