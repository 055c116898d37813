"""How a module is called: its inputs bound to the names that the user gave, and a proposal where shapes are
missing."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from .border import as_declared, foreign, inputs_warnings, weights_warning
from .errors import UserError
from .inputs import AT_BORDER, InputSpec, in_order, listing
from .integers import examples_of, integer_limits
from .nested import flat_specs, is_nested, nest, roots
from .quiet import quiet
from .samples import is_index_error, synthetic
from .source import Limit, TensorSpec
from .state import unchanged_buffers
from .tensors import as_called

_SPATIAL = {1: "1000", 2: "224x224", 3: "16x112x112"}
_TOKENS = 16


class NamedModule(torch.nn.Module):
    """`model` called through `call(inputs)`, where the model's own signature does not take the inputs by
    their names.

    Shares the model's registries instead of holding it as a child, so that parameters keep the names the
    model gives them.
    """

    def __init__(self, model: torch.nn.Module, call: Callable[[dict[str, torch.Tensor]], Any]):
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        self._call = call

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self._call(inputs)


def for_inference(model: torch.nn.Module, title: str) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Eval mode and float32, in place. -> (the module, what to tell the user of its types). UserError for a
    module that a damaged pickle left without its parts."""
    try:
        _refuse_quantized(model, title)
        wrong = foreign([*model.parameters(), *model.buffers()])
        warnings = weights_warning(foreign(model.parameters()))
        return (model.float() if wrong else model).eval(), warnings
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{title} holds an incomplete {type(model).__name__}: {error}", "Save or copy the model again."
        ) from error


def _refuse_quantized(model: torch.nn.Module, title: str) -> None:
    """UserError for layers of torch.ao.quantization's eager mode, whose weights are packed in objects."""
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__ and type(module).__module__.startswith("torch.ao."):
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            raise UserError(
                f"{title} is quantized already: {name or 'it'} is a {kind}.",
                "Give the model as it was before, and say how to compress it with --quant.",
            )


class Bound(NamedTuple):
    """module: takes `inputs` by keyword, in the types of an artifact. own_types: input -> the dtype that the
    model itself takes there."""

    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    own_types: dict[str, str]

    @property
    def warnings(self) -> tuple[str, ...]:
        return inputs_warnings(self.own_types, self.inputs)


def bind(model: torch.nn.Module, given: tuple[InputSpec, ...], title: str) -> Bound:
    """A module by the names and shapes of `given`. A torch.nn class names its parameter `input`; there any
    name will do."""
    if not given:
        raise UserError(f"{title} does not say which shapes it takes.", f"Note: {propose(model)}")
    if is_nested(given):
        return _bind_nested(model, given, title)
    required, optional, free = _parameters(model)
    given = in_order(given, _names(required + optional, free, len(given)), title)
    dtype = "int32" if len(given) == 1 and _is_embedding(_first_layer(model)) else "float32"
    specs, own_types = _at_border(given, dtype)
    module = _called_by_names(model, specs, title)
    if any(spec.dtype == "int32" and own_types[spec.name] in AT_BORDER for spec in specs):
        narrow = module
        module = NamedModule(model, lambda inputs: narrow(**as_declared(inputs, own_types)))
    return Bound(module, specs, own_types)


def _bind_nested(model: torch.nn.Module, given: tuple[InputSpec, ...], title: str) -> Bound:
    """As `bind`, of inputs that forward takes within dicts and lists."""
    flat = flat_specs(given)
    specs, own_types = _at_border(flat, "float32")
    whole = tuple(TensorSpec(name, (), "float32") for name in roots(given))
    by_name = _called_by_names(model, whole, title)  # refuses names that forward has not
    paths = [spec.name for spec in given]

    def call(inputs: dict[str, torch.Tensor]) -> Any:
        tensors = as_declared(inputs, own_types)
        return by_name(**nest(paths, [tensors[spec.name] for spec in flat]))

    return Bound(NamedModule(model, call), specs, own_types)


def _at_border(given: tuple[InputSpec, ...], dtype: str) -> tuple[tuple[TensorSpec, ...], dict[str, str]]:
    """-> (the inputs as an artifact takes them, the model's own types by name). dtype: of those that say
    none."""
    own_types = {spec.name: spec.dtype or dtype for spec in given}
    specs = (
        TensorSpec(spec.name, spec.shape, AT_BORDER.get(own_types[spec.name], own_types[spec.name]))
        for spec in given
    )
    return tuple(specs), own_types


def _called_by_names(model: torch.nn.Module, specs: tuple[TensorSpec, ...], title: str) -> torch.nn.Module:
    required, optional, free = _parameters(model)
    own_names, names = required + optional, [spec.name for spec in specs]
    if set(names) <= set(own_names):
        missing = [name for name in required if name not in names]
        if missing:
            raise UserError(
                f"{title} also needs the input {', '.join(missing)}.",
                f"Add --input {missing[0]}:SHAPE for each.",
            )
        return model
    nameless = free or required[:1] == ["input"] or type(model).__module__.startswith("torch.nn.")
    if (
        nameless
        and not set(names) & set(own_names)
        and len(required) <= len(specs)
        and (free or len(specs) <= len(own_names))
    ):
        return NamedModule(model, lambda inputs: model(*inputs.values()))
    unknown = ", ".join(name for name in names if name not in own_names)
    inputs = ", ".join(required + [f"{name} (optional)" for name in optional])
    raise UserError(
        f"{title} has no input {unknown}. Its inputs are: {inputs}.", "Correct the name in --input."
    )


