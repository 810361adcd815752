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
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli_w

from arcvae_cli import folders
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, is_dir, is_file, read_lines
from arcvae_cli.machine import cores
from arcvae_cli.presets import OTHER_VARIABLES, Layer, flag_layer, leaves, parse_value, resolve, set_layer
from arcvae_cli.settings import NAMED, Table, elbo_scale

if TYPE_CHECKING:
    import optuna
    from filelock import BaseFileLock

METRICS = {  # where metrics.json has them, and what a search does with them
    "elbo": ("elbo.elbo_nats", "maximize"),
    "rate": ("elbo.kl_nats", "minimize"),
    "distortion": ("elbo.reconstruction_nats", "minimize"),
    "exact_share": ("reconstruction.posterior_mean.exact_share", "maximize"),
}
IDLE = ("log.", "checkpoint.", *folders.MACHINE)  # keys without an effect on the result
PRUNING = "all dimensions had KL <= 0.05 nats for a quarter of the epochs, and a cycle, after beta reached its peak"
TICK = 0.2  # seconds between two looks at the processes
ENDED = ("finished", "pruned", "failed")
POPULATIONS = ("pbt", "pbt-pareto")  # searches of one process, whose runs change their settings: `population.py`
LIVE = ("schedule.", "objective.", "train.lr", "train.lr_min", "train.weight_decay", "train.gradient_clip")
"""Settings that may change in the middle of a run."""
Row = dict[str, Any]  # a run as its files show it: run, values, state, reason, epochs, epoch, beta, active and METRICS


@dataclass(frozen=True)
class Plan:
    """What was asked for, as `sweep.json` has it. `base`: the settings before anything varies.

    `given`: the keys of schedule and model that a person set, which hold where the name of the schedule varies too.
    `vary`: values by key. `over`: by key the kind of a range, and its ends or choices. `interval`: epochs of each
    generation of a population, which has `trials` members; else 0.
    """

    preset: str | None
    base: Table
    given: Table
    vary: dict[str, list[Any]]
    seeds: int
    search: str | None
    trials: int
    over: dict[str, list[Any]]
    metric: str
    prune: bool
    interval: int = 0

    @property
    def name(self) -> str:
        """The folder's name: more trials are the same sweep, anything else is another."""
        text = json.dumps(asdict(replace(self, trials=0)), sort_keys=True)
        return f"{Path(self.preset or 'defaults').stem}-sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Run(NamedTuple):
    """A run of a sweep: its name, its values by dotted key, and the number of its trial in a search."""

    name: str
    values: dict[str, Any]
    number: int


def make_plan(preset: str | None, layers: Sequence[Layer], **asked: Any) -> Plan:
    """A plan whose every combination of values, or of the ends of ranges, the settings accept. InputError."""
    given = [pair for layer in layers for pair in leaves(layer.values) if pair[0].startswith(tuple(NAMED))]
    plan = Plan(preset, resolve(preset, *layers).settings.table(), dict(given), **asked)
    axes = {key: ends for key, (_, *ends) in plan.over.items()} or plan.vary
    flag = "--over" if plan.search else "--vary"
    if not axes:
        raise InputError(
            "nothing varies", "give --over KEY=log:LOW..HIGH" if plan.search else "give --vary KEY=VALUE,VALUE"
        )
    if idle := [key for key in axes if f"{key}.".startswith(IDLE) or key in IDLE]:
        raise InputError(f"{flag} {idle[0]}: cannot vary: it does not change the result", "use --set for all runs")
    if plan.search in POPULATIONS:
        check_population(plan)
    if plan.seeds > 1 and "train.seed" in axes:
        raise InputError("--seeds: train.seed varies already", "give one of the two")
    for values in itertools.product(*axes.values()):
        varied = {f"{flag} {key}": (key, value) for key, value in zip(axes, values, strict=True)}
        try:
            resolve(preset, *layers, flag_layer(varied, flag))
        except InputError as error:
            combined = ", ".join(f"{key}={value}" for key, value in zip(axes, values, strict=True))
            raise InputError(f"{error.what} (with {combined})", error.fix) from None
    return plan


def check_population(plan: Plan) -> None:
    """InputError for a range or an objective that the members of a population cannot have."""
    for key, (kind, *_) in plan.over.items():
        if not key.startswith(LIVE[:2]) and key not in LIVE:
            fix = f"use {', '.join(f'{one}KEY' if one[-1] == '.' else one for one in LIVE)}, or --search tpe"
            raise InputError(f"--over {key}: cannot change while a run trains", fix)
        if kind not in ("log", "float"):
            raise InputError(f"--over {key}: {kind} has no factor", "use log:LOW..HIGH or float:LOW..HIGH")
    if plan.trials < 2:
        raise InputError(f"--trials {plan.trials}: a population of one", "use at least 2")
    if elbo_scale(resolve(None, Layer("base", plan.base)).settings) is None:
        fix = "use objective.reconstruction=cross_entropy and class_weights=none"
        raise InputError(f"--search {plan.search}: this objective has no ELBO to rank members by", fix)


