"""Sweeps of runs: what varies, which run is next, how each ended, and the worker that trains them.

A sweep is a folder: `sweep.json`, the plan; `base.toml`, the settings before anything varies; the folders of the runs;
`logs/NAME.log`, what a run printed; `outcomes/NAME.json` of failed and pruned runs; `.locks/NAME.lock`, held by who
works on a run; `journal.log`, the Optuna study of a search.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from arcvae_cli import folders
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, is_dir, is_file, read_lines, usable_folder
from arcvae_cli.machine import cores
from arcvae_cli.presets import OTHER_VARIABLES, Layer, flag_layer, leaves, parse_value, preset_layers, resolve
from arcvae_cli.settings import NAMED, Table, elbo_scale

METRICS = {"elbo": "elbo_nats", "rate": "kl_nats", "distortion": "reconstruction_nats"}  # in metrics.json
PRUNING = "all dimensions had KL <= 0.05 nats for a quarter of the epochs, and a cycle, after beta reached its peak"
TICK = 0.2  # seconds between two looks at the processes
ENDED = ("finished", "pruned", "failed")
POPULATIONS = ("pbt", "pbt-pareto")  # searches of one process, whose runs change their settings: `population.py`
LIVE = ("schedule.", "objective.", "train.lr", "train.weight_decay", "train.gradient_clip")
"""Settings that may change in the middle of a run."""
Axes = dict[str, list[Any]]  # by key: choice and values; or log, float or int, low and high
Row = dict[str, Any]  # a run as its files show it: run, values, state, reason, epochs, epoch, beta, active and METRICS


@dataclass(frozen=True)
class Plan:
    """What was asked for, as `sweep.json` has it. `base`: the settings before anything varies.

    `given`: the keys of schedule and model that a person set, which hold where the name of the schedule varies too.
    `interval`: epochs of each generation of a population, which has `trials` members.
    """

    base: Table
    given: Table
    axes: Axes
    search: str | None = None
    trials: int = 0
    prune: bool = True
    interval: int = 1

    @property
    def total(self) -> int:
        """The number of runs."""
        return self.trials or math.prod(len(values) for _, *values in self.axes.values())

    def folder(self, preset: str | None) -> Path:
        """Where it is by default: more trials are the same sweep, anything else is another."""
        text = json.dumps(asdict(replace(self, trials=0)), sort_keys=True)
        return Path("runs", f"{Path(preset or 'defaults').stem}-sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}")


def make_plan(preset: str | None, layers: Sequence[Layer], axes: Axes, search: str | None = None, **asked: Any) -> Plan:
    """A plan whose every combination of values, or of the ends of ranges, the settings accept. InputError."""
    settings, flag = resolve(preset, *layers).settings, "--over" if search else "--vary"
    if idle := [key for key in axes if f"{key}.".startswith(folders.WITHOUT_EFFECT)]:
        raise InputError(f"{flag} {idle[0]}: cannot vary: it does not change the result", "use --set for all runs")
    if search in POPULATIONS:
        for key, (kind, *_) in axes.items():
            if kind not in ("log", "float") or not key.startswith(LIVE):
                fix = "use log or float ranges of schedule.KEY, objective.KEY, train.lr and the like, or --search tpe"
                raise InputError(f"--over {key}={kind}: cannot change while a run trains", fix)
        if elbo_scale(settings) is None:
            fix = "use objective.reconstruction=cross_entropy and class_weights=none"
            raise InputError(f"--search {search}: this objective has no ELBO to rank members by", fix)
    for varied in combinations(axes):
        layer = flag_layer({f"{flag} {key}": (key, value) for key, value in expanded(varied).items()}, flag)
        try:
            resolve(preset, *layers, layer)
        except InputError as error:
            combined = ", ".join(f"{key}={value}" for key, value in varied.items())
            raise InputError(f"{error.what} (with {combined})", error.fix) from None
    given = dict(pair for layer in layers for pair in leaves(layer.values) if pair[0].startswith(tuple(NAMED)))
    return Plan(settings.table(), given, axes, search, **asked)


def combinations(axes: Axes) -> Iterator[Table]:
    """Every combination of the values, or of the ends, of axes."""
    for values in itertools.product(*(values for _, *values in axes.values())):
        yield dict(zip(axes, values, strict=True))


def expanded(values: Table) -> Table:
    """Values by dotted key, with those that a preset holds in the place of its name."""
    held = {key: value for layer in preset_layers(values.get("preset")) for key, (value, _) in layer.items()}
    return {**held, **{key: value for key, value in values.items() if key != "preset"}}


def read_axis(text: str) -> list[Any]:
    """`KIND:LOW..HIGH` or `choice:VALUE,VALUE` (as TOML, else strings) as a list. InputError for any other text."""
    kind, _, rest = text.partition(":")
    if kind == "choice":
        listed = parse_value(f"[{rest}]")
        values = listed if isinstance(listed, list) else [parse_value(part.strip()) for part in rest.split(",")]
        if not values or "" in values or len(set(map(json.dumps, values))) < len(values):
            raise InputError(f"{rest!r}: a value is missing or given twice", "expected VALUE,VALUE")
        return [kind, *values]
    ends = [parse_value(part) for part in rest.split("..")]
    number: Any = {"int": int, "float": (int, float), "log": (int, float)}.get(kind, ())
    known = len(ends) == 2 and all(isinstance(end, number) for end in ends)
    if not known or not (0 if kind == "log" else -math.inf) < ends[0] < ends[1] < math.inf:
        fix = "expected log:LOW..HIGH with LOW above 0, float:LOW..HIGH, int:LOW..HIGH or choice:VALUE,VALUE"
        raise InputError(f"{text!r}: {'an empty' if known else 'not a'} range", fix)
    return [kind, *ends] if kind == "int" else [kind, *map(float, ends)]


def open_folder(folder: Path, plan: Plan | None) -> Plan:
    """The plan of the sweep in a folder, which is begun if there is none. InputError if it is not as `plan` has it."""
    file, parts = folder / "sweep.json", (".locks", "logs", "outcomes")
    try:
        old = Plan(**json.loads(file.read_bytes())) if is_file(file) else None
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: not a sweep of this version", "choose another folder") from error
    if old is not None:
        plan = plan or old
        trials = plan.trials if plan.search in POPULATIONS else old.trials
        changed = folders.differences(asdict(old), asdict(replace(plan, trials=trials)))
        if changed:
            wrong = [f"{key.removeprefix('base.')} was {one}, now {other}" for key, (one, other) in changed.items()]
            fix = f"`arcvae sweep --study {folder}` goes on with it; other settings need another folder"
            raise InputError(f"{folder}: a sweep of other settings: {'; '.join(wrong[:5])}", fix)
    elif plan is None:
        raise InputError(f"{folder}: not a sweep", "give --preset and --vary to begin one there")
    elif is_dir(folder) and {*os.listdir(folder)} - {*parts, "base.toml"}:
        raise InputError(f"{folder}: holds something else than a sweep", "choose another folder")
    usable_folder(folder, "--study")
    for part in parts:
        (folder / part).mkdir(exist_ok=True)
    if plan != old:
        with atomic_write(folder / "base.toml") as temporary:
            temporary.write_text(tomli_w.dumps(plan.base), encoding="utf-8")
        folders.write_json(file, asdict(plan))
    return plan


def retry_failed(folder: Path) -> None:
    """Let the failed runs be claimed again; they go on from where they stopped."""
    for file in (folder / "outcomes").glob("*.json"):
        if json.loads(file.read_bytes())["state"] == "failed":
            file.unlink(missing_ok=True)


class Run:
    """A run of a sweep: what its files show, and its process once this worker has claimed it."""

    process: subprocess.Popen[bytes] | None = None
    asked = pruned = False  # to stop; because it has collapsed

    def __init__(self, folder: Path, plan: Plan, name: str, values: Table) -> None:
        from filelock import FileLock

        self.folder, self.name, self.given = folder, name, {**plan.given, **expanded(values)}
        self.lock = FileLock(folder / ".locks" / f"{name}.lock", timeout=0)
        self.active: dict[int, int] = {}  # by epoch, the dimensions with KL > 0.05 nats
        self._read = 0  # when the metrics that were read were written
        epochs = self.given.get("train.epochs", plan.base["train"]["epochs"])
        self.row: Row = {"run": name, "values": values, "state": "waiting", "reason": None, "epochs": epochs}
        self.row |= dict.fromkeys(("epoch", "beta", "active", *METRICS))

    def look(self) -> Row:
        """The row, as the files are now; its `state` is one of `ENDED` if nothing is left to do."""
        if self.row["state"] in ENDED:
            return self.row
        self.row, path = dict(self.row), self.folder / self.name
        self.read_epochs(path / "metrics.jsonl")
        with suppress(FileNotFoundError):
            self.row |= json.loads((self.folder / "outcomes" / f"{self.name}.json").read_bytes())
            return self.row
        status = folders.read_status(path) or folders.STATUS
        if status["judged"]:
            document = json.loads((path / "metrics.json").read_bytes())
            active = sum(level["active_dims"] for level in document["levels"].values())
            elbo = {metric: document["elbo"][key] for metric, key in METRICS.items()}
            self.row |= {"state": "finished", "active": active, **elbo}
        elif self.alive:
            self.row["state"] = "running"
        else:  # what has ended is left to begin, to evaluate or to retry
            self.row["state"] = "waiting" if status["state"] in (None, *ENDED) else status["state"]
        return self.row

    def read_epochs(self, log: Path) -> None:
        """Put the last epoch of `metrics.jsonl` into the row, if there is a new one."""
        if not is_file(log) or (changed := log.stat().st_mtime_ns) == self._read:
            return
        self._read, lines = changed, [line for line in read_lines(log) if line["kind"] == "epoch"]
        self.active = {line["epoch"]: line["val/active_dims"] for line in lines}
        if lines:
            last, self.settings = lines[-1], resolve(str(log.with_name("config.toml"))).settings
            rate, distortion = last["val/kl"], last["val/loss_reconstruction"]
            elbo = -(rate + distortion) if elbo_scale(self.settings) == 1.0 else None
            self.row |= {"rate": rate, "distortion": distortion, "elbo": elbo, "epoch": last["epoch"]}
            self.row |= {"beta": last["train/beta"], "active": last["val/active_dims"]}

    def collapsed(self) -> bool:
        """Whether it is to be pruned; never with a closed loop, which lowers beta again."""
        if not self.active:
            return False
        schedule, last = self.settings.schedule, max(self.active)
        # a code may wake late: of digits at a constant beta of 1, which gave the best ELBO, after 8 of 40 epochs
        needed = math.ceil(max(3, self.settings.train.epochs / 4, schedule.cycle(last) or 0))
        dead = all(self.active.get(epoch) == 0 for epoch in range(last - needed + 1, last + 1))
        return dead and schedule.quantity is None and last - needed + 1 >= schedule.first_peak

    def claim(self) -> bool:
        """Take its lock, if it has not ended and no process trains it; a run is claimed once by each worker.

        The process may be another worker's, or one that a killed worker left behind.
        """
        from filelock import Timeout

        with suppress(Timeout):
            if self.process is None and self.row["state"] not in ENDED and self.lock.acquire():
                # its state last: the process that is waited for may have ended it
                if not folders.held(self.folder / self.name) and self.look()["state"] not in ENDED:
                    return True
                self.lock.release()
        return False

    def start(self, command: Sequence[str]) -> None:
        own = {key: value for key, value in os.environ.items() if key in OTHER_VARIABLES or key[:7] != "ARCVAE_"}
        with (self.folder / "logs" / f"{self.name}.log").open("wb") as log:
            # in a session of its own: a Ctrl-C of the terminal would reach it twice, since it is passed on
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(command, env=own, start_new_session=True, **streams)

    @property
    def alive(self) -> bool:
        """Whether its process here has not ended."""
        return self.process is not None and self.process.poll() is None

    def ask(self, number: int) -> None:
        """Ask the process to save and to stop."""
        if self.process is not None:
            self.asked = True
            self.process.send_signal(number)

    def reap(self) -> None:
        """Wait for the process, and write down how the run has ended, unless it was only stopped."""
        code = self.process.wait() if self.process is not None else 0
        if self.look()["state"] not in ENDED:
            if self.pruned:
                self.end("pruned", PRUNING)
            elif not self.asked and code in (0, 1, 2):
                log = self.folder / "logs" / f"{self.name}.log"
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [f"exit code {code}"]
                said = [line for line in lines if line.startswith("error: ")] or lines
                self.end("failed", one_line(said[-1].removeprefix("error: ")))
        self.lock.release()

    def end(self, state: str, reason: str) -> None:
        """Write down how it ended without an evaluation."""
        folders.write_json(self.folder / "outcomes" / f"{self.name}.json", {"state": state, "reason": reason})


class Grid:
    """The runs of every combination of values."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, self.known = folder, plan, dict[str, Run]()

    def named(self) -> dict[str, Table]:
        """By name, the values of each run."""
        found = {}
        for number, given in enumerate(combinations(self.plan.axes), 1):
            parts = [f"{key.rpartition('.')[2].removesuffix('name')}{value}" for key, value in given.items()]
            parts = [part.removeprefix("preset").rpartition("/")[2] for part in parts]
            name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join([f"{number:03d}", *parts]))[:100].strip("-")
            found[name] = given
        return found

    def runs(self) -> list[Run]:
        for name, values in self.named().items():
            if name not in self.known:
                self.known[name] = Run(self.folder, self.plan, name, values)
        return [*self.known.values()]

    def ask(self) -> bool:
        """Called when no run can be claimed: whether there is now another one."""
        return False


