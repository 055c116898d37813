"""A saved artifact and the decisions of its compression in; what the file really holds, weight by weight and
byte by byte, out.

The figures come from the file: the decisions only lend names, requests and reasons. Every weight that a
recipe made is decoded from the file by the reference runner's operators and compared with it, bit for bit in
half precision.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...models.digest import digest_tensor, files_of
from ..graph import Graph, OperatorFailed
from ..mil.read import Package
from ..records import Compression, Verdict, WeightReport
from ..runners import format_of
from .decoded import Decoder, same
from .stored import StoredWeight, stored_weights

if TYPE_CHECKING:
    from ...converters.artifact import Realised
    from ...quantization.compress import Decision
    from ...quantization.weight import CompressedWeight
    from ..runner import Runner

NOT_STORED = "not stored by name"
EQUAL, DIFFERS = "equal", "differs"
FIRST_ELEMENTS = 64  # elements by which stored tensors are told apart before all of their bytes are read
NAMED = 5  # weights in a warning
LARGER = "bits per weight were decided, the file holds more"
SUFFIX = re.compile(r"(_to_fp16|_cast_fp16|_promoted|_quantized|_palettized|_sparsified|_transposed?|_\d+)$")
# the file may hold this much more than was decided before it counts as a difference (paddings, shared scales)
EXPLAINED = 1.02


def audit(
    path: Path | str,
    decisions: Sequence[Decision],
    realised: Mapping[str, Realised] | None = None,
    made: dict[str, CompressedWeight] | None = None,
    opened: Runner | None = None,
    consume: bool = False,
) -> Compression:
    """What a saved artifact really holds.

    decisions: of the compression, () for an artifact of unknown origin; realised: what the WrittenArtifact
    says, of which only the reasons are used; made: name -> weight, to compare the decoded weights with;
    opened: the file's reference runner, so that nothing is parsed or decoded twice; consume: take each weight
    out of `made` when it has been compared, to make room for the decoded ones. Every decision gives one
    entry, then come the file's other weights. "bytes" adds up to the artifact's size. Raises
    UnreadableArtifact.
    """
    path = Path(path)
    package, graphs = format_of(path).parse(path) if opened is None else _of_runner(opened)
    program = opened.program if opened is not None and len(graphs) == 1 else None
    weights = _unique(weight for graph in graphs for weight in stored_weights(graph))
    matched = match_names(decisions, weights) if package else match_shapes(decisions, weights)
    decoders = [Decoder(graph, program) for graph in graphs] if made else []
    checked = _compare(decoders, weights, matched, made or {}, package is not None, consume)
    reasons = {name: stored.reason for name, stored in (realised or {}).items()}
    entries = [
        _entry(decision, matched, reasons.get(decision.name, ""), checked.get(decision.name))
        for decision in decisions
    ]
    taken = {weight.name for weight in matched.values()}
    entries += [_unclaimed(weight, bool(decisions)) for weight in weights if weight.name not in taken]
    verdict: Verdict = "fail" if any(found == DIFFERS for found in checked.values()) else "pass"
    stored = _bytes(path, package, weights, _duplicates(graphs, weights))
    return Compression(verdict=verdict, weights=tuple(entries), bytes=stored)


def _of_runner(runner: Runner) -> tuple[Package | None, list[Graph]]:
    """As `Format.parse`, from the file that a runner has parsed."""
    package = runner.package
    return package, list(package.functions.values()) if package else [runner.file_graph]


def judge(compression: Compression) -> tuple[Verdict, list[str]]:
    """The verdict of an audit and warnings that name weights: those that hold other values, which is a
    failure, and those that hold the right ones in more bits than the recipe promises."""
    wrong = [weight.name for weight in compression.weights if weight.decoded == DIFFERS]
    right = [weight for weight in compression.weights if weight.decoded == EQUAL]
    larger = [weight.name for weight in right if LARGER in weight.reason]
    warnings = []
    if wrong:
        warnings.append(
            f"The file does not hold the weights that the recipe made: {_first_names(wrong)}"
            f" decode{'s' if len(wrong) == 1 else ''} to other values.\nThis is a defect of cidermill, not of"
            " the recipe: please report it with the model and the recipe."
        )
    if larger:
        warnings.append(
            f"The file holds {_first_names(larger)} in more bits than the recipe promises.\nThis is a defect"
            " of cidermill: please report it with the model and the recipe."
        )
    return "fail" if wrong else "pass", warnings


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _compare(
    decoders: Sequence[Decoder],
    weights: Sequence[StoredWeight],
    matched: dict[str, StoredWeight],
    made: dict[str, CompressedWeight],
    named: bool,
    consume: bool,
) -> dict[str, str]:
    """Name -> whether its stored weight decodes to what was made. Where no name tells (never in a .pte),
    values do, and correct `matched`."""
    checked: dict[str, str] = {}
    seen: dict[int, tuple[str, StoredWeight | None]] = {}  # tied weights are one object
    free = list(weights)
    for name, weight in list(made.items()) if not consume else _taken(made):
        if id(weight) not in seen:
            first = [matched[name]] if name in matched else []
            others = [] if named and first else [other for other in free if other not in first]
            if not (named and first):  # equal weights may be stored once: the same bytes then stand for both
                others += [other for other in weights if other not in first and other not in others]
            seen[id(weight)] = _find(decoders, weight.dense(), [*first, *others], bool(first))
        checked[name], found = seen[id(weight)]
        if found is not None:
            matched[name] = found
            free = [other for other in free if other is not found]
    return checked


def _taken(made: dict[str, CompressedWeight]) -> Iterator[tuple[str, CompressedWeight]]:
    """The items in order, each of which is gone when the next is asked for."""
    for name in list(made):
        yield name, made.pop(name)


def _find(
    decoders: Sequence[Decoder], dense: torch.Tensor, candidates: Sequence[StoredWeight], matched: bool
) -> tuple[str, StoredWeight | None]:
    """-> (what was found out, the first candidate that decodes to `dense`)."""
    for weight in candidates:
        if weight.size == dense.numel() and any(_decodes_to(decoder, weight, dense) for decoder in decoders):
            return EQUAL, weight
    return (DIFFERS if matched else "not run: not stored by itself"), None


def _decodes_to(decoder: Decoder, weight: StoredWeight, dense: torch.Tensor) -> bool:
    try:
        return any(same(value, dense) for value in decoder.values(weight))
    except OperatorFailed:
        # indices beyond a table, masks that do not fit their data: what no converter has written
        return False


def _duplicates(graphs: Sequence[Graph], weights: Sequence[StoredWeight]) -> set[str]:
    """Names of stored tensors that hold the same bytes as an earlier one."""
    constants = {name: constant for graph in graphs for name, constant in _all_constants(graph)}
    # names of tensors of one shape whose first elements agree: most differ there already
    alike: dict[tuple[torch.Size, str], list[str]] = {}
    for name in dict.fromkeys(part.name for weight in weights for part in weight.parts if part.name):
        tensor = _stored(constants[name])
        alike.setdefault((tensor.shape, digest_tensor(tensor.reshape(-1)[:FIRST_ELEMENTS])), []).append(name)
    again: set[str] = set()
    for names in alike.values():
        if len(names) > 1:
            digests = [digest_tensor(_stored(constants[name])) for name in names]
            again |= {name for place, name in enumerate(names) if digests[place] in digests[:place]}
    return again


def _stored(constant: Any) -> torch.Tensor:
    return torch.as_tensor(constant() if callable(constant) else constant)


def _all_constants(graph: Graph) -> Iterable[tuple[str, Any]]:
    yield from graph.constants.items()
    for node in graph.nodes:
        for block in node.blocks:
            yield from _all_constants(block)


def _unique(weights: Iterable[StoredWeight]) -> list[StoredWeight]:
    """Functions of one package share weights under one name."""
    return list({(weight.name, weight.shape, weight.scheme): weight for weight in weights}.values())


def match_names(decisions: Sequence[Decision], weights: Sequence[StoredWeight]) -> dict[str, StoredWeight]:
    """Decision name -> its weight: "layer.0.weight" is stored as "layer_0_weight", with suffixes that tell
    what a converter did to it."""
    by_name: dict[str, StoredWeight] = {}
    for stored in weights:
        for name in _shortened(re.sub(r"\W", "_", stored.name).casefold()):
            by_name.setdefault(name, stored)
    matched = {}
    for decision in decisions:
        plain = re.sub(r"\W", "_", decision.name).casefold()
        weight = next(
            (
                by_name[name]
                for name in (plain, f"module_{plain}", f"p_{plain}", f"b_{plain}", f"c_{plain}")
                if name in by_name
            ),
            None,
        )
        if weight is not None and weight.size == math.prod(decision.shape):
            matched[decision.name] = weight
    return _with_tied(decisions, matched)


def _shortened(name: str) -> list[str]:
    """ "fc_weight_0_to_fp16" -> itself, "fc_weight_0", "fc_weight"."""
    names = [name]
    while SUFFIX.search(names[-1]):
        names.append(SUFFIX.sub("", names[-1]))
    return names


def match_shapes(decisions: Sequence[Decision], weights: Sequence[StoredWeight]) -> dict[str, StoredWeight]:
    """For formats without names of weights (.pte): each decision takes one stored weight of its size, by
    preference of its shape and bits."""
    left: dict[int, list[StoredWeight]] = {}
    for weight in weights:
        left.setdefault(weight.size, []).append(weight)
    matched = {}
    for decision in decisions:
        candidates = left.get(math.prod(decision.shape), [])
        if candidates and not decision.reason.startswith("tied to "):
            nearest = min(
                candidates,
                key=lambda weight: (
                    weight.shape != decision.shape,
                    abs(weight.bits_per_weight - decision.bits_per_weight),
                ),
            )
            matched[decision.name] = nearest
            candidates.remove(nearest)
    return _with_tied(decisions, matched)


def _with_tied(decisions: Sequence[Decision], matched: dict[str, StoredWeight]) -> dict[str, StoredWeight]:
    """A tied weight is where the weight is that it is tied to."""
    for decision in decisions:
        tied = re.match(r"tied to ([^;]+)", decision.reason)
        if decision.name not in matched and tied and tied[1] in matched:
            matched[decision.name] = matched[tied[1]]
    return matched


def _entry(
    decision: Decision, matched: Mapping[str, StoredWeight], target_reason: str, checked: str | None
) -> WeightReport:
    weight = matched.get(decision.name)
    reasons = [decision.reason, target_reason]
    if weight is None:
        reasons.append("written into the graph, or folded into another constant")
    elif not target_reason and weight.bits_per_weight > EXPLAINED * decision.bits_per_weight + 0.01:
        reasons.append(f"{decision.bits_per_weight:.3g} {LARGER}")
    snr_db = getattr(decision, "snr_db", None)
    return WeightReport(
        name=decision.name,
        requested=decision.requested,
        realised=weight.scheme if weight else NOT_STORED,
        bits_per_weight=weight.bits_per_weight if weight else None,
        reason="; ".join(dict.fromkeys(reason for reason in reasons if reason)),
        snr_db=snr_db if snr_db is not None and math.isfinite(snr_db) else None,
        decoded=checked or "not run: not compressed",
        stored_as=weight.name if weight else None,
    )


def _unclaimed(weight: StoredWeight, decided: bool) -> WeightReport:
    return WeightReport(
        name=weight.name,
        requested="",
        realised=weight.scheme,
        bits_per_weight=weight.bits_per_weight,
        reason="a constant of the graph that is no weight of the source by name" if decided else "",
        decoded="not run: nothing to compare it with",
        stored_as=weight.name,
    )


def _bytes(
    path: Path, package: Package | None, weights: Sequence[StoredWeight], again: set[str]
) -> dict[str, int]:
    """Bytes by kind, which add up to the artifact's size. Tensors are counted once, in whole bytes each;
    `again` are copies of others."""
    sizes = {file: file.stat().st_size for file in files_of(path)}
    parts = {part.name: part for weight in weights for part in weight.parts if part.name}
    kinds = Counter({"weights": 0})
    for part in parts.values():
        kinds["duplicates" if part.name in again else part.kind] += -(-part.bits // 8)
    if package is None:
        return dict(kinds) | {"graph": sum(sizes.values()) - kinds.total()}
    blobs = {file.resolve() for file in package.weights}
    in_blobs = sum(size for file, size in sizes.items() if file.resolve() in blobs)
    graph = sum(size for file, size in sizes.items() if file.suffix == ".mlmodel")
    padding = in_blobs - kinds.total()
    return dict(kinds) | {
        "padding": padding,
        "graph": graph,
        "metadata": sum(sizes.values()) - in_blobs - graph,
    }
