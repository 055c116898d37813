"""The parts of a model that an app runs apart: a Source and its samples enter, those of one part leave.

An encoder-decoder of transformers has an encoder, which runs once, and a decoder, which runs for each token;
a model of two towers has one for texts and one for pictures or sounds. What one part gives and another takes
has one name in both. A part computes what the whole model computes: its module calls the whole, and what its
own outputs do not need drops out of the captured graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .samples import blaming
from .source import Samples, Source, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

    Tensors = dict[str, torch.Tensor]
    Arrays = dict[str, np.ndarray]

HANDED = "encoder_hidden_states"  # what the encoder gives and the decoder takes, as transformers calls it
OTHER_TOWERS = {"pixel_values": "image", "input_features": "audio", "input_values": "audio"}


@dataclass(frozen=True)
class Part:
    """takes: names of its inputs; gives: of its outputs, () for all that the model returns beside those of
    other parts; call: {input: tensor} -> {output: tensor}."""

    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    call: Callable[[Tensors], Mapping[str, Any]]


def parts_of(model: Any, inputs: Sequence[TensorSpec]) -> tuple[Part, ...]:
    """The parts of a model of transformers in the order in which they run, () of one that has none. inputs:
    of the whole."""
    names = [spec.name for spec in inputs]
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        return _encoder_and_decoder(model, names)
    other = next((name for name in OTHER_TOWERS if name in names), None)
    if "input_ids" in names and other is not None and hasattr(model, "get_text_features"):
        return _towers(model, inputs, other)
    return ()


def _encoder_and_decoder(model: Any, names: Sequence[str]) -> tuple[Part, ...]:
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    def encode(inputs: Tensors) -> Mapping[str, Any]:
        one_token = torch.zeros(1, 1, dtype=torch.long)
        return {HANDED: model.forward(**inputs, decoder_input_ids=one_token).encoder_last_hidden_state}

    def decode(inputs: Tensors) -> Mapping[str, Any]:
        encoded = BaseModelOutput(last_hidden_state=inputs[HANDED])
        encoded.attention_mask = None  # which encoders that shorten a sound hand on with it
        others = {name: tensor for name, tensor in inputs.items() if name != HANDED}
        answer = model.forward(**others, encoder_outputs=encoded)
        return {name: value for name, value in answer.items() if not name.startswith("encoder_")}

    encoders = tuple(name for name in names if not name.startswith("decoder_"))
    decoders = tuple(name for name in names if name.startswith("decoder_"))
    mask = tuple(name for name in encoders if name == "attention_mask")  # of what is attended to
    return Part("encoder", encoders, (HANDED,), encode), Part(
        "decoder", (*decoders, HANDED, *mask), (), decode
    )


def _towers(model: Any, inputs: Sequence[TensorSpec], other: str) -> tuple[Part, ...]:
    named = {OTHER_TOWERS[other]: (other,), "text": tuple(spec.name for spec in inputs if spec.name != other)}
    return tuple(
        Part(name, takes, (f"{name}_embeds",), _tower(model, f"{name}_embeds", inputs))
        for name, takes in sorted(named.items(), reverse=True)
    )


def _tower(model: Any, output: str, inputs: Sequence[TensorSpec]) -> Callable[[Tensors], Mapping[str, Any]]:
    """The whole model's output of that name, whatever the other tower is given."""
    import torch

    types = {"int32": torch.int64, "float32": torch.float32}

    def call(given: Tensors) -> Mapping[str, Any]:
        rest = {
            spec.name: torch.ones(spec.shape, dtype=types[spec.dtype])
            for spec in inputs
            if spec.name not in given
        }
        return {output: model.forward(**given, **rest)[output]}

    return call


def find_part(source: Source, name: str) -> Part:
    """Raises UserError: the model has no such part."""
    known = [part.name for part in source.parts]
    if name in known:
        return source.parts[known.index(name)]
    if known:
        raise UserError(
            f"--part {name}: {source.path} has no such part.", f"Its parts are {' and '.join(known)}."
        )
    raise UserError(
        f"--part {name}: {source.path} is one model without parts.",
        "Parts are the encoder and decoder of a Hugging Face folder such as Whisper or T5, and the text and"
        " image towers of one such as CLIP. Leave --part out.",
    )


def part_source(source: Source, samples: Samples, name: str) -> tuple[Source, Samples]:
    """One part as a source of its own, and what the whole model hands it on the same samples. Raises
    UserError: there is no such part."""
    from .forward import NamedModule

    part = find_part(source, name)
    model = source.module
    batches = handed_on(source, samples, part)
    known = {spec.name: spec for spec in source.inputs}
    inputs = tuple(known.get(taken) or _spec_of(taken, batches.batches[0][taken]) for taken in part.takes)
    limits = {taken: limit for taken, limit in source.limits.items() if taken in part.takes}
    module = NamedModule(model, lambda tensors: tensors_by_name(part.call(tensors)))
    return replace(source, module=module, inputs=inputs, limits=limits, parts=(), part=name), batches


def handed_on(source: Source, samples: Samples, part: Part) -> Samples:
    """What a part is given where the whole model is given the samples."""
    judged = samples.judged.batches
    made = []
    for index, batch in enumerate(judged):
        with blaming(samples, index):
            made.append(_handed(source, batch, part))
    first = len(samples.batches)
    return replace(samples, batches=tuple(made[:first]), further=tuple(made[first:]))


def _handed(source: Source, batch: Arrays, part: Part) -> Arrays:
    """The batch of one part, from the parts before it as far as they are needed."""
    values = dict(batch)
    for earlier in source.parts:
        if earlier.name == part.name:
            break
        if set(earlier.gives) & set(part.takes):
            values |= run_part(earlier, values)
    return {name: values[name] for name in part.takes}


def run_part(part: Part, values: Arrays) -> Arrays:
    """What a part gives in torch, of the values that it takes."""
    return _in_torch(part.call, {name: values[name] for name in part.takes})


def whole_answer(source: Source, batch: Arrays) -> Arrays:
    """What the whole model gives in torch."""
    return _in_torch(lambda tensors: source.module(**tensors), batch)


def _in_torch(call: Callable[[Tensors], Mapping[str, Any]], values: Arrays) -> Arrays:
    import torch

    from .tensors import as_called

    with torch.no_grad():
        answer = call(as_called(values))
        return {name: value.numpy() for name, value in tensors_by_name(answer).items()}


def tensors_by_name(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a model of transformers returned -> its tensors, by their paths."""
    import torch

    from .nested import by_path

    return {
        path.replace(".", "_"): leaf
        for name, value in answer.items()
        for path, leaf in by_path(value, name)
        if isinstance(leaf, torch.Tensor)
    }


def _spec_of(name: str, array: Any) -> TensorSpec:
    return TensorSpec(name, tuple(array.shape), str(array.dtype))
