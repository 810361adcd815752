from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from matplotlib.image import imsave

from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.recorders.wandb import WandbRecorder, automatic_mode
from tests.recorders.made import STRINGS, pictures, plan, record, steps

KEY = "0123456789abcdef" * 3


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
    (tmp_path / "images").mkdir()
    imsave(tmp_path / "images" / "samples_epoch_2.png", pictures().samples[0])
    recorder.pictures(2, pictures())
    recorder.steps(steps(records[2]))
    recorder.epoch(records[2])
    recorder.close(75)
    rows = [call.args for call in run.log.call_args_list]
    assert [number for _, number in rows] == logged
    shown = [number for values, number in rows if isinstance(values.get("images/samples"), wandb.Image)]
    assert shown == [number for number in logged if number == 402]
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
