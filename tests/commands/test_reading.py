"""What the commands that read a checkpoint share."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]


def test_each_call_writes_to_a_new_folder_and_warns_of_an_unfinished_run(
    arcvae: Run, tiny_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    command = ("sample", "--checkpoint", run, "--num", 2, "--device", "cpu")
    for name, state, shown in (("samples", "interrupted", "interrupted"), ("samples-2", "running", "killed")):
        (run / "status.json").write_text(json.dumps({"state": state, "epoch": 3, "epochs": 50}))
        result = arcvae(*command)
        assert "wrote samples.png, samples.npz, samples.json to" in result.stderr
        assert f"warning: run run: {shown} at epoch 3 of 50\n" in result.stderr
        assert len(list((run / name).iterdir())) == 3
    (run / "status.json").write_text(json.dumps({"state": "finished", "epoch": 50, "epochs": 50}))
    result = arcvae(*command, "--output", run / "samples")
    assert "warning" not in result.stderr and not (run / "samples-3").exists()


UNUSABLE = """
evaluate tiny_run --data nowhere.npz | nowhere.npz
evaluate tiny_run --checkpoint nowhere | no such file, run folder or run
evaluate tiny_run --data equations_npz | sums: contains derivations, the model needs grids
sample tiny_run --device gpu | use auto, cpu, cuda, cuda:1 or mps
sample tiny_run --data '' --prior gmm | --data: empty
sample tiny_run --condition colours=3 | condition colours=3: this model takes no conditions
sample tiny_run --no-budget | --budget/--no-budget:
sample hierarchy_run --prior gmm --condition colours=9 | --prior gmm: needs two examples, found 0
sample bare_run | the model was trained without a grammar
interpolate tiny_run --from 0 --to 40 | --to 40: the test split of some has examples 0 to 39
interpolate tiny_run --from 0 --to task:3 | the file has grids 0 to 2
interpolate equations_run --from 'x + y' --to x | not a string of the grammar: at character 5
interpolate equations_run --from x --to 'x + x + x + x + x' | takes 10 rules, the model has 9
"""


@pytest.mark.parametrize("line", UNUSABLE.strip().splitlines())
def test_unusable_input(line: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    words, message = line.split(" | ")
    task, out = tmp_path / "task.json", tmp_path / "out"
    task.write_text(json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[7]]}]}))
    command, run, *given = shlex.split(words.replace("task:", f"{task}:"))
    given = [str(request.getfixturevalue(one)) if one.endswith("_npz") else one for one in given]
    result = arcvae(command, "--checkpoint", request.getfixturevalue(run), "--output", out, *given)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == "" and not out.exists()
