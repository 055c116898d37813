"""The walk of one conversion: how many of our functions, files and frames lie between command and arithmetic.

    python bench/walk.py [--target coreml]... [--quant int8]

A small network is converted in this process by the command line, and every call of a function of cidermill is
noted (`sys.setprofile`). Printed: functions and files entered, lines in those files, the most frames of ours
from the command to a kernel of the compression (quantization/affine.py) and to an operator of the
reference runner, and the circles of imports in the package, imports inside functions counted. Nothing is
judged: figures to compare two versions by.
"""

import argparse
import ast
import contextlib
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import cidermill

ROOT = Path(cidermill.__file__).resolve().parent
KERNEL = "quantization/affine.py", "quantize"
OPERATOR = "ops/"  # every function in a file below such a folder


class Walk:
    """What was entered: function -> its file, and the most of our frames above the two ends of the walk."""

    def __init__(self) -> None:
        self.functions: dict[CodeType, str] = {}  # "" for code that is not ours
        self.deepest: dict[str, list[str]] = {}

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        path = self.functions.get(code)
        if path is None:
            path = self.functions[code] = _ours(code)
        if not path:
            return
        end = "kernel" if (path, code.co_name) == KERNEL else "operator" if OPERATOR in path else None
        if end is not None:
            stack = _stack(frame)
            if len(stack) > len(self.deepest.get(end, [])):
                self.deepest[end] = stack

    def files(self) -> dict[str, int]:
        """File of ours -> how many of its functions were entered."""
        return dict(Counter(path for path in self.functions.values() if path))


def _ours(code: CodeType) -> str:
    """The file of the package that holds the code, "" for other code and for what is no function."""
    file = code.co_filename
    if code.co_name.startswith("<") or not file.startswith(f"{ROOT}/") or ".venv" in file:
        return ""
    path = file.removeprefix(f"{ROOT}/")
    return "" if path.startswith(("bench/", "tests/")) else path


def _stack(frame: FrameType | None) -> list[str]:
    """Our frames from the command to this one, the command first."""
    frames = []
    while frame is not None:
        if path := _ours(frame.f_code):
            frames.append(f"{path}:{frame.f_code.co_name}")
        frame = frame.f_back
    return frames[::-1]


def imports_of(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports anywhere, those for type checkers apart."""
    folders = [folder for folder in sorted(root.iterdir()) if (folder / "__init__.py").exists()]
    files = [
        file for folder in folders if folder.name not in ("tests", "bench") for file in folder.rglob("*.py")
    ]
    names = {
        file: ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for file in files
    }
    modules = set(names.values())
    graph = {}
    for file, name in names.items():
        package = name.split(".") if file.stem == "__init__" else name.split(".")[:-1]
        graph[name] = set(_imported(ast.parse(file.read_text()), package, modules)) - {name}
    return graph


def _imported(tree: ast.AST, package: list[str], modules: set[str]) -> Any:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [
                *package[: len(package) - node.level + 1],
                *(node.module.split(".") if node.module else []),
            ]
            for alias in node.names:
                named = ".".join([*base, alias.name])
                yield named if named in modules else ".".join(base)
        yield from _imported(node, package, modules)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (networkx comes with torch)."""
    import networkx

    return [
        sorted(part)
        for part in networkx.strongly_connected_components(networkx.DiGraph(graph))
        if len(part) > 1
    ]


def convert(arguments: list[str]) -> None:
    """`cidermill convert` in this process."""
    from cidermill.pipeline.commands.cli import main as cidermill

    with contextlib.suppress(SystemExit):
        cidermill(["convert", *arguments], standalone_mode=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--quant", default="int8")
    args = parser.parse_args()
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 64)
    )
    walk = Walk()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.export.save(torch.export.export(network.eval(), (torch.randn(1, 3, 8, 8),)), folder / "net.pt2")
        targets = [word for target in args.target or ["coreml"] for word in ("--target", target)]
        sys.setprofile(walk.note)
        try:
            convert(
                [
                    str(folder / "net.pt2"),
                    *targets,
                    "--quant",
                    args.quant,
                    "--out",
                    str(folder / "out"),
                    "--no-cache",
                    "--quiet",
                ]
            )
        finally:
            sys.setprofile(None)
    report(walk)
    return 0


def report(walk: Walk) -> None:
    files = walk.files()
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    print(f"functions entered  {sum(files.values())}")
    print(f"files entered      {len(files)}, of {lines} lines")
    for end, stack in sorted(walk.deepest.items()):
        print(f"frames to {end:<8} {len(stack)}: {' > '.join(stack)}")
    graph = imports_of(ROOT)
    rings = circles(graph)
    total = sum(len(path.read_text().splitlines()) for name in graph for path in [_file(name)])
    print(f"the package        {len(graph)} files, {total} lines, {len(rings)} circles of imports")
    for ring in rings:
        print(f"  {' - '.join(ring)}")


def _file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


if __name__ == "__main__":
    sys.exit(main())
