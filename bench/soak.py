"""Runs that are killed, stopped, starved and fed with rubbish, hundreds of times, and must lose nothing by it.

Real `arcvae train` processes on two small corpora: a grid model whose beta a closed loop sets, and a grammar model with
dropout. Each saves within its epochs too, many times a second. A fault strikes at a random moment, what is left of the
run is read file by file, and the run goes on with --resume, where it may be struck again. In the end all that it
consists of must be what a run that nobody disturbed left: every tensor of every checkpoint bit for bit, the lines of
metrics.jsonl but for the seconds, metrics.json. What is not is a mismatch; the folder of such a run is kept and named.

At the end comes a table in Markdown; the exit code is 1 if there was a mismatch. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import resource
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from arcvae_cli import checkpoints, runs
from arcvae_cli.commands.runs import PART
from arcvae_cli.errors import InputError
from arcvae_cli.machine import cores
from arcvae_cli.settings import resolve

COUNTED = str(Path(__file__).with_name("counted.py"))
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75, signal.SIGHUP: 129}
LONGEST = 300.0
"""Seconds after which a process that takes some ten counts as hanging."""

GRIDS: dict[str, Any] = {
    "model": {"latent_dim": 3},
    "schedule": {"name": "controlvae", "target": 3.0, "start_beta": 0.1, "ki": -0.01},
    "train": {"epochs": 5, "batch_size": 8, "lr_schedule": "plateau"},
}
EQUATIONS: dict[str, Any] = {
    "data": {"name": "equations", "size": 800, "max_rules": 9},
    "model": {"name": "grammar", "latent_dim": 4, "encoder_hidden": 16, "encoder_conv_layers": 1, "encoder_kernel": 3}
    | {"decoder_hidden": 16, "decoder_layers": 2, "decoder_dropout": 0.2},
    "schedule": {"name": "cyclical", "cycle_length": 2, "max_beta": 0.5, "per": "step"},
    "train": {"epochs": 5, "batch_size": 8},
}
COMMON: dict[str, Any] = {
    "train": {"precision": "fp32", "device": "cpu", "save_minutes": 0.002},
    "checkpoint": {"every_epochs": 2, "save_top_k": 2},
    "log": {"every_n_steps": 5, "images_every": 2, "wandb": "off"},
}


# ---------------------------------------------------------------------------------------------- runs and their processes


@dataclass(frozen=True)
class Subject:
    """A run to repeat: its preset, the folder of the undisturbed one, its steps, and seconds until its first save."""

    name: str
    preset: Path
    straight: Path
    steps: int
    start: float


def environment(**more: str) -> dict[str, str]:
    """That of all processes: one thread each, and no settings or logins of whoever calls."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ARCVAE_", "WANDB_"))}
    own = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "ARCVAE_CACHE_DIR": os.environ["ARCVAE_CACHE_DIR"]}
    return {**kept, **own, **more}


