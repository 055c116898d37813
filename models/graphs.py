"""Tools for programs as graphs: an ExportedProgram in, an ExportedProgram out, nothing shared that either may
change.

Every rewrite of this project works on a `Draft`: a private copy of the graph with its constants by
placeholder name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from .patched import lazy_graph_modules

aten = torch.ops.aten


@dataclass
class Draft:
    """A program being rewritten. `constants` maps a placeholder's name to (qualified name, tensor); user
    inputs are not in it."""

    module: torch.fx.GraphModule
    constants: dict[str, tuple[str, torch.Tensor]]

    @property
    def graph(self) -> torch.fx.Graph:
        return self.module.graph

    @property
    def first(self) -> Any:
        """The first node that is no placeholder: what is put before it comes before all that is computed."""
        return next(node for node in self.graph.nodes if node.op != "placeholder")

    @property
    def output(self) -> Any:
        """The node whose first argument holds those that the program returns."""
        return next(node for node in self.graph.nodes if node.op == "output")

    def is_input(self, node: torch.fx.Node) -> bool:
        return node.op == "placeholder" and node.name not in self.constants

    def tensor_of(self, node: Any) -> torch.Tensor | None:
        """The constant that a placeholder stands for, or None."""
        if isinstance(node, torch.fx.Node) and node.op == "placeholder" and node.name in self.constants:
            return self.constants[node.name][1]
        return None

    def add_constant(
        self, name: str, tensor: torch.Tensor, like: torch.fx.Node | None = None
    ) -> torch.fx.Node:
        """A new placeholder holding `tensor`, before every other node but after the existing placeholders."""
        taken = {qualified for qualified, _ in self.constants.values()}
        unique, count = name, 1
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        first = self.first
        with self.graph.inserting_before(first):
            node = self.graph.placeholder("c_" + unique.replace(".", "_"))
        node.meta["val"] = fake_like(self.module, tensor)
        if like is not None:
            node.meta.update(places_of(like))
        self.constants[node.name] = (unique, tensor)
        return node


def fake_like(module: torch.fx.GraphModule, tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the graph's own fake mode, which the later passes of torch and of the targets expect
    in `meta["val"]`."""
    mode = fake_mode(module)
    return tensor if mode is None else mode.from_tensor(tensor, static_shapes=True)


def fake_mode(module: torch.fx.GraphModule) -> Any:
    """The mode (torch's FakeTensorMode) that the graph was traced in, None where no value tells."""
    values = (node.meta.get("val") for node in module.graph.nodes)
    return next((value.fake_mode for value in values if hasattr(value, "fake_mode")), None)


def _in_mode_of(module: torch.fx.GraphModule, value: Any) -> Any:
    """A traced value in the graph's own fake mode: for constants that a trace makes, torch opens another, and
    two modes do not mix."""
    mode = fake_mode(module)
    if mode is None or not isinstance(value, torch.Tensor) or getattr(value, "fake_mode", None) is mode:
        return value
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def draft(program: ExportedProgram) -> Draft:
    """A private copy of a program's graph; its tensors are shared."""
    values = {**program.constants, **program.state_dict}
    constants = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            constants[spec.arg.name] = (spec.target, values[spec.target])
    graph = copy_graph(program.graph)
    nested = dict(program.graph_module.named_children())  # of torch.cond and its like
    module = torch.fx.GraphModule(nested, graph)
    return Draft(module, constants)


def copy_graph(graph: torch.fx.Graph) -> torch.fx.Graph:
    """The same graph with nodes of its own; `meta` is copied one level deep.

    Without `from_node`, torch's history of each node: nobody here reads it, and every pass of ExecuTorch
    copies all of it for every node that it touches."""
    new = torch.fx.Graph()
    mapping: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in graph.nodes:
        mapping[node] = new.node_copy(node, lambda old: mapping[old])
        mapping[node].name = node.name
        mapping[node].meta = {key: value for key, value in node.meta.items() if key != "from_node"}
    return new


