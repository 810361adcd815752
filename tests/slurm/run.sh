#!/usr/bin/env bash
# A sweep of four runs through a real Slurm of one node, started here and stopped again: one job gets SIGUSR1, as Slurm
# sends it ahead of the end of its time, the other is requeued by the scheduler, and every run must end exactly once.
# Takes root and Debian's packages slurmctld, slurmd, slurm-client and munge; skipped without. `make slurm`.
set -euo pipefail
cd "$(dirname "$0")/../.."
for need in slurmctld slurmd munged sbatch srun; do
    command -v "$need" >/dev/null || { echo "skipped: no $need (apt install slurmctld slurmd slurm-client munge)" && exit 0; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: not root" && exit 0; }

ROOT=$(mktemp -d)
. tests/slurm/cluster.sh
trap 'code=$?; set +e; cluster_stop; [ $code != 0 ] && echo "logs are kept in $ROOT" || rm -rf "$ROOT"' EXIT
PYTHON=${PYTHON:-.venv/bin/python}
STUDY=$ROOT/runs/tiny
mkdir "$ROOT/runs"
exec > >(sed --unbuffered "s|$ROOT/||g") 2>&1
say() { echo "$(date +%T) $*"; }
epochs() { cat "$STUDY"/0*/metrics.jsonl 2>/dev/null | grep -c '"kind": "epoch"' || true; }

cluster_start
say "$(slurmctld -V), $(sinfo --noheader --format='%D node, %c CPUs, %T')"
"$PYTHON" -m arcvae_cli sweep --preset quickstart --data shapes --set data.size=3000 --set train.epochs=6 \
    --set log.wandb=off --vary schedule.max_beta=0.05,0.1 --seeds 2 --study "$STUDY" \
    --slurm --jobs 2 --slurm-option time=10 --slurm-option cpus-per-task=1
mapfile -t jobs < <(squeue --noheader --array --sort=i --format=%i)

until [ "$(epochs)" -ge 2 ]; do sleep 1; done
say "SIGUSR1 to ${jobs[0]} after $(epochs) epochs in all"
scancel --signal=USR1 "${jobs[0]}"
until [ "$(epochs)" -ge 4 ]; do sleep 1; done
say "scontrol requeue ${jobs[1]} after $(epochs) epochs in all"
scontrol requeue "${jobs[1]}"
sleep 2
squeue --array
while [ -n "$(squeue --noheader)" ]; do sleep 1; done
say "no jobs left"
grep -h '\* JOB' "$STUDY"/slurm/*.err
for run in "$STUDY"/0*; do
    { grep -e 'stopped by' -e 'resumed after' "$run/run.log" || true; } | sed "s|.*+0000|$(basename "$run"):|; s|; the .*||"
done
"$PYTHON" - "$STUDY" <<'CHECK'
import json
import sys
from pathlib import Path

runs = sorted(Path(sys.argv[1]).glob("0*"))
assert len(runs) == 4, runs
for run in runs:
    status = json.loads((run / "status.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [row["epoch"] for row in rows if row["kind"] == "epoch"]
    assert status["state"] == "finished" and status["judged"], status
    assert epochs == [1, 2, 3, 4, 5, 6], epochs
    print(f"{run.name}: finished, epochs {epochs}")
CHECK
"$PYTHON" -m arcvae_cli sweep --study "$STUDY" 2>/dev/null
say "every run finished exactly once"
