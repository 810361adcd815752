"""Workers of a sweep as an array of Slurm jobs, submitted by submitit."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from arcvae_cli.console import Console
from arcvae_cli.errors import InputError, first_line
from arcvae_cli.sweeps import Plan

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# At SIGUSR1 a worker saves its runs and ends with 75; at SIGUSR2, submitit's default, it would be killed.
# From Slurm 22.05 on srun does not take the number of cores over from sbatch.
SETUP = (
    "export SUBMITIT_PREEMPT_SIGNAL=USR1",
    '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
)
DEFAULTS = {"time": "60", "requeue": True, "signal": "USR1@90"}  # minutes; seconds before the end


class Worker:
    """A command that submitit runs as a job, and which saves its work before the job is requeued."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def __call__(self) -> None:
        self.process = subprocess.Popen(self.command)
        if code := self.process.wait():
            sys.exit(code)

    def checkpoint(self) -> "DelayedSubmission":
        """Called by submitit at the signal: the job that is to follow, once this one's work is saved."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            with suppress(ChildProcessError):  # waited for by __call__, which this interrupts within Popen.wait
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Worker(self.command))


def submit(folder: Path, plan: Plan, console: Console, count: int, options: Sequence[str]) -> None:
    """Submit `count` workers on the sweep in a folder as one array. `options`: of sbatch, as `key=value` or `key`.

    InputError where there is no submitit or Slurm, or where sbatch refuses the job.
    """
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise InputError("--slurm: submitit is not installed", "pip install 'arcvae[sweep]'") from error
    count = min(count, plan.total)
    command = [sys.executable, "-m", "arcvae_cli", "sweep", "--study", str(folder.resolve())]
    pairs = [option.partition("=") for option in options]
    given = {key.strip().lstrip("-").replace("-", "_"): value if equals else True for key, equals, value in pairs}
    sbatch = {"job_name": f"arcvae-{folder.name}", **DEFAULTS, **given}
    try:
        executor = SlurmExecutor(folder / "slurm", max_num_timeout=10**6)  # requeued as often as the time runs out
        executor.update_parameters(setup=list(SETUP), additional_parameters=sbatch)
        with executor.batch():
            jobs = [executor.submit(Worker(command)) for _ in range(count)]
    except (RuntimeError, FailedJobError) as error:  # no srun here; sbatch's own message
        fix = "use a machine that has sbatch, and options that `sbatch --help` lists"
        raise InputError(f"--slurm: {first_line(error)}", fix) from None
    job, place = jobs[0].job_id.partition("_")[0], shlex.quote(str(folder))
    console.json({"sweep": str(folder), "job": job, "workers": count})
    console.result(f"Slurm job {job}: {count} worker{'s' * (count > 1)} on {folder}, logs in {folder / 'slurm'}")
    console.note(f"next: squeue --job {job} | arcvae runs list --runs-dir {place}")
