"""The floors: a module imports only from its own floor and those below, and heavy packages only where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def imports(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, bool]]:
    """Modules that are imported, and whether at the top; without what only the type checker sees."""
    pending: list[tuple[ast.AST, bool]] = [(node, True) for node in nodes]
    while pending:
        node, top = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = node.module in ("arcvae_cli", "arcvae_cli.render")
            yield from ((f"{node.module}.{alias.name}" if own else node.module, top) for alias in node.names)
        pending += [(child, False) for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


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


LIGHT = """
import sys
import arcvae_cli
from arcvae_cli.cli import app

def check(unused, *lines):
    for line in lines:
        try:
            app(line.split())
        except SystemExit as end:
            assert end.code in (0, None), line
        assert not unused & {name.split(".")[0] for name in sys.modules}, (line, unused & set(sys.modules))

assert arcvae_cli.schedules.get_beta_schedule(5, "cosine", warmup_epochs=0, ramp_epochs=10) == 1.0
heavy = {"torch", "matplotlib", "sklearn", "wandb", "tensorboard"}
check(heavy | {"numpy"}, "train --help", "schedule-preview quickstart", "runs list")
assert arcvae_cli.runs("nowhere") == [] and callable(arcvae_cli.load) and callable(arcvae_cli.train)
check(heavy, "data info shapes --size 20", "data info equations --size 20")
"""


def test_what_needs_no_model_loads_neither_torch_nor_what_draws(tmp_path: Path) -> None:
    """One process: what is not loaded after the last command was not after those before."""
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
