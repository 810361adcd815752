from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from arcvae_cli.signals import GracefulExit, exit_code, signal_name

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize("number", CAUGHT, ids=lambda number: number.name)
def test_a_signal_is_kept_where_there_are_steps_to_save_and_raised_elsewhere(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with GracefulExit() as signals:
        signals.patient = True
        assert signals() is None
        signal.raise_signal(number)
        assert signals() == number
    with GracefulExit() as signals, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signals() == number and signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once_and_no_other_second_signal_does() -> None:
    """A batch system sends SIGUSR1, and SIGTERM when the time is nearly over: what is being saved is saved."""
    with GracefulExit() as signals:
        signals.patient = True
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals() == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals() == signal.SIGUSR1


@pytest.mark.parametrize("number", CAUGHT, ids=lambda number: number.name)
def test_no_signal_is_lost_where_python_drops_exceptions(number: signal.Signals, capfd: pytest.CaptureFixture) -> None:
    """In a destructor, or in a callback of a weak reference, whatever is raised is printed and forgotten."""

    class Last:
        def __del__(self) -> None:
            signal.raise_signal(number)

    hook = sys.unraisablehook

    def drop() -> None:
        Last()
        time.sleep(10)

    with GracefulExit() as signals, pytest.raises(KeyboardInterrupt):
        drop()
    assert signals() == number and capfd.readouterr().err == "" and sys.unraisablehook is hook


def test_what_a_parent_ignored_stays_ignored() -> None:
    """`nohup` and shells that start jobs behind a script say so by ignoring the signal."""
    script = (
        "import signal; from arcvae_cli.signals import GracefulExit\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with GracefulExit() as signals: signal.raise_signal(signal.SIGHUP); print(signals())"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "None\n"


def test_exit_codes_and_names() -> None:
    assert [exit_code(number) for number in CAUGHT] == [130, 143, 129, 75]
    assert [signal_name(number) for number in CAUGHT] == ["Ctrl-C", "SIGTERM", "a terminal that was closed", "SIGUSR1"]
    assert signal_name(signal.SIGALRM) == "SIGALRM"
