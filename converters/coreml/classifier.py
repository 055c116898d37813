"""A specification whose program gives probabilities enters; the same as a classifier leaves: labels in the
program, a label and probabilities by label instead of the array.

As coremltools writes it of a ClassifierConfig (converters/mil/backend/mil/load.py, `_add_classify_op`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...models.classes import Classes
from ...models.naming import free_name
from .tools import import_coremltools

OPERATION = "classify_0"


def array_names(classes: Classes | None) -> dict[str, str]:
    """Name of the probabilities by label -> what the program calls the array that they are read from."""
    return {} if classes is None else {classes.probabilities: f"{classes.probabilities}_array"}


def classify(specification: Any, classes: Classes, texts: Mapping[str, str]) -> None:
    """Let the program of a specification end in a classification. texts: what is said of outputs."""
    function = specification.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    array = array_names(classes)[classes.probabilities]
    _make_free(block, {classes.label, classes.probabilities})
    block.operations.append(_operation(classes, array))
    others = [name for name in block.outputs if name != array]
    block.outputs[:] = [classes.label, classes.probabilities, *others]
    _describe(specification.description, classes, array, texts)


def _operation(classes: Classes, array: str) -> Any:
    from coremltools.converters.mil.backend.mil import helper

    whole = isinstance(classes.labels[0], int)
    operation = import_coremltools().proto.MIL_pb2.Operation(type="classify")
    operation.inputs["probabilities"].arguments.add().name = array
    labels: list[Any] = [np.int64(label) for label in classes.labels] if whole else list(classes.labels)
    listed = helper.create_list_scalarvalue(labels, np.int64 if whole else str)
    operation.inputs["classes"].arguments.add().value.CopyFrom(listed)
    operation.attributes["name"].CopyFrom(helper.create_scalar_value(OPERATION))
    label, probabilities = operation.outputs.add(), operation.outputs.add()
    label.name, probabilities.name = classes.label, classes.probabilities
    kind = listed.type.listType.type.tensorType.dataType
    label.type.tensorType.dataType = kind
    by_label = probabilities.type.dictionaryType
    by_label.keyType.tensorType.dataType = kind
    by_label.valueType.tensorType.dataType = import_coremltools().proto.MIL_pb2.DataType.FLOAT64
    return operation


def _describe(description: Any, classes: Classes, array: str, texts: Mapping[str, str]) -> None:
    described = [entry for entry in description.output if entry.name != array]
    others = [type(entry).FromString(entry.SerializeToString()) for entry in described]
    del description.output[:]
    label, probabilities = description.output.add(), description.output.add()
    description.output.extend(others)
    for entry, name in ((label, classes.label), (probabilities, classes.probabilities)):
        entry.name, entry.shortDescription = name, texts.get(name, "")
    if isinstance(classes.labels[0], int):
        label.type.int64Type.SetInParent()
        probabilities.type.dictionaryType.int64KeyType.SetInParent()
    else:
        label.type.stringType.SetInParent()
        probabilities.type.dictionaryType.stringKeyType.SetInParent()
    description.predictedFeatureName = classes.label
    description.predictedProbabilitiesName = classes.probabilities


def _make_free(block: Any, names: set[str]) -> None:
    """Values inside of the program are called otherwise where an output is to have their name."""
    taken = {value.name for operation in _operations(block) for value in operation.outputs}
    other = {name: free_name(name, taken) for name in sorted(names & taken)}
    if not other:
        return
    for operation in _operations(block):
        for value in operation.outputs:
            value.name = other.get(value.name, value.name)
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = other.get(binding.name, binding.name)
        for inner in operation.blocks:
            inner.outputs[:] = [other.get(name, name) for name in inner.outputs]
    block.outputs[:] = [other.get(name, name) for name in block.outputs]


def _operations(block: Any) -> Iterator[Any]:
    """Of a block and those in it."""
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)
