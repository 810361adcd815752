from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints
from arcvae_cli.cli import app
from arcvae_cli.commands import evaluate as command
from arcvae_cli.console import Console
from arcvae_cli.data.corpus import open_corpus
from arcvae_cli.domains.grids import GridDomain
from arcvae_cli.render import plots
from arcvae_cli.runs import RunFolder

Run = Callable[..., Result]

FILES = ["errors.png", "latent_space_pca.png", "latent_space_tsne.png", "metrics.json", "reconstructions.png"]


def evaluated(run: Path, folder: Path, *arguments: str) -> tuple[Result, Path]:
    """One whole evaluation, and the folder it wrote to."""
    command = ["evaluate", "--checkpoint", str(run), "--output", str(folder), "--device", "cpu", *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "80"}), folder


@pytest.fixture(scope="module")
def judged(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    return evaluated(tiny_run, tmp_path_factory.mktemp("judged") / "deep" / "down", "--iwae", "3")


@pytest.fixture(scope="module")
def both(hierarchy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    return evaluated(hierarchy_run, tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def derived(equations_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    counting = ("--monte-carlo", "--encodings", "2", "--decodings", "5", "--monte-carlo-examples", "7")
    return evaluated(equations_run, tmp_path_factory.mktemp("derived"), "--iwae", "3", *counting, "--samples", "60")


def judge(arcvae: Run, run: Path, output: Path, *arguments: object) -> Result:
    return arcvae("evaluate", "--checkpoint", run, "--output", output, "--device", "cpu", *arguments)


def test_files_are_written_whole_and_nothing_else(judged: tuple[Result, Path]) -> None:
    result, folder = judged
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for name in FILES:
        if name.endswith(".png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert f"reconstructions to {folder}" in result.stderr
    assert "reconstructing 40 grids" in result.stderr
    assert "\x1b" not in result.stdout


def row_of(shown: str, name: str) -> list[str]:
    """The cells of the first row of this name in the tables that were printed."""
    line = next(line for line in shown.splitlines() if line.strip().startswith(f"{name}  "))
    return line.strip().removeprefix(name).split()


def test_the_screen_shows_what_the_file_holds(judged: tuple[Result, Path]) -> None:
    result, folder = judged
    shown, metrics = result.stdout, json.loads((folder / "metrics.json").read_text())
    assert shown.startswith("vae_best.pth of epoch 3, some test, 40 grids, seed 0")
    found = metrics["reconstruction"]
    for name, field in (("pixel accuracy", "pixel_accuracy"), ("non-black IoU", "non_black_iou")):
        values = [found[kind][field] for kind in ("posterior_mean", "posterior_sample", "all_black", "pca")]
        assert row_of(shown, name) == [f"{value:.2%}" for value in values]
    assert row_of(shown, "skill in pixels") == [f"{found['skill']['pixel']:+.3f}"]
    bars = [line.split() for line in shown.splitlines() if line.startswith("  ") and "█" in line]
    for place, value in enumerate(metrics["levels"]["z"]["kl_nats"]):
        assert next(words for words in bars if words[0] == str(place))[-1] in (f"{value:.3f}", "dead")
    nats = metrics["importance_weighted"]
    assert row_of(shown, "-log p(x), importance-weighted <=") == [f"{nats['nll_nats']:.3f}", f"{nats['nll_bits']:.3f}"]
    assert row_of(shown, "density") == [
        f"{metrics[kind]['density']:.2f}" for kind in ("prior_samples", "training_grids")
    ]
    assert "inside the rectangle" not in shown  # not measured: the canvas is the grid
    assert metrics["verdict"]["summary"] in shown
    for finding in metrics["verdict"]["findings"]:
        assert finding["name"] in shown
        assert finding["ok"] == (finding["remedy"] is None)
        assert all(f"- {step} (for " in shown for step in (finding["remedy"] or "").split("; ") if step)
    assert max(len(line) for line in shown.splitlines() if line.startswith(" ") or "─" in line) <= 80


def test_json_is_the_only_thing_on_stdout(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    result = judge(
        arcvae, tiny_run, tmp_path, "--json", "--quiet", "--split", "val", "--seed", 3, "--precision", "bf16"
    )
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert (document["split"], document["seed"], document.pop("output")) == ("val", 3, str(tmp_path))
    assert document == json.loads((tmp_path / "metrics.json").read_text())
    assert document["reconstruction"]["examples"] == 20
    assert document["precision"] == "bf16"


def test_strict_exits_with_1_after_all_is_written(
    arcvae: Run, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = judge(arcvae, tiny_run, tmp_path, "--strict", "--quiet")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "MISS" in result.stdout
    assert (tmp_path / "metrics.json").is_file()
    monkeypatch.setattr(GridDomain, "targets", lambda *_: iter(()))
    assert judge(arcvae, tiny_run, tmp_path, "--strict", "--quiet").exit_code == 0


def test_free_bits_of_the_mode_total_are_the_floor_of_no_dimension(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    import torch

    path = shutil.copytree(tiny_run, tmp_path / "run") / "checkpoints" / "vae_best.pth"
    values = torch.load(path, weights_only=True)
    config = json.loads(values["config"])
    for mode, shown in (("per_dim", True), ("total", False)):
        config["objective"].update(free_bits=0.7, free_bits_mode=mode)
        checkpoints.save(path, {**values, "config": json.dumps(config)})
        result = judge(arcvae, tmp_path / "run", tmp_path / mode, "--quiet")
        bars = [line for line in result.stdout.splitlines() if "█" in line]
        assert ("free bits 0.7" in result.stdout) is shown and any("|" in bar for bar in bars) is shown


def test_other_data_is_judged_against_the_training_grids(
    arcvae: Run, tiny_run: Path, tmp_path: Path, arc_splits: dict[str, np.ndarray]
) -> None:
    run, other = shutil.copytree(tiny_run, tmp_path / "runs" / "copied"), tmp_path / "other.npz"
    np.savez(other, test=arc_splits["test"][:7])
    arguments = (
        "--checkpoint",
        "copied",
        "--runs-dir",
        tmp_path / "runs",
        "--device",
        "cpu",
        "--data",
        other,
        "--json",
    )
    result = arcvae("evaluate", *arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["corpus"], document["reconstruction"]["examples"]) == ("other", 7)
    assert document["reconstruction"]["pca_training_grids"] == 100
    assert sorted(path.name for path in (run / "evaluation" / "other-test").iterdir()) == FILES


def test_without_the_training_grids_the_data_at_hand_must_do(
    arcvae: Run, tiny_run: Path, arc_npz: Path, tmp_path: Path
) -> None:
    moved, own, test_only = tmp_path / "moved.npz", tmp_path / "own.npz", tmp_path / "test_only.npz"
    with np.load(arc_npz) as splits:
        np.savez(own, train=splits["train"][:30], val=splits["val"], test=splits["test"])
        np.savez(test_only, test=splits["test"])
    arc_npz.rename(moved)
    try:
        result = judge(arcvae, tiny_run, tmp_path / "out", "--data", own, "--json", "--quiet")
        assert json.loads(result.stdout)["reconstruction"]["pca_training_grids"] == 30
        assert "is gone" in result.stderr
        for data in ((), ("--data", test_only)):
            result = judge(arcvae, tiny_run, tmp_path / "out", *data)
            assert result.exit_code == 2
            assert str(arc_npz) in result.stderr.replace("\n", "")
    finally:
        moved.rename(arc_npz)


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("tiny_run", ("--data", "nowhere.npz"), "nowhere.npz"),
        ("tiny_run", ("--checkpoint", "nowhere"), "no such file, run folder or run"),
        ("tiny_run", ("--split", "all"), "--split"),
        ("tiny_run", ("--iwae", "-1"), "--iwae"),
        ("tiny_run", ("--device", "abacus"), "abacus"),
        ("tiny_run", ("--output", "/proc"), "--output /proc: cannot be written to"),
        ("tiny_run", ("--monte-carlo",), "--monte-carlo: this model is of grids"),
        ("tiny_run", ("--samples", 9), "--samples: this model is of grids"),
        ("tiny_run", ("--data", "equations_npz"), "holds derivations"),
        ("equations_run", ("--data", "arc_npz"), "holds grids"),
        ("equations_run", ("--decodings", 9), "--decodings: needs --monte-carlo"),
        ("equations_run", ("--samples", 0), "--samples"),
    ],
)
def test_unusable_input(
    run: str, arguments: tuple[object, ...], message: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given = [request.getfixturevalue(str(one)) if str(one).endswith("_npz") else one for one in arguments]
    result = judge(arcvae, request.getfixturevalue(run), tmp_path / "out", *given)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == "" and not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_former_files(
    arcvae: Run, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FILES:
        (tmp_path / name).write_text("former")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save_reconstructions", full)  # after the pictures of the codes
    result = judge(arcvae, tiny_run, tmp_path)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(FILES, "former")


@pytest.mark.parametrize(
    ("run", "pictures"),
    [("tiny_run", []), ("hierarchy_run", ["levels.png"]), ("equations_run", [])],
)
def test_a_run_ends_with_a_report(
    run: str,
    pictures: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "images").mkdir()
    loaded = checkpoints.load(request.getfixturevalue(run) / "checkpoints" / "vae_best.pth")
    corpus = open_corpus(loaded.settings.data)
    command.report(loaded, corpus, "val", RunFolder(tmp_path), Console())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["run"], metrics["split"], metrics["quick"]) == (str(tmp_path), "val", True)
    assert metrics["verdict"]["summary"] in capsys.readouterr().out
    codes = ["latent_space_pca.png", "latent_space_tsne.png"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == codes + pictures


def test_two_levels_and_conditions_are_shown_apart(both: tuple[Result, Path]) -> None:
    result, folder = both
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "kl_maps.png", "levels.png"])
    metrics, shown = json.loads((folder / "metrics.json").read_text()), result.stdout
    assert "Without conditions, except for samples under a condition." in shown
    for name, title in (("global", "KL of each dimension of global"), ("local", "KL of each channel of local (4x4)")):
        assert f"{title}: {sum(metrics['levels'][name]['kl_nats']):.2f} nats" in shown
    alone = [metrics["shuffled_codes"]["levels"][name]["reconstruction_nats"] for name in ("global", "local")]
    assert row_of(shown, "with this level's of other examples") == [f"{nats:.1f}" for nats in alone]
    assert np.array(metrics["levels"]["local"]["cells_nats"]).shape == (4, 4)
    for row in metrics["adherence"]["rows"]:
        keys = ("counted_obeying", "unaided_obeying", "baseline_counted_obeying", "counted", "obeying", "data")
        cells = ["-" if row[key] is None else str(row[key]) if key == "counted" else f"{row[key]:.1%}" for key in keys]
        assert row_of(shown, row["asked"]) == cells
    assert max(len(line) for line in shown.splitlines() if line.startswith(" ") or "─" in line) <= 80


STRING_FILES = [
    "errors.txt",
    "latent_space_pca.png",
    "latent_space_tsne.png",
    "metrics.json",
    "reconstructions.txt",
]


def test_strings_are_shown_as_they_stand_in_the_file(derived: tuple[Result, Path]) -> None:
    result, folder = derived
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == STRING_FILES
    assert "reconstructing 40 derivations" in result.stderr
    shown, metrics = result.stdout, json.loads((folder / "metrics.json").read_text())
    assert "vae_best.pth of epoch 3, sums test, 40 derivations, seed 0" in shown
    found = metrics["reconstruction"]
    for name, field in (("rules", "token_accuracy"), ("exact derivations", "exact_share")):
        kinds = ("posterior_mean", "posterior_sample", "frequencies")
        assert row_of(shown, name) == [f"{found[kind][field]:.2%}" for kind in kinds]
    assert row_of(shown, "Monte Carlo estimate") == [f"{found['monte_carlo']['exact_share']:.2%}"]
    assert row_of(shown, "rule frequencies (baseline)") == [f"{found['frequencies']['nll_nats']:.2f}"]
    assert row_of(shown, "entropy of the corpus (lower bound)") == [f"{metrics['entropy_nats']:.2f}"]
    for name, field in (("valid", "valid_share"), ("novel, of the distinct", "novel_share")):
        assert row_of(shown, name) == [f"{drawn[field]:.2%}" for drawn in metrics["prior_samples"].values()]
    assert row_of(shown, "strings") == ["60", "60"]
    assert metrics["verdict"]["summary"] in shown
    assert found["monte_carlo"] == {**found["monte_carlo"], "examples": 7, "encodings": 2, "decodings": 5}
    assert max(len(line) for line in shown.splitlines() if line.startswith(" ") or "─" in line) <= 80


def test_pairs_of_strings_are_text(derived: tuple[Result, Path], equations_run: Path) -> None:
    import torch

    from arcvae_cli.models.base import Batch

    _, folder = derived
    loaded = checkpoints.load(equations_run / "checkpoints" / "vae_best.pth")
    corpus = open_corpus(loaded.settings.data)
    for name in ("reconstructions.txt", "errors.txt"):
        first, *lines = (folder / name).read_text().splitlines()
        assert first.endswith("of 16 exact")
        pairs = {line[2:]: lines[place + 1][2:] for place, line in enumerate(lines) if line.startswith("- ")}
        assert len(pairs) + sum(line.startswith("= ") for line in lines) == 16
        strings = corpus.strings("test")
        for original, shown in pairs.items():
            x = corpus.ids("test")[strings.index(original)][None].long()
            with torch.inference_mode():
                levels = loaded.model.encode(Batch(x, x != corpus.rules.padding), noise=False)
                ids = loaded.model.argmax_decode(loaded.model.decode({"z": levels[0].mean}))
            assert corpus.grammar.write(ids[0].tolist()) == shown


def test_ready_ids_without_a_grammar_are_evaluated_too(arcvae: Run, bare_run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from arcvae_cli.data.files import write_dataset
    from arcvae_cli.data.strings import build_drawn
    from arcvae_cli.grammar import read_grammar

    drawn = build_drawn(read_grammar("equations"), 9, size=300)
    ready = tmp_path / "ready.npz"
    write_dataset(ready, replace(drawn, rules=replace(drawn.rules, rhs=None, text=None), grammar=None))
    result = judge(arcvae, bare_run, tmp_path / "out", "--data", ready)
    assert result.exit_code == 0, result.stderr
    assert "is gone" in result.stderr  # ids.npy and masks.npy, which it was trained on
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["prior_samples"] is metrics["judged"] is metrics["interpolation"] is None
    assert metrics["reconstruction"]["frequencies"]["training"] == 240
    assert "New strings" not in result.stdout
    assert "," in (tmp_path / "out" / "reconstructions.txt").read_text()
    result = judge(arcvae, bare_run, tmp_path / "out", "--data", ready, "--monte-carlo")
    assert result.exit_code == 2
    assert "--monte-carlo: the model was trained without" in result.stderr


def test_the_noise_that_was_sampled_is_what_counts(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    """As in 2017: the KL of the objective is small, and that of the density that is really sampled is not."""
    import torch

    run = tmp_path / "trap"
    shutil.copytree(equations_run, run)
    path = run / "checkpoints" / "vae_best.pth"
    values = torch.load(path, weights_only=True)
    config = json.loads(values["config"])
    config["model"]["posterior_noise"] = 0.01
    checkpoints.save(path, {**values, "config": json.dumps(config)})
    result = judge(arcvae, run, tmp_path / "out", "--samples", 10, "--iwae", 2)
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    loaded = checkpoints.load(equations_run / "checkpoints" / "vae_best.pth")
    corpus = open_corpus(loaded.settings.data)
    with torch.inference_mode():
        (level,) = loaded.model.encode(corpus.batch("test", torch.arange(40)))
    variance = level.logvar.exp().double()
    gap = (0.5 * variance * (0.01**2 - 1) - np.log(0.01)).sum(dim=1).mean().item()
    assert metrics["posterior_noise"] == 0.01
    assert metrics["elbo"]["kl_nats"] - metrics["trained_kl_nats"] == pytest.approx(gap, rel=1e-4)
    assert metrics["importance_weighted"]["single_nats"] == pytest.approx(-metrics["elbo"]["elbo_nats"], rel=0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda value: str(value)
)
def test_a_signal_leaves_nothing_half_written(
    number: int, code: int, arcvae: Run, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*arguments: object) -> None:
        assert list(tmp_path.glob(".evaluation-*")), "its pictures are on the way"
        signal.raise_signal(number)

    monkeypatch.setattr(command, "_draw_codes", draw)
    before = signal.getsignal(number)
    result = arcvae("evaluate", "--checkpoint", tiny_run, "--output", tmp_path)
    assert result.exit_code == code and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is before
