"""The house rules that a machine can check: which way imports run, what may be imported when, and how fast
--help answers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["models", "quantization", "converters", "validation", "pipeline"]
MODULES = [path for folder in ORDER for path in sorted((ROOT / folder).rglob("*.py"))]
HEAVY = {"torch", "coremltools", "executorch", "transformers", "rich", "jinja2"}
OPTIONAL = {"coremltools", "executorch", "transformers", "sklearn"}


def imported_folders(path: Path) -> set[str]:
    """The subpackages that a module imports from, at any depth of its code."""
    here = path.relative_to(ROOT).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ("cidermill", *here[:-1])[: len(here) + 1 - node.level]
            target = (*base, *(node.module or "").split("."))
            found.add(target[1] if len(target) > 1 else "")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cidermill"):
            found.add("absolute import of cidermill")
    return found - {""}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    allowed = set(ORDER[: ORDER.index(folder) + 1])
    assert imported_folders(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_runtimes_are_imported_inside_functions(path):
    """A module's top level imports none of the converters' or loaders' runtimes."""
    top_level = [
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {
        alias.name.split(".")[0] for node in top_level if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {
        node.module.split(".")[0] for node in top_level if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not names & OPTIONAL


def test_every_module_imports_without_the_optional_runtimes():
    names = [
        ".".join(("cidermill", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
    ]
    script = f"""
import sys, importlib
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy():
    script = (
        "import sys, cidermill.pipeline.commands.cli; print(sorted(set(m.split('.')[0] for m in"
        " sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & HEAVY


def test_no_file_shadows_the_standard_library_or_is_called_utils():
    names = {path.stem for path in MODULES}
    assert not names & (set(sys.stdlib_module_names) - {"__init__"})
    assert not names & {"utils", "helpers", "misc", "common"}
