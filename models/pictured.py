"""A captured model over its own tensors in; the same over what an app gives and gets instead out: pictures as
pixels, floats in half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .errors import UserError
from .graphs import draft, fake_like, finish, insert
from .pictures import AppInputs, Picture, given_specs
from .source import TensorSpec

if TYPE_CHECKING:
    from torch.fx import Node

    from .capture import Captured
    from .graphs import Draft


def as_apps_give(captured: Captured, given: AppInputs) -> Captured:
    """The captured model with what makes its own inputs of the given ones in its graph.

    captured: with samples as apps give them (see `capture`)."""
    if not given.changes:
        return captured
    work = draft(captured.program)
    specs = given_specs(given, captured.inputs)
    inputs = [node for node in work.graph.nodes if work.is_input(node)]
    for node, spec in zip(inputs, specs):
        picture = given.pictures.get(spec.name)
        if picture is not None:
            _prepare(work, node, spec, picture)
        elif spec.dtype != _dtype_of(node):
            _widen(work, node, spec)
    pictures = {**captured.pictures, **given.pictures}
    tensors = tuple(TensorSpec(spec.name, spec.shape, spec.dtype) for spec in specs)
    return replace(captured, program=finish(work), inputs=tensors, pictures=pictures)


def with_sizes_of_pictures(captured: Captured, given: AppInputs, inputs: Sequence[TensorSpec]) -> Captured:
    """Sizes to choose from by the axes of pictures. inputs: the model's own. Raises UserError for a choice of
    channels."""
    from .flexible import permuted

    if captured.sizes is None or not given.pictures:
        return captured
    pictures = {index: given.pictures.get(spec.name) for index, spec in enumerate(inputs)}
    last = {index: (0, 3, 1, 2) for index, picture in pictures.items() if picture and picture.channels_last}
    sizes = permuted(captured.sizes, last)
    for index, picture in pictures.items():
        columns = zip(*(shapes[index][:2] for shapes in (sizes.usual, *sizes.judged)))
        if picture and any(len(set(column)) > 1 for column in columns):
            raise UserError(
                f"--image {picture.name}: --input offers several numbers of channels, or of pictures, where a"
                " picture has one.",
                "Offer heights and widths only.",
            )
    return replace(captured, sizes=sizes)


def as_apps_get(captured: Captured, pictures: Mapping[str, Picture], half: bool) -> Captured:
    """The captured model with outputs that are pictures, and the rest in half precision where that is asked
    for (but for what is no array in an artifact). What the source answers stays as
    it is: pictures of 8 bits are rounded where they are compared."""
    if not pictures and not half:
        return captured
    wide = _not_arrays(captured)
    specs = tuple(
        _result_spec(spec, pictures.get(spec.name), half and spec.name not in wide)
        for spec in captured.outputs
    )
    program = captured.program
    if any(spec.dtype != before.dtype for spec, before in zip(specs, captured.outputs)):
        program = _narrowed(program, specs)
    at = tuple(as_apps_get(other, pictures, half) for other in captured.at)
    pictures = {**captured.pictures, **pictures}
    return replace(captured, program=program, outputs=specs, pictures=pictures, at=at)


def _not_arrays(captured: Captured) -> set[str]:
    """Outputs that become probabilities by label, enter a suppression, or are states."""
    classes, detector = captured.classes, captured.detector
    names = {classes.probabilities} if classes is not None else set()
    names |= {detector.confidence, detector.coordinates} if detector is not None else set()
    return names | {state.output for state in captured.states}


def _prepare(work: Draft, node: Node, spec: TensorSpec, picture: Picture) -> None:
    """Pixels enter by `node`; its users get what the model takes."""
    own_type = node.meta["val"].dtype
    users = list(node.users)
    node.meta["val"] = _given_value(work, spec)
    if not users:
        return
    factors = [
        work.add_constant(f"{spec.name}_{what}", torch.tensor(numbers).reshape(1, -1, 1, 1))
        if len(numbers) > 1
        else numbers[0]
        for what, numbers in (("scale", picture.scale), ("bias", picture.bias))
    ]

    def prepare(pixels: Any, scale: Any, bias: Any) -> Any:
        values = pixels.float()
        values = values if isinstance(scale, float) and scale == 1 else values * scale
        values = values if isinstance(bias, float) and bias == 0 else values + bias
        values = values.permute(0, 2, 3, 1).contiguous() if picture.channels_last else values
        return values.to(own_type)

    first = work.first
    _feed(node, users, insert(work, first, prepare, node, *factors))


def _widen(work: Draft, node: Node, spec: TensorSpec) -> None:
    """Half precision enters by `node`; its users get the model's own type."""
    own, users = node.meta["val"].dtype, list(node.users)
    node.meta["val"] = _given_value(work, spec)
    if users:
        first = work.first
        _feed(node, users, insert(work, first, lambda given: given.to(own), node))


def _feed(node: Node, users: Sequence[Node], prepared: Node) -> None:
    for user in users:
        user.replace_input_with(node, prepared)


def _given_value(work: Draft, spec: TensorSpec) -> Any:
    return fake_like(work.module, torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)))


def _dtype_of(node: Node) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _result_spec(spec: TensorSpec, picture: Picture | None, half: bool) -> TensorSpec:
    narrow = picture.channels == "F" if picture is not None else half and spec.dtype == "float32"
    return replace(spec, dtype="float16") if narrow else spec


def _narrowed(program: Any, specs: Sequence[TensorSpec]) -> Any:
    """Its outputs in the types of `specs`. One value under two names is narrowed once: it stays one value,
    which targets know to tell apart."""
    work = draft(program)
    output = work.output
    wide = dict.fromkeys(
        node
        for node, spec in zip(output.args[0], specs)
        if spec.dtype == "float16" and node.meta["val"].dtype != torch.float16
    )
    narrow = {node: insert(work, output, lambda value: value.to(torch.float16), node) for node in wide}
    results = [
        narrow.get(node, node) if spec.dtype == "float16" else node
        for node, spec in zip(output.args[0], specs)
    ]
    output.args = (tuple(results),)
    return finish(work)