def finish(work: Draft) -> ExportedProgram:
    """The draft as a program over flat positional tensors; constants that nothing uses are dropped."""
    graph = work.graph
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name in work.constants and not node.users:
            graph.erase_node(node)
            del work.constants[node.name]
    _name_constants(work)
    _sort_placeholders(work)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    outputs = work.output.args[0]
    state = {qualified: tensor for qualified, tensor in work.constants.values()}
    specs = [_input_spec(node, work) for node in placeholders]
    out_specs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in outputs]
    signature = ExportGraphSignature(input_specs=specs, output_specs=out_specs)
    inputs = tuple(node for node in placeholders if work.is_input(node))
    in_spec = pytree.tree_flatten((tuple(0 for _ in inputs), {}))[1]
    out_spec = pytree.tree_flatten(tuple(0 for _ in outputs))[1]
    # no names, as torch.export leaves them
    call = ModuleCallSignature(inputs=[], outputs=[], in_spec=in_spec, out_spec=out_spec)
    work.module.recompile()
    return ExportedProgram(
        root=work.module,
        graph=graph,
        graph_signature=signature,
        state_dict=state,
        range_constraints={},
        module_call_graph=[ModuleCallEntry(fqn="", signature=call)],
        constants={},
    )


def _input_spec(node: torch.fx.Node, work: Draft) -> InputSpec:
    argument = TensorArgument(name=node.name)
    if work.is_input(node):
        return InputSpec(kind=InputKind.USER_INPUT, arg=argument, target=None)
    qualified, tensor = work.constants[node.name]
    if isinstance(tensor, torch.nn.Parameter):
        return InputSpec(kind=InputKind.PARAMETER, arg=argument, target=qualified)
    return InputSpec(kind=InputKind.BUFFER, arg=argument, target=qualified, persistent=True)


def _name_constants(work: Draft) -> None:
    """Constants carry their qualified names ("encoder_layer_0_weight") into the artifacts, so that people
    find them again."""
    taken = {node.name for node in work.graph.nodes if node.name not in work.constants}
    renamed = {}
    for node in [node for node in work.graph.nodes if node.name in work.constants]:
        constant = work.constants[node.name]
        base = re.sub(r"\W", "_", constant[0])
        # coremltools forgets a weight whose argument is called as the weight itself
        plain = base[0].isdigit() or base == constant[0]
        base = name = f"module_{base}" if plain else base
        count = 1
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        taken.add(name)
        node.name = node.target = name
        renamed[name] = constant
    work.constants = renamed


def _sort_placeholders(work: Draft) -> None:
    """Constants first, then the user inputs in their order: the layout that torch.export itself writes."""
    placeholders = [node for node in work.graph.nodes if node.op == "placeholder"]
    ordered = sorted(placeholders, key=work.is_input)
    anchor = work.first
    for node in ordered:
        anchor.prepend(node)


def is_op(node: Any, *targets: Any) -> bool:
    return isinstance(node, torch.fx.Node) and node.op == "call_function" and node.target in targets


def retrace(work: Draft, node: torch.fx.Node, function: Callable[..., Any], *args: Any) -> torch.fx.Node:
    """Replace `node` by what `function(*args)` computes, traced into ATen operators in its place.

    args are nodes (passed on as tensors) or literals. `function` must return one tensor of the same shape and
    dtype as `node`.
    """
    result: torch.fx.Node = _write(work, node, function, args)
    node.replace_all_uses_with(result)
    work.graph.erase_node(node)
    return result


def retrace_results(
    work: Draft, node: torch.fx.Node, function: Callable[..., Any], *args: Any
) -> list[torch.fx.Node]:
    """As `retrace`, for an operator of several results: `function` returns them all, and who picks one takes
    what it gives."""
    results: list[torch.fx.Node] = list(_write(work, node, function, args))
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        work.graph.erase_node(user)
    work.graph.erase_node(node)
    return results


