from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from arcvae_cli.grammar import Rules
from arcvae_cli.presets import flag_layer, resolve
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.recorders.wandb import WandbRecorder, automatic_mode, html_table, run_id, run_name
from arcvae_cli.records import EpochRecord, Pictures, Plan, StepRecord
from arcvae_cli.settings import Settings

MakePlan, MakeRecord = Callable[..., Plan], Callable[..., EpochRecord]

KEY = "0123456789abcdef" * 3
FIRST_LINES = """
import sys, time; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import conftest
from arcvae_cli.console import Console
from arcvae_cli.recorders import background
from arcvae_cli.recorders.external import external_recorders
from arcvae_cli.records import StepRecord
from arcvae_cli.runs import RunFolder
from arcvae_cli.settings import Settings
folder = RunFolder(Path(sys.argv[2]))
"""


def python(script: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
    """A script in a process, and a group, of its own; warnings are errors, W&B's variables are ours alone."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FIRST_LINES + script, str(Path(__file__).parent), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ours, **environment},
        start_new_session=True,
    )


# ---------------------------------------------------------------------------------------- a run offline, read back


def wandb_records(file: Path) -> list[Any]:
    """The records of a `.wandb` file: a LevelDB log of protobuf messages behind 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    raw, block = file.read_bytes(), 32768
    assert struct.unpack("<4sHB", raw[:7]) == (b":W&B", 0xBEE1, 0)
    found, message, at = [], b"", 7
    while at + 7 <= len(raw):
        if block - at % block < 7:  # no header fits into the rest of a block
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])  # 1 whole, 2 first, 3 middle, 4 last
        message = raw[at + 7 : at + 7 + length] if kind in (1, 2) else message + raw[at + 7 : at + 7 + length]
        at += 7 + length
        if not kind or at > len(raw):  # cut short
            break
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record())
            found[-1].ParseFromString(message)
    return found


def rows(records: list[Any]) -> list[dict[str, Any]]:
    """The rows of the history, W&B's own columns left out."""
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                if not last.startswith("_") or outer:
                    (row.setdefault(outer[0], {}) if outer else row)[last] = json.loads(item.value_json)
            found.append(row)
    return found


@dataclass(frozen=True)
class Offline:
    folder: Path
    sessions: list[list[Any]]  # the records of each
    printed: tuple[str, str]
    seconds_after: float  # from the interrupt to the end of the process

    def only(self, kind: str, session: int = 0) -> Any:
        (found,) = (getattr(r, kind) for r in self.sessions[session] if r.WhichOneof("record_type") == kind)
        return found


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    """Two sessions of one run folder in one process, the second of derivations and interrupted as by Ctrl-C."""
    script = """
import signal
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
settings = Settings(log={"wandb": "offline", "wandb_project": "ours", "wandb_entity": "we", "wandb_tags": ["a", "b"]})
for session in (1, 2):
    strings = session == 2
    (recorder,) = external_recorders(settings, folder, Console(), conftest.rules() if strings else None)
    recorder.start(conftest.plan(run="name"))
    for epoch in (1, 2) if session == 1 else (3,):
        record = conftest.record(epoch, best=epoch == 1)
        recorder.steps([StepRecord(epoch - 0.5, epoch * 50 - 25, {"z": 0.02}, record.train, "pixel")])
        recorder.epoch(record)
    recorder.pictures(epoch, conftest.derivations() if strings else conftest.pictures())
    if session == 2:
        print("ready", flush=True)
        while not stopped: time.sleep(0.01)
    recorder.close(75 if session == 2 else 0)
"""
    folder = tmp_path_factory.mktemp("runs") / "name"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/vae_best.pth", "checkpoints/last.pth", "config.toml"):
        (folder / name).write_text(name)
    process = python(script, folder, "--password=hunter2", WANDB_API_KEY=KEY)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate(timeout=60)[1]
    os.killpg(process.pid, signal.SIGINT)  # all of the group, as a terminal does
    interrupted = time.monotonic()
    said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    return Offline(folder, [wandb_records(file) for file in files], said, time.monotonic() - interrupted)


