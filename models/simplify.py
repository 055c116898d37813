"""Simplifications that hold for every target: a draft in, the same function in fewer operators out."""

from typing import Any

import torch

from .graphs import Draft, is_op
from .interpret import compute

aten = torch.ops.aten


def depends_on_inputs(work: Draft) -> set[torch.fx.Node]:
    """Nodes whose value is decided by a user input (or by chance)."""
    dependent: set[torch.fx.Node] = set()
    for node in work.graph.nodes:
        random = node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(
            node.target, "tags", ()
        )
        if (
            work.is_input(node)
            or node.op == "output"
            or random
            or any(source in dependent for source in node.all_input_nodes)
        ):
            dependent.add(node)
    return dependent


WEIGHT_VIEWS = {
    aten.permute.default, aten.transpose.int, aten.t.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default,
    aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim, aten.expand.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip


def fold_constants(work: Draft) -> None:
    """Compute everything that no input decides, once, here. Mere views of a weight stay, so that the weight
    keeps its name."""
    dependent = depends_on_inputs(work)
    frontier = [
        node
        for node in work.graph.nodes
        if node.op == "call_function"
        and node not in dependent
        and any(user in dependent for user in node.users)
    ]
    computed: dict[torch.fx.Node, Any] = {}
    for node in frontier:
        if _is_weight_view(work, node):
            continue
        value = evaluate_constant(work, node, computed)
        if isinstance(value, torch.Tensor):
            node.replace_all_uses_with(
                work.add_constant(_folded_name(work, node), _as_constant(value), like=node)
            )
    work.graph.eliminate_dead_code()


def _is_weight_view(work: Draft, node: torch.fx.Node) -> bool:
    """permute/view chains that end at a floating-point constant of rank 2 or more."""
    while is_op(node, *WEIGHT_VIEWS):
        node = node.args[0]
    tensor = work.tensor_of(node)
    return tensor is not None and tensor.is_floating_point() and tensor.ndim >= 2


def evaluate_constant(work: Draft, node: torch.fx.Node, computed: dict) -> Any:
    """The value of a node that no input decides; `computed` remembers what was evaluated before."""
    if node not in computed:
        constant = work.tensor_of(node)
        if constant is not None:
            computed[node] = constant.detach()
        else:
            with torch.no_grad():
                computed[node] = compute(node, lambda source: evaluate_constant(work, source, computed))
    return computed[node]


def _folded_name(work: Draft, node: torch.fx.Node) -> str:
    """A folded weight keeps the name of the largest weight that it was computed from; other constants take
    the node's."""
    sources, stack = {}, [node]
    while stack:
        current = stack.pop()
        for source in current.all_input_nodes:
            if source in sources:
                continue
            sources[source] = work.tensor_of(source)
            stack.append(source)
    weights = [
        work.constants[key.name][0] for key, value in sources.items() if value is not None and value.ndim >= 2
    ]
    return f"{weights[0]}_folded" if weights else f"folded_{node.name}"


def _as_constant(value: torch.Tensor) -> torch.Tensor:
    """A parameter, or a buffer where it holds infinities: those are masks, not weights."""
    value = value.detach().contiguous().clone()
    return (
        torch.nn.Parameter(value, requires_grad=False)
        if value.is_floating_point() and bool(value.isfinite().all())
        else value
    )


def drop_no_ops(work: Draft) -> None:
    """Remove nodes that change neither value nor type: alias, detach, assertions, casts to the same dtype,
    empty slices."""
    for node in list(work.graph.nodes):
        if node.op != "call_function":
            continue
        if "_assert" in str(node.target) or str(node.target).startswith("aten.sym_constrain"):
            work.graph.erase_node(node)
        elif _returns_its_input(node):
            node.replace_all_uses_with(node.args[0])
            work.graph.erase_node(node)


_SAME = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.dropout.default}
_SAME_IF_TYPE_AND_SHAPE = {
    aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default, aten.expand.default, aten.view.default,
    aten.reshape.default, aten.permute.default, aten.slice.Tensor, aten.repeat.default,
}  # fmt: skip


def _returns_its_input(node: torch.fx.Node) -> bool:
    if node.target in _SAME:
        return True
    if node.target not in _SAME_IF_TYPE_AND_SHAPE or not isinstance(node.args[0], torch.fx.Node):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    if before is None or before.dtype != after.dtype or before.shape != after.shape:
        return False
    if node.target is aten.permute.default:
        return [axis % before.ndim for axis in node.args[1]] == list(range(before.ndim))
    return True


def fold_batch_norms(work: Draft) -> None:
    """conv -> batch_norm (inference) becomes one conv, so that the weight which is compressed is the weight
    that runs."""
    for node in list(work.graph.nodes):
        if is_op(node, aten._native_batch_norm_legit_no_training.default) and is_op(
            node.args[0], aten.convolution.default
        ):
            conv = node.args[0]
            parameters = [work.tensor_of(argument) for argument in node.args[1:5]]
            weight, bias = work.tensor_of(conv.args[1]), work.tensor_of(conv.args[2])
            shared = len(conv.users) > 1 or len(conv.args[1].users) > 1
            if (
                shared
                or weight is None
                or parameters[2] is None
                or parameters[3] is None
                or (conv.args[2] is not None and bias is None)
            ):
                continue
            _fold_batch_norm(work, node, conv, weight, bias, parameters)


