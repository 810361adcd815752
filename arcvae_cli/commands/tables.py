"""What the tables of an evaluation share, of grids or of derivations: in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from arcvae_cli.evaluation.information import ImportanceWeighted, LevelInformation
    from arcvae_cli.evaluation.verdict import Verdict

WIDTH = 80  # columns


def table(title: str, *columns: str) -> Table:
    """A table whose first column is of names, and the others of numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        made.add_column(name, justify="right" if place else "left")
    return made


def percent(share: float | None) -> str:
    """A share of 1 as a percentage; nothing measured is a dash."""
    return "-" if share is None else f"{share:.2%}"


def number(value: float | None) -> str:
    """A number to two places; nothing measured is a dash."""
    return "-" if value is None else f"{value:.2f}"


def add_weighted(rows: Table, weighted: ImportanceWeighted, unit: str) -> None:
    """The importance-weighted bound, how good it is, and the ELBO of the same examples, as rows of a table of nats."""
    named = f"-log p(x), {weighted.samples} draws, {weighted.examples} {unit}"
    rows.add_row(f"{named} <=", number(weighted.nll_nats), f"{weighted.nll_bits:.4f}")
    rows.add_row("  -ELBO of these", number(weighted.single_nats), "")
    rows.add_row(
        "  effective sample size, mean and least",
        f"{weighted.effective_samples_mean:.1f}",
        f"{weighted.effective_samples_min:.1f}",
    )


def level_lines(levels: Mapping[str, LevelInformation]) -> Iterator[str]:
    """How much of each level is in use, and what it tells of the examples."""
    for name, level in levels.items():
        groups = "dimensions" if level.cells_nats is None else "channels"
        yield (
            f"{name}: {level.active_dims} of {len(level.kl_nats)} {groups} active (KL > 0.05), "
            f"{level.active_units} of {level.units} units (Var E[z] > 0.01); {level.collapsed_share:.0%} collapsed"
        )
        if (told := level.mutual_information) is not None:
            sign, why = (">=", f"the ceiling is log {told.examples} = ") if told.is_bound else ("=", "at most ")
            yield f"mutual information {sign} {told.nats:.2f} nats ({why}{told.ceiling_nats:.2f})"


def verdict_parts(verdict: Verdict) -> Iterator[RenderableType]:
    """The findings, what to do about those that miss, and the summary."""
    from rich.text import Text

    rows = table("Verdict", "", "", "", "")
    rows.show_header = False
    rows.columns[1].justify = rows.columns[3].justify = "left"
    for finding in verdict.findings:
        mark = "[green]ok[/]" if finding.ok else "[red]MISS[/]"
        rows.add_row(mark, finding.name, f"{finding.value:.4g}", finding.target)
    yield rows
    for remedy in dict.fromkeys(finding.remedy for finding in verdict.findings if finding.remedy):
        yield Text(f"- {remedy}")
    yield Text(verdict.summary, style="bold green" if verdict.ok else "bold yellow")
