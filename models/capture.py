"""Source + samples -> Captured: the model as one ExportedProgram over flat tensors, with its reference
outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .answers import affordable, answered
from .blame import where as located
from .calls import Calls, Stateful, answered_in_a_row
from .composites import kept_composites, own_decompositions
from .errors import UserError
from .mapped import Reading
from .naming import free_name, name_placeholders
from .patched import (
    lazy_graph_modules,
    masks_as_given,
    operators_listed_once,
    parallel_scans,
    postponed_modules,
    unchecked_distributions,
)
from .quiet import quiet
from .recurrent_shapes import shapes_of_recurrent_layers
from .remembered_overrides import remembered_overrides
from .roles import Layer, Role, find_roles, layers_of
from .source import Limit, Samples, Source, TensorSpec, refuse_complex
from .state import StateSpec, changed_inputs, lift_states, lost_changes, states_of
from .tensors import Tensor, as_called, laid_out_as, tensors_of
from .work import work_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from .classes import Classes
    from .detections import Detector
    from .flexible import Sizes
    from .graphs import Draft
    from .pictures import Batch, Picture


@dataclass(frozen=True)
class Captured:
    """The model as a graph of ATen operators over flat, named tensor inputs and outputs.

    `program` takes its user inputs positionally in the order of `inputs` and returns a flat tuple in the
    order of `outputs`; its input nodes carry the names of `inputs`. Integer inputs are int32 here: the casts
    to int64 are inside the graph. `reference[i]` holds the source's outputs for `samples.batches[i]`,
    `further_reference[i]` those for `samples.further[i]`. `classes`, `detector`: what the entries of
    an output are called, and what becomes of boxes; `pictures`:
    inputs and outputs that are some.
    `sizes`: what an app may choose from, of a model of several sizes; this is the usual one, `at` holds
    itself at others: the sizes' `judged`, then `between`.
    Buffers that the model changes are `states`: the last inputs, their new values the last outputs. Samples
    hold the values that they had before the call; `calls` are calls in a row, None without states.
    """

    source: Source
    program: ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: Samples
    reference: tuple[dict[str, np.ndarray], ...]
    further_reference: tuple[dict[str, np.ndarray], ...] = ()
    classes: Classes | None = None
    detector: Detector | None = None
    sizes: Sizes | None = None
    at: tuple[Captured, ...] = ()
    states: tuple[StateSpec, ...] = ()
    calls: Calls | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    @property
    def judged(self) -> Captured:
        """The same with all samples alike, as a verdict rests on them."""
        return self.on(self.samples.judged, (*self.reference, *self.further_reference))

    def on(self, samples: Samples, reference: tuple[dict[str, np.ndarray], ...]) -> Captured:
        """The same program on other samples, with what is known of its tensors already."""
        other = replace(self, samples=samples, reference=reference, further_reference=())
        known: dict[str, Any] = {
            name: vars(self)[name] for name in ("tensors", "roles", "layers") if name in vars(self)
        }
        vars(other).update(known)
        return other

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The program's parameters, buffers and constants, in graph order."""
        return tensors_of(self.program)

    @cached_property
    def roles(self) -> dict[str, Role | str]:
        """Name of a tensor -> what it does as a weight, or why it is none worth compressing."""
        return find_roles(self.tensors)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The compressible weights, in graph order."""
        return layers_of(self.tensors, self.roles)


def as_given(batch: Batch) -> Batch:
    return batch


def capture(
    source: Source, samples: Samples, calibrates: bool = True, prepare: Callable[[Batch], Batch] = as_given
) -> Captured:
    """Export, decompose to core ATen (keeping `kept_composites`), fold constants, drop no-ops, and run the
    source on the samples, or on those that are `affordable`. calibrates: whether a recipe will be calibrated
    or chosen on them; prepare: makes of a sample what the source takes.

    Raises UserError for control flow that depends on data, with the module and the line that decides by it.
    """
    with postponed_modules():
        import torch.export._trace  # torch.export imports it at its first use
    with quiet(), lazy_graph_modules():
        exported = source.program or _export(source, prepare(samples.batches[0]))
        names = _output_names(exported, source)
        program = decomposed(exported)
        warnings = (*source.warnings, *changed_inputs(program))
        own_names = [spec.name for spec in source.inputs]
        states = states_of(program, [*own_names, *(name for _, name in names)])
        program = normalise(program, [*own_names, *(state.name for state in states)], source.limits)
        own = source.program.module() if source.program is not None else source.module
        answer = partial(_run_source, source, own, [name for _, name in names])

        def run(batch: Batch) -> Batch:
            return answer(prepare(batch))

        samples, calls = affordable(samples, work_of(program), calibrates), None
        with torch.no_grad(), _weights_dropped_after_use(own):
            if states:
                answers, calls = answered_in_a_row(samples, Stateful(run, own, states), work_of(program))
            else:
                answers = answered(samples, run)
    from .counted import assumed_counts
    from .loops import repeated_steps

    warnings = (*warnings, *repeated_steps(program), *assumed_counts(exported))
    source = replace(source, warnings=warnings)
    reference = answers.reference
    outputs = tuple(
        TensorSpec(name, reference[0][name].shape, str(reference[0][name].dtype)) for _, name in names
    )
    refuse_complex(outputs)
    inputs = (*source.inputs, *(state.before for state in states))
    outputs = (*outputs, *(state.after for state in states))
    return Captured(
        source, program, inputs, outputs, answers.samples, reference, answers.further_reference,
        states=states, calls=calls,
    )  # fmt: skip


def decomposed(exported: ExportedProgram) -> ExportedProgram:
    """In operators of ATen's core set and `kept_composites`. Raises UserError where it changes what is no
    buffer."""
    import torch

    table = torch.export.default_decompositions()
    for operator in kept_composites():
        table.pop(operator, None)
    table.update(own_decompositions())
    with operators_listed_once(), remembered_overrides(), shapes_of_recurrent_layers():
        try:
            program: ExportedProgram = exported.run_decompositions(table)
        except Exception as error:  # of several types
            if (told := lost_changes(error, exported)) is None:
                raise
            raise told from error
    return program


def normalise(
    program: ExportedProgram, input_names: list[str], limits: Mapping[str, Limit]
) -> ExportedProgram:
    """Decomposed ExportedProgram of any input structure -> ExportedProgram over flat positional tensors (see
    `Captured`). limits: of the values of integer inputs, as far as they are known."""
    from .border import widen_narrow_inputs
    from .graphs import draft, finish
    from .loops import unroll
    from .narrow import widen_narrow_integers
    from .recurrent import one_operator_a_layer
    from .simplify import (
        drop_no_ops,
        fill_empties,
        fold_batch_norms,
        fold_constants,
        lay_out_inputs,
        products_to_linear,
        spell_out_strides,
        views_to_reshapes,
    )
    from .sizes import settle_sizes

    work = draft(program)
    lift_states(work, program)
    unroll(work)
    _keep_tensor_outputs(work)
    _name_inputs(work, program, input_names)
    _accept_int32(work)
    settle_sizes(work)
    spell_out_strides(work)
    lay_out_inputs(work)
    fill_empties(work)
    views_to_reshapes(work)
    drop_no_ops(work)
    widen_narrow_inputs(work, limits)
    widen_narrow_integers(work)
    fold_constants(work)
    one_operator_a_layer(work)
    fold_batch_norms(work)
    products_to_linear(work)
    return finish(work)


def _export(source: Source, sample: Batch) -> ExportedProgram:
    """Where the module decides by data, it is tried again with its buffers' numbers known, then its own."""
    from .known_numbers import numbers_of_buffers

    inputs = as_called(sample)
    try:
        return _traced(source.module, inputs)
    except Exception as error:
        if _decides_by_data(error):
            for made in (False, True):
                with suppress(Exception), numbers_of_buffers(source.module, made):
                    return _traced(source.module, inputs)
        raise _explain(error, source) from error


