from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from arcvae_cli.domains.texts import Pair, Writer, pair_lines
from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.images import ImageRecorder
from arcvae_cli.records import EpochRecord, Pictures, Plan

MakePlan, MakeRecord = Callable[..., Plan], Callable[..., EpochRecord]


def test_derivations_become_strings(make_rules: Callable[..., Rules], derivations: Pictures) -> None:
    writer = Writer(make_rules())
    pairs = writer.pairs(derivations.originals, derivations.reconstructions)
    assert pairs == [Pair("x", "x", True), Pair("x + *", "x + x", False), Pair("( * )", "( * )", True)]
    assert writer.samples(derivations.samples) == ["* + *", "(incomplete)"]
    assert pair_lines(pairs) == ["2 of 3 exact", "= x", "- x + *", "+ x + x", "= ( * )"]


def test_without_a_grammar_they_are_ids_and_nothing_new_is_written(
    make_rules: Callable[..., Rules], derivations: Pictures
) -> None:
    """After the end of an example such a model says anything: it was never asked."""
    writer = Writer(make_rules(known=False))
    said = derivations.reconstructions.copy()
    said[:, -1] = 2
    assert writer.pairs(derivations.originals, said) == [
        Pair("1,3", "1,3", True),
        Pair("0,1,3,4", "0,1,3,3", False),
        Pair("1,2,1,4", "1,2,1,4", True),
    ]
    assert writer.samples(derivations.samples) == []


@pytest.mark.parametrize("known", [True, False])
def test_texts_of_an_epoch(
    known: bool,
    tmp_path: Path,
    make_plan: MakePlan,
    make_record: MakeRecord,
    make_rules: Callable[..., Rules],
    derivations: Pictures,
) -> None:
    recorder = ImageRecorder(tmp_path, "strings", make_rules(known))
    recorder.start(make_plan(blank=None))
    recorder.pictures(7, derivations)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts["reconstructions_epoch_7.txt"].startswith("2 of 3 exact\n= ")
    assert texts.get("samples_epoch_7.txt") == ("* + *\n(incomplete)\n" if known else None)
    recorder.epoch(make_record(7, unit="token"))
    recorder.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        *texts,
        "beta_schedule.png",
        "kl_per_dim.png",
        "training_curves.png",
    }
