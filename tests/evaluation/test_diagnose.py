"""Diagnoses of posteriors whose measures have closed forms, of real models in the callbacks, of files."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from arcvae_cli.cli import app
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.diagnose import Diagnosis, diagnose
from arcvae_cli.settings import Settings, elbo_scale

CALLBACKS = Path(__file__).parents[2] / "examples" / "callbacks"
N = 2000


def linear(shares: tuple[float, ...], count: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors whose aggregate is N(0, 1): each dimension's mean has this share of the variance."""
    share = np.array(shares)
    noise = np.random.RandomState(0).standard_normal((count, len(share)))
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0)
    return np.sqrt(share) * noise, np.tile(np.log(1.0 - share), (count, 1))


def missed(found: Diagnosis) -> dict[str, str]:
    assert all((one["remedy"] is None) == one["ok"] for one in found.report["verdict"]["findings"])
    return {one["name"]: one["remedy"] for one in found.report["verdict"]["findings"] if not one["ok"]}


def test_closed_forms() -> None:
    shares = (0.9, 0.5, 0.0)
    mean, logvar = linear(shares)
    found = diagnose(torch.from_numpy(mean).float(), logvar.tolist()).report
    exact = [-0.5 * math.log(1.0 - share) for share in shares]  # a linear Gaussian channel: KL and information
    assert found["kl_nats"] == pytest.approx(exact, abs=1e-5)
    assert found["mutual_information"]["nats"] == pytest.approx(sum(exact), abs=0.05)
    assert found["aggregate_kl_nats"] == pytest.approx([0.0] * 3, abs=1e-5)
    assert (found["active_dims"], found["active_units"], found["dims"]["dead"]) == (2, 2, [2])
    assert json.loads(json.dumps(found, allow_nan=False)) == found

    moved = diagnose(mean + 1.0, logvar).report  # a shift by one is half a nat in each dimension
    assert moved["aggregate_kl_nats"] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kl_reduction", ["sum", "mean"])
def test_beta_on_the_elbo_scale_is_that_of_a_run(reduction: str, kl_reduction: str) -> None:
    objective = {"reduction": reduction, "kl_reduction": kl_reduction}
    scale = elbo_scale(Settings.model_validate({"objective": objective, "model": {"latent_dim": 3}}), 64)
    found = diagnose(*linear((0.5, 0.5, 0.5)), beta=0.2, positions=64, **objective)
    assert found.report["beta"]["on_elbo"] == pytest.approx(0.2 * scale)
    assert ("beta on the ELBO scale" in missed(found)) == (0.2 * scale > 4.0)


ALIVE = linear((0.9, 0.8, 0.7))
CONSTANT = np.full((N, 3), 1.0), np.zeros((N, 3))  # half a nat, the same for each example


@pytest.mark.parametrize(
    ("codes", "training", "names", "remedy", "said"),
    [
        (ALIVE, {"beta": 1.0}, [], None, "the code is alive"),
        (linear((0.9, 0.0, 0.8)), {}, ["dead dimensions"], "use 2 latent dimensions", "partial collapse: 1 of 3"),
        (linear((0.0, 0.0)), {"beta": 1.0}, ["dead dim", "mutual"], "warm it up", "posterior collapse: 2 of 2"),
        (
            linear((0.9, 0.0)),
            {"beta": 0.1, "reduction": "mean", "positions": 256},
            ["dead dimensions", "beta on the ELBO scale"],
            "lower beta (it is 0.1, 25.6 on the ELBO scale), or sum the reconstruction over positions",
            "partial collapse",
        ),
        (CONSTANT, {}, ["mutual"], "lower beta", "the code tells 0.00 nats"),
        (linear((0.4512, 0.45, 0.9)), {"free_bits": 0.3}, ["dimensions held"], "lower beta", "held up by free bits"),
        (linear((0.4, 0.9, 0.9)), {"free_bits": 0.3}, ["KL at the free-bits"], "raise free bits (they are", "alive"),
        (
            (ALIVE[0], np.full((N, 3), -14.0)),
            {"beta": 1e-4},
            ["posterior std < 0.01"],
            "raise beta slowly (it is 0.0001, ",
            "a deterministic autoencoder",
        ),
        ((ALIVE[0] + 2.0, ALIVE[1]), {}, ["aggregate posterior"], "draw samples from a density", "alive"),
    ],
)  # fmt: skip
def test_findings_and_remedies(codes: Any, training: dict[str, Any], names: list[str], remedy: str, said: str) -> None:
    found = diagnose(*codes, **training)
    steps = missed(found)
    assert [one[: len(name)] for one, name in zip(steps, names, strict=True)] == names
    assert remedy is None or remedy in " ".join(steps.values())
    assert found.ok == (not names) and said in found.report["verdict"]["summary"]
    text = str(found)
    assert said in text and text.count("MISS") == len(names)


