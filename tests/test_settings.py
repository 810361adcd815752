from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli_w

from arcvae_cli.errors import InputError
from arcvae_cli.presets import Layer, environment_layer, flag_layer, preset_names, resolve, set_layer
from arcvae_cli.settings import GrammarSettings


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def expect_refused(match: str, preset: str | None = None, *layers: Layer) -> str:
    with pytest.raises(InputError, match=re.escape(match)) as caught:
        resolve(preset, *layers)
    return str(caught.value)


BOUND = "[objective]\nimportance_samples = 5\n"
UNWRITTEN = {"device", "precision", "engine", "threads", "save_minutes", "focal_gamma", "seed", "ramp_fraction"}


def test_a_shipped_preset_writes_out_what_it_relies_on_and_is_what_its_table_says(tmp_path: Path) -> None:
    """A later change of a default must not change a preset: every setting of the model and its loss stands there."""
    for name in preset_names():
        settings, origins = resolve(name)
        table = settings.table()
        for key in ("data", "model", "objective", "schedule", "train"):
            for setting in table[key].keys() - UNWRITTEN:
                assert any(f"{origin}.".startswith(f"{key}.{setting}.") for origin in origins), (name, setting)
        assert resolve(write(tmp_path / f"{name}.toml", tomli_w.dumps(table))).settings == settings


def test_the_numbers_of_the_presets() -> None:
    table = {name: resolve(name).settings for name in preset_names()}
    conservative, baseline = table["ultra_conservative"], table["baseline"]
    assert (conservative.objective.free_bits, conservative.train.epochs) == (0.3, 100)
    assert conservative.schedule.summit() == (80, 0.1)
    assert (baseline.objective.reduction, baseline.objective.kl_reduction) == ("mean", "mean")
    assert (baseline.train.monitor, baseline.schedule(50)) == ("val/loss_total", 2.0)
    assert table["warm_restart"].schedule.cycle(41) == 48 and table["quickstart"].schedule.per == "step"


