"""Sweeps: what varies, which run is next, how each ended, and the worker that runs them. No torch.

A sweep is a folder: `sweep.json`, the plan; `base.toml`, the settings that all runs begin with; the runs' folders;
`logs/NAME.log`, the output of their processes; `outcomes/NAME.json` of failed and pruned runs; `.locks/`, one for each
run that is being worked on; of a search, `journal.log`, the study of Optuna.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli_w

from arcvae_cli import folders
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, is_file
from arcvae_cli.machine import cores
from arcvae_cli.presets import OTHER_VARIABLES, Layer, flag_layer, leaves, parse_value, resolve, set_layer
from arcvae_cli.settings import NAMED, Table, elbo_scale

if TYPE_CHECKING:
    import optuna
    from filelock import BaseFileLock

METRICS = {  # of the final evaluation: the key of metrics.json, and what a search does with it
    "elbo": ("elbo.elbo_nats", "maximize"),
    "rate": ("elbo.kl_nats", "minimize"),
    "distortion": ("elbo.reconstruction_nats", "minimize"),
    "exact_share": ("reconstruction.posterior_mean.exact_share", "maximize"),
    "foreground_accuracy": ("reconstruction.posterior_mean.foreground_accuracy", "maximize"),
}
PARETO = ("rate", "distortion")  # the two objectives of nsga2
SEARCHES = ("tpe", "nsga2")
FIXED = ("log.", "checkpoint.", *folders.MACHINE)  # keys that change no result
DEAD_EPOCHS = 3  # with every dimension dead at the peak of beta, before a run is pruned; a cycle if that is longer
PRUNING = (
    f"every dimension had KL <= 0.05 nats in {DEAD_EPOCHS} epochs in a row, "
    "or in a whole cycle, since beta reached its largest value"
)
TICK = 0.2  # seconds between two looks at the processes
ENDED = ("finished", "pruned", "failed")
Outcome = Mapping[str, Any]  # `state`, one of these, and the `reason` of the last two


@dataclass(frozen=True)
class Plan:
    """What was asked for, as `sweep.json` keeps it.

    `base`: the settings before anything varies. `given`: the keys of schedule and model among them that a person gave,
    which hold even where the name of the schedule varies. `vary`: values by key; `over`: ranges by key.
    """

    preset: str | None
    base: Table
    given: Table
    vary: dict[str, list[Any]] = field(default_factory=dict)
    seeds: int = 1
    search: str | None = None
    trials: int = 0
    over: dict[str, str] = field(default_factory=dict)
    metric: str = "elbo"
    prune: bool = True

    @property
    def name(self) -> str:
        """The folder's name: more trials are the same sweep, anything else is another."""
        text = json.dumps({**asdict(self), "trials": 0}, sort_keys=True)
        stem = f"{Path(self.preset).stem}-" if self.preset else ""
        return f"{stem}sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Run(NamedTuple):
    """A run of a sweep: its name, the values that vary by dotted key, and its number, of a search that of the trial."""

    name: str
    values: dict[str, Any]
    number: int


def make_plan(preset: str | None, layers: Sequence[Layer], **asked: Any) -> Plan:
    """The plan of what was asked for, every combination of it checked by the settings. InputError."""
    base = resolve(preset, *layers).settings
    given = [pair for layer in layers for pair in leaves(layer.values) if pair[0].startswith(tuple(NAMED))]
    plan = Plan(preset, base.table(), dict(given), **asked)
    flag = "--over" if plan.search else "--vary"
    if not (axes := {key: [*map(decoded, ends(text))] for key, text in plan.over.items()} or plan.vary):
        fix = "give --vary KEY=VALUE,VALUE, or --search tpe --trials 20 --over KEY=log:LOW..HIGH"
        raise InputError("nothing varies" if not plan.search else f"--search {plan.search}: needs --over", fix)
    for key in axes:
        if f"{key}.".startswith(FIXED) or key.startswith(FIXED):
            raise InputError(f"{flag} {key}: cannot vary, since it changes no result", "set it for all with --set")
    if plan.seeds > 1 and "train.seed" in plan.vary:
        raise InputError("--seeds: train.seed varies already", "give one of the two")
    for values in itertools.product(*axes.values()):
        varied = {f"{flag} {key}": (key, value) for key, value in zip(axes, values, strict=True)}
        resolve(preset, *layers, flag_layer(varied, flag))
    return plan