def read_values(text: str) -> list[Any]:
    """The values of `VALUE,VALUE`, each as TOML would read it, else a string. InputError if one is given twice."""
    listed = parse_value(f"[{text}]")
    found = listed if isinstance(listed, list) else [parse_value(part.strip()) for part in text.split(",")]
    if not found or "" in found or len(set(map(json.dumps, found))) < len(found):
        raise InputError(f"{text!r}: a value is missing or given twice", "expected VALUE,VALUE")
    return found


def read_range(text: str) -> list[Any]:
    """`KIND:LOW..HIGH` or `choice:VALUE,VALUE` as a list. InputError for a range that is empty or no range."""
    kind, _, rest = text.partition(":")
    if kind == "choice":
        return [kind, *read_values(rest)]
    ends = [parse_value(part) for part in rest.split("..")]
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "log": (int, float)}
    if len(ends) != 2 or not all(type(end) in kinds.get(kind, ()) for end in ends):
        fix = "expected log:LOW..HIGH, float:LOW..HIGH, int:LOW..HIGH or choice:VALUE,VALUE"
        raise InputError(f"{text!r}: not a range", fix)
    if not -math.inf < ends[0] < ends[1] < math.inf or (kind == "log" and ends[0] <= 0):
        raise InputError(f"{text!r}: an empty range", f"LOW is below HIGH{', and above 0' * (kind == 'log')}")
    return [kind, *ends] if kind == "int" else [kind, *map(float, ends)]


def open_folder(folder: Path, plan: Plan | None) -> Plan:
    """The plan of the sweep in a folder, which is begun if there is none. InputError if it is not as `plan` has it."""
    from filelock import FileLock

    file, parts = folder / "sweep.json", (".locks", "logs", "outcomes")
    names = set(os.listdir(folder)) if is_dir(folder) else set()
    if not is_file(file) and (plan is None or names - {*parts, "base.toml"}):
        fix = "choose another folder" if plan else "give --preset and --vary to begin one there"
        raise InputError(f"{folder}: {'holds something else than' if plan else 'not'} a sweep", fix)
    try:
        for part in parts:
            (folder / part).mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".locks" / "sweep.lock"):
            old = Plan(**json.loads(file.read_bytes())) if is_file(file) else None
            if plan is None:
                assert old is not None
                return old
            if old is not None:
                trials = plan.trials if plan.interval else old.trials
                changed = folders.differences(asdict(old), asdict(replace(plan, trials=trials, preset=old.preset)))
                wrong = [f"{key.removeprefix('base.')} was {one}, now {other}" for key, (one, other) in changed.items()]
                if wrong:
                    fix = f"`arcvae sweep --study {folder}` goes on with it; other settings need another folder"
                    raise InputError(f"{folder}: a sweep of other settings: {'; '.join(wrong[:5])}", fix)
            with atomic_write(folder / "base.toml") as temporary:
                temporary.write_text(tomli_w.dumps(plan.base), encoding="utf-8")
            folders.write_json(file, asdict(plan))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror})", "choose another folder") from error
    return plan


def state_of(folder: Path, name: str) -> dict[str, Any]:
    """The `state` of a run, one of `ENDED` if nothing is left to do, and its `reason`."""
    with suppress(OSError):
        outcome: dict[str, Any] = json.loads((folder / "outcomes" / f"{name}.json").read_bytes())
        return outcome
    status = folders.read_status(folder / name) or {"state": "waiting", "judged": False}
    early = {"finished": "running", "failed": "waiting"}  # to be evaluated; its outcome was removed
    state = status["state"]
    return {"state": state if status["judged"] else early.get(state, state), "reason": None}


def has_ended(folder: Path, name: str) -> bool:
    """Whether nothing is left to do for a run."""
    return state_of(folder, name)["state"] in ENDED


def measured(folder: Path, name: str) -> dict[str, Any]:
    """The metrics of a finished run's evaluation, and its active dimensions."""
    document = json.loads((folder / name / "metrics.json").read_bytes())
    found: dict[str, Any] = {"active": sum(level["active_dims"] for level in document["levels"].values())}
    for metric, (key, _) in METRICS.items():
        found[metric] = document
        for part in key.split("."):
            found[metric] = found[metric][part]
    return found


