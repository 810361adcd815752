"""Compare a checkout with recorded behaviour: weights and metrics bit for bit, JSON documents key by key.

`python bench/same.py` runs short trainings (CPU, one thread, fixed seeds) and the reporting commands, and
compares them with `bench/golden/`. The wording of messages may change; numbers, keys, flags and file names may not. The
last bits of a training depend on PyTorch's build and the instruction set, so golden files name both: on another machine
record first, from the commit they came from: `python bench/same.py --record --checkout PATH_OF_AN_OLD_CHECKOUT`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
CPU = Path("/proc/cpuinfo")
MACHINE = {
    "torch": torch.__version__,
    "instructions": torch.backends.cpu.get_cpu_capability(),
    "amx": CPU.exists() and "amx_bf16" in CPU.read_text("utf-8"),
}

RUNS = {
    "grid": "--preset quickstart --epochs 2 --set data.size=2000 --set data.limit=1000 --set train.batch_size=64",
    "plain": "--preset cyclical --epochs 2 --set data.size=2000 --set data.limit=1000 --free-bits-mode per_sample "
    "--set objective.reconstruction=focal --set objective.class_weights=sqrt_inverse --save-top-k 1",
    "hierarchical": "--preset hierarchical --epochs 2 --set data.size=2000 --set data.limit=500",
    "controlvae": "--preset controlvae --epochs 2 --set data.size=2000 --set data.limit=1000",
    "geco": "--preset geco --epochs 2 --set data.size=2000 --set data.limit=1000",
    "capacity": "--preset kl_capacity --epochs 2 --set data.size=2000 --set data.limit=1000",
    "grammar": "--preset minimal --epochs 2 --set data.size=3000 --free-bits 0.5",
    "kusner": "--preset kusner_equations --epochs 1 --set data.size=2000",
    "bf16": "--preset quickstart --epochs 1 --set data.size=2000 --set data.limit=1000 --precision bf16",
    "bf16_hierarchical": "--preset hierarchical --epochs 1 --set data.size=2000 --set data.limit=300 --precision bf16",
}
READING = {
    "grid": ("evaluate --iwae 5 --iwae-examples 20", "sample --prior gmm --num 20", "interpolate --from 3 --to 17"),
    "hierarchical": (
        "evaluate --split val",
        "sample --num 12 --condition colours=2 --temperature 0.8",
        "interpolate --from 0 --to 5 --path slerp --level local --split val",
    ),
    "grammar": (
        "evaluate --monte-carlo --monte-carlo-examples 10 --encodings 2 --decodings 5 --samples 100",
        "sample --num 30 --no-budget --prior aggregate",
        "interpolate --from 3 --to 17 --steps 5",
    ),
}
PREVIEWS = (
    *("constant", "linear_warmup", "aggressive", "three_phase", "linear", "cosine", "exponential", "sigmoid"),
    *("cyclical", "warm_restart", "hierarchical", "kl_capacity", "controlvae", "geco", "quickstart", "baseline"),
)
CORPORA = ("arc --size 2000", "arc-raw", "shapes --size 500", "equations --size 2000", "equations --recipe kusner")
COMMANDS = (
    *("train", "evaluate", "sample", "interpolate", "schedule-preview", "data build", "data info"),
    *("presets list", "presets show", "presets schema", "runs list", "runs show", "runs verify"),
)
PROSE = {"summary", "remedy", "description", "what", "shortfall", "note", "notes", "reason", "target"}
"""Keys whose text may be worded otherwise, and the names of a verdict's findings."""
MEASURED = {"seconds", "time", "started", "peak_memory_bytes", "pid", "host", "file", "bytes"}


