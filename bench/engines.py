"""Whether every engine trains as the eager one does, and what each gains: eager, compiled, one CUDA graph a step.

For each model, 50 steps with the same weights, batches and noise, in float32: the largest difference of anything that
the metrics count (beside the largest value of its kind) and of any weight. Eager against itself stands beside it, since
some CUDA kernels add in another order each time. Leaves with status 1 where an engine is further from eager than
rounding explains. Then the same engines in the precision that arcvae chooses by itself: how long each takes to be made
ready, and its steps in turns with eager's.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from typing import Any

import common
import numpy as np
import torch
from own import BETA, Own, own_steps

from arcvae_cli.data.corpus import GridCorpus, StringCorpus, open_corpus
from arcvae_cli.settings import Settings
from arcvae_cli.step import choose_device

STEPS = 50
APART = 5e-3
"""Of metrics, at most: rounding grows with every step of Adam, and a near tie of two colours counts whole."""
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"name": "grid", "body": "plain"},
    "residual": {"name": "grid", "body": "residual", "dropout": 0.1},
    "hierarchical": {"name": "hierarchical"},
    "grammar": {"name": "grammar"},
}


def settings_of(model: str, engine: str, precision: str) -> Settings:
    """Settings of a run at the batch size of the presets; equations for the grammar model, drawn shapes for others."""
    table: dict[str, Any] = {"model": MODELS[model], "schedule": {"name": "constant", "max_beta": BETA}}
    table["train"] = {"engine": engine, "precision": precision, "batch_size": 128}
    table["data"] = {"name": "equations" if model == "grammar" else "shapes", "size": 20_000}
    return Settings.model_validate(table)


def train(own: Own) -> tuple[np.ndarray, list[torch.Tensor]]:
    """What each of the steps came to, (STEPS, columns), and the weights after them."""
    rows = own.run(STEPS).rows
    return rows, [weight.detach().double() for weight in own.engine.step.model.parameters()]


def apart(one: tuple[np.ndarray, list[torch.Tensor]], other: tuple[np.ndarray, list[torch.Tensor]]) -> list[float]:
    """The largest differences of the metrics, each by the largest value in its column, and of the weights."""
    largest = np.abs(one[0]).max(axis=0)
    columns = np.abs(one[0] - other[0]).max(axis=0) / np.where(largest > 0, largest, 1.0)
    weights = max((a - b).abs().max().item() for a, b in zip(one[1], other[1], strict=True))
    return [float(columns.max()), weights]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing compiled is there yet
        compare()


def compare() -> None:
    parser = common.flags(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="by default all, on a CPU the plain one")
    parser.add_argument(
        "--engines", nargs="+", choices=("compile", "graph"), help="by default graph on CUDA, else compile"
    )
    parser.add_argument("--steps", type=int, help="of a turn")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    cuda = device.type == "cuda"
    models = given.models or (list(MODELS) if cuda else ["plain"])
    engines = given.engines or (["graph"] if cuda else ["compile"])
    steps = given.steps or (100 if cuda else 10)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    wait, where = common.waiting(str(device)), common.machine(str(device), given.threads)
    print(common.place(where))
    failed, results = [], []
    for model in models:
        corpus = open_corpus(settings_of(model, "eager", "fp32").data, device)
        expected = train(own_steps(settings_of(model, "eager", "fp32"), corpus, device))
        again = apart(expected, train(own_steps(settings_of(model, "eager", "fp32"), corpus, device)))
        print(f"{model}, {STEPS} steps in fp32, apart from eager: metrics, weights")
        print(f"  {'eager again':24}{again[0]:10.1e}{again[1]:10.1e}")
        for name in engines:
            own = own_steps(settings_of(model, name, "fp32"), corpus, device)
            away = apart(expected, train(own))
            reason = f"  ({own.engine.reason})" if own.engine.reason else ""
            print(f"  {name:24}{away[0]:10.1e}{away[1]:10.1e}{reason}")
            if not away[0] <= max(APART, 10 * again[0]):
                failed.append(f"{model}, {name}")
            numbers = {"metrics_apart": away[0], "weights_apart": away[1], "eager_again": again}
            results.append({"model": model, "engine": name, "reason": own.engine.reason, **numbers})
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True
    speeds = [speed for model in models for speed in times(model, engines, device, steps, wait, given.rounds)]
    common.write("engines", {**where, "equal": results, "failed": failed, "speed": speeds}, given.json)
    if failed:
        sys.exit(f"these are further from eager than {APART}: {'; '.join(failed)}")


def times(
    model: str, engines: list[str], device: torch.device, steps: int, wait: Any, rounds: int
) -> list[dict[str, Any]]:
    """Steps by each engine in turns, and the seconds that it takes to be made ready."""
    corpus: GridCorpus | StringCorpus = open_corpus(settings_of(model, "eager", "auto").data, device)
    runs: dict[str, common.Run] = {}
    ready, owns = {}, {}
    for name in ("eager", *engines):
        settings = settings_of(model, name, "auto")
        ready[name] = common.timed(lambda: (owns.update({name: own_steps(settings, corpus, device)}), wait()))  # noqa: B023
        runs[name] = lambda own=owns[name]: common.timed(lambda: (own.run(steps), wait())) / steps
    seconds = common.in_turns(runs, rounds)
    print(f"{model}, {owns['eager'].how}: {1e3 * statistics.median(seconds['eager']):.3g} ms a step")
    results = []
    for name in engines:
        found = common.ratio(seconds["eager"], seconds[name])
        taken = 1e3 * statistics.median(seconds[name])
        print(f"  {name}: {taken:.3g} ms a step, {found} eager's speed; ready in {ready[name]:.1f} s")
        results.append({"model": model, "engine": name, "ready_s": ready[name], "ms": taken, **found.table()})
    return results


if __name__ == "__main__":
    main()