def take(folder: Path, name: str) -> BaseFileLock | None:
    """The lock of a run; None if a worker has it, or if the process that a killed worker left behind is training it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".locks" / f"{name}.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    if folders.held(folder / name):
        lock.release()
        return None
    return lock


class Grid:
    """The runs of every combination of values and seeds."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, axes = folder, plan, dict(plan.vary)
        if plan.seeds > 1:
            axes["train.seed"] = [plan.base["train"]["seed"] + number for number in range(plan.seeds)]
        self.all = []
        for number, values in enumerate(itertools.product(*axes.values()), 1):
            given = dict(zip(axes, values, strict=True))
            parts = [f"{key.rpartition('.')[2].removesuffix('name')}{value}" for key, value in given.items()]
            name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join([f"{number:03d}", *parts]))[:100].strip("-")
            self.all.append(Run(name, given, number))

    def runs(self) -> list[Run]:
        return self.all

    def left(self, skip: Collection[str]) -> bool:
        """Whether any run has not ended, but for those to skip."""
        return any(run.name not in skip and not has_ended(self.folder, run.name) for run in self.all)

    def claim(self, skip: Collection[str]) -> tuple[Run, BaseFileLock] | None:
        """A run to work on, and its lock, which is held; None if there is none now."""
        for run in self.all:
            if run.name not in skip and not has_ended(self.folder, run.name) and (lock := take(self.folder, run.name)):
                return run, lock
        return None

    def tell(self, run: Run, state: str) -> None:
        """Called once when a claimed run has ended."""

    def retry(self, run: Run) -> None:
        """Called for a failed run that is to be claimed again."""