def _fold_batch_norm(
    work: Draft, norm: Any, conv: Any, weight: torch.Tensor, bias: torch.Tensor | None, parameters: list
) -> None:
    gamma, beta, mean, variance = parameters
    epsilon, transposed = norm.args[6], conv.args[6]
    scale = torch.rsqrt(variance.detach().double() + epsilon) * (
        1.0 if gamma is None else gamma.detach().double()
    )
    shift = (0.0 if beta is None else beta.detach().double()) - mean.detach().double() * scale
    if bias is not None:
        shift = shift + bias.detach().double() * scale
    if transposed:  # weight [in, out/groups, k, k]
        groups = conv.args[8]
        factor = (
            scale.reshape(groups, 1, -1)
            .expand(groups, weight.shape[0] // groups, -1)
            .reshape(weight.shape[0], -1)
        )
        factor = factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))
    else:
        factor = scale.reshape(-1, *[1] * (weight.ndim - 1))
    folded = torch.nn.Parameter((weight.detach() * factor).float(), requires_grad=False)
    qualified = work.constants[conv.args[1].name][0]
    work.constants[conv.args[1].name] = (qualified, folded)
    bias_name = qualified.rpartition(".")[0] + ".bias_with_norm"
    new_bias = work.add_constant(bias_name, torch.nn.Parameter(shift.float(), requires_grad=False), like=conv)
    conv.update_arg(2, new_bias)
    for user in list(norm.users):  # only getitem 0 carries the result in inference
        if user.args[1] == 0:
            user.replace_all_uses_with(conv)
        work.graph.erase_node(user)
    work.graph.erase_node(norm)


def spell_out_strides(work: Draft) -> None:
    """as_strided (a view that no target has) becomes a plain gather from its input in storage order, or a
    reshape where that is enough."""
    for node in list(work.graph.nodes):
        if is_op(node, aten.as_strided.default):
            source, shape, strides = node.args[0].meta["val"], list(node.args[1]), list(node.args[2])
            offset = node.args[3] if len(node.args) > 3 and node.args[3] is not None else 0
            picks = torch.arange(offset + sum((n - 1) * s for n, s in zip(shape, strides)) + 1).as_strided(
                shape, strides, offset
            )
            order = sorted(range(source.ndim), key=lambda axis: (-source.stride(axis), axis))
            _gather_strided(work, node, order, picks.reshape(-1))


def _gather_strided(work: Draft, node: Any, storage_order: list[int], picks: torch.Tensor) -> None:
    source, shape = node.args[0], list(node.args[1])
    with work.graph.inserting_before(node):
        stored = source
        if storage_order != list(range(len(storage_order))):
            stored = _call(work, node, aten.permute.default, source, storage_order)
            stored = _call(work, node, aten.clone.default, stored, memory_format=torch.contiguous_format)
        flat = _call(work, node, aten.view.default, stored, [-1])
        if not torch.equal(picks, torch.arange(flat.meta["val"].numel())):
            flat = _call(
                work,
                node,
                aten.index_select.default,
                flat,
                0,
                work.add_constant(f"{node.name}_picks", picks, like=node),
            )
        result = _call(work, node, aten.view.default, flat, shape)
    node.replace_all_uses_with(result)
    work.graph.erase_node(node)


def _call(work: Draft, origin: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
    """A new node, with its fake value computed and the origin's module and source line kept."""
    node = work.graph.call_function(target, args, kwargs)
    values = torch.fx.node.map_arg((args, kwargs), lambda source: source.meta["val"])
    node.meta = {key: origin.meta[key] for key in ("nn_module_stack", "stack_trace") if key in origin.meta}
    node.meta["val"] = target(*values[0], **values[1])
    return node


def products_to_linear(work: Draft) -> None:
    """mm and addmm with a constant matrix become linear, whose weight is [out, in]: the form in which every
    target keeps it compressed.

    mm(x, W [in, out]) stores W transposed under its old name; mm(x, permute(W [out, in])) takes W as it is.
    """
    for node in list(work.graph.nodes):
        if is_op(node, aten.mm.default):
            _to_linear(work, node, node.args[0], node.args[1], None)
        elif is_op(node, aten.addmm.default) and not node.kwargs:
            bias = work.tensor_of(node.args[0])
            if bias is not None and bias.ndim == 1:
                _to_linear(work, node, node.args[1], node.args[2], node.args[0])


def _to_linear(work: Draft, node: Any, features: Any, matrix: Any, bias: Any) -> None:
    turned = is_op(matrix, aten.t.default, aten.permute.default, aten.transpose.int)
    weight = matrix.args[0] if turned else matrix
    tensor = work.tensor_of(weight)
    if (
        tensor is None
        or tensor.ndim != 2
        or not isinstance(tensor, torch.nn.Parameter)
        or (not turned and len(weight.users) > 1)
    ):
        return
    if not turned:
        name, _ = work.constants[weight.name]
        work.constants[weight.name] = (
            name,
            torch.nn.Parameter(tensor.detach().t().contiguous(), requires_grad=False),
        )
        weight.meta["val"] = weight.meta["val"].t().contiguous()
    with work.graph.inserting_before(node):
        linear = work.graph.call_function(
            aten.linear.default, (features, weight) + ((bias,) if bias is not None else ())
        )
    linear.meta = dict(node.meta)
    node.replace_all_uses_with(linear)
    work.graph.erase_node(node)
