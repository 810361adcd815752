"""The floors: a module imports only from its own floor and those below, and heavy packages only where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "arcvae_cli"
FLOORS = {
    1: {"canvas", "errors", "files", "grammar", "plugins", "presets", "schedules", "settings", "signals"},
    2: {"gaussians", "conditions", "controllers", "distributed", "machine", "models", "objective", "data"},
    3: {
        "step",
        "metrics",
        "engine",
        "checkpoints",
        "folders",
        "records",
        "evaluation",
        "domains",
        "trainer",
        "export",
        "sweeps",
    },
    4: {"console", "render", "recorders"},
    5: {"commands", "cli", "__main__", "api", "population"},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
HEAVY = {"torch", "matplotlib", "sklearn", "rich", "wandb", "tensorboard"}


def imports(nodes: list[ast.stmt]) -> Iterator[tuple[str, bool]]:
    """Modules that are imported, and whether at the top; without what only the type checker sees."""
    pending = [(node, True) for node in nodes]
    while pending:
        node, top = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = node.module in ("arcvae_cli", "arcvae_cli.render")
            yield from ((f"{node.module}.{alias.name}" if own else node.module, top) for alias in node.names)
        pending += [(child, False) for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]


def offences(path: Path) -> Iterator[str]:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    floor = FLOOR[own]
    for name, top in imports(ast.parse(path.read_text()).body):
        package, _, room = name.partition(".")
        room = room.partition(".")[0]
        if package == "arcvae_cli" and room in FLOOR:
            shown = (own == "domains" or path.name == "diagnose.py") and room in ("console", "render") and not top
            early = top and name.startswith("arcvae_cli.render.plots")  # it imports Matplotlib
            if early or (FLOOR[room] > floor and not shown) or (own == "models" and room == "data"):
                yield name
        elif package in HEAVY:
            late = package in ("matplotlib", "wandb", "tensorboard") or floor == 5  # imported when they are called
            late = late and path.name != "plots.py"
            low = floor == 1 or (floor <= 3 and package in ("rich", "matplotlib"))
            tensors = own == "recorders" and package == "torch" and path.name != "tensorboard.py"
            if (top and late) or low or tensors:
                yield name


def test_modules_import_only_what_belongs_on_their_floor() -> None:
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
    assert len(paths) > 50
    assert [f"{path.relative_to(PACKAGE)}: {name}" for path in paths for name in offences(path)] == []


@pytest.mark.parametrize("arguments", ["train --help", "schedule-preview quickstart", "runs list"])
def test_what_only_reads_settings_loads_neither_torch_nor_what_draws(arguments: str) -> None:
    script = (
        "import sys\n"
        "from arcvae_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "finally: print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, *arguments.split()]
    loaded = {name.split(".")[0] for name in subprocess.run(command, capture_output=True, text=True).stderr.split()}
    assert "arcvae_cli" in loaded
    assert not loaded & {"torch", "matplotlib", "sklearn", "wandb", "tensorboard", "numpy"}
