from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from matplotlib.image import imsave

from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.recorders.wandb import WandbRecorder, automatic_mode
from arcvae_cli.settings import Settings
from tests.recorders.made import STRINGS, pictures, plan, record, steps

KEY = "0123456789abcdef" * 3


def test_an_offline_run_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and texts are in W&B's file, the media beside it."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    run, images = tmp_path / "run", tmp_path / "run" / "images"
    images.mkdir(parents=True)
    for name in ("samples_epoch_1.png", "latent_space_pca.png"):
        imsave(images / name, pictures().samples[0])
    (images / "reconstructions_epoch_1.txt").write_text("1 of 2 exact\n")
    (run / "vae_best.pth").write_bytes(b"weights")
    recorder = WandbRecorder(run, "offline")
    recorder.start(plan(run="name", settings=Settings(log={"wandb_project": "ours"})))
    recorder.steps(steps(record(1)))
    recorder.epoch(record(1))
    recorder.pictures(1, pictures())
    document = {"checkpoint": "vae_best.pth", "reconstruction": {"exact": 0.25, "worst": [1, 2]}}
    recorder.evaluated(document, ["ok: reconstruction"], [images / "latent_space_pca.png"])
    recorder.artifacts({"vae_best": run / "vae_best.pth"})
    recorder.close(75)
    wandb.teardown()
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    expected = ["ours", "beta-vae-d3-b0.5-run-name", "train/beta", "eval/reconstruction/exact", "ok: reco", "vae_best-"]
    assert [text for text in expected if text.encode() not in file.read_bytes()] == []
    media = {path.name.partition("_")[0]: path for path in file.parent.glob("files/media/**/*.*")}
    assert media.keys() == {"samples", "latent", "reconstructions"}
    assert media["reconstructions"].read_text() == "<pre>1 of 2 exact\n</pre>"
    assert file.stem == f"run-{(run / 'wandb' / 'id').read_text()}"


@pytest.mark.parametrize(
    ("has", "offline", "logged"),
    [
        (0, False, [100, 200, 201, 300, 400, 401, 402, 500, 600, 601]),  # W&B was off so far
        (401, False, [401, 402, 500, 600, 601]),  # the row of the second epoch is missing
        (601, False, [601]),  # the third epoch was logged, and not saved
        (0, True, [100, 200, 201, 300, 400, 401, 402, 500, 600, 601]),  # each offline session has all rows
    ],
)
def test_a_resumed_run_has_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: int, offline: bool, logged: list[int]
) -> None:
    """`has`: the rows that W&B has by its own count."""
    import wandb

    run, records = MagicMock(step=has, offline=offline), [record(epoch) for epoch in (1, 2, 3)]
    init = MagicMock(return_value=run)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    kept = JsonlRecorder(tmp_path / "metrics.jsonl")
    for one in records[:2]:
        kept.steps(steps(one))
        kept.epoch(one)
    recorder = WandbRecorder(tmp_path, "online")
    recorder.start(plan(settings=STRINGS))
    recorder.start(plan(settings=STRINGS))  # of another process
    one, again = (call.kwargs["id"] for call in init.call_args_list)
    assert one == again and len(one) == 12
    recorder.resume(records[:2], 100)
    recorder.pictures(2, pictures())
    recorder.steps(steps(records[2]))
    recorder.epoch(records[2])
    recorder.close(75)
    rows = [call.args for call in run.log.call_args_list]
    assert [number for _, number in rows] == logged
    assert all(values["step"] == number // 4 and None not in values.values() for values, number in rows)
    run.finish.assert_called_once_with(exit_code=75)


@pytest.mark.parametrize(
    ("environment", "login", "mode"),
    [
        ({}, f"machine api.wandb.ai login user password {KEY}", "auto"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, f"machine api.wandb.ai login user password {KEY}", "off"),
        ({"WANDB_API_KEY": KEY}, "", "auto"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "offline"),
    ],
)
def test_the_automatic_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], login: str, mode: str
) -> None:
    (tmp_path / ".netrc").write_text(login)
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path), **environment})
    found, note = automatic_mode()
    assert found == mode and (note is not None) == (mode == "off")