class Search(Grid):
    """The trials of an Optuna study, one run each. A failed one is retried by a further trial with its name."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        try:
            import optuna
        except ImportError as error:
            raise InputError("--search: Optuna is not installed", "pip install 'arcvae[sweep]'") from error
        from filelock import FileLock
        from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

        self.folder, self.plan, self.states = folder, plan, optuna.trial.TrialState
        self.lock = lock = FileLock(folder / ".locks" / "study.lock", thread_local=False)

        class KernelLock(JournalFileOpenLock):  # Optuna's own would hold all up for 30 s after a kill -9
            def acquire(self) -> bool:
                lock.acquire()
                return True

            def release(self) -> None:
                lock.release()

        self.metrics = ("rate", "distortion") if plan.search == "nsga2" else (plan.metric,)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions: Any = [METRICS[metric][1] for metric in self.metrics]
        journal = str(folder / "journal.log")
        storage = JournalStorage(JournalFileBackend(journal, KernelLock(journal)))
        named: Any = {"study_name": "sweep", "load_if_exists": True}
        with lock:
            self.study = optuna.create_study(storage=storage, directions=directions, **named)
        self.space: dict[str, BaseDistribution] = {}
        for key, (kind, *ends) in plan.over.items():
            if kind == "choice":  # of any values, lists too
                self.space[key] = CategoricalDistribution(list(map(json.dumps, ends)))
            elif kind == "int":
                self.space[key] = IntDistribution(*ends)
            else:
                self.space[key] = FloatDistribution(ends[0], ends[1], log=kind == "log")

    def trials(self) -> dict[str, optuna.trial.FrozenTrial]:
        """The last trial of each run, but for those whose worker was killed before they had their values."""
        trials = self.study.get_trials(deepcopy=False)
        named = {trial.user_attrs.get("run", f"trial-{trial.number:04d}"): trial for trial in trials}
        return {name: trial for name, trial in named.items() if trial.params or trial.state != self.states.FAIL}

    def run(self, name: str, trial: optuna.trial.BaseTrial) -> Run:
        choices = [key for key, (kind, *_) in self.plan.over.items() if kind == "choice"]
        values = {key: json.loads(value) if key in choices else value for key, value in trial.params.items()}
        return Run(name, values, trial.number)

    def runs(self) -> list[Run]:
        return [self.run(name, trial) for name, trial in self.trials().items() if trial.params]

    def left(self, skip: Collection[str]) -> bool:
        return any(name not in skip and not trial.state.is_finished() for name, trial in self.trials().items())

    def claim(self, skip: Collection[str]) -> tuple[Run, BaseFileLock] | None:
        with self.lock:
            trials = self.trials()
            for name, trial in trials.items():
                if trial.state == self.states.RUNNING and name not in skip and (lock := take(self.folder, name)):
                    if len(trial.params) == len(self.space):
                        return self.run(name, trial), lock
                    self.study.tell(trial.number, state=self.states.FAIL)
                    lock.release()
            retried = any(trial.state == self.states.WAITING for trial in trials.values())
            if len(self.trials()) >= self.plan.trials and not retried:
                return None
            self.study.sampler = self.sampler()
            asked = self.study.ask(self.space)
            run = self.run(asked.user_attrs.get("run", f"trial-{asked.number:04d}"), asked)
            free = take(self.folder, run.name)
            return None if free is None else (run, free)

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Of the next trial, and with a seed of its own: with one for all, every worker would draw the same."""
        from optuna.samplers import NSGAIISampler, TPESampler

        number, trials = len(self.study.get_trials(deepcopy=False)), self.plan.trials
        seed = random.Random(f"{self.plan.base['train']['seed']} {number}").getrandbits(32)
        if self.plan.search == "nsga2":
            return NSGAIISampler(seed=seed, population_size=min(50, max(2, trials // 4)))
        return TPESampler(seed=seed, n_startup_trials=min(10, max(1, trials // 3)))

    def tell(self, run: Run, state: str) -> None:
        if state == "finished":
            found = measured(self.folder, run.name)
            self.study.tell(run.number, [found[metric] for metric in self.metrics])
        else:
            self.study.tell(run.number, state=self.states.PRUNED if state == "pruned" else self.states.FAIL)

    def retry(self, run: Run) -> None:
        self.study.enqueue_trial(self.trials()[run.name].params, user_attrs={"run": run.name})


def open_source(folder: Path, plan: Plan) -> Grid:
    """Where the runs come from: another kind of search is a class with the methods of `Grid`."""
    return Search(folder, plan) if plan.search else Grid(folder, plan)


def retry_failed(source: Grid) -> None:
    """Let the failed runs be claimed again; they go on from where they stopped."""
    folder = source.folder
    for run in source.runs():
        if state_of(folder, run.name)["state"] == "failed":
            with suppress(FileNotFoundError):  # another worker was faster
                (folder / "outcomes" / f"{run.name}.json").unlink()
                source.retry(run)


class Progress:
    """A run as its files show it."""

    def __init__(self, folder: Path, plan: Plan, run: Run) -> None:
        self.folder, self.run, self._read = folder, run, 0
        base = str(folder / "base.toml")
        try:
            self.settings = resolve(base, set_layer(assignments(plan, run))).settings
        except InputError:  # within a range whose ends are valid: the run will fail, and say why
            self.settings = resolve(base).settings
        self.active: dict[int, int] = {}  # by epoch, the dimensions with KL > 0.05 nats
        self.row: Row = {"run": run.name, "values": run.values, "state": "waiting", "reason": None}
        self.row |= {"epochs": self.settings.train.epochs, **dict.fromkeys(("epoch", "beta", "active", *METRICS))}

    def update(self) -> Row:
        """The row: the last epoch's metrics, after the run those of its evaluation."""
        path = self.folder / self.run.name / "metrics.jsonl"
        if self.row["state"] not in ENDED and is_file(path) and path.stat().st_mtime_ns != self._read:
            self._read = path.stat().st_mtime_ns  # it grows once an epoch
            for line in [line for line in read_lines(path) if line["kind"] == "epoch"]:
                self.active[line["epoch"]] = line["val/active_dims"]
                rate, distortion = line["val/kl"], line["val/loss_reconstruction"]
                found = {"epoch": line["epoch"], "beta": line["train/beta"], "active": line["val/active_dims"]}
                elbo = -(rate + distortion) if elbo_scale(self.settings) == 1.0 else None
                self.row = {**self.row, **found, "rate": rate, "distortion": distortion, "elbo": elbo}
        if self.row["state"] not in ENDED:
            self.row = {**self.row, **state_of(self.folder, self.run.name)}
            if self.row["state"] == "finished":
                self.row |= measured(self.folder, self.run.name)
        return self.row

    def collapsed(self) -> bool:
        """Whether the run is to be pruned; never with a closed loop, which lowers beta again."""
        schedule, last = self.settings.schedule, max(self.active, default=0)
        # a code may wake late: of digits at a constant beta of 1, which gave the best ELBO, after 8 of 40 epochs
        needed = math.ceil(max(3, self.settings.train.epochs / 4, schedule.cycle(last) or 0))
        dead = all(self.active.get(epoch) == 0 for epoch in range(last - needed + 1, last + 1))
        return dead and schedule.quantity is None and last - needed + 1 >= schedule.first_peak


def assignments(plan: Plan, run: Run) -> list[str]:
    """What a run sets above `base.toml`."""
    return [f"{key}={json.dumps(value)}" for key, value in {**plan.given, **run.values}.items()]


def train_command(folder: Path, plan: Plan, run: Run, threads: int | None) -> list[str]:
    """The command line that trains a run of a sweep, or resumes it."""
    arguments = ["--preset", str(folder / "base.toml"), *(f"--set={text}" for text in assignments(plan, run))]
    arguments += ["--run-name", run.name, "--runs-dir", str(folder), "--resume", "auto", "--quiet"]
    return [sys.executable, "-m", "arcvae_cli", "train", *arguments, *([f"--threads={threads}"] if threads else [])]


Command = Callable[[Path, Plan, Run, int | None], Sequence[str]]


class Job:
    """The process of a claimed run."""

    def __init__(self, folder: Path, run: Run, lock: BaseFileLock, command: Sequence[str]) -> None:
        self.folder, self.run, self.lock = folder, run, lock
        self.asked = self.pruned = False  # to stop; because it has collapsed
        self.log = folder / "logs" / f"{run.name}.log"
        own = {key: value for key, value in os.environ.items() if key in OTHER_VARIABLES or key[:7] != "ARCVAE_"}
        with self.log.open("wb") as log:
            # in a session of its own: a Ctrl-C of the terminal would reach it twice, since it is passed on
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(command, env=own, start_new_session=True, **streams)

    def ask(self, number: int) -> None:
        """Ask the process to save and to stop."""
        self.asked = True
        self.process.send_signal(number)

    def ended(self) -> str | None:
        """The state in which the process left the run, written down; None if it was stopped and may go on."""
        state, code = state_of(self.folder, self.run.name)["state"], self.process.returncode
        if state in ENDED:
            return str(state)
        if not self.pruned and (self.asked or code not in (0, 1, 2)):
            return None
        found = {"state": "pruned", "reason": PRUNING}
        if not self.pruned:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = [line for line in lines if line.startswith("error: ")] or lines or [f"exit code {code}"]
            found = {"state": "failed", "reason": one_line(said[-1].removeprefix("error: "))}
        folders.write_json(self.folder / "outcomes" / f"{self.run.name}.json", found)
        return found["state"]


Stop = Callable[[], int | None]
Show = Callable[[list[Row]], None]


def work(source: Grid, jobs: int, stop: Stop, show: Show, command: Command = train_command) -> None:
    """Train the runs of a sweep, `jobs` at a time, until all have ended or `stop` gives the number of a signal.

    The signal is passed on to the processes, which save, and are waited for. Any number of workers may share a folder;
    each waits for the others, to take up the run of one that dies. A process that somebody else's signal ended is left
    to the next start. `show` gets the rows of all runs, five times a second.
    """
    folder, plan = source.folder, source.plan
    share = max(1, cores() // jobs) if jobs > 1 and plan.base["train"]["threads"] == "auto" else None
    running: list[Job] = []
    stopped: set[str] = set()
    known: dict[str, Progress] = {}

    def reap(job: Job) -> None:
        if (state := job.ended()) is None:
            stopped.add(job.run.name)
        else:
            source.tell(job.run, state)
        running.remove(job)
        job.lock.release()

    try:
        while True:
            for job in [job for job in running if job.process.poll() is not None]:
                reap(job)
            while len(running) < jobs and stop() is None and (claimed := source.claim(stopped)):
                run, lock = claimed
                if (state := state_of(folder, run.name)["state"]) in ENDED:  # and its worker was killed then
                    source.tell(run, state)
                    lock.release()
                else:
                    running.append(Job(folder, run, lock, command(folder, plan, run, share)))
            known |= {run.name: Progress(folder, plan, run) for run in source.runs() if run.name not in known}
            rows = {name: progress.update() for name, progress in known.items()}
            begun = [rows[job.run.name] for job in running if rows[job.run.name]["state"] not in ("running", *ENDED)]
            show([{**row, "state": "starting"} if row in begun else row for row in rows.values()])
            for job in running if plan.search and plan.prune else ():
                if not job.asked and known[job.run.name].collapsed():
                    job.pruned = True
                    job.ask(signal.SIGINT)
            if stop() is not None or not (running or source.left(stopped)):
                return
            time.sleep(TICK)
    finally:
        for job in running:
            if not job.asked:
                job.ask(stop() or signal.SIGTERM)
        for job in [*running]:
            try:
                job.process.wait()
            except KeyboardInterrupt:  # a second Ctrl-C
                for other in running:
                    other.ask(signal.SIGINT)
                job.process.wait()
            reap(job)
