from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcvae_cli.controllers import Target
from arcvae_cli.records import EpochRecord

MakeRecord = Callable[..., EpochRecord]
BOTH = {"global": [1.0, math.nan], "local": [0.1, -math.inf, 5e-324]}


def whole(make_record: MakeRecord) -> EpochRecord:
    """A record with something in every field."""
    return make_record(
        7,
        rates=BOTH,
        betas={"global": 0.1 + 0.2, "local": 1e-300},
        turns={"local": (-1.0, 1.0)},
        targets=(Target("local", "kl", 25.12, 25.0, 0.4, None), Target("", "reconstruction", 0.2, 0.1, 0.4, "max")),
        restart={"last_restart_epoch": 40.0},
        best=True,
        monitored=math.inf,
        unit="token",
    )


def through_json(record: EpochRecord) -> EpochRecord:
    return EpochRecord.of(json.loads(json.dumps(record.plain())))


def test_a_record_comes_back_from_json_but_for_its_path(make_record: MakeRecord) -> None:
    for record in (whole(make_record), make_record(1)):
        again = through_json(record)
        assert repr(asdict(again)) == repr({**asdict(record), "path": {}})  # by repr, in which a NaN equals another
        assert repr(again.metrics()) == repr(record.metrics())
        assert [type(target) for target in again.targets] == [Target] * len(record.targets)


@given(value=st.floats())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_float_comes_back_bit_for_bit(make_record: MakeRecord, value: float) -> None:
    again = through_json(make_record(1, selection=value, betas={"z": value}))
    assert repr((again.selection, again.betas)) == repr((value, {"z": value}))


def broken(table: dict[str, Any]) -> list[dict[str, Any]]:
    """A record's table with something else in the place of each value, at two depths, or without it."""
    wrong: list[Any] = [None, "x", [], {}, [[]], {"z": "x"}, {"z": None}, 10**400]
    found: list[dict[str, Any]] = []
    for key in table:
        found.append({name: value for name, value in table.items() if name != key})
        found += [{**table, key: value} for value in wrong]
        if isinstance(table[key], dict):
            for inner in table[key]:
                found += [{**table, key: {**table[key], inner: value}} for value in wrong]
    return found


def taken(table: Any) -> EpochRecord | None:
    try:
        return EpochRecord.of(table)
    except (KeyError, TypeError, ValueError):
        return None


def test_what_is_no_record_is_refused_and_what_is_taken_can_be_logged(make_record: MakeRecord) -> None:
    tables = broken(json.loads(json.dumps(whole(make_record).plain())))
    records = [record for record in map(taken, tables) if record is not None]
    assert len(records) < 0.2 * len(tables)
    assert all(json.dumps(record.metrics()) for record in records)
    for other in ([], "text", 5, None, [("epoch", 1)]):
        assert taken(other) is None