def values_of(key: str, text: str) -> list[Any]:
    """The values of `--vary KEY=VALUE,VALUE`, as TOML would read each; strings need no quotes."""
    listed = parse_value(f"[{text}]")
    found = listed if isinstance(listed, list) else [parse_value(part.strip()) for part in text.split(",")]
    if not found or "" in found:
        raise InputError(f"{key}={text}: a value is missing", f"for example {key}=0.05,0.1")
    if len({encoded(value) for value in found}) < len(found):
        raise InputError(f"{key}={text}: a value occurs twice", "give each value once")
    return found


def ends(text: str) -> list[str]:
    """The ends of a range, or the choices, each encoded. InputError for a range that is empty or no range."""
    kind, _, rest = text.partition(":")
    if kind == "choice":
        found = values_of("choice", rest)
        if len(found) < 2:
            raise InputError(f"--over {text}: a choice of one", "give two values or more, or use --set")
        return [encoded(value) for value in found]
    low, _, high = rest.partition("..")
    bounds = [parse_value(low), parse_value(high)]
    whole = all(type(bound) is int for bound in bounds)
    if kind not in ("log", "float", "int") or not all(type(bound) in (int, float) for bound in bounds):
        fix = "use log:LOW..HIGH, float:LOW..HIGH, int:LOW..HIGH or choice:VALUE,VALUE"
        raise InputError(f"--over {text!r}: not a range", fix)
    if not -math.inf < bounds[0] < bounds[1] < math.inf or (kind == "log" and bounds[0] <= 0):
        fix = "the low end comes first, and is above 0 for log"
        raise InputError(f"--over {text}: an empty range" if bounds[0] >= bounds[1] else f"--over {text}: invalid", fix)
    if kind == "int" and not whole:
        raise InputError(f"--over {text}: the ends of int are whole numbers", "use float, or whole numbers")
    return [encoded(bound if kind == "int" else float(bound)) for bound in bounds]


def encoded(value: Any) -> str:
    """A value as `--set` reads it."""
    return json.dumps(value)


decoded = parse_value


def open_folder(folder: Path, plan: Plan | None) -> Plan:
    """The plan of the sweep in a folder, which is made if there is none. InputError if it is another than `plan`."""
    from filelock import FileLock

    file = folder / "sweep.json"
    if plan is None and not is_file(file):
        raise InputError(f"{folder}: no sweep", "give --preset and --vary to begin one there")
    try:
        (folder / ".locks").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".locks" / "study.lock"):
            old = Plan(**json.loads(file.read_bytes())) if is_file(file) else None
            if plan is None and old is not None:
                return old
            assert plan is not None
            if old is None and os.listdir(folder) != [".locks"]:
                raise InputError(f"{folder}: holds other files, and no sweep", "choose another folder")
            if old is not None:
                known = asdict(replace(old, trials=plan.trials, preset=plan.preset))
                changed = folders.differences(known, asdict(plan))
                pairs = [f"{key.removeprefix('base.')} was {one}, now {other}" for key, (one, other) in changed.items()]
                if pairs:
                    fix = f"`arcvae sweep --study {folder}` goes on with it; another sweep needs another folder"
                    raise InputError(f"{folder}: a sweep with other settings: {'; '.join(pairs[:5])}", fix)
            with atomic_write(folder / "base.toml") as temporary:
                temporary.write_text(tomli_w.dumps(plan.base), encoding="utf-8")
            folders.write_json(file, asdict(plan))
            for part in ("logs", "outcomes"):
                (folder / part).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror})", "choose another folder") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{file}: unreadable ({error})", "restore it, or remove the folder") from error
    return plan