def _names(known: list[str], free: bool, count: int) -> list[str]:
    """What `count` inputs are called that were given in order; where the model takes any number, it does not
    name them."""
    return [*known, *(f"input_{index}" for index in range(len(known) + 1, count + 1))] if free else known


def try_once(
    module: torch.nn.Module,
    specs: tuple[TensorSpec, ...],
    limits: dict[str, Limit],
    title: str,
    hint: str,
) -> None:
    """Run the module on one synthetic input, so that a wrong rank or dtype is reported here and in the user's
    terms."""
    batch = synthetic(specs, 1, 0, limits).batches[0]
    try:
        with torch.no_grad(), quiet(), unchanged_buffers(module):
            answer = module(**as_called(batch))
            _register_dataclasses(answer)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own forward raises
        if is_index_error(error) and any(spec.dtype == "int32" for spec in specs):
            return  # the values that were drawn are to blame; the user's may be others
        reason = next(
            (line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__
        ).strip()
        raise UserError(
            f"{title} does not run on {listing(specs)}: {type(error).__name__}: {reason}", hint
        ) from error


def _register_dataclasses(answer: Any) -> None:
    """torch.export takes the tensors out of those dataclasses only that it has been told of."""
    for leaf in pytree.tree_leaves(answer):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            _register_dataclasses([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])


def propose(model: torch.nn.Module) -> str:
    """Words with an `--input` that fits the first layer: "the first layer Conv2d takes 3 channels: try
    --input x:1x3x224x224"."""
    required, optional, _ = _parameters(model)
    name = (required + optional + ["x"])[0]
    for layer in model.modules():  # in registration order
        if (described := _takes(layer)) is not None:
            takes, shape = described
            return f"the first layer {_kind(layer)} takes {takes}: try --input {name}:{shape}"
    return f"try --input {name}:SHAPE, as you call the model in Python."


def vocabulary(bound: Bound, model: torch.nn.Module, examples: Mapping[str, Any]) -> dict[str, Limit]:
    """What integer inputs may be: within the tables that they index; where none is found, within the smallest
    embedding. model: what has the layers. examples: inputs as the user calls it with, by name."""
    specs = bound.inputs
    rows = [module.num_embeddings for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    likely = {
        spec.name: Limit(0, min(rows))
        for spec in specs
        if rows and spec.dtype == "int32" and "mask" not in spec.name
    }
    return integer_limits(bound.module, specs, {}, examples_of(examples, specs), likely)


def _parameters(model: torch.nn.Module) -> tuple[list[str], list[str], bool]:
    """-> (required names, optional names, whether it takes any number) of the model's forward."""
    if isinstance(model, torch.jit.ScriptModule):
        forward: Any = model.forward
        arguments = forward.schema.arguments[1:]
        return (
            [a.name for a in arguments if not a.has_default_value()],
            [a.name for a in arguments if a.has_default_value()],
            False,
        )
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters)
    return (
        [p.name for p in named if p.default is p.empty],
        [p.name for p in named if p.default is not p.empty],
        free,
    )


def _kind(layer: torch.nn.Module) -> str:
    return getattr(layer, "original_name", None) or type(layer).__name__


def _is_embedding(layer: torch.nn.Module | None) -> bool:
    return layer is not None and _kind(layer) in ("Embedding", "EmbeddingBag")


def _first_layer(model: torch.nn.Module) -> torch.nn.Module | None:
    """The first module, in registration order, that says what it takes."""
    return next((module for module in model.modules() if _takes(module) is not None), None)


def _takes(layer: torch.nn.Module) -> tuple[str, str] | None:
    """-> (what the layer takes in words, a shape as --input writes it). Reads weights, so that TorchScript
    layers answer too; somebody's own class of the same name need not have them."""
    kind, weight = _kind(layer), getattr(layer, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()
    if kind in ("Conv1d", "Conv2d", "Conv3d") and len(shape) == int(kind[-2]) + 2:
        channels = shape[1] * getattr(layer, "groups", 1)
        return f"{channels} channels", f"1x{channels}x{_SPATIAL[len(shape) - 2]}"
    if kind == "Linear" and len(shape) == 2:
        return f"{shape[1]} features", f"1x{shape[1]}"
    if kind in ("Embedding", "EmbeddingBag") and len(shape) == 2:
        return f"integers below {shape[0]}", f"1x{_TOKENS}:int32"
    if kind in ("LSTM", "GRU", "RNN") and hasattr(layer, "input_size") and hasattr(layer, "batch_first"):
        size, first = layer.input_size, layer.batch_first
        return f"sequences of {size} features", f"1x{_TOKENS}x{size}" if first else f"{_TOKENS}x1x{size}"
    if kind == "MultiheadAttention" and hasattr(layer, "embed_dim"):
        return f"sequences of {layer.embed_dim} features", f"1x{_TOKENS}x{layer.embed_dim}"
    mean = getattr(layer, "running_mean", None)  # none where no statistics are kept
    if kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d") and isinstance(mean, torch.Tensor):
        return f"{len(mean)} channels", f"1x{len(mean)}x{_SPATIAL[int(kind[-2])]}"
    if kind == "LayerNorm" and shape:
        return f"features of shape {shape}", "x".join(["1", *map(str, shape)])
    return None
