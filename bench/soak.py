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
import re
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from arcvae_cli import checkpoints, folders
from arcvae_cli.commands.runs import pth_files
from arcvae_cli.errors import InputError
from arcvae_cli.machine import cores
from arcvae_cli.presets import resolve

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


# ----------------------------------------------------------------------------------------- runs and their processes


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
    if not folder.exists():
        return []
    documents = [path for name in ("status.json", "metrics.json") if (path := folder / name).is_file()]
    found = [f"{path.name} is no JSON" for path in documents if not isinstance(read_json(path), dict)]
    pictures = (folder / "images").glob("[!.]*.png")
    found += [f"{path.name} is cut short" for path in pictures if not path.read_bytes().endswith(b"IEND\xaeB`\x82")]
    lines, _ = metrics(folder)
    found += [f"metrics.jsonl has a line {line!r}" for line in lines if not isinstance(line, dict)]
    for read in (partial(resolve, str(folder)), *(partial(checkpoints.read, path) for path in pth_files(folder))):
        with collected(found):
            read()
    if folders.held(folder):
        found.append("the lock is held by nobody living")
    return found


@contextlib.contextmanager
def collected(found: list[str]) -> Iterator[None]:
    """Add what is wrong with a file to a list."""
    try:
        yield
    except InputError as error:
        found.append(error.what)


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


BESIDE = ("wandb/", "tensorboard/", ".evaluation-")
"""What a run may have more of than another: sessions of loggers, and pictures of a verdict that was broken off.

The latter are in nobody's lock, and are swept when they are ten minutes old.
"""


def other(folder: Path, straight: Path) -> list[str]:
    """In what a finished run is not what the undisturbed one is."""
    found = torn(folder)
    names = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (folder, straight)]
    apart = sorted(name for name in names[0] ^ names[1] if not name.startswith(BESIDE))
    found += [f"{name} is only in {'one' if name in names[0] else 'the straight one'}" for name in apart]
    for path in sorted((straight / "checkpoints").glob("*.pth")):
        if path.name in apart:
            continue
        mine, his = (checkpoints.read(run / "checkpoints" / path.name) for run in (folder, straight))
        for values in (mine, his):
            values.pop("seconds", None)
            values["config"] = json.loads(values["config"])["model"]
            if "history" in values:
                values["history"] = [{**json.loads(line), "seconds": 0} for line in values["history"].splitlines()]
        found += in_words(path.name, differing(mine, his))
    lines = [[{**line, "seconds": 0} for line in metrics(run)[0]] for run in (folder, straight)]
    if lines[0] != lines[1] or metrics(folder)[1]:
        found.append(f"metrics.jsonl: {len(lines[0])} lines for {len(lines[1])}, or others")
    documents = [{**read_json(run / "metrics.json"), "run": "", "checkpoint": ""} for run in (folder, straight)]
    found += in_words("metrics.json", differing(*documents))
    if (state := folders.describe(folder)["state"]) != "finished":
        found.append(f"it is {state}")
    return found


def in_words(name: str, keys: Iterator[str]) -> list[str]:
    """One line on a file of which some values are others."""
    found = list(keys)
    return [f"{name}: {len(found)} other values, as {found[0]}"] if found else []


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
        moment = MOMENTS[(index + again) % len(MOMENTS)]
        moment(subject, chance)(process)
        process.process.kill()
        code, said = process.end()
        if code == 0:
            break  # it was faster
        if code != -signal.SIGKILL:
            trial.wrong(f"exit code {code}: {said}")
        trial.hit(process)
        if folder.exists() and (state := folders.describe(folder)["state"]) not in ("killed", "finished"):
            trial.wrong(f"it is told to be {state}")
        trial.count(moment.__name__.replace("_", " "))
        trial.count("left a file half-written", any(folder.rglob(".*.tmp")))
        trial.count("left no run", not folder.exists())
        trial.count("cut a line of metrics.jsonl", metrics(folder)[1])
        process = go_on(subject, folder, auto=chance.random() < 0.5)
        trial.resumed += 1
    trial.ends_straight(subject, process)
    return trial