def outcome(folder: Path, name: str) -> Outcome | None:
    """How a run ended; None while there is something left to do."""
    with suppress(OSError, ValueError):
        found: Outcome = json.loads((folder / "outcomes" / f"{name}.json").read_bytes())
        return found
    status = folders.read_status(folder / name)
    return {"state": "finished"} if status and status["state"] == "finished" and status["judged"] else None


def state(folder: Path, name: str) -> dict[str, Any]:
    """The `state` of a run, in one of `ENDED` if it has ended, and the `reason` if there is one."""
    status = folders.read_status(folder / name)
    now = status["state"] if status else "waiting"
    now = {"finished": "running", "failed": "waiting"}.get(now, now)  # to be evaluated, to be taken up again
    return {"state": now, "reason": None, **(outcome(folder, name) or {})}


def measured(folder: Path, name: str) -> dict[str, Any]:
    """The metrics of a finished run, and its active dimensions; None where it has no such metric."""
    try:
        document = json.loads((folder / name / "metrics.json").read_bytes())
    except (OSError, ValueError):
        document = {}
    found: dict[str, Any] = {}
    for metric, (key, _) in METRICS.items():
        value = document
        for part in key.split("."):
            value = (value or {}).get(part)
        found[metric] = value
    levels = document.get("levels", {}).values()
    active = sum(level["active_dims"] for level in levels) if levels else None
    return {**found, "active": active}


def take(folder: Path, name: str) -> BaseFileLock | None:
    """The lock of a run of a sweep; None if a worker has it, or the process that a killed worker left behind."""
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
        self.folder = folder
        axes = dict(plan.vary)
        if plan.seeds > 1:
            axes["train.seed"] = [plan.base["train"]["seed"] + number for number in range(plan.seeds)]
        self.all = []
        for number, combination in enumerate(itertools.product(*axes.values()), 1):
            values = dict(zip(axes, combination, strict=True))
            parts = [f"{key.rpartition('.')[2]}{value}" for key, value in values.items()]
            name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join([f"{number:03d}", *parts]))[:100].strip("-")
            self.all.append(Run(name, values, number))

    def runs(self) -> list[Run]:
        return self.all

    def left(self, skip: Collection[str]) -> bool:
        """Whether any run, but for those to skip, has not ended."""
        return any(run.name not in skip and outcome(self.folder, run.name) is None for run in self.all)

    def claim(self, skip: Collection[str]) -> tuple[Run, BaseFileLock] | None:
        """A run to work on, with its lock held; None if there is none at present."""
        for run in self.all:
            if run.name in skip or outcome(self.folder, run.name) is not None:
                continue
            if (lock := take(self.folder, run.name)) is not None:
                return run, lock
        return None

    def tell(self, run: Run, found: Outcome) -> None:
        """Record how a claimed run ended."""

    def retry(self, run: Run) -> None:
        """Let a failed run, whose outcome has been removed, be claimed again."""