def _write(work: Draft, before: torch.fx.Node, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What `function(*args)` computes as nodes before `before`. -> the node of its result, or a nest of them
    where it returns one"""
    from torch.fx.experimental.proxy_tensor import make_fx

    fakes = [argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument for argument in args]
    positions = [index for index, argument in enumerate(args) if isinstance(argument, torch.fx.Node)]

    def call(*tensors: torch.Tensor) -> Any:
        filled = list(args)
        for index, tensor in zip(positions, tensors):
            filled[index] = tensor
        return function(*filled)

    with lazy_graph_modules():
        traced = make_fx(call, tracing_mode="real")(*[fakes[index] for index in positions])
    traced.graph.eliminate_dead_code()
    mapping: dict[torch.fx.Node, torch.fx.Node] = {}
    sources = iter([args[index] for index in positions])
    result: Any = None
    with work.graph.inserting_before(before):
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                mapping[inner] = next(sources)
            elif inner.op == "output":
                result = torch.fx.node.map_arg(inner.args[0], mapping.__getitem__)
            elif inner.op == "get_attr":
                constant = getattr(traced, inner.target)
                mapping[inner] = work.add_constant(
                    f"{before.name}_{inner.target.strip('_')}", constant.detach(), like=before
                )
            else:
                mapping[inner] = work.graph.node_copy(inner, lambda old: mapping[old])
                mapping[inner].meta = {
                    **places_of(before),
                    "val": _in_mode_of(work.module, inner.meta["val"]),
                }
    return result


def insert(work: Draft, before: torch.fx.Node, function: Callable[..., Any], *args: Any) -> torch.fx.Node:
    """What `function(*args)` computes as new nodes before `before`, whose module and source line they take.
    As `retrace` otherwise."""
    with work.graph.inserting_before(before):
        place = work.graph.call_function(aten.clone.default)
    place.meta = places_of(before)
    return retrace(work, place, function, *args)


def insert_all(
    work: Draft, before: torch.fx.Node, function: Callable[..., Any], *args: Any
) -> list[torch.fx.Node]:
    """As `insert`, of a function with several results; what they share is computed once."""
    return list(_write(work, before, function, args))


def value_numbers(work: Draft) -> dict[torch.fx.Node, int]:
    """Equal numbers for nodes that compute the same of the same; chance has numbers of its own."""
    numbers: dict[torch.fx.Node, int] = {}
    known: dict[Any, int] = {}
    for node in work.graph.nodes:
        key: Any = node
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "call_function" and not random:
            sources = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: f"%{numbers[source]}")
            key = (node.target, repr(sources))
        numbers[node] = known.setdefault(key, len(known))
    return numbers


def places_of(node: torch.fx.Node) -> dict[str, Any]:
    """The part of a node's `meta` that says where in the model it comes from."""
    return {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}


def module_path(node: torch.fx.Node) -> str:
    """ "encoder.layer.0.attention" from the module stack that torch.export keeps, "" where there is none."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L__self___")


def source_line(node: torch.fx.Node) -> str:
    """ "modeling_bert.py:321" from the stack trace that torch.export keeps, "" where there is none."""
    frames = [
        line.strip()
        for line in (node.meta.get("stack_trace") or "").splitlines()
        if line.strip().startswith("File ")
    ]
    if not frames:
        return ""
    _, file, rest = frames[-1].split('"', 2)
    return f"{file.rsplit('/', 1)[-1]}:{rest.split('line ')[1].split(',')[0]}"


def describe(node: torch.fx.Node) -> str:
    """One line for error lists: operator, module path, source line and shapes."""
    shapes = [_shape_of(source) for source in node.all_input_nodes]
    where = ", ".join(part for part in (module_path(node), source_line(node)) if part)
    return (
        f"{node.target} ({where or 'no source recorded'}): {', '.join(shapes) or 'no tensors'} ->"
        f" {_shape_of(node)}"
    )


def _shape_of(node: torch.fx.Node) -> str:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(_shape_text(item) for item in values)


def _shape_text(value: Any) -> str:
    """ "float32[1, 8]" of a tensor"""
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
