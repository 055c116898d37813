"""A folder with Swift files in, which tools read them and found nothing wrong out.

Their syntax is read by tree-sitter on every machine. A Swift compiler checks them as well where there is one:
their types on macOS, where CoreML is; elsewhere its parser.
"""

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# SwiftPM makes this accessor for a target with resources; a bare compiler does not.
ACCESSOR = "import Foundation\nextension Bundle { static let module = Bundle.main }\n"
MOST = 5


class BrokenSwift(RuntimeError):
    """Sources that this package made and that Swift does not read: a defect of its templates."""


def check_swift(folder: Path, macos: str) -> list[str]:
    """-> the tools that read every .swift file below `folder`. macos: the target to check types for. Raises
    BrokenSwift with file and line."""
    files = sorted(folder.rglob("*.swift"))
    problems = [
        problem
        for file in files
        for problem in syntax_errors(file.read_bytes(), str(file.relative_to(folder)))
    ]
    if problems:
        raise BrokenSwift("Swift that cannot be read:\n" + "\n".join(problems[:MOST]))
    return [
        f"tree-sitter-swift {metadata.version('tree-sitter-swift')} (syntax)",
        *_compiler_check(files, macos),
    ]


def syntax_errors(source: bytes, name: str) -> list[str]:
    """ "FILE:LINE: what" for every place that the grammar cannot read."""
    import tree_sitter
    import tree_sitter_swift

    tree = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language())).parse(source)
    return [
        f"{name}:{node.start_point[0] + 1}: {_complaint(node, source)}"
        for node in _wrong_nodes(tree.root_node)
    ]


def _wrong_nodes(root: Any) -> Iterator[Any]:
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            yield node
        elif node.has_error:
            nodes.extend(reversed(node.children))


def _complaint(node: Any, source: bytes) -> str:
    if node.is_missing:
        return f"{node.type} is missing"
    return (
        "unreadable: "
        + source[node.start_byte : node.end_byte].decode("utf-8", "replace").strip().partition("\n")[0][:80]
    )


def _compiler_check(files: Sequence[Path], macos: str) -> list[str]:
    compiler = shutil.which("swiftc")
    if compiler is None:
        return []
    said = _run([compiler, "--version"]).stdout.partition("\n")[0].strip()
    if platform.system() != "Darwin":
        _require(_run([compiler, "-parse", *map(str, files)]))
        return [f"swiftc -parse ({said}): CoreML, which the types need, is on macOS only"]
    with tempfile.TemporaryDirectory() as scratch:
        accessor = Path(scratch) / "resources.swift"
        accessor.write_text(ACCESSOR)
        sources = [str(file) for file in files if file.name != "Package.swift"]
        target = f"{platform.machine()}-apple-macosx{macos}"
        _require(
            _run(
                [
                    "xcrun",
                    "--sdk",
                    "macosx",
                    "swiftc",
                    "-typecheck",
                    "-swift-version",
                    "5",
                    "-target",
                    target,
                    str(accessor),
                    *sources,
                ]
            )
        )
    return [f"swiftc -typecheck ({said})"]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _require(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise BrokenSwift(f"{done.args[0]} refuses the Swift sources:\n{done.stderr.strip()[:2000]}")
