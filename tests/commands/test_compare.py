from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner, Result

from arcvae_cli import folders
from arcvae_cli.cli import app
from arcvae_cli.presets import resolve, set_layer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
RUNS = {"low": (0.02, 40.0, 100.0), "mid": (0.1, 25.0, 104.0), "high": (0.5, 15.0, 112.0), "mid-1": (0.1, 30.0, 105.0)}
SCRIPT = """<script>heads.find(head => head.textContent === "ELBO").click(); for (const [key, value] of Object.entries({
  order: rows.map(row => row.textContent.split("finished")[0].replace("front", "").slice(1).trim()),
  small: [...document.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().width < 300).length,
  wide: document.documentElement.scrollWidth - innerWidth,
})) document.body.dataset[key] = value</script>"""


def arcvae(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def write(runs: Path, name: str, kl: float, nats: float, *given: str, judged: bool = True, by: float = 1.0) -> None:
    """A run of three epochs, evaluated at its second; `by`: the positions of its mean reconstruction."""
    run = folders.create(runs, name, "x", resolve("quickstart", set_layer(["train.epochs=3", *given])).settings)
    spectrum: dict[str, Any] = {"kl_nats": [kl - 0.01, 0.01], "active_dims": 1}
    with (run.path / "metrics.jsonl").open("w") as file:
        for epoch in (1, 2, 3):
            logged = {"val/kl": kl + epoch, "val/loss_reconstruction": (nats + epoch) / by, "train/beta": 0.1 * epoch}
            logged |= {"val/pixel_accuracy": 0.8 + epoch / 100, "val/kl_per_dim": spectrum["kl_nats"]}
            file.write(json.dumps({"kind": "epoch", "epoch": epoch, **logged, "val/active_dims": 1}) + "\n")
    elbo = {"kl_nats": kl, "reconstruction_nats": nats, "positions": 256.0}
    verdict = {"summary": "<alive>", "findings": [{"name": "accuracy", "ok": nats < 105}]}
    report = {
        "epoch": 2,
        "elbo": elbo,
        "levels": {"z": spectrum},
        "verdict": verdict,
        "prior_samples": {"coverage": kl},
    }
    if judged:
        (run.path / "metrics.json").write_text(json.dumps(report))
        run.write_status("finished", judged=True)
    run.release()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "runs"
    for seed, (name, (beta, kl, nats)) in enumerate(RUNS.items()):
        write(folder, name, kl, nats, f"schedule.max_beta={beta}", f"train.seed={seed // 3}")
    return folder


def compared(runs: Path, *arguments: Any) -> dict[str, Any]:
    """The document of `--json`, its rows by name."""
    done = arcvae("compare", *arguments, "--runs-dir", runs, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    return {**document, "rows": {row["name"]: row for row in document["rows"]}}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take a second."""
    monkeypatch.setattr("arcvae_cli.render.compare.save", lambda *arguments: [])


def test_runs_are_drawn_in_their_order_with_the_front_of_rate_and_distortion(runs: Path, tmp_path: Path) -> None:
    found = compared(runs, "--csv", tmp_path / "new" / "table.csv")
    rows = found["rows"]
    assert list(rows) == ["high", "mid", "mid-1", "low"] and found["differ"] == ["schedule.max_beta", "train.seed"]
    assert [name for name, row in rows.items() if row["front"]] == ["high", "mid", "low"]
    values = {"beta": 0.3, "kl": 25.0, "reconstruction": 104.0, "elbo": -129.0, "accuracy": 0.82, "active": 1}
    assert {name: rows["mid"][name] for name in values} == pytest.approx(values)
    assert [row["verdict"] for row in rows.values()] == ["1 missed", "ok", "1 missed", "ok"]
    table = list(csv.DictReader((tmp_path / "new" / "table.csv").read_text().splitlines()))
    assert [(row["name"], float(row["elbo"])) for row in table] == [(name, -sum(RUNS[name][1:])) for name in rows]
    assert found["files"][0] == str(runs / "comparison.png") and imread(found["files"][0]).std() > 0.05


@pytest.mark.usefixtures("undrawn")
def test_any_metric_or_setting_orders_and_seeds_are_put_together(runs: Path) -> None:
    for metric, order in {"kl": "high mid", "coverage": "low mid-1", "schedule.max_beta": "low mid"}.items():
        key = metric.replace("coverage", "prior_samples.coverage")
        assert list(compared(runs, "--sort", key)["rows"])[:2] == order.split()
    grouped = compared(runs, "--group", "mid*", "high")["rows"]["mid (2 seeds)"]
    assert grouped["kl"] == 27.5 and grouped["kl_sd"] == pytest.approx(stdev([25.0, 30.0]))
    assert grouped["verdict"] == "0-1 missed"


@pytest.mark.usefixtures("undrawn")
def test_runs_without_evaluation_of_other_data_or_loss_are_compared_with_a_note(tmp_path: Path) -> None:
    write(tmp_path, "killed", 20.0, 100.0, judged=False)
    write(tmp_path, "mean", 20.0, 100.0, "objective.reduction=mean", "data.name=shapes", by=256.0)
    write(tmp_path, "focal", 20.0, 100.0, "objective.reconstruction=focal")
    folders.create(tmp_path, "begun", "x", resolve("quickstart").settings).release()
    found = compared(tmp_path, "--html", tmp_path / "page.html")
    rows, notes = found["rows"], " ".join(found["notes"])
    assert rows["killed"]["state"] == "killed" and rows["killed"]["elbo"] == -(23.0 + 103.0)
    assert rows["mean"]["beta"] == pytest.approx(0.3 * 256)
    curves = rows["mean"]["runs"][0]["curves"]
    assert [epoch["reconstruction"] for epoch in curves] == pytest.approx([101.0, 102.0, 103.0])
    assert rows["focal"]["beta"] is None and rows["focal"]["elbo"] == -120.0
    assert rows["begun"]["elbo"] is None and [*rows][-1] == "begun"
    assert rows["mean"]["front"] and rows["focal"]["front"] and rows["mean"]["data"] != rows["focal"]["data"]
    assert "data.name" in notes and "killed (killed)" in notes


@pytest.mark.usefixtures("undrawn")
def test_runs_are_named_by_pattern_folder_or_link(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    several = {"mid*": 2, "latest": 1, str(runs): 4, "runs/mi?": 1}
    assert {text: len(compared(runs, text)["rows"]) for text in several} == several
    assert len(compared(runs, *runs.iterdir(), "low")["rows"]) == 4  # as a shell expands runs/*: with pictures
    broken = tmp_path / "broken"
    write(broken, "whole", 20.0, 100.0)
    write(broken, "torn", 20.0, 100.0)
    (broken / "torn" / "metrics.json").write_text('{"elbo": ')
    assert list(compared(broken)["rows"]) == ["whole"]
    given = [
        "nope",
        "no*",
        broken / "torn",
        "low --sort coverag",
        f"low --html {tmp_path}",
        "low --output /dev/null/x/y",
    ]
    wanted = ["no such run", "no such run", "cannot be read", "prior_samples.coverage", "a folder", "--output"]
    for arguments, words in zip(given, wanted, strict=True):
        done = arcvae("compare", *str(arguments).split(), "--runs-dir", runs)
        assert done.exit_code == 2 and words in done.stderr and done.stdout == "", arguments


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.usefixtures("undrawn")
def test_the_page_is_whole_sorts_and_fits_a_phone(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert arcvae("compare", "--runs-dir", runs, "--html", page).exit_code == 0
    text = page.read_text()
    assert "&lt;alive&gt;" in text and not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text)
    page.write_text(text.replace("</body>", f"{SCRIPT}</body>"))
    shot, flags = tmp_path / "shot.png", ["--headless", "--no-sandbox", "--window-size=500,1500", "--hide-scrollbars"]
    dark = ["--blink-settings=preferredColorScheme=0", f"--screenshot={shot}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, *dark, page.as_uri()], capture_output=True, text=True, timeout=120)
    data = dict(re.findall(r'data-(order|small|wide)="([^"]*)"', done.stdout))
    assert data == {"order": "low,mid-1,mid,high", "small": "0", "wide": "0"}, done.stderr
    pixels = imread(shot)[..., :3]
    assert pixels[0, 0].max() < 0.2 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