class Search(Grid):
    """The trials of an Optuna study, one run each. That of a failed run stays open, since the run may be retried."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        try:
            import optuna
        except ImportError as error:
            raise InputError("--search: Optuna is not installed", "pip install 'arcvae[sweep]'") from error
        from filelock import FileLock
        from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        super().__init__(folder, plan)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.lock = FileLock(folder / ".locks" / "study.lock")
        self.metrics = ("rate", "distortion") if plan.search == "nsga2" else ("elbo",)
        directions: Any = ["maximize" if metric == "elbo" else "minimize" for metric in self.metrics]
        storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        with self.lock:
            self.study = optuna.create_study(
                storage=storage, study_name="sweep", directions=directions, load_if_exists=True
            )
        kinds: Any = {"int": IntDistribution, "float": FloatDistribution, "log": partial(FloatDistribution, log=True)}
        kinds["choice"] = lambda *values: CategoricalDistribution(list(map(json.dumps, values)))  # of lists, too
        self.space: dict[str, BaseDistribution] = {key: kinds[kind](*ends) for key, (kind, *ends) in plan.axes.items()}

    def named(self) -> dict[str, Table]:
        found = {}
        for trial in self.study.get_trials(deepcopy=False):
            if len(trial.params) == len(self.space):
                given = {key: json.loads(one) if isinstance(one, str) else one for key, one in trial.params.items()}
                found[f"trial-{trial.number:04d}"] = given
        return found

    def ask(self) -> bool:
        """Tell the study which trials have ended, whoever trained them, and begin another unless there are enough."""
        from optuna.samplers import NSGAIISampler, TPESampler
        from optuna.trial import TrialState

        with self.lock:
            count, most = len(self.runs()), self.plan.trials
            for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                run = self.known.get(f"trial-{trial.number:04d}")
                if run is None:  # its worker was killed while it drew the values
                    self.study.tell(trial.number, state=TrialState.FAIL)
                elif (row := run.look())["state"] == "finished":
                    self.study.tell(trial.number, [row[metric] for metric in self.metrics])
                elif row["state"] == "pruned":
                    self.study.tell(trial.number, state=TrialState.PRUNED)
            if count >= most:
                return False
            # a seed for each trial: with one for all, every worker would draw the same
            number = len(self.study.get_trials(deepcopy=False))
            seed = random.Random(f"{self.plan.base['train']['seed']} {number}").getrandbits(32)
            if self.plan.search == "nsga2":
                self.study.sampler = NSGAIISampler(seed=seed, population_size=min(50, max(2, most // 4)))
            else:
                self.study.sampler = TPESampler(seed=seed, n_startup_trials=min(10, max(1, most // 3)))
            self.study.ask(self.space)
            return True


def train_command(run: Run, threads: int | None) -> Sequence[str]:
    """The command line that trains a run, or resumes it."""
    assignments = [f"--set={key}={json.dumps(value)}" for key, value in leaves(run.given)]
    place = ["--run-name", run.name, "--runs-dir", str(run.folder), "--resume", "auto", "--quiet"]
    arguments = ["--preset", str(run.folder / "base.toml"), *assignments, *place]
    return [sys.executable, "-m", "arcvae_cli", "train", *arguments, *([f"--threads={threads}"] if threads else [])]


def work(source: Grid, jobs: int, stop: Callable[[], int | None], show: Callable[[list[Row]], None]) -> None:
    """Train the runs of a sweep, `jobs` at a time, until all have ended or `stop` gives the number of a signal.

    The signal is passed on to the processes, which save, and are waited for. Any number of workers may share a folder;
    each waits for the others, to take up the run of one that dies. A process that somebody else's signal ended is left
    to the next start. `show` gets the rows of all runs, five times a second.
    """
    plan, running = source.plan, list[Run]()
    share = max(1, cores() // jobs) if jobs > 1 and plan.base["train"]["threads"] == "auto" else None
    try:
        while True:
            for run in [run for run in running if not run.alive]:
                run.reap()
                running.remove(run)
            while len(running) < jobs and stop() is None:
                claimed = next((run for run in source.runs() if run.claim()), None)
                if claimed is not None:
                    claimed.start(train_command(claimed, share))
                    running.append(claimed)
                elif not source.ask():
                    break
            runs = source.runs()
            show([run.look() for run in runs])
            for run in running if plan.search and plan.prune else ():
                if not run.asked and run.collapsed():
                    run.pruned = True
                    run.ask(signal.SIGINT)
            others = any(run.process is None and run.row["state"] not in ENDED for run in runs)
            if stop() is not None or not (running or others):
                return
            time.sleep(TICK)
    finally:
        for run in running:
            if not run.asked:
                run.ask(stop() or signal.SIGTERM)
        for run in running:
            run.reap()