def test_extends_lays_one_preset_over_another(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", 'extends = "ultra_conservative"\n[train]\nepochs = 7\nlr = 0.01\n')
    resolved = resolve(write(tmp_path / "mine.toml", 'extends = "base.toml"\n[train]\nlr = 0.02\n'))
    assert (resolved.settings.train.epochs, resolved.settings.train.lr) == (7, 0.02)
    assert resolved.origins["objective.free_bits"] == "presets/ultra_conservative.toml"
    assert resolved.origins["train.epochs"].endswith("base.toml")
    assert resolved.origins["train.lr"].endswith("mine.toml")
    one = write(tmp_path / "one.toml", 'extends = "two.toml"\n')
    write(tmp_path / "two.toml", 'extends = "one.toml"\n')
    expect_refused("did you mean baseline?", "basline")
    expect_refused("extends: one.toml -> two.toml -> one.toml", one)


def test_flag_then_set_then_environment_then_preset_then_default() -> None:
    environment = environment_layer({"ARCVAE_TRAIN__LR": "0.3", "ARCVAE_TRAIN__EPOCHS": "30", "ARCVAE_DATA__SEED": "3"})
    sets = set_layer(["train.lr=0.2", "train.epochs=20"])
    flags = flag_layer({"--lr": ("train.lr", 0.1), "--seed": ("train.seed", None)})
    resolved = resolve("ultra_conservative", environment, sets, flags)
    train = resolved.settings.train
    assert (train.lr, train.epochs, resolved.settings.data.seed, train.batch_size) == (0.1, 20, 3, 128)
    assert resolved.origins["train.lr"] == "--lr"
    assert resolved.origins["train.epochs"] == "--set train.epochs"
    assert resolved.origins["data.seed"] == "ARCVAE_DATA__SEED"
    assert resolved.origins["train.batch_size"] == "presets/ultra_conservative.toml"
    assert "train.device" not in resolved.origins


def test_another_schedule_starts_from_its_own_defaults() -> None:
    flag = flag_layer({"--beta-schedule": ("schedule.name", "cyclical")})
    resolved = resolve("ultra_conservative", flag)
    assert resolved.settings.schedule.period == 20 and "schedule.warmup_epochs" not in resolved.origins
    assert resolve("ultra_conservative", set_layer(["schedule.cycle_length=8"]), flag).settings.schedule.period == 8
    same = set_layer(["schedule.name=ultra_conservative", "schedule.max_beta=0.2"])
    schedule = resolve("ultra_conservative", same).settings.schedule
    assert schedule.first_peak == 80 and schedule.peak == 0.2


def test_values_of_set_are_typed_by_the_settings() -> None:
    sets = ["data.augment=false", "train.adam_betas=[0.8, 0.9]", "train.patience='7'"]
    settings = resolve(None, set_layer(sets[:2])).settings
    assert settings.data.augment is False and settings.train.adam_betas == (0.8, 0.9)
    expect_refused("--set train.patience: should be a valid integer, got '7'", None, set_layer(sets))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[train]\nepoch = 3\n", "train.epoch: unknown key 'epoch'\ndid you mean epochs? known here: epochs,"),
        ("[model]\nfree_bits = 0.3\n", "model.free_bits: unknown key 'free_bits'\ndid you mean objective.free_bits?"),
        ("train = 3", "train: should be a table, got 3"),
        ('[model]\nname = "hierarchical"\nlocal_sise = 8', "model.local_sise: unknown key 'local_sise'\ndid you mean"),
        ('[schedule]\nname = "cyclical"\nmin_beta = 2.0', ": schedule: expected min_beta <= max_beta, got 2, 0.1"),
        ("[model]\ndropout = 0.1", "model.dropout: body = plain has no dropout"),
        ('[model]\nname = "grammar"\nencoder_kernel = 4', "model.encoder_kernel: arch = enhanced needs odd kernels"),
        ("[objective.free_bits_by_level]\nlocal = 2.0", "objective.free_bits_by_level.local: unknown level"),
        ('[train]\nmonitor = "val/los"', "train.monitor: the model grid has no metric 'val/los'\ndid you mean val"),
        (
            "[objective]\nimportance_samples = 5\nfree_bits = 0.3",
            "the bound of 5 samples has no KL that free bits could",
        ),
        ("[objective]\nimportance_samples = 5\nmmd = 9.0", "the bound of 5 samples has no independent codes for mmd"),
        ("[objective]\nimportance_samples = 5\nprior_draws = 0.1", "the bound of 5 samples has no codes of the prior"),
        (
            "[objective]\nprior_draws = 0.1\n[model]\nname = 'hierarchical'",
            "prior_draws: hierarchical learns the prior",
        ),
        (
            '[objective]\nimportance_samples = 5\nreduction = "mean"',
            "importance_samples: the bound of 5 samples needs sums",
        ),
        ('[objective]\nimportance_samples = 5\nreconstruction = "focal"', "the bound of 5 samples needs p(x|z)"),
        (f"{BOUND}[schedule]\nname = 'geco'", "the bound of 5 samples has no KL or reconstruction term for geco"),
        (f"{BOUND}[model]\nname = 'hierarchical'", "objective.importance_samples: the gradient dreg is biased where"),
        (f"{BOUND}[train]\nengine = 'compile'", "train.engine: compile has no gradient hooks, which dreg needs"),
        ("[model]\nmean_norm = 0.6\n[train]\nbatch_size = 1", "model.mean_norm: compares the examples of a batch"),
        (
            "[model]\nmean_norm = 0.6\n[schedule]\nname = 'controlvae'\ntarget = 1.5",
            "model.mean_norm: leaves a KL of at least 1.8 nats, controlvae wants 1.5",
        ),
        ('[data]\nprod = "a.npy"', "data.prod: needs masks or a grammar"),
        ("[train\n", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_preset_names_file_key_and_expectation(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path / "p.toml", text)
    assert expect_refused(expected, path).startswith(f"{path}: ")


def test_a_mistake_names_its_origin_once() -> None:
    layer = flag_layer({"--beta-max": ("schedule.max_beta", 0.5)})
    assert expect_refused("--beta-max: schedule.max_beta: unknown key", "baseline", layer).startswith("--beta-max")
    layer = flag_layer({"--model": ("model.name", "grammar")})
    expect_refused("--model: grammar needs strings, but the corpus arc contains grids", None, layer)
    expect_refused("--lr: train.lr_min: 1e-05 is above", None, flag_layer({"--lr": ("train.lr", 1e-7)}))
    expect_refused("--beta-min: schedule: expected", "cyclical", flag_layer({"--beta-min": ("schedule.min_beta", 5.0)}))
    layer = flag_layer({"--threads": ("train.threads", 0)})
    expect_refused("--threads: train.threads: should be auto or 1 to 1024, got 0", None, layer)


def test_a_malformed_environment_variable_or_assignment_is_refused() -> None:
    expect_refused("ARCVAE_LR: lr: unknown key", None, environment_layer({"ARCVAE_LR": "1"}))
    assert environment_layer({"ARCVAE_CACHE_DIR": "/tmp", "HOME": "/"}).values == {}
    with pytest.raises(InputError, match=r"expected dotted.key=value"):
        set_layer(["train.lr"])
    with pytest.raises(InputError, match="'model' already has a value that is not a table"):
        set_layer(["model=grid", "model.latent_dim=4"])


def test_another_architecture_starts_from_its_own_sizes() -> None:
    """Those of the preset were meant for the other; what is given with the architecture counts."""
    layer = set_layer(["model.arch=kusner", "model.decoder_hidden=77"])
    model = resolve("kusner_hyperparams_enhanced_arch", layer).settings.model
    assert isinstance(model, GrammarSettings)
    assert (model.kernels, model.channels, model.encoder_hidden) == ((9, 9, 11), (9, 9, 10), 435)
    assert (model.decoder_hidden, model.latent_dim) == (77, 56)
    same = resolve("minimal", set_layer(["model.arch=enhanced"])).settings.model
    assert same == resolve("minimal").settings.model