class Search:
    """The trials of an Optuna study. A run is a trial; a repeated one is a trial with the run's name and values."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        try:
            import optuna
        except ImportError as error:
            raise InputError("--search: Optuna is not installed", "pip install 'arcvae[sweep]'") from error
        from filelock import FileLock
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

        self.folder, self.plan, self.states = folder, plan, optuna.trial.TrialState
        self.lock = lock = FileLock(folder / ".locks" / "study.lock", thread_local=False)

        class KernelLock(JournalFileOpenLock):  # Optuna's own would hold others up for 30 s if its process is killed
            def acquire(self) -> bool:
                lock.acquire()
                return True

            def release(self) -> None:
                lock.release()

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = str(folder / "journal.log")
        storage = JournalStorage(JournalFileBackend(journal, KernelLock(journal)))
        self.metrics = PARETO if plan.search == "nsga2" else (plan.metric,)
        directions: Any = [METRICS[metric][1] for metric in self.metrics]
        with self.lock:
            self.study = optuna.create_study(
                storage=storage, study_name="sweep", directions=directions, load_if_exists=True
            )
        self.space: dict[str, Any] = {}
        for key, text in plan.over.items():
            kind, found = text.partition(":")[0], ends(text)
            if kind == "choice":
                self.space[key] = optuna.distributions.CategoricalDistribution(found)
            elif kind == "int":
                self.space[key] = optuna.distributions.IntDistribution(*map(decoded, found))
            else:
                self.space[key] = optuna.distributions.FloatDistribution(
                    decoded(found[0]), decoded(found[1]), log=kind == "log"
                )

    def trials(self) -> dict[str, optuna.trial.FrozenTrial]:
        """The last trial of each run, but for those of workers that were killed before they had their values."""
        trials = self.study.get_trials(deepcopy=False)
        named = {trial.user_attrs.get("run", f"trial-{trial.number:04d}"): trial for trial in trials}
        return {name: trial for name, trial in named.items() if trial.params or trial.state != self.states.FAIL}

    def run(self, name: str, trial: optuna.trial.FrozenTrial | optuna.trial.Trial) -> Run:
        kinds = {key: text.partition(":")[0] for key, text in self.plan.over.items()}
        given = trial.params
        values = {key: decoded(given[key]) if kinds[key] == "choice" else given[key] for key in kinds if key in given}
        return Run(name, values, trial.number)

    def runs(self) -> list[Run]:
        return [self.run(name, trial) for name, trial in self.trials().items() if trial.params]

    def left(self, skip: Collection[str]) -> bool:
        return any(name not in skip and not trial.state.is_finished() for name, trial in self.trials().items())

    def claim(self, skip: Collection[str]) -> tuple[Run, BaseFileLock] | None:
        with self.lock:
            trials = self.trials()
            for name, trial in trials.items():
                if trial.state != self.states.RUNNING or name in skip or (lock := take(self.folder, name)) is None:
                    continue
                if len(trial.params) == len(self.space):
                    return self.run(name, trial), lock
                self.study.tell(trial.number, state=self.states.FAIL)
                lock.release()
            waiting = any(trial.state == self.states.WAITING for trial in trials.values())
            if len(trials) >= self.plan.trials and not waiting:
                return None
            self.study.sampler = self.sampler()
            asked = self.study.ask(self.space)
            run = self.run(asked.user_attrs.get("run", f"trial-{asked.number:04d}"), asked)
            lock = take(self.folder, run.name)
            assert lock is not None  # nobody else knows this trial
            return run, lock

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Of the next trial, whose seed it has: with one seed, all workers would draw the same."""
        from optuna import samplers

        seed = self.plan.base["train"]["seed"] + len(self.study.get_trials(deepcopy=False))
        if self.plan.search == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=min(50, max(2, self.plan.trials // 4)))
        return samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(1, self.plan.trials // 3)))

    def tell(self, run: Run, found: Outcome) -> None:
        values = [measured(self.folder, run.name)[metric] for metric in self.metrics]
        with self.lock:
            if found["state"] == "finished" and None not in values:
                self.study.tell(run.number, values)
            else:
                self.study.tell(run.number, state=self.states[{"pruned": "PRUNED"}.get(found["state"], "FAIL")])

    def retry(self, run: Run) -> None:
        params = {
            key: encoded(run.values[key]) if self.plan.over[key].startswith("choice") else run.values[key]
            for key in run.values
        }
        self.study.enqueue_trial(params, user_attrs={"run": run.name})


Source = Grid | Search


def open_source(folder: Path, plan: Plan) -> Source:
    """Where the runs of a sweep come from. Another kind of search has its class here."""
    return Grid(folder, plan) if plan.search is None else Search(folder, plan)


def retry_failed(folder: Path, source: Source) -> int:
    """Let the failed runs of a sweep be worked on again, from where they stopped. Returns their number."""
    from filelock import FileLock

    count = 0
    with FileLock(folder / ".locks" / "retry.lock"):
        for run in source.runs():
            if (found := outcome(folder, run.name)) is not None and found["state"] == "failed":
                (folder / "outcomes" / f"{run.name}.json").unlink()
                source.retry(run)
                count += 1
    return count


class Progress:
    """What the files of a run show, read as they grow."""

    def __init__(self, folder: Path, plan: Plan, run: Run) -> None:
        self.folder, self.run, self.settled = folder, run, False
        self.settings = resolve(str(folder / "base.toml"), assignments(plan, run)).settings
        self.active: dict[int, int] = {}  # dimensions with KL > 0.05 nats, by epoch
        self._row: dict[str, Any] = dict.fromkeys(("epoch", "beta", "active", *METRICS))
        self._offset = 0

    def row(self) -> dict[str, Any]:
        """The run, its state, the last epoch's metrics; of a finished run those of its final evaluation."""
        if not self.settled:
            self.read()
            self._row |= state(self.folder, self.run.name)
            self.settled = self._row["state"] in ENDED
            self._row |= measured(self.folder, self.run.name) if self._row["state"] == "finished" else {}
        place = {"run": self.run.name, "values": self.run.values, "epochs": self.settings.train.epochs}
        return {**place, **self._row}

    def read(self) -> None:
        """Read the epochs that `metrics.jsonl` has gained; all of it where a resumed run has written it anew."""
        path = self.folder / self.run.name / "metrics.jsonl"
        content = b""
        with suppress(OSError), path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                self._offset = 0
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            with suppress(ValueError, KeyError):
                line = json.loads(text)
                if line["kind"] == "epoch":
                    rate, distortion = line["val/kl"], line["val/loss_reconstruction"]
                    elbo = -(rate + distortion) if elbo_scale(self.settings) == 1.0 else None
                    self.active[line["epoch"]] = active = line["val/active_dims"]
                    self._row |= {"epoch": line["epoch"], "beta": line["train/beta"], "active": active}
                    self._row |= {"rate": rate, "distortion": distortion, "elbo": elbo}

    def collapsed(self) -> bool:
        """Whether every dimension has been dead for some epochs, all after beta first reached its largest value."""
        schedule, last = self.settings.schedule, max(self.active, default=0)
        if schedule.quantity is not None:  # a closed loop lowers beta again
            return False
        needed = max(DEAD_EPOCHS, math.ceil(schedule.cycle(last) or 0))
        recent = range(last - needed + 1, last + 1)
        return recent[0] >= schedule.first_peak and all(self.active.get(epoch) == 0 for epoch in recent)


def assignments(plan: Plan, run: Run) -> Layer:
    """What a run sets above `base.toml`."""
    return set_layer([f"{key}={encoded(value)}" for key, value in {**plan.given, **run.values}.items()])


def train_command(folder: Path, plan: Plan, run: Run, threads: int | None) -> list[str]:
    """The command line that trains a run of a sweep, or resumes it."""
    sets = [f"--set={key}={encoded(value)}" for key, value in {**plan.given, **run.values}.items()]
    place = ["--run-name", run.name, "--runs-dir", str(folder), "--resume", "auto", "--quiet"]
    place += [] if threads is None else ["--threads", str(threads)]
    return [sys.executable, "-m", "arcvae_cli", "train", "--preset", str(folder / "base.toml"), *sets, *place]


Command = Callable[[Path, Plan, Run, int | None], Sequence[str]]


class Job:
    """The process of a claimed run."""

    def __init__(self, folder: Path, run: Run, lock: BaseFileLock, command: Sequence[str]) -> None:
        self.folder, self.run, self.lock = folder, run, lock
        self.asked = self.pruned = False  # whether it was asked to stop, and whether as collapsed
        self.log = folder / "logs" / f"{run.name}.log"
        environment = {key: value for key, value in os.environ.items() if not is_setting(key)}
        with self.log.open("ab") as log:
            self._from = log.tell()
            # its own session: a Ctrl-C of the terminal comes to it once, by way of the worker
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def ask(self, number: int) -> None:
        """Ask the process to save and to stop."""
        self.asked = True
        self.process.send_signal(number)

    def ended(self) -> Outcome | None:
        """How the ended process left the run, written down; None if a signal stopped it and it can be resumed."""
        code, found = self.process.returncode, outcome(self.folder, self.run.name)
        if found is None and self.pruned and code != 0:
            found = {"state": "pruned", "reason": PRUNING}
        elif found is None and code in (0, 1, 2) and not self.asked:
            lines = self.log.read_bytes()[self._from :].decode(errors="replace").split("\n")
            told = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
            found = {
                "state": "failed",
                "reason": one_line(told[-1].removeprefix("error: ") if told else f"exit code {code}"),
            }
        if found is not None and found["state"] != "finished":
            folders.write_json(self.folder / "outcomes" / f"{self.run.name}.json", found)
        return found


def is_setting(variable: str) -> bool:
    """Whether an environment variable is a setting, which `base.toml` has already."""
    return variable.startswith("ARCVAE_") and variable not in OTHER_VARIABLES


def work(
    folder: Path,
    plan: Plan,
    source: Source,
    jobs: int,
    stop: Callable[[], int | None],
    show: Callable[[list[dict[str, Any]]], None],
    command: Command = train_command,
) -> None:
    """Work on the runs of a sweep, `jobs` at a time, until all have ended or `stop` gives the number of a signal.

    The signal is passed on to the processes, which save, and waited for. Any number of workers may share a folder: the
    run of one that dies is taken up by another, so a worker waits for what others have under way. A process that ends
    by a signal of somebody else's is left to the next start. `show` gets the rows of all runs after each look at them.
    """
    own = plan.base["train"]["threads"]
    threads = max(1, cores() // jobs) if jobs > 1 and own == "auto" else None
    running: dict[str, Job] = {}
    stopped: set[str] = set()  # by somebody else's signal
    known: dict[str, Progress] = {}

    def reap(job: Job) -> None:
        found = job.ended()
        if found is None:
            stopped.add(job.run.name)
        else:
            source.tell(job.run, found)
        del running[job.run.name]
        job.lock.release()

    try:
        while True:
            for job in [job for job in running.values() if job.process.poll() is not None]:
                reap(job)
            while len(running) < jobs and stop() is None and (claimed := source.claim(stopped)) is not None:
                run, lock = claimed
                if (found := outcome(folder, run.name)) is not None:  # ended before its worker, which was killed
                    source.tell(run, found)
                    lock.release()
                else:
                    running[run.name] = Job(folder, run, lock, command(folder, plan, run, threads))
            for run in source.runs():
                if run.name not in known:
                    known[run.name] = Progress(folder, plan, run)
            show([progress.row() for progress in known.values()])
            for job in running.values() if plan.search and plan.prune else ():
                if not job.asked and known[job.run.name].collapsed():
                    job.pruned = True
                    job.ask(signal.SIGINT)
            if stop() is not None or not (running or source.left(stopped)):
                return
            time.sleep(TICK)
    finally:
        asked = [job for job in running.values() if not job.asked]
        for job in asked:
            job.ask(stop() or signal.SIGTERM)
        for job in [*running.values()]:
            try:
                job.process.wait()
            except KeyboardInterrupt:  # a second Ctrl-C
                for other in running.values():
                    other.ask(signal.SIGINT)
                job.process.wait()
            reap(job)