def test_the_run_and_its_sessions(offline: Offline) -> None:
    """Nothing is printed, an interrupt of the group does not lose it, and two sessions in a folder are one run."""
    assert offline.printed == ("", "") and offline.seconds_after < 10
    run = offline.only("run")
    assert (run.entity, run.project, run.display_name) == ("we", "ours", "beta-vae-d3-b0.5-run-name")
    assert list(run.tags) == ["a", "b"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["model"] == Settings().table()["model"] and config["run"] == "name"
    assert {offline.only("run", i).run_id for i in (0, 1)} == {(offline.folder / "wandb" / "id").read_text()}
    assert [row["step"] for row in rows(offline.sessions[1])] == [125, 150, 150]
    assert [offline.only("exit", session).exit_code for session in (0, 1)] == [0, 75]
    kinds = [{record.WhichOneof("record_type") for record in session} for session in offline.sessions]
    assert ["preempting" in session for session in kinds] == [False, True]


def test_rows_have_the_names_of_the_metrics_and_their_step(offline: Offline, make_record: MakeRecord) -> None:
    found = rows(offline.sessions[0])
    assert [(row["step"], row["epoch"]) for row in found] == [(25, 0.5), (50, 1), (75, 1.5), (100, 2), (100, 2)]
    metrics = make_record(1, best=True).metrics()
    assert set(found[1]) == set(metrics)
    assert found[1].pop("val/kl_per_dim")["_type"] == "histogram"
    del metrics["val/kl_per_dim"]
    assert found[1] == pytest.approx(metrics)
    assert found[0]["train/beta"] == 0.02 and found[0]["train/kl_per_dim/dim_1"] == 2.0
    axes = {r.metric.glob_name: r.metric for r in offline.sessions[0] if r.WhichOneof("record_type") == "metric"}
    assert axes["*"].step_metric == "step"


def test_images_are_kept(offline: Offline) -> None:
    images = rows(offline.sessions[0])[-1]
    assert {name for name in images if name.startswith("images/")} == {
        "images/reconstructions",
        "images/samples",
        "images/kl_maps",
    }
    for name in ("images/reconstructions", "images/kl_maps"):
        assert images[name]["_type"] == "image-file"
        (file,) = offline.folder.glob(f"wandb/offline-run-*/files/{images[name]['path']}")
        assert file.read_bytes()[:4] == b"\x89PNG"
    assert re.fullmatch(r".* of local: 0 \(black\) to \S+ nats", images["images/kl_maps"]["caption"])


def test_strings_are_kept_as_tables(offline: Offline) -> None:
    row = rows(offline.sessions[1])[-1]
    tables = {}
    for name in ("strings/reconstructions", "strings/samples"):
        assert row[name]["_type"] == "html-file"
        (file,) = offline.folder.glob(f"wandb/offline-run-*/files/{row[name]['path']}")
        tables[name] = file.read_text()
    cells = re.findall("<td><code>(.*?)</code></td>", tables["strings/reconstructions"])
    assert cells == ["x", "x", "exact", "x + *", "x + x", "", "( * )", "( * )", "exact"]
    assert re.findall("<code>(.*?)</code>", tables["strings/samples"]) == ["* + *", "(incomplete)"]
    assert not [name for name in row if name.startswith("images/")]


def test_html_tables_are_escaped() -> None:
    page = html_table(("a<b",), [("x < y & <b>",)])
    assert "<th align=left>a&lt;b</th>" in page and "<code>x &lt; y &amp; &lt;b&gt;</code>" in page


def test_the_best_epoch_and_the_model_are_kept_at_the_end(offline: Offline) -> None:
    summary = summary_of(offline.sessions[0])
    assert (summary["best/epoch"], summary["best/val/pixel_accuracy"]) == (1, 0.95)
    requests = [record.request for record in offline.sessions[0] if record.WhichOneof("record_type") == "request"]
    artifacts = [record.artifact for record in offline.sessions[0] if record.WhichOneof("record_type") == "artifact"]
    artifacts += [request.log_artifact.artifact for request in requests if request.HasField("log_artifact")]
    (artifact,) = artifacts
    assert artifact.type == "model"
    assert sorted(entry.path for entry in artifact.manifest.contents) == ["config.toml", "vae_best.pth"]


def test_neither_the_key_nor_the_command_line_is_in_any_file(offline: Offline) -> None:
    files = [file for file in offline.folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        text = file.read_bytes()
        assert KEY.encode() not in text and b"hunter2" not in text, file


# ------------------------------------------------------------------------------------------------ a run that goes on

SESSIONS = """
import os, signal
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.recorders.wandb import WandbRecorder

def session(after, last):
    records = [conftest.record(epoch, best=epoch == 2) for epoch in range(1, last + 1)]
    logger = WandbRecorder(folder.path, "offline", Settings(), conftest.rules())
    recorders = JsonlRecorder(folder.path / "metrics.jsonl"), logger
    for recorder in recorders:
        recorder.start(conftest.plan())
        if after:
            recorder.resume(records[:after], 50 * after)
            recorder.pictures(after, conftest.derivations())  # as the trainer shows them once more
        for record in records[after:]:
            steps = range(record.step - 45, record.step + 1, 5)
            recorder.steps([StepRecord(step / 50, step, {"z": 0.02}, record.train, "pixel") for step in steps])
            recorder.epoch(record)
            recorder.pictures(record.epoch, conftest.derivations())
    return recorders
"""


def wandb_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)


def summary_of(records: list[Any]) -> dict[str, Any]:
    items = (item for record in records for item in record.summary.update)
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_a_killed_and_resumed_run_has_every_row(tmp_path: Path) -> None:
    """Closed, with the end of its file lost; then killed between the rows of an epoch and its checkpoint; then done."""
    killed = python(
        SESSIONS
        + """
for recorder in session(0, 3): recorder.close(143)
(file,) = folder.path.glob("wandb/offline-run-*/*.wandb")
time.sleep(1.1)  # W&B still writes its end; and within a second it gives the next session the same folder
os.truncate(file, int(0.8 * file.stat().st_size))
held = session(2, 4)
os.kill(os.getpid(), signal.SIGKILL)
""",
        tmp_path,
    )
    assert killed.communicate(timeout=60) == ("", "")
    assert killed.returncode == -signal.SIGKILL
    first = wandb_files(tmp_path)[0]
    assert first.stat().st_size > 32768, "more than a block"
    last = python(SESSIONS + "for recorder in session(3, 5): recorder.close(75)", tmp_path)
    assert last.communicate(timeout=60) == ("", "")
    files = wandb_files(tmp_path)
    sessions = [wandb_records(file) for file in files]
    assert len({(tmp_path / "wandb" / "id").read_text(), *(file.stem.removeprefix("run-") for file in files)}) == 1
    found = [row for records in sessions for row in rows(records)]
    told = {(row["step"], "best" in row) for row in found if "strings/samples" not in row}
    assert told == {(step, False) for step in range(5, 251, 5)} | {(end, True) for end in range(50, 251, 50)}
    numbers = [record.history.step.num for record in sessions[-1] if record.WhichOneof("record_type") == "history"]
    assert numbers == sorted(set(numbers)), "W&B drops a row whose step it has"
    assert summary_of(sessions[-1])["best/epoch"] == 2, "which this session was not told"


class Online:
    """A stand-in for an online `wandb.Run` that already has so many rows by its own count."""

    offline = False

    def __init__(self, step: int) -> None:
        self.id, self.step = "abc", step
        self.summary: dict[str, Any] = {}
        self.rows: list[int] = []
        self.ended: list[Any] = []

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
        assert commit and step >= self.step
        assert values["step"] == step // 3
        self.step = step + 1
        self.rows.append(step)

    def mark_preempting(self) -> None:
        self.ended.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.mark.parametrize(
    ("has", "logged"),
    [
        (0, [75, 150, 151, 225, 300, 301, 302, 375, 450, 451]),  # W&B was off so far
        (301, [301, 302, 375, 450, 451]),  # the row of the second epoch is missing
        (451, [451]),  # the third epoch was logged, and not saved
        (900, []),  # resumed from an old checkpoint
    ],
)
def test_online_the_server_knows_what_it_has(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_plan: MakePlan,
    make_record: MakeRecord,
    derivations: Pictures,
    make_rules: Callable[..., Rules],
    has: int,
    logged: list[int],
) -> None:
    import wandb

    online = Online(has)
    monkeypatch.setattr(wandb, "init", lambda **_: online)
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    records = [make_record(epoch, best=epoch == 2) for epoch in (1, 2, 3)]

    def steps(record: EpochRecord) -> list[StepRecord]:
        return [
            StepRecord(step / 50, step, {"z": 0.1}, record.train, "pixel") for step in (record.step - 25, record.step)
        ]

    kept = JsonlRecorder(tmp_path / "metrics.jsonl")
    recorder = WandbRecorder(tmp_path, "online", Settings(), make_rules())
    for record in records[:2]:
        kept.steps(steps(record))
    recorder.start(make_plan())
    recorder.resume(records[:2], 100)
    recorder.pictures(2, derivations)
    recorder.steps(steps(records[2]))
    recorder.epoch(records[2])
    recorder.close(1)
    kept.close()
    assert online.rows == logged
    assert (online.summary["best/epoch"], online.ended) == (2, [1])


# ------------------------------------------------------------------------------------------- a server that is silent


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address where connections are taken and nothing is ever answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_is_silent_holds_up_neither_the_training_nor_the_exit(tmp_path: Path, silent_server: str) -> None:
    script = """
background.Background.__init__.__defaults__ = (2.0, 1000, "")
(recorder,) = external_recorders(Settings(), folder, Console())  # auto, and there is a key: online
began = time.monotonic()
recorder.start(conftest.plan())
for epoch in range(1, 101): recorder.epoch(conftest.record(epoch))
print(time.monotonic() - began)
recorder.close()
print(time.monotonic() - began, time.time(), flush=True)
background.leave(0)  # as the command line does
"""
    process = python(script, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=silent_server)
    out, err = process.communicate(timeout=90)
    after = time.time()
    assert process.returncode == 0, err
    trained, closed, ended = map(float, out.split())
    assert trained < 0.5, "100 epochs"
    assert 2 <= closed < 4
    assert after - ended < 5, "W&B's own exit takes minutes here"
    assert err == f"warning: W&B: not done after 2 s; `wandb sync {tmp_path}/wandb/latest-run` sends the rest\n"
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


# --------------------------------------------------------------------------------------------- names, ids and logins


VECTOR, BOTH = {"z": (10,)}, {"global": (16,), "local": (4, 8, 8)}
LEVELS = {"schedule.name": "hierarchical", "schedule.global.max_beta": 0.01, "schedule.global.name": "cosine"}


@pytest.mark.parametrize(
    ("shapes", "values", "name"),
    [
        (VECTOR, {"schedule.max_beta": 0.1}, "beta-vae-d10-b0.1"),
        (VECTOR, {"schedule.name": "controlvae"}, "beta-vae-d10-controlvae"),
        ({"z": (56,)}, {"model.name": "grammar", "data.name": "equations"}, "grammar-vae-d56-b0.5"),
        (BOTH, {"model.name": "hierarchical"}, "hierarchical-vae-g16-l4x8x8-b0.5"),
        (
            BOTH,
            {"model.name": "hierarchical", **LEVELS, "schedule.local.name": "kl_capacity"},
            "hierarchical-vae-g16-l4x8x8-b0.01-kl_capacity",
        ),
    ],
)
def test_the_name_of_a_run(make_plan: MakePlan, shapes: dict[str, Any], values: dict[str, Any], name: str) -> None:
    resolved = resolve(None, flag_layer({key: (key, value) for key, value in values.items()})).settings
    plan = replace(make_plan(run="x", settings=resolved), level_shapes=shapes)
    assert run_name(plan, resolved.schedule) == f"{name}-run-x"


def test_the_id_is_made_up_once_for_a_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first = run_id(folders[0])
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert run_id(folders[0]) == first != run_id(folders[1])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o600)


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "off"),
        ({"WANDB_API_KEY": KEY}, "auto"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, "auto"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "auto"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "off"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
    ],
)
def test_the_mode_by_environment(home: Path, environment: dict[str, str], mode: str) -> None:
    assert automatic_mode(environment)[0] == mode


