from __future__ import annotations

import signal

import pytest

from arcvae_cli.signals import GracefulExit, exit_code, signal_name

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize("number", CAUGHT, ids=lambda number: number.name)
def test_a_signal_is_kept_while_patient_and_raised_otherwise(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with GracefulExit() as signals:
        signals.patient = True
        assert signals() is None
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # of a batch system, when the time is nearly over
        with pytest.raises(KeyboardInterrupt):  # only a second Ctrl-C stops at once
            signal.raise_signal(signal.SIGINT)
        assert signals() == number
    with GracefulExit() as signals, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signals() == number and signal.getsignal(number) == before


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulExit() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_exit_codes_and_names() -> None:
    assert [exit_code(number) for number in CAUGHT] == [130, 143, 129, 75]
    assert [signal_name(number) for number in CAUGHT] == ["Ctrl-C", "SIGTERM", "a terminal that was closed", "SIGUSR1"]
    assert signal_name(signal.SIGALRM) == "SIGALRM"
