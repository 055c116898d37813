"""A torch.export archive -> its program, its inputs and a module that runs it by input names.

An archive may carry pickles, native libraries and expressions that torch would evaluate. None is needed for a
plain program, so an archive that carries them is refused unless the user trusts it.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .archives import read_member, zip_members
from .digest import content_of
from .errors import UserError
from .inputs import DTYPES, InputSpec, check, in_order, listing
from .pickles import globals_of, torch_only
from .quiet import quiet
from .source import Limit, OpenSize, Source, TensorSpec
from .source_kind import LoadOptions

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

_OPERATOR = r"torch\.ops\.\w+\.\w+(\.\w+)?|torch\._?sym_\w+|torch\.Sym\w+|_operator\.\w+|math\.\w+|#.*"
_SHAPE_FUNCTIONS = set(  # sympy's srepr of shape arithmetic, and torch/utils/_sympy/functions.py
    """
    Symbol Integer Rational Float Add Mul Pow Max Min Mod Abs floor ceiling Piecewise And Or Not Equality
    Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Eq Ne Lt Le Gt Ge FloorDiv CeilDiv
    CleanDiv ModularIndexing PythonMod Where Identity IntTrueDiv FloatTrueDiv PowByNatural FloatPow
    FloorToInt CeilToInt TruncToInt TruncToFloat RoundToInt ToFloat IsNonOverlappingAndDenseIndicator
    """.split()
)
_INDEX_KEEPING = (
    "to",
    "_to_copy",
    "view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "expand",
    "clone",
    "alias",
    "detach",
    "contiguous",
)


def load_program(path: Path, options: LoadOptions) -> Source:
    """A Source without a program where shapes are dynamic or inputs are not all tensors: its module then is
    to be exported again at the shapes of its inputs."""
    if not options.trust_pickle:
        refuse_code(path)
    _register_output_types(path)
    opened = open_program(_read(path), options.inputs, str(path))
    sha256 = content_of(path).sha256
    return opened.source(path, "exported-program", sha256)


class OpenedProgram(NamedTuple):
    """program: None where it is to be exported again at the shapes of `inputs`, or in types that an artifact
    takes. module: runs it by input names. limits: integer input -> (lowest, highest + 1)."""

    program: ExportedProgram | None
    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    limits: dict[str, Limit]
    warnings: tuple[str, ...]
    open_sizes: tuple[OpenSize, ...] = ()

    def source(self, path: Path, format_name: str, sha256: str) -> Source:
        return Source(
            path, format_name, sha256, self.module, self.inputs, self.program,
            limits=self.limits, warnings=self.warnings, open_sizes=self.open_sizes,
        )  # fmt: skip


def open_program(program: ExportedProgram, given: tuple[InputSpec, ...], title: str) -> OpenedProgram:
    """A program as a source of a model, at the shapes that the user gave where it leaves them open."""
    from .border import NARROW, foreign, inputs_warnings, name_of, weights_warning
    from .free_names import with_free_names

    program = with_free_names(program)
    # Python text that program.module() would execute; capture fixes the shapes that it would guard
    program._guards_code = []
    placeholders = _tensor_inputs(program)
    described = tuple(_spec(node, _example(program, index), title) for index, node in placeholders)
    given = in_order(given, [spec.name for spec in described], title)
    chosen = {spec.name: spec for spec in given}
    unknown = [spec.name for spec in given if spec.name not in {own.name for own in described}]
    if unknown:
        raise UserError(
            f"{title} has no input {', '.join(unknown)}. Its inputs are: {listing(described)}.",
            "Correct the name in --input.",
        )
    inputs = tuple(
        _settle(node, own, chosen.get(own.name), title) for (_, node), own in zip(placeholders, described)
    )
    sizes = tuple(_open_sizes(program, placeholders))
    inputs = _with_shared_sizes(inputs, sizes, {spec.name for spec in given})
    own = {node.name: node.meta["val"].dtype for _, node in placeholders}
    converted = foreign([*program.parameters(), *(node.meta["val"] for _, node in placeholders)])
    module = _by_names(program, [index for index, _ in placeholders], converted)
    fixed = (
        len(placeholders) == len(program.graph_signature.user_inputs)
        and all(_is_static(node) for _, node in placeholders)
        and not converted
        and not any(dtype in NARROW for dtype in own.values())
    )
    limits = _limits(program, placeholders, inputs, module)
    warnings = (
        *weights_warning(foreign(program.parameters())),
        *inputs_warnings({name: name_of(dtype) for name, dtype in own.items()}, inputs),
        *_batch_of_two(program, placeholders),
    )
    return OpenedProgram(program if fixed else None, module, inputs, limits, warnings, sizes)


def refuse_code(path: Path) -> None:
    """UserError if loading the archive would run more than its graph: pickled classes, native code, evaluated
    text."""
    code = list(_code_in(path))
    if code:
        hint = (
            "Save it again with torch.export.save, or add --trust-pickle if you trust where the file comes"
            " from."
        )
        raise UserError(
            f"{path} is an exported program that carries code: {'; '.join(code[:5])}. None of it was run.",
            hint,
        )


def _code_in(path: Path) -> Iterator[str]:
    for name in zip_members(path):
        if name.startswith("data/aotinductor/"):
            yield f"the native library {name}"
        elif name.startswith(("data/constants/custom_obj", "data/constants/opaque_obj")):
            yield f"the pickled object {name}"
        elif name.startswith(
            ("data/sample_inputs/", "data/constants/", "data/weights/")
        ) and not name.endswith(".json"):
            yield from _pickle_in(path, name)
        elif name.startswith("models/") and name.endswith(".json"):
            yield from _text_in(_json(path, name))


def _pickle_in(path: Path, name: str) -> Iterator[str]:
    """A member that is itself a torch.save file may hold tensors only. Raw weights are no pickles and are not
    looked into."""
    with zipfile.ZipFile(path) as archive:
        member = next(full for full in archive.namelist() if full.partition("/")[2] == name)
        with archive.open(member) as stream:
            magic = stream.read(2)
        if magic == b"PK":
            data = _inner_pickle(archive.read(member), f"{path}: {name}")
        elif magic[:1] == b"\x80" and name.startswith("data/sample_inputs/"):
            data = archive.read(member)
        else:
            return
    names = globals_of(data, f"{path}: {name}") if data else ()
    if not torch_only(names):
        yield f"{name} would import {', '.join(names)}"


def _inner_pickle(data: bytes, where: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            return next((inner.read(entry) for entry in inner.namelist() if entry.endswith("data.pkl")), b"")
    except Exception as error:  # BadZipFile, and whatever a decompressor raises
        raise UserError(
            f"{where} is a damaged zip archive ({error}).", "Save or copy the program again."
        ) from error


def _json(path: Path, name: str) -> Any:
    try:
        return json.loads(read_member(path, name))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: {name} is not valid JSON ({error}).", "Save or copy the program again."
        ) from error


def _text_in(node: Any) -> Iterator[str]:
    """Operators outside torch.ops and arithmetic, shape expressions that call functions, and structures that
    import modules."""
    if isinstance(node, list):
        for item in node:
            yield from _text_in(item)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if (
            key == "target"
            and "inputs" in node
            and isinstance(value, str)
            and not re.fullmatch(_OPERATOR, value)
        ):
            yield f"the operator {value}"
        elif key == "expr_str" and not _is_arithmetic(str(value)):
            yield f"the shape expression {str(value)[:60]!r}"
        elif key in ("in_spec", "out_spec") and re.search(r"__enum__|default_factory", str(value)):
            yield f"a structure that imports Python objects ({key})"
        else:
            yield from _text_in(value)


def _is_arithmetic(text: str) -> bool:
    """sympy evaluates the text as Python with the builtins in reach: only names, numbers, signs and sympy's
    own functions may occur."""
    plain = re.sub(r"\bSymbol\('\w+'", "Symbol(0", text)
    called = set(re.findall(r"(\w+)\s*\(", plain))
    reaching = re.search(r"__|\.\s*[A-Za-z_]|\)\s*\(", plain)  # attributes, and calls of what a call returned
    return (
        re.fullmatch(r"[\w\s+\-*/(),.<>=!&|~]*", plain) is not None
        and called <= _SHAPE_FUNCTIONS
        and not reaching
    )


def _register_output_types(path: Path) -> None:
    """Programs that return a transformers ModelOutput need its class registered with pytree, which importing
    its module does."""
    for name in zip_members(path):
        if name.startswith("models/") and name.endswith(".json"):
            text = read_member(path, name).decode("utf-8", "replace")
            for module in sorted(set(re.findall(r'"(transformers(?:\.\w+)+)\.\w+\\"', text))):
                with quiet():
                    importlib.import_module(module)


def _read(path: Path) -> ExportedProgram:
    from torch.export.pt2_archive._package import load_pt2

    try:
        # a stream, because torch warns about file names that do not end in .pt2
        with (
            quiet(),
            path.open("rb") as stream,
        ):
            programs = load_pt2(stream).exported_programs
    except Exception as error:  # schema, zip and operator errors of several types
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{path} cannot be loaded as an exported program: {reason}",
            "Save it again with this version of torch.",
        ) from error
    if len(programs) != 1:
        raise UserError(
            f"{path} holds {len(programs)} programs: {', '.join(programs) or 'none'}.",
            "Save one program per file.",
        )
    return next(iter(programs.values()))


def _tensor_inputs(program: ExportedProgram) -> list[tuple[int, Node]]:
    """[(position among the flat user inputs, placeholder)] of those that are tensors."""
    import torch

    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    user = [
        nodes.get(name) if isinstance(name, str) else None for name in program.graph_signature.user_inputs
    ]
    return [
        (index, node)
        for index, node in enumerate(user)
        if node is not None and isinstance(node.meta.get("val"), torch.Tensor)
    ]


def _example(program: ExportedProgram, index: int) -> Any:
    """The value of a flat user input that the program was exported with, None where it is not kept."""
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves(program.example_inputs) if program.example_inputs else []
    return leaves[index] if index < len(leaves) else None


def _spec(node: Node, example: Any, title: str) -> TensorSpec:
    from .border import at_border

    value = node.meta["val"]
    dtype = at_border(value.dtype)
    if dtype is None:
        raise UserError(
            f"{title}: input {node.name} is {value.dtype}; artifacts take {', '.join(sorted(DTYPES))}.",
            "Export it with one of these.",
        )
    fallback = tuple(example.shape) if example is not None else (1,) * value.ndim
    shape = tuple(dim if isinstance(dim, int) else fallback[axis] for axis, dim in enumerate(value.shape))
    return TensorSpec(node.name, shape, dtype)


def _is_static(node: Node) -> bool:
    return all(isinstance(dim, int) for dim in node.meta["val"].shape)


def _settle(node: Node, own: TensorSpec, given: InputSpec | None, title: str) -> TensorSpec:
    """The user's shape where the program leaves it open; the program's own elsewhere."""
    if given is None:
        return own
    check(title, given, own)
    fixed = [
        axis
        for axis, dim in enumerate(node.meta["val"].shape)
        if isinstance(dim, int) and dim != given.shape[axis]
    ]
    if fixed:
        raise UserError(
            f"{title} was exported with {listing((own,))}; dimension {fixed[0]} cannot become"
            f" {given.shape[fixed[0]]}.",
            "Export it again with that shape, or with torch.export.Dim there.",
        )
    return TensorSpec(own.name, given.shape, own.dtype)


def _open_sizes(program: ExportedProgram, placeholders: list[tuple[int, Node]]) -> Iterator[OpenSize]:
    for index, (_, node) in enumerate(placeholders):
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, int):
                continue
            expression = size.node.expr
            step, symbol = expression.as_coeff_Mul()
            step = int(step) if step.is_Integer and symbol.is_Symbol else 1
            bounds = program.range_constraints.get(symbol if step > 1 else expression)
            low, high = (1, None) if bounds is None else (_whole(bounds.lower) or 1, _whole(bounds.upper))
            low, high = max(low, 1) * step, None if high is None else high * step
            yield OpenSize(index, axis, str(expression), low, high, bool(expression.is_Symbol), step)


def _whole(bound: Any) -> int | None:
    """None of what is no number: an infinity."""
    return int(bound) if getattr(bound, "is_Integer", isinstance(bound, int)) else None


def _with_shared_sizes(
    inputs: tuple[TensorSpec, ...], sizes: tuple[OpenSize, ...], given: set[str]
) -> tuple[TensorSpec, ...]:
    """What the user said of an open size holds wherever the program has it."""
    said = {
        size.symbol: inputs[size.place].shape[size.axis] for size in sizes if inputs[size.place].name in given
    }
    moved = {
        (size.place, size.axis): said[size.symbol]
        for size in sizes
        if size.symbol in said and inputs[size.place].name not in given
    }
    return tuple(
        replace(spec, shape=tuple(moved.get((index, axis), size) for axis, size in enumerate(spec.shape)))
        for index, spec in enumerate(inputs)
    )


def _batch_of_two(program: ExportedProgram, placeholders: list[tuple[int, Node]]) -> Iterator[str]:
    """What the user is told where every input and output has a first size of 2: torch.export would take 1 for
    a constant, so two examples are what people export with."""
    import torch

    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    nodes = [node for _, node in placeholders] + [node for node in returned if hasattr(node, "meta")]
    values = [node.meta.get("val") for node in nodes]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    first = [value.shape[0] if value.ndim else None for value in tensors]
    if all(isinstance(size, int) and size == 2 for size in first):
        yield (
            "The exported program has a fixed batch of 2, so the artifact takes two examples at a time.\n"
            "Export it with an example of one for an app that asks for one."
        )


def _by_names(
    program: ExportedProgram, positions: list[int], converted: Sequence[torch.dtype]
) -> torch.nn.Module:
    """A module over the tensor inputs only; other inputs keep the values they were exported with. converted:
    floating-point types that become float32 in it."""
    import torch
    from torch.utils import _pytree as pytree

    from .border import in_float32
    from .forward import NamedModule

    model, in_spec = program.module(), program.call_spec.in_spec
    leaves = [None if isinstance(value, str) else value for value in program.graph_signature.user_inputs]
    dtypes = [node.meta["val"].dtype for _, node in _tensor_inputs(program)]
    if converted:
        model = in_float32(model, converted)
        dtypes = [torch.float32 if dtype in converted else dtype for dtype in dtypes]

    def call(inputs: dict[str, torch.Tensor]) -> Any:
        filled = list(leaves)
        for position, dtype, tensor in zip(positions, dtypes, inputs.values()):
            filled[position] = tensor.to(dtype)
        args, kwargs = pytree.tree_unflatten(filled, in_spec)
        return model(*args, **kwargs)

    return NamedModule(model, call)


def _limits(
    program: ExportedProgram,
    placeholders: list[tuple[int, Node]],
    inputs: tuple[TensorSpec, ...],
    module: torch.nn.Module,
) -> dict[str, Limit]:
    """Integer inputs: rows of the embedding that they index as a whole, which the graph tells; of others what
    is found by running the module on the example that the program was exported with."""
    from .integers import examples_of, integer_limits

    whole = {
        spec.name: Limit(0, rows)
        for (_, node), spec in zip(placeholders, inputs)
        if spec.dtype == "int32" and (rows := _rows_indexed(node)) is not None
    }
    examples = {spec.name: _example(program, index) for (index, _), spec in zip(placeholders, inputs)}
    present = {name: example for name, example in examples.items() if example is not None}
    return integer_limits(module, inputs, whole, examples_of(present, inputs))


def _rows_indexed(node: Node) -> int | None:
    """Follow an input through casts and reshapes to its embeddings -> rows of the smallest table."""
    todo: list[Node] = [node]
    seen: set[Node] = set()
    rows: list[int] = []
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            kind = str(user.target).partition("::")[2] or str(user.target).removeprefix("aten.")
            kind = kind.partition(".")[0]
            if kind == "embedding" and user.args[1] is node:
                table: Any = user.args[0]
                rows.append(int(table.meta["val"].shape[0]))
            if kind in _INDEX_KEEPING:
                todo.append(user)
    return min(rows, default=None)
