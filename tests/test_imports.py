"""Imports run one way, and the server starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

LAYERS = [
    {"app"},
    {"pages"},
    {"api"},
    {"watch", "refusals"},
    {"shapes", "door", "columns"},
    {"runtime"},
    {"service"},
    {"telling", "labels", "comparison"},
    {"views", "submission", "archive", "analytics", "curves", "export"},
    {"pool", "deletion"},
    {"supervisor"},
    {"hang", "launching", "pausing", "usage", "load"},
    {"checkpoints"},
    {"spec", "processes", "stall", "progress", "gpu", "diagnosis", "store", "log"},
    {"curve_index"},
    {"bins"},
    {"matching"},
    {"arguments"},
    {"search"},
    {"schema", "curve", "kernel", "news"},
    {"models", "recipes", "paths", "mask", "memory_kills"},
    {"settings", "stacks"},
    {"notify"},
]
"""A module may import from the layers below its own."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
STANDARD_LIBRARY_ONLY = ["backend/training/runner.py", "backend/training/signalbox.py"]


def _imports(path: Path) -> set[str]:
    """Absolute names of what a file imports, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _ours(name: str) -> str | None:
    """The layer name of one of our modules; None for anybody else's."""
    parts = name.split(".")
    if parts[0] in {"app", "pages"}:
        return parts[0]
    if parts[0] == "backend" and len(parts) > 1:
        return parts[1]
    return None


def _server_files() -> list[Path]:
    backend = [p for p in (PROJECT / "backend").glob("*.py") if p.name != "__init__.py"]
    return [PROJECT / "app.py", *backend, *(PROJECT / "pages").rglob("*.py")]


@pytest.mark.parametrize("path", _server_files(), ids=lambda p: str(p.relative_to(PROJECT)))
def test_imports_run_one_way(path: Path) -> None:
    relative = path.relative_to(PROJECT)
    layer = relative.parts[0].removesuffix(".py")
    own = relative.stem if layer == "backend" else layer
    for name in _imports(path):
        other = _ours(name)
        assert other != "training", f"{relative} imports the job's side: {name}"
        if other in RANK and other != own:
            assert RANK[own] < RANK[other], f"{relative} imports {name}, which is above it"


@pytest.mark.parametrize("path", _server_files(), ids=lambda p: str(p.relative_to(PROJECT)))
def test_the_backend_knows_no_streamlit_and_the_server_no_torch(path: Path) -> None:
    packages = {name.split(".")[0] for name in _imports(path)}
    assert "torch" not in packages
    if path.parent.name == "backend":
        assert "streamlit" not in packages


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_runs_in_any_interpreter_needs_only_the_standard_library(name: str) -> None:
    packages = {imported.split(".")[0] for imported in _imports(PROJECT / name)}
    # The helper looks for torch among the modules that are loaded already; it never loads it.
    assert packages <= set(sys.stdlib_module_names)


def test_trainings_import_only_the_catalogue_of_the_backend() -> None:
    for path in (PROJECT / "backend" / "training").rglob("*.py"):
        for name in _imports(path):
            if name.startswith("backend.") and not name.startswith("backend.training"):
                assert name.startswith("backend.recipes"), f"{path.name} imports {name}"


def test_the_backend_starts_without_torch() -> None:
    source = "import sys, backend.runtime; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], cwd=PROJECT, check=True)
