from __future__ import annotations

import pytest

from arcvae_cli.console import Console


def test_notes_and_warnings_say_what_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder may be called as markup or an emoji is."""
    console = Console()
    console.note("run folder runs/[red]a[/x]/:cat:")
    console.warn("no [bold]data[/y]")
    assert capsys.readouterr() == ("", "run folder runs/[red]a[/x]/:cat:\nwarning: no [bold]data[/y]\n")