class Process:
    """An `arcvae` process whose steps are counted. `base`: the steps that its run had when it began."""

    def __init__(self, folder: Path, arguments: Sequence[object], base: int = 0, spoilt: str = "never@0") -> None:
        self.counter = folder.parent / f"steps-{secrets.token_hex(4)}"
        self.counter.write_bytes(bytes(8))
        self.folder, self.base = folder, base
        self.process = subprocess.Popen(
            [sys.executable, COUNTED, str(self.counter), spoilt, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    @property
    def steps(self) -> int:
        """The steps of the run that are done, be they saved or not."""
        return int(self.base + struct.unpack("<q", self.counter.read_bytes())[0])

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def until(self, there: Callable[[], bool]) -> None:
        """Wait for something, or for the end of the process."""
        limit = time.monotonic() + LONGEST
        while not self.over and time.monotonic() < limit and not there():
            time.sleep(0.0002)

    def end(self) -> tuple[int, str]:
        """Wait for the end: the exit code, and what was said. One that hangs is killed."""
        try:
            said = self.process.communicate(timeout=LONGEST)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            return 999, f"hangs; {self.process.communicate()[1]}"
        return self.process.returncode, said


def begin(subject: Subject, folder: Path, spoilt: str = "never@0") -> Process:
    """The process that begins a run."""
    flags = ("--preset", subject.preset, "--runs-dir", folder.parent, "--run-name", folder.name)
    return Process(folder, ["train", *flags], 0, spoilt)


def go_on(subject: Subject, folder: Path, auto: bool = False, spoilt: str = "never@0") -> Process:
    """The process that goes on with a run, or begins it where there is nothing yet."""
    if not (folder / "config.toml").is_file() or auto:
        flags: tuple[object, ...] = ("--resume", "auto", "--preset", subject.preset, "--run-name", folder.name)
    else:
        flags = ("--resume", folder)
    return Process(folder, ["train", *flags, "--runs-dir", folder.parent], saved(folder), spoilt)


def saved(folder: Path) -> int:
    """The step of a run's last checkpoint; 0 before there is one."""
    path = folder / "checkpoints" / "last.pth"
    return int(checkpoints.read(path)["step"]) if path.is_file() else 0


# ------------------------------------------------------------------------------------------------------ moments


Moment = Callable[[Process], None]
"""Waits until the moment has come for a process, or until that has ended."""


def in_start(subject: Subject, chance: random.Random) -> Moment:
    """At any time until the first checkpoint, and a little after."""
    seconds = chance.uniform(0.0, 1.2 * subject.start)

    def wait(process: Process) -> None:
        due = time.monotonic() + seconds
        process.until(lambda: time.monotonic() >= due)

    return wait


def in_training(subject: Subject, chance: random.Random) -> Moment:
    """After any step of those that are left, and a part of the next one."""
    share, rest = chance.random(), chance.uniform(0.0, 0.01)

    def wait(process: Process) -> None:
        aim = process.base + max(1, round(share * (subject.steps - process.base)))
        process.until(lambda: process.steps >= aim)
        time.sleep(rest)

    return wait


def in_writing(subject: Subject, chance: random.Random) -> Moment:  # noqa: ARG001
    """While `last.pth` is being written, the nth time."""
    return of_file(".last.pth.", chance.randrange(1, 12), chance.uniform(0.0, 0.004))


def in_naming(subject: Subject, chance: random.Random) -> Moment:  # noqa: ARG001
    """While what follows an epoch is being written: other names of the checkpoint, parts of the model, the status."""
    which = chance.choice([".vae_best.pth.", ".encoder.pth.", ".best-loss-", ".vae_epoch_", ".decoder_epoch_"])
    return of_file(which, chance.randrange(1, 3), chance.uniform(0.0, 0.001))


def in_evaluation(subject: Subject, chance: random.Random) -> Moment:  # noqa: ARG001
    """After the last step."""
    seconds = chance.uniform(0.0, 2.5)

    def wait(process: Process) -> None:
        process.until((process.folder / "checkpoints" / "vae_final.pth").is_file)
        due = time.monotonic() + seconds
        process.until(lambda: time.monotonic() >= due)

    return wait


def of_file(prefix: str, number: int, seconds: float) -> Moment:
    """So many seconds after the nth temporary file of a name was seen."""

    def wait(process: Process) -> None:
        seen: set[str] = set()

        def there() -> bool:
            with contextlib.suppress(OSError):
                seen.update(name for name in os.listdir(process.folder / "checkpoints") if name.startswith(prefix))
            return len(seen) >= number

        process.until(there)
        due = time.monotonic() + seconds
        while time.monotonic() < due:
            pass

    return wait


MOMENTS = (in_writing, in_start, in_training, in_writing, in_naming, in_training, in_evaluation)
"""In turns, so that each is had."""


# ------------------------------------------------------------------------------------------------------ what is left


def torn(folder: Path) -> list[str]:
    """What is wrong with the files of a run whose process has ended, however it did."""
    found: list[str] = []
    for path in (folder / "checkpoints").glob("[!.]*.pth"):
        try:
            checkpoints.read(path, required=checkpoints.PART if PART.fullmatch(path.name) else checkpoints.REQUIRED)
        except InputError as error:
            found.append(error.what)
    for path in (folder / "status.json", folder / "metrics.json"):
        if path.is_file() and not isinstance(read_json(path), dict):
            found.append(f"{path.name} is no JSON")
    for path in (folder / "images").glob("[!.]*.png"):
        if not path.read_bytes().endswith(b"IEND\xaeB`\x82"):
            found.append(f"{path.name} is cut short")
    if not folder.exists():
        return found
    try:
        resolve(str(folder / "config.toml"))
    except InputError as error:
        found.append(error.what)
    lines, _ = metrics(folder)
    found += [f"metrics.jsonl has a line {line!r}" for line in lines if not isinstance(line, dict)]
    if runs.held(folder):
        found.append("the lock is held by nobody living")
    return found


def metrics(folder: Path) -> tuple[list[Any], bool]:
    """The whole lines of metrics.jsonl, those that are no JSON as text; and whether the last one is cut short."""
    path = folder / "metrics.jsonl"
    *lines, last = path.read_text("utf-8").split("\n") if path.is_file() else [""]
    return [read_line(line) for line in lines], bool(last)


def read_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def read_json(path: Path) -> Any:
    return read_line(path.read_text("utf-8"))


def other(folder: Path, straight: Path) -> list[str]:
    """In what a finished run is not what the undisturbed one is."""
    found = torn(folder)
    names = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (folder, straight)]
    apart = sorted(name for name in names[0] ^ names[1] if not name.startswith(("wandb/", "tensorboard/")))
    found += [f"{name} is only in {'one' if name in names[0] else 'the straight one'}" for name in apart]
    for path in sorted((straight / "checkpoints").glob("*.pth")):
        if path.name in apart:
            continue
        part = bool(PART.fullmatch(path.name))
        required = checkpoints.PART if part else checkpoints.REQUIRED
        mine, his = (checkpoints.read(run / "checkpoints" / path.name, required=required) for run in (folder, straight))
        for values in (mine, his):
            values.pop("seconds", None)
            values["config"] = json.loads(values["config"])["model"]
            if "history" in values:
                values["history"] = [{**json.loads(line), "seconds": 0} for line in values["history"].splitlines()]
        found += [f"{path.name}: {key}" for key in differing(mine, his)]
    lines = [[{**line, "seconds": 0} for line in metrics(run)[0]] for run in (folder, straight)]
    if lines[0] != lines[1] or metrics(folder)[1]:
        found.append(f"metrics.jsonl: {len(lines[0])} lines for {len(lines[1])}, or others")
    documents = [{**read_json(run / "metrics.json"), "run": "", "checkpoint": ""} for run in (folder, straight)]
    found += [f"metrics.json: {key}" for key in differing(*documents)]
    if (state := runs.state_of(folder).state) != "finished":
        found.append(f"it is {state}")
    return found


def differing(one: Any, two: Any, place: str = "") -> Iterator[str]:
    """Where two values are not the same to the last bit."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in dict.fromkeys((*one, *two)):
            yield from differing(one.get(key), two.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.dtype != two.dtype or one.shape != two.shape or one.numpy().tobytes() != two.numpy().tobytes():
            yield place
    elif type(one) is not type(two) or one != two:
        yield place


# ------------------------------------------------------------------------------------------------------ trials


@dataclass
class Trial:
    """What became of one run. `struck`: faults it met; `resumed`: how often it went on; `lost`: steps, the most once.

    `tally`: what else is worth counting.
    """

    struck: int = 0
    resumed: int = 0
    lost: int = 0
    mismatches: list[str] = field(default_factory=list)
    tally: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        self.tally[what] = self.tally.get(what, 0) + number

    def wrong(self, what: str) -> None:
        self.mismatches.append(what)

    def hit(self, process: Process) -> None:
        """Look at what a fault left: the files, and what was not saved."""
        self.struck += 1
        self.mismatches += torn(process.folder)
        self.lost = max(self.lost, process.steps - saved(process.folder))

    def ends_straight(self, subject: Subject, process: Process) -> None:
        """Wait for the end of a process that is left alone, and compare what it leaves."""
        code, said = process.end()
        if code:
            self.wrong(f"exit code {code}: {' / '.join(said.splitlines()[-2:])}")
        else:
            self.mismatches += other(process.folder, subject.straight)


def killed(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:
    """SIGKILL at a random moment, and up to three times more while the run goes on."""
    trial, process = Trial(), begin(subject, folder)
    for again in range(1 + chance.choice([0, 0, 1, 2, 3])):
        MOMENTS[(index + again) % len(MOMENTS)](subject, chance)(process)
        process.process.kill()
        code, said = process.end()
        if code == 0:
            break  # it was faster
        if code != -signal.SIGKILL:
            trial.wrong(f"exit code {code}: {said}")
        trial.hit(process)
        trial.count("left a file half-written", any(folder.rglob(".*.tmp")))
        trial.count("before there was a run", not folder.exists())
        trial.count("cut a line of metrics.jsonl", metrics(folder)[1])
        process = go_on(subject, folder, auto=chance.random() < 0.5)
        trial.resumed += 1
    trial.ends_straight(subject, process)
    return trial


def asked(subject: Subject, folder: Path, chance: random.Random, index: int, number: signal.Signals) -> Trial:
    """A signal that asks to stop, at a random moment: the work is saved, and the exit code says which it was."""
    trial, process = Trial(), begin(subject, folder)
    MOMENTS[index % len(MOMENTS)](subject, chance)(process)
    began = folder.exists()
    process.process.send_signal(number)
    code, said = process.end()
    trial.hit(process)
    state = runs.state_of(folder).state if folder.exists() else "absent"
    if code == CODES[number]:
        if state not in ("interrupted", "absent") and "the training is complete" not in said:
            trial.wrong(f"{number.name}: the status says {state}")
    elif code == -number and not began:
        trial.count("before arcvae was there to hear it")
    elif code in (0, -number) and state == "finished":
        trial.count("after the end")
    else:
        trial.wrong(f"{number.name}: exit code {code}, {state}: {said[-300:]}")
    if "Traceback" in said and began:
        trial.wrong(f"{number.name}: {said[-300:]}")
    if trial.lost:
        trial.wrong(f"{number.name}: {trial.lost} steps not saved")
    if any(folder.rglob(".*.tmp")):
        trial.wrong(f"{number.name}: temporary files left")
    trial.resumed += 1
    trial.ends_straight(subject, go_on(subject, folder, auto=chance.random() < 0.5))
    return trial


def asked_twice(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:
    """A second Ctrl-C, within a few hundredths of a second: it ends at once, its files whole."""
    trial, process = Trial(), begin(subject, folder)
    (in_training if index % 2 else in_writing)(subject, chance)(process)
    began = time.monotonic()
    for pause in (chance.uniform(0.0, 0.03), 0.0):
        process.process.send_signal(signal.SIGINT)
        time.sleep(pause)
    code, said = process.end()
    if time.monotonic() - began > 10.0:
        trial.wrong(f"it took {time.monotonic() - began:.1f} s to end")
    trial.hit(process)
    trial.count("at once", "at once" in said)
    if code not in (130, -signal.SIGINT) or "Traceback" in said:
        trial.wrong(f"exit code {code}: {said[-300:]}")
    trial.resumed += 1
    trial.ends_straight(subject, go_on(subject, folder))
    return trial


def filled(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:
    """From a random step on no file may grow above a random size: the first that would ends the run."""
    trial, process = Trial(), begin(subject, folder)
    largest = (subject.straight / "checkpoints" / "last.pth").stat().st_size
    (in_training if index % 3 else in_writing)(subject, chance)(process)
    limit = int(largest ** chance.uniform(0.3, 0.999))  # small files, too, may be the first
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    full(trial, process, *process.end())
    trial.resumed += 1
    trial.ends_straight(subject, go_on(subject, folder))
    return trial


def full(trial: Trial, process: Process, code: int, said: str) -> None:
    """What a run leaves and says for which there is no space."""
    trial.hit(process)
    told = " / ".join(said.splitlines()[-2:])
    if code != 1 or "could not be written (" not in told or "free there" not in told or str(process.folder) not in told:
        trial.wrong(f"exit code {code}: {told}")
    trial.count(f"at {Path(told.partition(':')[2].partition(':')[0].strip()).suffix[1:] or '?'}")
    if any(process.folder.rglob(".*.tmp")):
        trial.wrong("temporary files left")


SMALL_DISK = """
mount -t tmpfs -o size="$1" none "$2" || exit 99
shift 2
trap 'kill -9 $child 2>/dev/null' EXIT
"$@" & child=$!
wait $child
code=$?
cp -a "$FOLDER" "$KEPT"
exit $code
"""
"""A shell in a name space of its own, where a file system of a few megabytes can be mounted without privileges."""


def small_disks() -> bool:
    """Whether this system lets anybody mount one."""
    words = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


class OnSmallDisk(Process):
    """A process whose run lies on a file system of so many bytes, and is copied to `folder` when it has ended."""

    def __init__(self, subject: Subject, folder: Path, size: int) -> None:
        disk = folder.parent / "disk"
        disk.mkdir()
        self.counter = folder.parent / "steps-disk"
        self.counter.write_bytes(bytes(8))
        self.folder, self.base = folder, 0
        flags = ["train", "--preset", subject.preset, "--runs-dir", disk, "--run-name", folder.name]
        shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh", size, disk]
        self.process = subprocess.Popen(
            [*map(str, (*shell, sys.executable, COUNTED, self.counter, "never@0", *flags))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(FOLDER=str(disk / folder.name), KEPT=str(folder)),
        )


def on_small_disk(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:  # noqa: ARG001
    """A file system that is full after a while."""
    trial = Trial()
    whole = sum(path.stat().st_size for path in {p.stat().st_ino: p for p in files(subject.straight)}.values())
    first = (subject.straight / "checkpoints" / "last.pth").stat().st_size
    process = OnSmallDisk(subject, folder, int(chance.uniform(1.5 * first, 0.8 * whole)))
    code, said = process.end()
    full(trial, process, code, said.replace(str(folder.parent / "disk"), str(folder.parent)))
    trial.resumed += 1
    trial.ends_straight(subject, go_on(subject, folder))
    return trial


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def spoilt(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:
    """A loss, or a gradient, that is no number at a random step."""
    trial, kind, number = Trial(), ("loss", "gradient")[index % 2], chance.randrange(1, subject.steps + 1)
    process = begin(subject, folder, f"{kind}@{number}")
    code, said = process.end()
    trial.hit(process)
    told = " / ".join(said.splitlines()[-2:])
    each = subject.steps // resolve(str(subject.preset)).settings.train.epochs
    epoch, step = divmod(number - 1, each)
    last = saved(folder)
    place = f"epoch {epoch + 1}, step {step + 1} of {each}: the loss, or its gradient, is not a number any more (beta "
    if code != 1 or place not in told or f"last.pth, of step {last} " not in told:
        trial.wrong(f"exit code {code}, {kind}@{number}, saved {last}: {told}")
    if last >= number:
        trial.wrong(f"{kind}@{number} is in the checkpoint of step {last}")
    if (state := runs.state_of(folder).state) != "failed":
        trial.wrong(f"the status says {state}")
    trial.resumed += 1
    trial.ends_straight(subject, go_on(subject, folder))
    return trial


def starved(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:  # noqa: ARG001
    """A batch that the memory does not hold: it is named, and one that fits; nothing else hinders the next run."""
    trial = Trial()
    flags = ["train", "--preset", subject.preset, "--runs-dir", folder.parent, "--batch-size"]
    limit = round(chance.uniform(3.0, 6.0) * 2**30)

    def least() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def run(size: int, name: str) -> tuple[int, str]:
        words = [*flags, size, "--run-name", name, "--epochs", 1, "--set", f"data.path={folder.parent / 'many.npz'}"]
        words += ["--set", "log.images_every=0"]
        command = [sys.executable, "-m", "arcvae_cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), preexec_fn=least)
        return done.returncode, " / ".join(done.stderr.splitlines()[-2:])

    size = 65536
    random_grids = np.random.RandomState(0).randint(0, 10, (size, 16, 16)).astype(np.uint8)
    np.savez(folder.parent / "many.npz", train=random_grids, val=random_grids[:16], test=random_grids[:16])
    code, told = run(size, folder.name)
    trial.struck += 1
    trial.mismatches += torn(folder)
    if code != 1 or f"train.batch_size: {size} does not fit into the memory of cpu" not in told:
        trial.wrong(f"exit code {code}: {told}")
    fitting = told.partition("--batch-size ")[2].strip()
    if not fitting.isdecimal():
        trial.wrong(f"no size that fits: {told}")
    else:
        trial.count(f"of {limit / 2**30:.1f} GiB: {fitting} fits")
    return trial


def twice(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:  # noqa: ARG001
    """Several processes that go on with one run at once, right after its process was killed: one does."""
    trial, process = Trial(), begin(subject, folder)
    in_training(subject, chance)(process)
    process.process.kill()
    process.end()
    trial.hit(process)
    rivals = [go_on(subject, folder, auto=number == 2) for number in range(3)]
    ends = [rival.end() for rival in rivals]
    trial.resumed += 1
    refused = [said for code, said in ends if code == 1]
    if sorted(code for code, _ in ends) != [0, 1, 1] or not all("at work on this run" in said for said in refused):
        trial.wrong(f"ends of three at once: {[(code, said[-200:]) for code, said in ends]}")
    trial.mismatches += other(folder, subject.straight)
    return trial


def in_one_second(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:  # noqa: ARG001
    """Runs without a name that start in the same second."""
    trial = Trial(struck=5)
    flags = ["train", "--preset", subject.preset, "--runs-dir", folder.parent / "own", "--epochs", 1]
    processes = [Process(folder, flags) for _ in range(5)]
    for process in processes:
        code, said = process.end()
        if code:
            trial.wrong(f"exit code {code}: {said[-300:]}")
    found = [path for path in (folder.parent / "own").iterdir() if not path.is_symlink()]
    if len(found) != 5 or any(len([x for x in metrics(run)[0] if x["kind"] == "epoch"]) != 1 for run in found):
        trial.wrong(f"five runs left {sorted(path.name for path in found)}")
    if (folder.parent / "own" / "latest").resolve() not in found:
        trial.wrong("latest points to none of them")
    trial.mismatches += [what for run in found for what in torn(run)]
    return trial