def asked(subject: Subject, folder: Path, chance: random.Random, index: int, number: signal.Signals) -> Trial:
    """A signal that asks to stop, at a random moment: the work is saved, and the exit code says which it was."""
    trial, process = Trial(), begin(subject, folder)
    moment = MOMENTS[index % len(MOMENTS)]
    moment(subject, chance)(process)
    began, late = folder.exists(), process.over  # late: under load the moment may have been missed
    process.process.send_signal(number)
    code, said = process.end()
    trial.hit(process)
    state = folders.describe(folder)["state"] if folder.exists() else "absent"
    if code == CODES[number]:
        if state not in ("interrupted", "absent") and "the training is complete" not in said:
            trial.wrong(f"{number.name}: the status says {state}")
    elif code == -number and not began:
        trial.count("before arcvae was there to hear it")
    elif code in (0, -number) and state == "finished" and (late or moment is in_evaluation):
        trial.count("when all was done")
    else:
        trial.wrong(f"{number.name}: exit code {code}, {state}: {said[-300:]}")
    if began and "Traceback" in said:
        trial.wrong(f"{number.name}: {said[max(0, said.index('Traceback') - 200) :][:1500]}")
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
    if code != 130 or "Traceback" in said:
        trial.wrong(f"exit code {code}: {said[-1500:]}")
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
    place = f"epoch {epoch + 1}, step {step + 1} of {each}: the loss or its gradient is NaN or infinite"
    if code != 1 or place not in told or f"last.pth, of step {last} " not in told:
        trial.wrong(f"exit code {code}, {kind}@{number}, saved {last}: {told}")
    if last >= number:
        trial.wrong(f"{kind}@{number} is in the checkpoint of step {last}")
    if (state := folders.describe(folder)["state"]) != "failed":
        trial.wrong(f"the status says {state}")
    trial.resumed += 1
    trial.ends_straight(subject, go_on(subject, folder))
    return trial


LIMITED = """
import resource, sys
import arcvae_cli.trainer, arcvae_cli.recorders.jsonl, arcvae_cli.recorders.live
from arcvae_cli.cli import main
with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv.pop(1)) * 2**20,) * 2)
main()
"""
"""arcvae in a process that may take so many MiB more than PyTorch and arcvae do by being imported."""


def starved(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:  # noqa: ARG001
    """A batch that the memory does not hold is named, and one that fits, which is then not to blame for anything."""
    trial, size, mebibytes = Trial(), 16384, chance.randrange(250, 1000)
    grids = np.random.RandomState(0).randint(0, 10, (size, 16, 16)).astype(np.uint8)
    data = folder.parent / "many.npz"
    np.savez(data, train=grids, val=grids[:16], test=grids[:16])

    def run(size: int, name: str) -> tuple[int, str]:
        flags = ["--preset", subject.preset, "--data", data, "--batch-size", size, "--epochs", 1]
        flags += ["--runs-dir", folder.parent, "--run-name", name]
        command = [sys.executable, "-c", LIMITED, mebibytes, "train", *flags]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment())
        return done.returncode, " / ".join(done.stderr.splitlines()[-2:])

    code, told = run(size, "run")
    trial.struck += 1
    trial.mismatches += torn(folder)
    if code != 1 or f"train.batch_size: {size} does not fit into the memory of cpu" not in told:
        trial.wrong(f"exit code {code}: {told}")
    found = re.search(r"--batch-size (\d+)", told)
    fitting = int(found[1]) if found else 0
    if not 0 < fitting < size:
        trial.wrong(f"no size that fits: {told}")
    elif "train.batch_size" in (again := run(fitting, "again")[1]):
        trial.wrong(f"{fitting} was said to fit: {again}")
    trial.count(f"with {mebibytes} MiB: {fitting} fits")
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
    if sorted(code for code, _ in ends) != [0, 1, 1] or not all("is training this run" in said for said in refused):
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


# ------------------------------------------------------------------------------------------------------ loggers

LOGGED = ("--tensorboard", "--wandb", "offline")