def test_a_login_in_a_file(home: Path) -> None:
    for unreadable in ("machine", "\x00\xff", "machine example.org login user password secret\n"):
        write(home / ".netrc", unreadable)
        mode, note = automatic_mode({})
        assert mode == "off" and note is not None and "wandb login" in note
    write(home / ".netrc", f"machine api.wandb.ai login user password {KEY}\n")
    assert automatic_mode({}) == ("auto", None)
    assert automatic_mode({"WANDB_BASE_URL": "https://wandb.example.org"})[0] == "off", "a key for another server"
    write(home / "elsewhere", f"machine wandb.example.org login user password {KEY}\n")
    environment = {"WANDB_BASE_URL": "https://wandb.example.org", "NETRC": str(home / "elsewhere")}
    assert automatic_mode(environment) == ("auto", None)


def test_the_mode_of_wandbs_own_settings_is_used(home: Path, tmp_path: Path) -> None:
    write(home / "wandb/settings", "[default]\nmode = offline\n")  # as `wandb offline` writes it
    script = """
recorder = external_recorders(Settings(), folder, Console())[0]
recorder.start(conftest.plan())
recorder.close()
"""
    (tmp_path / "run").mkdir()
    process = python(script, tmp_path / "run", WANDB_API_KEY=KEY, HOME=str(home))
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 0
    assert list(tmp_path.glob("run/wandb/offline-run-*"))


def test_which_recorders_the_settings_ask_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arcvae_cli.console import Console
    from arcvae_cli.recorders import external
    from arcvae_cli.runs import RunFolder

    made: list[str] = []
    notes: list[str] = []
    monkeypatch.setattr(external, "Background", lambda recorder, name, *_, **__: made.append(name))
    monkeypatch.setattr(Console, "note", lambda self, text: notes.append(text))
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for log, expected, said in (
        ({"wandb": "off"}, [], 0),
        ({}, [], 1),
        ({"wandb": "offline"}, ["W&B"], 0),
        ({"wandb": "online", "tensorboard": True}, ["W&B", "TensorBoard"], 0),
    ):
        made.clear(), notes.clear()
        external.external_recorders(Settings.model_validate({"log": log}), RunFolder(home), Console())
        assert (made, len(notes)) == (expected, said), log
