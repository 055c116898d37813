"""Every operator of ATen's core set through conversion, on both targets.

    python bench/core_aten.py [--only NAME]... [--target TARGET]... [--results FILE.json]
    [--out docs/operators.md]

An operator is called as its schema says, alone in a module, on up to three samples of torch's own operator
database (by hand where that has none that fit), converted, and judged on inputs of its own
(bench/pressing.py). --results keeps what was tried, and a run goes on from there; --out writes the table.
Exit code 1 where any operator crashed or passed falsely.
"""

import argparse
import functools
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).resolve().parent))
import pressing
from core_aten_calls import CALLS

MOST_SAMPLES, MOST_ELEMENTS = 3, 2048
ORDER = ("CRASH", "FALSE PASS", "failed", "refused", "near edge", "right")
HEADER = """\
# The operators of ATen's core set

Written by `python bench/core_aten.py --out docs/operators.md`, which tries every operator that torch {torch}
tags as core, alone in a module, on samples of torch's own operator database, and judges the saved artifact in
the reference runner on inputs of its own.

- **converts**: the target has the operator.
- **rewritten**: it is expressed by operators that the target has.
- **portable**: (MPS) it runs as a portable CPU kernel of ExecuTorch's beside the delegate.
- **refused**: with the reason. A refusal is one message and exit code 2; nothing is written.
- **fails**: it converts, and the verdict says that the artifact is wrong. Random numbers do: they are others.
- **not tried**: `--results` was not yet complete.

{summary}

| operator | Core ML | ExecuTorch MPS |
|---|---|---|
"""


class Outcome(NamedTuple):
    """word: as in the table; note: the reason, where there is one."""

    word: str
    note: str = ""