def test_extreme_variances_and_few_examples_give_finite_reports() -> None:
    for logvar in (-1500.0, 300.0):
        found = diagnose(np.array([[1.0, -1e5], [2.0, -1e5]]), np.full((2, 2), logvar))
        assert json.dumps(found.report, allow_nan=False), "no NaN, no infinity"
        assert found.report["examples"] == 2 and not found.ok


BAD = np.array([[0.0, np.nan], [0.0, np.inf], [0.0, 1.0]])
ZERO = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mean": BAD}, "mean: 2 of 6 values are NaN or infinite"),
        ({"logvar": ZERO.T}, "mean (3, 2), logvar (2, 3): not both"),
        ({"logvar": ZERO + 800}, "KL: 6 of 6 values"),
        ({"mean": ZERO[:1]}, "mean (1, 2)"),
        ({"mean": [[1.0], [1.0, 2.0]]}, "mean: not an array of numbers"),
        ({"beta": -1.0}, "out of range"),
        ({"free_bits": math.nan}, "free_bits nan: out of range"),
        ({"beta": 1.0, "reduction": "mean"}, "positions: missing"),
        ({"reduction": "max"}, "reduction 'max'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        diagnose(**{"mean": ZERO, "logvar": ZERO, **values})
    assert words in caught.value.what and caught.value.fix


def test_the_command_judges_a_file(tmp_path: Path) -> None:
    def run(name: str, *flags: str) -> Result:
        return CliRunner().invoke(app, ["diagnose", str(tmp_path / name), *flags])

    mean, logvar = linear((0.9, 0.0, 0.5))
    np.savez(tmp_path / "a.npz", mean=mean, logvar=logvar, labels=np.arange(N))
    shown = run("a.npz")
    assert shown.exit_code == 0 and "partial collapse: 1 of 3" in shown.stdout
    done = run("a.npz", "--json", "--strict", "--beta", "0.1", "--reduction", "mean", "--positions", "64")
    direct = diagnose(mean, logvar, beta=0.1, reduction="mean", positions=64).report
    assert (done.exit_code, json.loads(done.stdout)) == (1, {"file": str(tmp_path / "a.npz"), **direct})

    np.savez(tmp_path / "c.npz", mu=mean)
    np.savez(tmp_path / "d.npz", mean=np.array([object()]), logvar=logvar)
    (tmp_path / "e.npz").write_text("mean")
    np.save(tmp_path / "f.npy", mean)
    wrong = {"c.npz": "mean is not a file in the archive", "d.npz": "invalid", "e.npz": "damaged", "f.npy": "damaged"}
    for name, words in {**wrong, "none": "cannot be read"}.items():
        refused = run(name)
        assert (refused.exit_code, refused.stdout) == (2, "") and words in refused.stderr, refused.stderr
        assert len(refused.stderr.splitlines()) == 2


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(("file", "library"), [("plain_loop", "torch"), ("with_lightning", "lightning")])
def test_callbacks_print_a_verdict_after_each_epoch(file: str, library: str, capsys: Any) -> None:
    pytest.importorskip(library)
    found = runpy.run_path(str(CALLBACKS / f"{file}.py"))["main"](epochs=2, latent_dim=3).report
    assert (found["units"], found["examples"]) == (3, 297)
    assert capsys.readouterr().out.count("Verdict") == 2


@pytest.mark.filterwarnings("ignore")
def test_callback_finds_the_dead_dimensions_of_a_pythae_model(tmp_path: Path) -> None:
    """A linear VAE is probabilistic PCA: directions of less variance than the noise are dead (Lucas et al. 2019)."""
    pytest.importorskip("pythae")
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.logvar = torch.nn.Linear(8, 5), torch.nn.Parameter(torch.zeros(5))

        def forward(self, x: torch.Tensor) -> ModelOutput:
            return ModelOutput(embedding=self.mean(x), log_covariance=self.logvar.expand(len(x), 5))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(5, 8)

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.body(z))

    torch.manual_seed(0)
    x = torch.randn(500, 8) * torch.tensor([4.0, 2.5, *[0.3] * 6])  # two directions above the noise of 1, six below
    callback = runpy.run_path(str(CALLBACKS / "with_pythae.py"))["Diagnose"](x, beta=1.0)
    sizes = {"output_dir": str(tmp_path), "num_epochs": 40, "per_device_train_batch_size": 50, "learning_rate": 0.05}
    model = VAE(VAEConfig(input_dim=(8,), latent_dim=5), Encoder(), Decoder())
    data = BaseDataset(x, torch.zeros(500))
    BaseTrainer(model, data, training_config=BaseTrainerConfig(**sizes, no_cuda=True), callbacks=[callback]).train()
    found = callback.found.report
    assert len(found["dims"]["dead"]) == 3, found["kl_nats"]
    assert found["total_kl_nats"] == pytest.approx(math.log(4.0 * 2.5), rel=0.1)
