"""Operators that stay outside of the MPS delegate, as portable CPU kernels of ExecuTorch's: a draft in, the
same draft in what those kernels compute rightly out; and for a node of an edge program, what its kernel
refuses.

Measured with ExecuTorch 1.4.1, after its kernels/portable/cpu: a kernel that refuses its arguments ends the
call, one that is given another type of index may end the process.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...models.graphs import Draft, is_op, places_of, retrace

aten = torch.ops.aten
Limit = Callable[[torch.fx.Node], str | None]  # why the kernel refuses this call; None where it takes it

INDEXED_BY_INT64 = (
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter_add.default,
    aten.gather.default,
)
TYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64) + (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
MOST_AXES = 16  # kTensorDimensionLimit


def sum_in_float32(work: Draft) -> bool:
    """Sums by index in float32: the kernels add up half precision in half precision, where 2048 + 1 is 2048.

    After everything that narrows floating-point numbers. Programs in float32 are left as they are.
    """
    changed = False
    for node in list(work.graph.nodes):
        adds = is_op(node, aten.index_put.default) and bool(node.args[3:] and node.args[3])
        adds = adds or is_op(node, aten.scatter_add.default)
        if not adds or node.meta["val"].dtype != torch.float16:
            continue
        if is_op(node, aten.scatter_add.default):
            retrace(work, node, _scatter_add, *node.args)
        else:
            indices = node.args[1]
            axes = [axis for axis, index in enumerate(indices) if index is not None]
            given = [indices[axis] for axis in axes]
            retrace(work, node, _add_at, node.args[0], node.args[2], axes, *given)
        changed = True
    return changed


def _scatter_add(self, dim, index, src):
    return aten.scatter_add.default(self.float(), dim, index, src.float()).to(self.dtype)


def _add_at(self, values, axes, *given):
    indices = [None] * (max(axes) + 1)
    for axis, index in zip(axes, given):
        indices[axis] = index
    return aten.index_put.default(self.float(), indices, values.float(), True).to(self.dtype)


def index_in_64_bits(work: Draft) -> bool:
    """Indices of scatters and of gathers as int64: the kernels end the program at others.

    After everything that narrows integers or drops casts; the delegate refuses the cast itself.
    """
    changed = False
    for node in list(work.graph.nodes):
        if not is_op(node, *INDEXED_BY_INT64):
            continue
        with work.graph.inserting_before(node):
            wide = work.graph.call_function(aten._to_copy.default, (node.args[2],), {"dtype": torch.int64})
        wide.meta = {**places_of(node), "val": node.args[2].meta["val"].long()}
        node.update_arg(2, wide)
        changed = True
    return changed


# What kernels refuse


def refusal(node: torch.fx.Node) -> str | None:
    """Why ExecuTorch's kernel does not compute this use of an operator; None where it does."""
    name = node.target.__name__.removeprefix("aten.").partition(".")[0]
    limits = (_no_gradient, _known_types, _few_axes, *LIMITS.get(name, ()))
    return next((reason for limit in limits if (reason := limit(node)) is not None), None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an argument: a node's own, those of a list of nodes."""
    if isinstance(value, torch.fx.Node):
        value = value.meta["val"]
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _every_tensor(node: torch.fx.Node) -> list[torch.Tensor]:
    return [*_tensors(node.args), *_tensors(node.meta["val"])]


def _no_gradient(node: torch.fx.Node) -> str | None:
    gradient = "_backward" in node.target.__name__
    return "it computes a gradient, which the reference runner does not prove" if gradient else None


def _known_types(node: torch.fx.Node) -> str | None:
    unknown = [tensor.dtype for tensor in _every_tensor(node) if tensor.dtype not in TYPES]
    return f"the kernel takes no {_type_name(unknown[0])}" if unknown else None


def _few_axes(node: torch.fx.Node) -> str | None:
    most = max((tensor.ndim for tensor in _every_tensor(node)), default=0)
    return f"the kernel takes {MOST_AXES} axes at most, not {most}" if most > MOST_AXES else None


def _numbers(node: torch.fx.Node) -> str | None:
    return "the kernel takes no bool" if any(t.dtype == torch.bool for t in _tensors(node.args)) else None


def _floats(node: torch.fx.Node) -> str | None:
    others = [tensor.dtype for tensor in _tensors(node.args) if not tensor.is_floating_point()]
    return f"the kernel takes floating-point numbers, not {_type_name(others[0])}" if others else None


def _full_floats(node: torch.fx.Node) -> str | None:
    short = node.meta["val"].dtype in (torch.float16, torch.bfloat16)
    return f"the kernel gives no {_type_name(node.meta['val'].dtype)}" if short else None


def _one_type(*positions: int) -> Limit:
    def limit(node: torch.fx.Node) -> str | None:
        kinds = dict.fromkeys(
            tensor.dtype
            for position in positions
            if position < len(node.args)
            for tensor in _tensors(node.args[position])
        )
        names = " and ".join(map(_type_name, kinds))
        return f"the kernel takes one type, not {names}" if len(kinds) > 1 else None

    return limit


def _indices(position: int, *dtypes: torch.dtype) -> Limit:
    def limit(node: torch.fx.Node) -> str | None:
        others = [tensor.dtype for tensor in _tensors(node.args[position]) if tensor.dtype not in dtypes]
        names = " or ".join(map(_type_name, dtypes))
        return f"the kernel takes indices in {names}, not {_type_name(others[0])}" if others else None

    return limit


def _axes(*allowed: int) -> Limit:
    """Of the first argument."""

    def limit(node: torch.fx.Node) -> str | None:
        axes = node.args[0].meta["val"].ndim
        names = " or ".join(map(str, allowed))
        return f"the kernel takes {names} axes, not {axes}" if axes not in allowed else None

    return limit


PICKS = (torch.int64, torch.int32, torch.bool, torch.uint8)
LIMITS: dict[str, tuple[Limit, ...]] = {
    **dict.fromkeys(("argmax", "argmin", "topk"), (_numbers,)),
    **dict.fromkeys(("var", "var_mean", "std", "elu", "glu", "_cdist_forward", "_pdist_forward"), (_floats,)),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), (_floats, _one_type(0, 1, 2))),
    **dict.fromkeys(
        ("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), (_floats, _one_type(0, 1, 2))
    ),
    "logit": (_full_floats,),
    "convolution": (_numbers, _one_type(0, 1), _axes(3, 4)),
    "max_pool2d_with_indices": (_numbers, _axes(3, 4)),
    "avg_pool2d": (_axes(3, 4),),
    "grid_sampler_2d": (_floats, _one_type(0, 1), _axes(4)),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d"), (_numbers, _axes(4))),
    **dict.fromkeys(("reflection_pad1d", "replication_pad1d"), (_axes(2, 3),)),
    **dict.fromkeys(("reflection_pad2d", "replication_pad2d"), (_axes(3, 4),)),
    **dict.fromkeys(("reflection_pad3d", "replication_pad3d"), (_axes(4, 5),)),
    "gather": (_indices(2, torch.int64),),
    "scatter": (_indices(2, torch.int64), _one_type(0, 3)),
    "scatter_add": (_indices(2, torch.int64), _one_type(0, 3)),
    "index": (_indices(1, *PICKS),),
    "index_put": (_indices(1, *PICKS), _one_type(0, 2)),
    "index_select": (_indices(2, torch.int64, torch.int32),),
    "masked_scatter": (_indices(1, torch.bool), _one_type(0, 2)),
    "cat": (_one_type(0),),
}  # fmt: skip
