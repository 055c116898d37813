"""The house rules that a machine can check: which way imports run and that they run in no circle, what may be
imported when, how large a file may be, and what --help costs."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["models", "quantization", "converters", "validation", "pipeline"]
MODULES = [path for folder in ORDER for path in sorted((ROOT / folder).rglob("*.py"))]
HEAVY = {"torch", "coremltools", "executorch", "transformers", "rich", "jinja2"}
OPTIONAL = {"coremltools", "executorch", "transformers", "sklearn"}


# What the core of `pipeline` is for: nothing in the core may know of these
LEAVES = {"build", "bundle", "commands", "gate", "study", "terminal"}
MOST_LINES = 450
# Operator tables are as long as the specification that they follow
TABLES = (
    "pipeline/options.py", "converters/mps/rules.py", "validation/mil/ops/", "validation/pte/aten_ops.py",
    "validation/pte/kernels.py", "validation/pte/mps_ops.py",
)  # fmt: skip


def module_name(path: Path) -> str:
    """models/load.py -> "models.load"; models/__init__.py -> "models" """
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {module_name(path): path for path in MODULES}


def imports_of(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement of a module, those inside functions too, but not those for type checkers."""

    def walk(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def imported_modules(path: Path) -> set[str]:
    """The modules of cidermill that a module imports, at any depth of its code."""
    package = path.relative_to(ROOT).parent.parts
    modules = set()
    for node in imports_of(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) + 1 - node.level], *(node.module or "").split("."))
            base = ".".join(filter(None, base))
            # `from . import name` imports a module where there is one of that name
            names = {f"{base}.{alias.name}".removeprefix(".") for alias in node.names}
            modules |= names & set(PATHS) or {base} & set(PATHS)
    return modules - {module_name(path)}


IMPORTS = {name: imported_modules(path) for name, path in PATHS.items()}


def reachable(name: str) -> set[str]:
    """The modules that importing a module leads to. The module itself is among them only in a circle."""
    reached, left = set(), list(IMPORTS[name])
    while left:
        module = left.pop()
        if module not in reached:
            reached.add(module)
            left += IMPORTS[module]
    return reached


def leaf_of(module: str) -> str:
    """ "pipeline.study.page" -> "study"; "" for a module of the core or of another room"""
    room, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    return part if room == "pipeline" and part in LEAVES else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    rooms = {module.partition(".")[0] for module in IMPORTS[module_name(path)]}
    assert rooms <= set(ORDER[: ORDER.index(path.relative_to(ROOT).parts[0]) + 1])
    names = {
        name
        for node in imports_of(path)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if not getattr(node, "level", 0)
    }
    assert not {name for name in names if name.split(".")[0] == "cidermill"}, "imports of ours are relative"


def test_no_circle_of_imports():
    """Imports inside functions count: a circle that is hidden in one is a circle."""
    reached = {name: reachable(name) for name in IMPORTS}
    circles = {frozenset(other for other in reached[name] if name in reached[other]) for name in IMPORTS}
    circles -= {frozenset()}
    assert list(map(sorted, circles)) == []


def test_the_core_of_the_pipeline_never_imports_its_leaves():
    core = [name for name in IMPORTS if name.startswith("pipeline.") and not leaf_of(name)]
    wrong = {f"{name} imports {leaf}" for name in core for leaf in filter(leaf_of, IMPORTS[name])}
    assert wrong == set()


def test_every_folder_is_a_package_that_is_shipped():
    """A folder without __init__.py can be imported, but type checkers do not see it."""
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {".".join(("cidermill", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(project["packages"]) == packages | {"cidermill"}
    assert "py.typed" in project["package-data"]["cidermill"] and (ROOT / "py.typed").exists()


def test_no_file_is_longer_than_a_reader_bears():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in MODULES
        if not str(path.relative_to(ROOT)).startswith(TABLES)
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


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


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """Every (module, name) of cidermill that a file imports, at any depth of its code and for type checkers
    too."""
    package = ("cidermill", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            if module.split(".")[0] == "cidermill":
                yield from ((module, alias.name) for alias in node.names)


def test_every_name_that_is_imported_exists():
    """An import inside a function fails only when the function runs: a name that was changed elsewhere may
    wait there for long."""
    files = [ROOT / "__init__.py", *MODULES]
    files += [path for folder in ("tests", "bench", "demo") for path in sorted((ROOT / folder).rglob("*.py"))]
    names = {
        (str(path.relative_to(ROOT)), module, name) for path in files for module, name in imported_names(path)
    }
    script = """
import importlib, json, sys
def is_there(module, name):
    try:
        return hasattr(importlib.import_module(module), name) or importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
print(json.dumps([entry for entry in json.load(sys.stdin) if not is_there(*entry[1:])]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(sorted(names)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(names) > 1000
    assert json.loads(done.stdout) == []


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
