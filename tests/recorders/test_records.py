from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

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
        kl_per_dim=BOTH,
        betas={"global": 0.1 + 0.2, "local": 1e-300},
        beta_range={"local": (-1.0, 1.0)},
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
        assert repr(asdict(again)) == repr(
            {**asdict(record), "beta_trace": {}}
        )  # by repr, in which a NaN equals another
        assert repr(again.metrics()) == repr(record.metrics())
        assert [type(target) for target in again.targets] == [Target] * len(record.targets)


@given(value=st.floats())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_float_comes_back_bit_for_bit(make_record: MakeRecord, value: float) -> None:
    again = through_json(make_record(1, selection=value, betas={"z": value}))
    assert repr((again.selection, again.betas)) == repr((value, {"z": value}))