def logged(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:
    """SIGKILL where TensorBoard and W&B (offline) listen: each has every point once."""
    trial = Trial()
    twin = subject.straight.with_name(f"{subject.name}-logged")
    process = begin_logged(subject, folder)
    for again in range(1 + index % 3):
        (in_training, in_naming, in_writing)[(index + again) % 3](subject, chance)(process)
        process.process.kill()
        code, _ = process.end()
        if code == 0:
            break
        trial.hit(process)
        process = go_on(subject, folder)
        trial.resumed += 1
    trial.ends_straight(subject, process)
    for name, read in (("TensorBoard", points), ("W&B", rows)):
        (mine, shown), (his, all_shown) = read(folder), read(twin)
        if mine != his:
            extra, lacking = [x for x in mine if x not in his], [x for x in his if x not in mine]
            text = f"{len(mine)} points for {len(his)}, {len(mine) - len(set(map(str, mine)))} doubled"
            trial.wrong(f"{name}: {text}, {len(extra)} others as {extra[:1]!s:.300}, lacks {lacking[:1]!s:.300}")
        if len(shown) != len(set(shown)) or not set(shown) <= set(all_shown):
            trial.wrong(f"{name}: pictures {shown} for {all_shown}")
        trial.count(f"pictures that {name} lacks", len(all_shown) - len(shown))
    return trial


def begin_logged(subject: Subject, folder: Path) -> Process:
    flags = ("--preset", subject.preset, "--runs-dir", folder.parent, "--run-name", folder.name)
    return Process(folder, ["train", *flags, *LOGGED])


Logs = tuple[list[Any], list[Any]]
"""What a logger has: of numbers every point in its order, and which pictures, of which a kill may take the last."""


def points(folder: Path) -> Logs:
    """Every point of every curve in TensorBoard's own view of a run, but those of the time that was taken."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    numbers = [(tag, event.step, event.value) for tag in tags["scalars"] for event in events.Scalars(tag)]
    numbers += [(tag, event.step, 0.0) for tag in tags["histograms"] for event in events.Histograms(tag)]
    pictures = [(tag, event.step) for tag in tags["images"] for event in events.Images(tag)]
    pictures += [(tag, event.step) for tag in tags["tensors"] for event in events.Tensors(tag)]
    return sorted(point for point in numbers if point[0] != "seconds"), sorted(pictures)


def rows(folder: Path) -> Logs:
    """The rows of a run's W&B run as the server would have them: of all sessions, the first row of each W&B step."""
    found: dict[int, dict[str, Any]] = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        for number, row in wandb_rows(file):
            row.pop("seconds", None)
            found.setdefault(number, row)
    numbers, pictures = list[Any](), list[Any]()
    for _, row in sorted(found.items()):
        if any(name.startswith(("images/", "strings/")) for name in row):
            pictures.append(row["step"])
        else:
            numbers.append(row)
    return numbers, pictures


def wandb_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """W&B's step and the row, of a `.wandb` file: a LevelDB log of protobuf messages behind 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, block, at, message = file.read_bytes(), 32768, 7, b""
    while at + 7 <= len(raw):
        if block - at % block < 7:  # no header fits into the rest of a block
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])  # 1 whole, 2 first, 3 middle, 4 last
        if kind == 0 or at + 7 + length > len(raw):
            return  # what a kill left
        message = raw[at + 7 : at + 7 + length] if kind in (1, 2) else message + raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(message)
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                row = {key: json.loads(value) for key, value in items.items() if not key.startswith("_")}
                # pictures of the evaluation by their kind alone: the run's name is in their titles
                own = tuple(f"/{key}" for key in ("sha256", "size", "path"))
                row = {key: value for key, value in row.items() if not (key.startswith("eval/") and key.endswith(own))}
                yield record.history.step.num, row


# ------------------------------------------------------------------------------------------------------ hostile files


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def hostile(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:  # noqa: ARG001
    """Checkpoints that are damaged or foreign: one line, exit code 2, nothing run, and the run is as it was."""
    trial = Trial()
    shutil.copytree(subject.straight, folder)
    last = folder / "checkpoints" / "last.pth"
    whole, canary = last.read_bytes(), folder.parent / "canary"
    values = checkpoints.read(last)
    made = folder.parent / "made.pth"

    def saved_bytes(thing: Any) -> bytes:
        torch.save(thing, made)
        return made.read_bytes()

    def zipped(name: str, content: bytes) -> bytes:
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr(name, content)
        return made.read_bytes()

    def flipped() -> bytes:
        found = bytearray(whole)
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
        return bytes(found)

    bomb = pickle.dumps(Bomb(canary))
    model = values["model_state_dict"]
    refused = {
        "empty": b"",
        "noise": chance.randbytes(5000),
        "text": b"not a checkpoint\n" * 50,
        "a zip of something else": zipped("readme.txt", b"hello"),
        "a pickle bomb": bomb,
        "a pickle bomb in a zip": zipped("archive/data.pkl", bomb),
        "an object": saved_bytes({**values, "config": Path("x")}),
        "a checkpoint of somebody else": saved_bytes({"state_dict": model}),
        "a newer format": saved_bytes({**values, "format_version": 999}),
        "weights of another model": saved_bytes({**values, "model_state_dict": dict(list(model.items())[1:])}),
        "weights that are no numbers": saved_bytes(
            {**values, "model_state_dict": {key: tensor * float("nan") for key, tensor in model.items()}}
        ),
        "no history": saved_bytes({**values, "history": "[" * 100_000}),
    }
    refused |= {f"{tenth} tenths": whole[: len(whole) * tenth // 10] for tenth in range(1, 10)}
    for name, content in refused.items():
        trial.struck += 1
        last.write_bytes(content)
        told_in_a_line(trial, name, folder)
    for flip in range(200):
        trial.struck += 1
        last.write_bytes(flipped())
        try:
            found = list(differing(checkpoints.read(last), values))
        except InputError:
            continue
        if found:  # a flip that is read must have been where nothing stands
            trial.wrong(f"flip {flip} is read: {found}")
    for name in ("a folder", "a pipe"):
        trial.struck += 1
        last.unlink()
        last.mkdir() if name == "a folder" else os.mkfifo(last)
        told_in_a_line(trial, name, folder)
        last.rename(folder.parent / name)
        last.touch()
    if canary.exists():
        trial.wrong("a bomb went off")
    last.unlink()
    last.write_bytes(whole)
    trial.mismatches += other(folder, subject.straight)
    return trial


def told_in_a_line(trial: Trial, name: str, folder: Path) -> None:
    """Go on with a run that cannot be gone on with."""
    began = time.monotonic()
    command = [sys.executable, "-m", "arcvae_cli", "train", "--resume", str(folder), "--epochs", "9"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=LONGEST)
    taken, said = time.monotonic() - began, done.stderr
    lines = said.splitlines()
    if done.returncode != 2 or len(lines) > 2 or not said.startswith("error: ") or taken > 60:
        trial.wrong(f"{name}: exit code {done.returncode} after {taken:.0f} s: {said[-300:]}")


# ------------------------------------------------------------------------------------------------------ all of it

Strike = Callable[[Subject, Path, random.Random, int], Trial]


@dataclass(frozen=True)
class Fault:
    """What is done to runs. `often`: trials of it, and those of --quick; `only`: the subject, where it is but one."""

    name: str
    strike: Strike
    often: tuple[int, int]
    only: str | None = None


def signalled(number: signal.Signals) -> Strike:
    def strike(subject: Subject, folder: Path, chance: random.Random, index: int) -> Trial:
        return asked(subject, folder, chance, index, number)

    return strike


FAULTS = (
    Fault("SIGKILL", killed, (50, 4)),
    *(Fault(number.name, signalled(number), (12, 1)) for number in CODES),
    Fault("Ctrl-C twice", asked_twice, (12, 1)),
    Fault("a file too large (RLIMIT_FSIZE)", filled, (12, 1)),
    Fault("a file system that is full", on_small_disk, (8, 1)),
    Fault("a loss or gradient that is NaN", spoilt, (12, 1)),
    Fault("memory too small for the batch (RLIMIT_AS)", starved, (6, 1), "grids"),
    Fault("three processes resume one run", twice, (6, 1)),
    Fault("five runs start in one second", in_one_second, (2, 1), "equations"),
    Fault("SIGKILL, W&B and TensorBoard listen", logged, (8, 1)),
    Fault("checkpoints damaged or hostile", hostile, (1, 1), "equations"),
)


def squares(path: Path) -> None:
    """A corpus of grids with a coloured square each: 320 to train on."""
    chance, grids = np.random.RandomState(0), np.zeros((352, 16, 16), np.uint8)
    for grid in grids:
        row, column = chance.randint(0, 8, 2)
        grid[row : row + 6, column : column + 6] = chance.randint(1, 10)
    np.savez(path, train=grids[:320], val=grids[320:336], test=grids[336:])


def make_subject(base: Path, name: str, tables: Mapping[str, Any], with_loggers: bool) -> Subject:
    """Write the preset, and do the run that nobody disturbs; as the command does it, with nothing counted."""
    preset = base / f"{name}.toml"
    merged = {key: {**COMMON.get(key, {}), **tables.get(key, {})} for key in {**COMMON, **tables}}
    preset.write_text(tomli_w.dumps(merged), "utf-8")
    command = [sys.executable, "-m", "arcvae_cli", "train", "--preset", str(preset), "--runs-dir", str(base)]
    start = 0.0
    for suffix, flags in (("straight", ()), ("logged", LOGGED))[: 1 + with_loggers]:
        words = [*command, "--run-name", f"{name}-{suffix}", *flags]
        # saved after its epochs only: how often the others save must change nothing
        process = subprocess.Popen([*words, "--set", "train.save_minutes=0"], env=environment(), **QUIET)
        began, last = time.monotonic(), base / f"{name}-{suffix}" / "checkpoints" / "last.pth"
        while not last.is_file() and process.poll() is None:
            time.sleep(0.01)
        start = start or time.monotonic() - began
        said = process.communicate()[1]
        if process.returncode:
            sys.exit(f"{' '.join(words)}\n{said}")
    return Subject(name, preset, base / f"{name}-straight", saved(base / f"{name}-straight"), start)


QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


def table(found: Mapping[str, list[Trial]]) -> Iterator[str]:
    """All trials in Markdown, a line a fault."""
    yield "| fault | tried | resumed | steps lost at most | mismatches |"
    yield "|---|---|---|---|---|"
    for name, trials in found.items():
        struck, resumed = sum(trial.struck for trial in trials), sum(trial.resumed for trial in trials)
        lost, wrong = max(trial.lost for trial in trials), sum(len(trial.mismatches) for trial in trials)
        yield f"| {name} | {struck} | {resumed or '-'} | {lost if resumed else '-'} | {wrong} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each fault a few times")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=cores(), help="runs side by side")
    parser.add_argument("--only", help="faults with this in their name")
    parser.add_argument("--folder", type=Path, help="where the runs go, some hundred megabytes; by default a new one")
    given = parser.parse_args()
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:  # by `nohup`, or a shell that starts jobs; runs would keep to it
            signal.signal(number, handler)
    began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="soak-", dir=given.folder)).resolve()
    os.environ["ARCVAE_CACHE_DIR"] = str(base / "cache")
    squares(base / "squares.npz")
    grids = {"data": {"path": str(base / "squares.npz")}, **GRIDS}
    faults = [fault for fault in FAULTS if given.only is None or given.only.lower() in fault.name.lower()]
    if not small_disks():
        print("no small file system can be mounted here: left out")
        faults = [fault for fault in faults if fault.strike is not on_small_disk]
    with_loggers = any(fault.strike is logged for fault in faults)
    subjects = [make_subject(base, *pair, with_loggers) for pair in (("grids", grids), ("equations", EQUATIONS))]
    for subject in subjects:
        print(f"{subject.name}: {subject.steps} steps, the first save after {subject.start:.1f} s")

    def work(fault: Fault, index: int) -> Trial:
        chosen = [subject for subject in subjects if fault.only in (None, subject.name)]
        folder = base / f"{fault.strike.__name__}-{fault.name.replace(' ', '-').replace('/', '-')[:20]}-{index}" / "run"
        folder.parent.mkdir()
        try:
            subject = chosen[index % len(chosen)]
            trial = fault.strike(subject, folder, random.Random(f"{given.seed} {fault.name} {index}"), index)
        except Exception as error:
            trial = Trial(mismatches=[f"{type(error).__name__}: {error}"])
        if trial.mismatches:
            print(f"{fault.name} {index}: {folder}\n  " + "\n  ".join(trial.mismatches), flush=True)
        else:
            shutil.rmtree(folder.parent)
        return trial

    found: dict[str, list[Trial]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        for fault in faults:
            found[fault.name] = list(pool.map(work, [fault] * len(range(fault.often[given.quick])), range(10**6)))
            counts: dict[str, int] = {}
            for trial in found[fault.name]:
                for what, number in trial.tally.items():
                    counts[what] = counts.get(what, 0) + number
            shown = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()) if number)
            runs_done = len(found[fault.name])
            print(f"{fault.name}: {runs_done} runs, {time.monotonic() - began:.0f} s by now{': ' * bool(shown)}{shown}")
            sys.stdout.flush()
    print("", *table(found), sep="\n")
    trials = [trial for all_of in found.values() for trial in all_of]
    wrong = sum(len(trial.mismatches) for trial in trials)
    strikes, resumed = (sum(getattr(trial, name) for trial in trials) for name in ("struck", "resumed"))
    print(f"\n{strikes} faults, {resumed} resumptions, {wrong} mismatches; {time.monotonic() - began:.0f} s")
    if not wrong:
        shutil.rmtree(base)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
