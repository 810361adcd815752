from __future__ import annotations

import json
import math
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from arcvae_cli.controllers import Target
from arcvae_cli.records import EpochRecord
from tests.recorders.made import record


@settings(max_examples=15)
@given(value=st.floats())
def test_a_record_comes_back_from_json_bit_for_bit_but_for_the_betas_of_the_steps(value: float) -> None:
    whole = record(
        7,
        kl_per_dim={"global": [1.0, math.nan], "local": [0.1, -math.inf, 5e-324]},
        betas={"global": 0.1 + 0.2, "local": value},
        beta_range={"local": (-1.0, 1.0)},
        targets=(Target("local", "kl", 25.12, 25.0, 0.4, None), Target("", "reconstruction", 0.2, 0.1, 0.4, "max")),
        restart={"last_restart_epoch": 40.0},
        monitored=math.inf,
        unit="token",
    )
    for one in (whole, record(1, selection=value)):
        again = EpochRecord.of(json.loads(json.dumps(one.plain())))
        assert repr(asdict(again)) == repr({**asdict(one), "beta_trace": {}})  # by repr, in which a NaN equals another
        assert repr(again.metrics()) == repr(one.metrics())
        assert [type(target) for target in again.targets] == [Target] * len(one.targets)
