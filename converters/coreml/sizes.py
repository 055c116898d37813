"""How large a Core ML package will be: the form of a weight, or a captured graph, enters; bytes of the file
that `write` makes leave, from shapes alone."""

from collections.abc import Sequence
from typing import Any

from ...models.graphs import module_path, source_line
from ...models.state import StateSpec
from ...models.tensors import tensors_of
from ...quantization.schemes import Recipe
from ...quantization.weight import CompressedWeight, Palette
from .deployment import generation
from .states import stored
from .storage import storable, stored_bits

# Bytes of the graph, fitted to small architectures of the zoo and two small convolutional networks on
# 2026-11-21, where it leaves at most 2 % of the artifact at 4 bits; in models of megabytes the graph hardly
# counts. Fixed, for each axis of each operation's result, for each character of the tensors' names and of the
# map of modules, for each convolution or pooling (strides, padding and dilations are constants of their own).
GRAPH = (4600, 75, 3.8, 3.4, 240)
CLASSIFICATION, LABEL = 190, 16  # bytes beside the labels' own
SUPPRESSION = 600
# bytes beside what the graph of inputs and outputs takes: of the digits of an integer, of an initial value
DIGITS, INITIAL = 6000, 700
SMALL_BYTES = (
    5_000_000  # below it the graph is counted after lowering, as it will be written: a moment's work
)

COUNTS = "cidermill.counts"  # where a graph keeps its `_graph_counts`

# Bytes of the graph beside each compressed weight's own bits, fitted to fourteen recipes on a small BERT and
# a small convolutional network on 2026-11-21: an operation for codes, indices or a mask; zero points; then,
# for each further operation in the chain, a fixed part and the weight's name again. 8-bit activations add
# their scales and two operations.
FORM = {"codes": 175, "indices": 200, "mask": 170, "zero points": 150, "activations": 800}
MORE = {"int8 table": 265, "channel scales": 335, "mask": 455}
NAME = 2.4  # for each character of the weight's name, in every further operation


def footprint(form: CompressedWeight, name: str, recipe: Recipe, deployment_target: str) -> tuple[int, float]:
    """-> (bits of the tensors that hold a weight of this form, bytes of the operations that decompress it)"""
    form = storable(form, generation(deployment_target) >= 26)[0]
    activations = FORM["activations"] if recipe.activations is not None else 0
    return stored_bits(form), activations + _form_bytes(form, len(name))


def _form_bytes(form: CompressedWeight, characters: int) -> float:
    values = form.values
    if values is None:
        return FORM["mask"]
    more = ["mask"] if form.mask is not None else []
    if isinstance(values, Palette):
        more += ["int8 table"] * (values.table_scale is not None) + ["channel scales"] * (
            values.channel_scale is not None
        )
        first = FORM["indices"]
    else:
        first = FORM["codes"] + (FORM["zero points"] if values.zero_point is not None else 0)
    return first + sum(MORE[part] + NAME * characters for part in more)


def graph_bytes(captured: Any, recipe: Recipe, dense_bytes: int) -> int:
    """Of the graph, its names, metadata and padding. dense_bytes: what all tensors take in half precision."""
    fixed, *sizes = GRAPH
    counts = _graph_counts(captured, dense_bytes)
    labels = _labels_bytes(captured.classes.labels) if captured.classes is not None else 0
    labels += _suppression_bytes(captured.detector) if captured.detector is not None else 0
    labels += _states_bytes(captured.states)
    return round(fixed + sum(size * count for size, count in zip(sizes, counts)) + len(recipe.name)) + labels


def _states_bytes(specs: Sequence[StateSpec]) -> int:
    """Of what states need in a package that plain float16 ones do not."""
    forms = list(map(stored, specs))
    return sum(DIGITS * (form.kind == "int") + INITIAL * form.started for form in forms)


def _suppression_bytes(detector: Any) -> int:
    """Of a pipeline's description and of a suppression with its labels."""
    return SUPPRESSION + sum(2 + len(str(label).encode()) for label in detector.labels or ())


def _labels_bytes(labels: Sequence[Any]) -> int:
    """Of a classification and its list (a message of its own for each label), as protobuf writes them."""
    return CLASSIFICATION + sum(LABEL + len(str(label).encode()) for label in labels)


def _graph_counts(captured: Any, dense_bytes: int) -> tuple[int, int, int, int]:
    """-> what `GRAPH` has a size for, in its order; kept with the graph, as every recipe needs it."""
    meta = captured.program.graph_module.meta
    if COUNTS not in meta:
        meta[COUNTS] = _count(_as_written(captured, dense_bytes))
    return meta[COUNTS]


def lowers_to_count(captured: Any, dense_bytes: int) -> bool:
    """Whether `graph_bytes` has to lower the graph: not where that was done before."""
    return dense_bytes <= SMALL_BYTES and COUNTS not in captured.program.graph_module.meta


def _as_written(captured: Any, dense_bytes: int) -> Any:
    from ...models.quiet import quiet
    from .lower import lower

    if dense_bytes > SMALL_BYTES:
        return captured.program
    with quiet():
        return lower(captured.program, "float16")


def _count(program: Any) -> tuple[int, int, int, int]:
    operations = [node for node in program.graph.nodes if node.op == "call_function"]
    axes = sum(getattr(node.meta.get("val"), "ndim", 0) for node in operations)
    places = {f"{module_path(node)} ({source_line(node)})" for node in operations if module_path(node)}
    modules = sum(len(place) + 6 for place in places) + sum(
        len(node.name) + 3 for node in operations if module_path(node)
    )
    windows = sum("convolution" in str(node.target) or "pool" in str(node.target) for node in operations)
    return axes, sum(len(tensor.node.name) for tensor in tensors_of(program)), modules, windows