class Checkout:
    """Runs commands of the arcvae in a checkout, with a cache and a runs folder of its own."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root.resolve(), scratch
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ARCVAE_", "WANDB_"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(self.root),
            "OMP_NUM_THREADS": "1",
            "ARCVAE_CACHE_DIR": os.environ.get("ARCVAE_CACHE_DIR", str(scratch / "cache")),
            "COLUMNS": "160",
            "NO_COLOR": "1",
        }

    def __call__(self, arguments: str) -> str:
        command = [sys.executable, "-m", "arcvae_cli", *arguments.split()]
        done = subprocess.run(command, cwd=self.scratch, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"arcvae {arguments}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        return done.stdout

    def json(self, arguments: str) -> Any:
        return plain(json.loads(self(f"{arguments} --json")), str(self.scratch))


def plain(value: Any, scratch: str, within: str = "") -> Any:
    """A document without what is measured, with prose reduced to its presence and paths made relative."""
    if isinstance(value, dict):
        return {
            key: "..." if isinstance(one, str) and (key in PROSE or within == "findings") else plain(one, scratch, key)
            for key, one in value.items()
            if key not in MEASURED
        }
    if isinstance(value, list):
        return [plain(one, scratch, within) for one in value]
    return value.replace(scratch, "") if isinstance(value, str) else value


def trained(checkout: Checkout, name: str) -> dict[str, Any]:
    """What a short training leaves: its metrics, the digest of its weights, its files, its report."""
    common = f"--device cpu --precision fp32 --wandb off --runs-dir runs --run-name {name}"
    report = checkout.json(f"train {common} {RUNS[name]}")
    run = checkout.scratch / "runs" / name
    records = [plain(json.loads(line), "") for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = {
        file: digest(torch.load(run / "checkpoints" / f"{file}.pth", weights_only=True)["model_state_dict"])
        for file in ("vae_best", "vae_final")
    }
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {
        "report": report,
        "metrics": records,
        "weights": weights,
        "files": files,
        "status": plain(json.loads((run / "status.json").read_text()), str(checkout.scratch)),
        "config": (run / "config.toml").read_text().splitlines(),
    }


def digest(state: dict[str, torch.Tensor]) -> str:
    """A hash of weights by name, type and shape."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.flatten().contiguous().numpy().tobytes())
    return found.hexdigest()


def read(checkout: Checkout, name: str) -> dict[str, Any]:
    """What the commands that read a checkpoint report of a run."""
    return {
        command: checkout.json(f"{command} --checkpoint runs/{name} --device cpu --output {name}-{command.split()[0]}")
        for command in READING[name]
    }


def flags(checkout: Checkout, command: str) -> list[str]:
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", checkout(f"{command} --help"))))


PARTS = {
    **{name: lambda checkout, name=name: trained(checkout, name) for name in RUNS},
    **{f"read-{name}": lambda checkout, name=name: read(checkout, name) for name in READING},
    "schedules": lambda checkout: {name: checkout.json(f"schedule-preview {name} --epochs 24") for name in PREVIEWS},
    "corpora": lambda checkout: {name: checkout.json(f"data info {name}") for name in CORPORA},
    "flags": lambda checkout: {command: flags(checkout, command) for command in COMMANDS},
}


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Where two documents differ; flags that were added are none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            if key not in new or key not in old:
                yield f"{place}.{key}: {'gone' if key in old else 'new'}"
            else:
                yield from differences(old[key], new[key], f"{place}.{key}")
    elif place.startswith(".flags.") and isinstance(old, list):
        yield from (f"{place}: {flag} is gone" for flag in old if flag not in new)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{place}[{index}]")
    elif old != new:
        yield f"{place}: {str(old)[:90]} -> {str(new)[:90]}"


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the golden files instead of comparing with them")
    parser.add_argument("--checkout", type=Path, default=HERE.parent, help="the code to run; by default this one")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts; read-X needs run X too")
    asked = parser.parse_args()
    GOLDEN.mkdir(exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        checkout = Checkout(asked.checkout, Path(name).resolve())
        for part in asked.only:
            if part.startswith("read-") and not (checkout.scratch / "runs" / part[5:]).exists():
                trained(checkout, part[5:])
            found = PARTS[part](checkout)
            file = GOLDEN / f"{part}.json"
            if asked.record:
                file.write_text(json.dumps({"machine": MACHINE, part: found}, separators=(",", ":")) + "\n")
                print(f"{part}: recorded")
                continue
            golden = json.loads(file.read_text())
            if golden["machine"] != MACHINE:
                print(f"{part}: recorded with {golden['machine']}, this is {MACHINE}: last bits may differ")
            found = json.loads(json.dumps(found))
            unlike = list(differences({part: golden[part]}, {part: found}))
            failed = failed or bool(unlike)
            print(f"{part}: {f'{len(unlike)} differences' if unlike else 'same'}")
            for line in unlike[:12]:
                print(f"  {line}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
