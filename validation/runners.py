"""A saved artifact in, a function from named arrays to named arrays out: natively where the host has the
runtime, else by reference.

The reference runner computes every operation in float32 and rounds its result to the type that the program
declares for it. What differs between the formats is a row of FORMATS.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..converters.coreml.tools import import_coremltools
from ..models.errors import UnreadableArtifact, UnsupportedOperators, UserError
from .graph import Graph
from .mil.read import Package, read_package
from .mil.runner import core_ml_runner, readable_package, reference_package
from .paths import artifact_path, check_exists
from .resources import DEFAULT_ALLOWANCE, Allowance
from .runner import Opening, Runner

HOSTS = ("auto", "native", "reference")
PRECISIONS = ("declared", "float32")


@dataclass(frozen=True)
class Format:
    """One kind of artifact.

    suffix: of its name; title: what it is, in a list; sign: the same, with what it is known by. recognises
    takes its path and its first 8 bytes (none of a folder); has_runtime: whether this Mac has the platform's
    runtime for it; native and reference open it; parse: the package that it is, None of a file, and the
    graphs of all its functions; readable: a runner of which only border and graph are used, where an operator
    has no reference (None: `reference` opens it all the same).
    """

    suffix: str
    title: str
    sign: str
    recognises: Callable[[Path, bytes], bool]
    has_runtime: Callable[[], bool]
    native: Callable[[Path, Opening], Runner]
    reference: Callable[[Path, Opening], Runner]
    parse: Callable[[Path], tuple[Package | None, list[Graph]]]
    readable: Callable[[Path, Exception], Runner] | None = None


def open_runner(
    path: str | Path,
    host: str = "auto",
    function: str = "main",
    precision: str = "declared",
    keep_weights: bool = True,
    allowance: Allowance = DEFAULT_ALLOWANCE,
    data: Sequence[str | Path] | None = None,
) -> Runner:
    """Open an .mlpackage or a .pte, recognised by content.

    host: "native" (the platform's runtime; macOS), "reference" (torch), "auto" (native where possible).
    precision: "declared" rounds as the program says; "float32" does not round, which separates overflow and
    rounding from wrong arithmetic (reference only).
    keep_weights: decode each weight once, at its first use, and keep it; without, decode it for every call
    and keep only what one operation needs (reference only). allowance: memory, time and loops of one call;
    the default suits a program that nobody vouches for.
    function: of an ExecuTorch program its method, "main" being forward or the only one. data: the .ptd files
    with weights that a .pte keeps outside; by default those beside it that carry its name.
    """
    path = artifact_path(path)
    for name, value, allowed in (("host", host, HOSTS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise UserError(f"unknown {name} {value!r}", f"use one of {', '.join(allowed)}")
    if host == "native" and platform.system() != "Darwin":
        raise UserError(
            f"not run: {path.name} on its native runtime needs macOS; this is {platform.system()}",
            "use host='reference'",
        )
    artifact_format = format_of(path)
    opening = Opening(function, precision, keep_weights, allowance, data)
    if host == "native" or (host == "auto" and precision == "declared" and has_native_runtime(path)):
        return artifact_format.native(path, opening)
    return artifact_format.reference(path, opening)


def open_to_read(path: str | Path) -> Runner:
    """The reference runner; of a Core ML package with operators that it cannot compute, one whose border and
    graph can be read. Calling that one raises what opening it would have."""
    path = Path(path)
    try:
        return open_runner(path, host="reference")
    except UnsupportedOperators as error:
        readable = format_of(path).readable
        if readable is None:
            raise
        return readable(path, error)


def has_native_runtime(path: Path) -> bool:
    """Whether this host can run the artifact in its real runtime."""
    return platform.system() == "Darwin" and format_of(path).has_runtime()


def format_of(path: Path) -> Format:
    """The format of a file, told by its content. Raises UnreadableArtifact for what is no artifact."""
    head = _first_bytes(path)
    for artifact_format in FORMATS.values():
        if artifact_format.recognises(path, head):
            return artifact_format
    signs = " nor ".join(artifact_format.sign for artifact_format in FORMATS.values())
    raise UnreadableArtifact(f"{path} is neither {signs}", artifact_kinds())


def artifact_kinds() -> str:
    """What an artifact is, in a sentence."""
    return f"An artifact is {' or '.join(artifact_format.title for artifact_format in FORMATS.values())}."


def _first_bytes(path: Path) -> bytes:
    """Of a file; nothing of a folder. UnreadableArtifact for a path that is neither or that the system
    refuses."""
    try:
        if path.is_dir():
            return b""
        check_exists(path)
        if not path.is_file():
            raise UnreadableArtifact(f"{path} is neither a file nor a folder", artifact_kinds())
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise UnreadableArtifact(
            f"{path} cannot be read: {error.strerror}", "Check the path and who may read it."
        ) from error


def _is_package(path: Path, head: bytes) -> bool:
    return path.is_dir()


def _is_executorch(path: Path, head: bytes) -> bool:
    return head[4:8] in (b"ET12", b"ET13")


def _has_core_ml() -> bool:
    try:
        import_coremltools().libcoremlpython  # noqa: B018  (there on macOS only)
    except (ImportError, AttributeError):
        return False
    return True


def _has_executorch() -> bool:
    try:
        import executorch.runtime  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


def _executorch_runner(path: Path, opening: Opening) -> Runner:
    # imported where a .pte is opened: its operator tables are large
    from .pte.runner import executorch_runner

    return executorch_runner(path, opening)


def _reference_pte(path: Path, opening: Opening) -> Runner:
    from .pte.runner import reference_pte

    return reference_pte(path, opening)


def _parse_package(path: Path) -> tuple[Package, list[Graph]]:
    package = read_package(path)
    return package, list(package.functions.values())


def _parse_pte(path: Path) -> tuple[None, list[Graph]]:
    from .pte.read import open_program

    return None, [open_program(path).graph]


# The first row that recognises an artifact opens it; any folder counts as a damaged package
FORMATS: dict[str, Format] = {
    artifact_format.suffix: artifact_format
    for artifact_format in (
        Format(
            ".mlpackage",
            title="an .mlpackage folder",
            sign="an .mlpackage folder",
            recognises=_is_package,
            has_runtime=_has_core_ml,
            native=core_ml_runner,
            reference=reference_package,
            parse=_parse_package,
            readable=readable_package,
        ),
        Format(
            ".pte",
            title="a .pte file",
            sign="an ExecuTorch program (no ET12 at byte 4)",
            recognises=_is_executorch,
            has_runtime=_has_executorch,
            native=_executorch_runner,
            reference=_reference_pte,
            parse=_parse_pte,
        ),
    )
}