class Call(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


def core_operators() -> list[torch._ops.OpOverload]:
    operators = []
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        packet, _, overload = name.removeprefix("aten::").partition(".")
        if not name.startswith("aten::") or not hasattr(torch.ops.aten, packet):
            continue
        operator = getattr(getattr(torch.ops.aten, packet), overload or "default", None)
        if operator is not None and torch.Tag.core in operator.tags and not overload.endswith("out"):
            operators.append(operator)
    return operators


def samples(operator: torch._ops.OpOverload) -> Iterator[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]:
    """Modules that call the operator, with their inputs."""
    torch.manual_seed(0)
    calls = CALLS.get(str(operator).removeprefix("aten."))
    for expression, *given in calls or ():
        inputs = [value if isinstance(value, torch.Tensor) else torch.randn(value) for value in given]
        names = {"OP": operator, "torch": torch, "F": torch.nn.functional}
        function = eval(f"lambda {', '.join('xyz'[: len(inputs)])}: {expression}", names)
        yield Call(function), tuple(inputs)
    if calls is None:
        yield from _of_database(operator)


def _of_database(operator: Any) -> Iterator[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]:
    found = 0
    for info in _database().get(str(operator).split(".")[1], ()):
        for sample in info.sample_inputs("cpu", torch.float32):
            args, kwargs = (sample.input, *sample.args), sample.kwargs
            if found < MOST_SAMPLES and _fits(operator, args, kwargs):
                found += 1
                yield _with_tensors_as_inputs(operator, args, kwargs)


def _with_tensors_as_inputs(
    operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """All that is no tensor is fixed."""
    leaves, spec = pytree.tree_flatten((args, kwargs))

    def function(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return operator(*args, **kwargs)

    return Call(function), tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


@functools.cache
def _database() -> dict[str, list[Any]]:
    """ATen's name -> what torch's own tests call it with."""
    from torch.testing._internal.common_methods_invocations import op_db

    infos: dict[str, list[Any]] = {}
    for info in op_db:
        names = {info.name.rpartition(".")[2], info.aten_name, *(alias.name for alias in info.aliases)}
        for name in names:
            infos.setdefault(str(name), []).append(info)
    return infos


def _fits(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the operator takes them as they are, of a usual size, and answers with numbers that differ."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not tensors or any(not 1 < tensor.numel() <= MOST_ELEMENTS and tensor.ndim for tensor in tensors):
        return False
    if any(tensor.dtype in (torch.float64, torch.complex64) for tensor in tensors) or tensors[0].ndim > 5:
        return False
    if any(isinstance(leaf, complex) for leaf in leaves):
        return False
    try:
        results = pytree.tree_leaves(operator(*args, **kwargs))
    except Exception:  # the database calls another overload
        return False
    numbers = [result for result in results if isinstance(result, torch.Tensor) and result.numel() > 1]
    return bool(numbers) and all(
        bool(torch.isfinite(result).all()) and result.unique().numel() > 1 for result in numbers
    )


def tried(operator: torch._ops.OpOverload, target: str) -> Outcome:
    calls = list(samples(operator))
    if not calls:
        return Outcome("untried", "no sample fits")
    ends = [
        (pressing.press(pressing.Model(module, inputs, particular=True), target), module, inputs)
        for module, inputs in calls
    ]
    worst, module, inputs = min(ends, key=lambda end: ORDER.index(end[0].kind))
    if worst.kind == "refused":
        accepted = sum(end.kind != "refused" for end, _, _ in ends)
        some = f"{len(ends) - accepted} of {len(ends)} samples: " if accepted else ""
        return Outcome("refused", some + _reason(worst.detail))
    if worst.kind in (*pressing.BAD, "failed"):
        return Outcome("fails" if worst.kind == "failed" else worst.kind, _reason(worst.detail))
    portable = [text for text in worst.warnings if "portable" in text]
    if portable:
        return Outcome("portable")
    return Outcome("converts" if _keeps(operator, module, inputs, target) else "rewritten")


def _reason(detail: str) -> str:
    lines = [line.strip(" -") for line in detail.strip().splitlines()]
    if "Traceback" in lines[0]:
        return lines[-1][:160]
    line = lines[1] if "cannot express" in lines[0] else lines[0]
    return line.partition(" (")[0][:160] if "cannot express" in lines[0] else line[:160]


def _keeps(operator: Any, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], target: str) -> bool:
    """Whether the lowered program still calls the operator."""
    from cidermill.converters.coreml.lower import lower as lower_coreml
    from cidermill.converters.mps.lower import lower as lower_mps
    from cidermill.models.capture import capture
    from cidermill.models.in_memory import source_of
    from cidermill.models.quiet import quiet
    from cidermill.models.samples import synthetic

    source = source_of(module.eval(), inputs)
    captured = capture(source, synthetic(source.inputs, limits=source.limits))
    with quiet():
        lowered = (
            lower_coreml(captured.program, "float16")
            if target == "coreml"
            else lower_mps(captured.program, True)[0]
        )
    return any(node.target == operator for node in lowered.graph.nodes)


def table(results: dict[str, dict[str, list[str]]]) -> str:
    rows = []
    for name in sorted(results):
        cells = [_cell(results[name].get(target)) for target in pressing.TARGETS]
        rows.append(f"| `{name}` | {' | '.join(cells)} |\n")
    lines = []
    for target in pressing.TARGETS:
        counts = Counter(entry[target][0] for entry in results.values() if target in entry)
        lines.append(f"{target}: " + ", ".join(f"{count} {word}" for word, count in counts.most_common()))
    version = torch.__version__.partition("+")[0]
    return HEADER.format(torch=version, summary=".\n".join(lines) + ".") + "".join(rows)


def _cell(outcome: list[str] | None) -> str:
    if outcome is None:
        return "not tried"
    word, note = outcome
    return f"{word}: {note}".replace("|", "\\|") if note else word


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append")
    parser.add_argument("--target", action="append", choices=pressing.TARGETS)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = arguments.results is not None and arguments.results.exists()
    results = json.loads(arguments.results.read_text()) if kept else {}
    for operator in core_operators():
        name = str(operator).removeprefix("aten.")
        for target in arguments.target or pressing.TARGETS:
            entry = results.setdefault(name, {})
            asked = not arguments.only or name in arguments.only
            if not asked or (target in entry and not arguments.only):
                continue
            entry[target] = list(tried(operator, target))
            print(f"{name:45} {target:15} {': '.join(filter(None, entry[target]))}", flush=True)
            if arguments.results is not None:
                arguments.results.write_text(json.dumps(results, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(table(results))
    words = [outcome[0] for entry in results.values() for outcome in entry.values()]
    return 1 if any(word in pressing.BAD for word in words) else 0


if __name__ == "__main__":
    sys.exit(main())