def _traced(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> ExportedProgram:
    import torch

    with (
        torch.no_grad(), masks_as_given(), parallel_scans(), unchecked_distributions(),
        shapes_of_recurrent_layers(),
    ):  # fmt: skip
        return torch.export.export(module, (), inputs, strict=False)


def _decides_by_data(error: Exception) -> bool:
    kind = type(error).__name__
    sign = "got FakeTensor" if kind == "TypeError" else "data-dependent"  # zeros(tensor, 3); a branch
    return "DataDependent" in kind or kind == "UserError" or sign in str(error)


def _explain(error: Exception, source: Source) -> UserError:
    kind, where = type(error).__name__, located(error, source.module)
    if _decides_by_data(error):
        return UserError(
            f"The model decides by the values of its data at {where}, so it has no fixed graph.",
            "Replace the branch by torch.where, or export the branch you need, and convert again.",
        )
    if broken := re.search("Guard failed: (.+)", str(error)):
        hint = "Give shapes that meet this with --input, or export it again with a wider torch.export.Dim."
        return UserError(f"The program was exported for other shapes: it needs {broken[1]}.", hint)
    if foreign := re.search(r"Found <class '([^']+)'> in output, which is not a known type", str(error)):
        hint = "Return tensors, or tuples, lists, dicts and dataclasses of them."
        return UserError(
            f"The model returns an object of the class {foreign[1]}, which torch.export cannot take apart.",
            hint,
        )
    summary = str(error).strip().splitlines()[0] if str(error).strip() else kind
    return UserError(
        f"torch.export could not capture the model at {where}: {summary}",
        "Check the inputs (--input NAME:SHAPE) and that the model runs on them.",
    )


def _output_names(program: ExportedProgram, source: Source) -> list[tuple[int, str]]:
    """[(position in the flat outputs, name)] of every tensor that the program returns."""
    from torch.export.graph_signature import OutputKind, TensorArgument
    from torch.utils import _pytree as pytree

    specs = [spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    tree = pytree.tree_unflatten(list(range(len(specs))), program.call_spec.out_spec)
    paths = {index: path for path, index in pytree.tree_flatten_with_path(tree)[0]}
    tensors = [index for index, spec in enumerate(specs) if isinstance(spec.arg, TensorArgument)]
    if not tensors:
        raise UserError(
            "The model returns no tensor, so there is nothing to convert.",
            "Return the tensors that the app needs.",
        )
    if len(source.output_names) == len(tensors):
        return list(zip(tensors, source.output_names))
    taken = {spec.name for spec in source.inputs}
    return [(index, free_name(_path_name(paths[index]), taken)) for index in tensors]


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    name = re.sub(r"\W", "_", "_".join(parts))
    return "output" if not name else name if name[0].isalpha() else f"output_{name.strip('_')}"


def _run_source(
    source: Source, module: torch.nn.Module, names: list[str], batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the source, or the exported program that it holds, answers on one sample. names: of outputs."""
    import torch
    from torch.utils import _pytree as pytree

    tensors = as_called(batch)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = tensors
    if source.program is not None:
        in_order = [tensors[spec.name] for spec in source.inputs]
        args, kwargs = _program_arguments(source.program, in_order)
    answers = module(*args, **kwargs)
    leaves = [leaf for leaf in pytree.tree_leaves(answers) if isinstance(leaf, torch.Tensor)]
    return {name: _to_numpy(leaf) for name, leaf in zip(names, leaves)}


@contextmanager
def _weights_dropped_after_use(module: torch.nn.Module) -> Iterator[None]:
    """While it runs, the model's weights are in memory layer by layer, where they are mapped from a file."""
    reading = Reading()

    def after(layer: torch.nn.Module, *_: Any) -> None:
        for parameter in layer.parameters(recurse=False):
            reading.used(parameter)

    hooks = [layer.register_forward_hook(after) for layer in module.modules() if layer is not module]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _program_arguments(
    program: ExportedProgram, tensors: list[torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The tensors in the nesting and the types that the exported program was made with; flags and None as
    they were then."""
    from torch.export.graph_signature import InputKind, TensorArgument
    from torch.utils import _pytree as pytree

    specs: list[Any] = [
        spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT
    ]
    traced = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    in_order = iter(tensors)
    leaves = [
        laid_out_as(next(in_order), traced[argument.name])
        if isinstance(argument, TensorArgument)
        else argument.value
        for argument in specs
    ]
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(
        leaves, program.call_spec.in_spec
    )
    return arguments


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype in (torch.int64, torch.uint8, torch.int8, torch.int16):
        return tensor.int().numpy()
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _keep_tensor_outputs(work: Draft) -> None:
    import torch

    output = work.output
    output.args = (
        tuple(
            node
            for node in output.args[0]
            if isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)
        ),
    )


def _name_inputs(work: Draft, program: ExportedProgram, names: list[str]) -> None:
    """Rename the user-input placeholders; erase inputs that are not tensors (None, flags: the export has
    specialised on them)."""
    import torch

    inputs = [node for node in work.graph.nodes if work.is_input(node)]
    for node in inputs:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            if node.users:
                raise UserError(
                    f"Input {node.name} of the exported program is not a tensor.",
                    "Export the program with tensor inputs only.",
                )
            work.graph.erase_node(node)
    tensors = [node for node in inputs if isinstance(node.meta.get("val"), torch.Tensor)]
    if len(tensors) != len(names):
        listed = ", ".join(node.name for node in tensors)
        raise UserError(
            f"The program takes {len(tensors)} tensors ({listed}), but {len(names)} inputs are described:"
            f" {', '.join(names)}."
        )
    name_placeholders(work, tensors, names)


def _accept_int32(work: Draft) -> None:
    """Artifacts take int32 where torch has integers of other widths: declare the input int32 and cast it
    inside."""
    import torch

    from .border import NARROW

    for node in [node for node in work.graph.nodes if work.is_input(node)]:
        if node.meta["val"].dtype not in (torch.int64, *NARROW):
            continue
        first = work.first
        dtype = node.meta["val"].dtype
        with work.graph.inserting_before(first):
            cast = work.graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})
        cast.meta = {**node.meta, "val": node.meta["val"]}
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
        node.meta["val"] = node.meta["val"].to(torch.int32)
