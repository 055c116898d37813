"""A pipeline (Model protobuf) in; one Graph of all of its stages out, in which values are handed on as the
pipeline hands on its features: by name, the latest of a name.

What must fit is what coremltools' PipelineValidator asks for (mlmodel/src/Validation): every input of a stage
is an input of the pipeline or an output of a stage before it, of the same type. The pipeline's own
description decides what enters and leaves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NoReturn

from msgspec import UNSET

from ...models.errors import UnreadableArtifact
from ..borders import Feature
from ..graph import Graph, Node, Ref, Value, references
from ..records import PipelineStage
from .interface import described_value, difference, features_of
from .suppression import OP, read_suppression, suppressed

PROGRAM = "mlProgram"
PIPELINES = ("pipeline", "pipelineClassifier", "pipelineRegressor")
# what an .mlpackage may hold to be read; a suppression by itself is read as a pipeline of one stage
KINDS = (PROGRAM, *PIPELINES, OP)
MOST_STAGES = 1000
LONGEST_NAME = 100
INPUT = "the pipeline's input"


@dataclass(frozen=True)
class Joined:
    """A pipeline as one program. features: input -> what is known of it beyond its value."""

    graph: Graph
    features: dict[str, Feature]
    stages: tuple[PipelineStage, ...]


@dataclass(frozen=True)
class Known:
    """A feature that later stages can take: its name in the joined graph, its FeatureType, and who gives it,
    in words."""

    name: str
    kind: Any
    giver: str


def join_stages(model: Any, program_graph: Callable[[Any], Graph], owner: str) -> Joined:
    """program_graph: the graph of a model that holds an ML Program; owner: the package, for messages.

    Raises UnreadableArtifact for stages that do not fit together and for models of other kinds.
    """
    joiner = _Joiner(program_graph, owner)
    inputs, outputs = model.description.input, model.description.output
    joiner.require_names(inputs, "takes")
    joiner.require_names(outputs, "gives")
    known = {entry.name: Known(entry.name, entry.type, INPUT) for entry in inputs}
    joiner.taken |= set(known)
    given = joiner.run(model, known)
    for feature in known.values():
        joiner.value(feature)  # an input that no stage takes is one all the same
    final = {entry.name: joiner.described(entry, given, "it gives").name for entry in outputs}
    graph = joiner.graph(list(known), final)
    features = features_of(model.description, "")
    for name, default in joiner.thresholds.items():
        features[name] = replace(features[name], default=default)
    return Joined(graph, features, tuple(joiner.stages))


@dataclass
class _Joiner:
    """What has been joined so far. taken: names that are in use; thresholds: those inputs of the pipeline
    that set a suppression's, with what stands for them where they are left out."""

    program_graph: Callable[[Any], Graph]
    owner: str
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    thresholds: dict[str, float] = field(default_factory=dict)
    stages: list[PipelineStage] = field(default_factory=list)

    def corrupt(self, why: str) -> NoReturn:
        raise UnreadableArtifact(
            f"{self.owner} is no pipeline that Core ML would run: {why}", "make the pipeline again"
        )

    def require_names(self, entries: Any, verb: str) -> None:
        names = [entry.name for entry in entries]
        if not names:
            self.corrupt(f"it {verb} nothing")
        if again := next((name for place, name in enumerate(names) if name in names[:place]), None):
            self.corrupt(f"it {verb} {again!r} twice")

    def run(self, model: Any, known: Mapping[str, Known]) -> dict[str, Known]:
        """-> every feature that is known after all stages of a pipeline"""
        features = dict(known)
        stages = list(stages_of(model))
        if not stages:
            self.corrupt("it has no stages")
        for name, stage in stages:
            features |= self.stage(name, stage, features)
        return features

    def stage(self, name: str, model: Any, known: Mapping[str, Known]) -> dict[str, Known]:
        """-> the features that a stage gives"""
        kind = model.WhichOneof("Type") or "model without content"
        if kind not in KINDS:
            raise UnreadableArtifact(
                f"{self.owner} is a pipeline whose stage {name} is a {kind}; only ML Programs,"
                f" {OP} and pipelines of these can be read in one",
                "make that stage an ML Program, or leave it out of the pipeline",
            )
        if len(self.stages) >= MOST_STAGES:
            self.corrupt(f"it has more than {MOST_STAGES} stages")
        title = f"its stage {name} ({kind})"
        self.require_names(model.description.output, f"has {title[4:]}, which gives")
        inputs = {
            entry.name: self.described(entry, known, f"{title} takes") for entry in model.description.input
        }
        if kind in PIPELINES:
            inner = self.run(model, inputs)
            outputs = model.description.output
            return {entry.name: self.described(entry, inner, f"{title} gives") for entry in outputs}
        if kind == PROGRAM:
            return self.program(name, title, model, inputs)
        # it takes its thresholds by their names, whether its description has them or not
        return self.suppression(name, title, model, known)

    def described(self, entry: Any, known: Mapping[str, Known], whose: str) -> Known:
        """The feature that an input or output describes, which must be known and of the same type."""
        if entry.name not in known:
            self.corrupt(f"{whose} {entry.name!r}, which neither its inputs nor the stages before it have")
        feature = known[entry.name]
        if problem := difference(entry.type, feature.kind):
            self.corrupt(f"{whose} {entry.name!r} as {problem[0]}, {feature.giver} has it as {problem[1]}")
        return feature

    def program(self, name: str, title: str, model: Any, known: Mapping[str, Known]) -> dict[str, Known]:
        graph = self.program_graph(model)
        names = {}
        for value in graph.inputs:
            if value.name not in known:
                self.corrupt(f"{title} takes {value.name!r}, which its description lacks")
            names[value.name] = self.hand_on(title, value, known[value.name])
        joined = renamed(graph, names | self.own_names(graph, names))
        self.nodes += joined.nodes
        self.constants |= joined.constants
        self.values = joined.values | self.values
        values = dict(zip(graph.outputs, joined.outputs))
        self.stages.append(
            PipelineStage(
                name=name,
                type=PROGRAM,
                inputs=tuple(value.name for value in graph.inputs),
                outputs=tuple(entry.name for entry in model.description.output),
            )
        )
        return self.given(title, model, values)

    def hand_on(self, title: str, value: Value, feature: Known) -> str:
        """The name under which a stage's program finds what it declares as `value`."""
        if feature.kind.WhichOneof("Type") == "imageType" and feature.giver != INPUT:
            raise UnreadableArtifact(
                f"{self.owner} hands a picture, {value.name!r}, from one stage to another, which cannot be"
                " run here",
                "hand on arrays instead",
            )
        known = self.values.setdefault(feature.name, replace(value, name=feature.name))
        if value.dtype != known.dtype or not same_shape(value, known):
            self.corrupt(
                f"{title} takes {value.name!r} as {value.dtype} {list(value.shape)}, {feature.giver} has it"
                f" as {known.dtype} {list(known.shape)}"
            )
        return feature.name

    def own_names(self, graph: Graph, given: Mapping[str, str]) -> dict[str, str]:
        """A name that nothing else has for each of a stage's own values, the old one where it is free."""
        own = names_of(graph) - set(given)
        names = {name: name for name in sorted(own) if name not in self.taken}
        used = self.taken | own
        for name in sorted(own - set(names)):
            number = next(number for number in count(1) if f"{name}_{number}" not in used)
            names[name] = f"{name}_{number}"
            used.add(names[name])
        self.taken |= set(names.values())
        return names

    def given(self, title: str, model: Any, values: Mapping[str, str]) -> dict[str, Known]:
        """The features that a stage gives. values: name of an output -> name in the joined graph"""
        outputs = model.description.output
        for entry in outputs:
            if entry.name not in values:
                self.corrupt(f"{title} describes the output {entry.name!r}, which nothing in it computes")
        return {entry.name: Known(values[entry.name], entry.type, title) for entry in outputs}

    def suppression(self, name: str, title: str, model: Any, known: Mapping[str, Known]) -> dict[str, Known]:
        try:
            rules = read_suppression(model)
            scores, boxes = (self.value(known[name]) for name in rules.inputs)
            results = suppressed(rules, scores, boxes)
        except ValueError as error:
            self.corrupt(f"{title} {error}")
        thresholds = [
            self.threshold(title, chosen_by, default, known)
            for chosen_by, default in zip(rules.threshold_names, rules.thresholds)
        ]
        names = self.own_names(Graph((), (), (), {}, {value.name: value for value in results}), {})
        outputs = tuple(replace(value, name=names[value.name]) for value in results)
        inputs = {
            "confidence": Ref(scores.name),
            "coordinates": Ref(boxes.name),
            "iou_threshold": thresholds[0],
            "confidence_threshold": thresholds[1],
            "per_class": rules.per_class,
            "fewest": rules.fewest,
            "most": rules.most,
        }
        self.nodes.append(Node(OP, inputs, outputs, name))
        self.values |= {value.name: value for value in outputs}
        self.stages.append(
            PipelineStage(
                name=name,
                type=OP,
                inputs=(*rules.inputs, *(chosen for chosen in rules.threshold_names if chosen in known)),
                outputs=tuple(value.name for value in results),
                labels=len(rules.classes),
                classes=rules.classes or UNSET,
                iou_threshold=rules.thresholds[0],
                confidence_threshold=rules.thresholds[1],
                per_class=rules.per_class,
            )
        )
        return self.given(title, model, names)

    def threshold(self, title: str, name: str, default: float, known: Mapping[str, Known]) -> float | Ref:
        """What sets a threshold. An input that does may be left out: exporters leave these without a mark
        that they are optional, and call the pipeline without them."""
        if not name or name not in known:
            return default
        feature = known[name]
        if (kind := feature.kind.WhichOneof("Type")) != "doubleType":
            self.corrupt(f"{title} takes its threshold {name!r} as {kind}, which must be a doubleType")
        if feature.giver == INPUT:
            self.thresholds.setdefault(feature.name, default)
        return Ref(self.value(feature).name)

    def value(self, feature: Known) -> Value:
        """A feature's value in the joined graph."""
        if feature.name not in self.values:
            value = described_value(feature.name, feature.kind)
            if value is None:
                self.corrupt(
                    f"it takes {feature.name!r}, a {feature.kind.WhichOneof('Type')} without a shape or of a"
                    " type that no stage here takes"
                )
            self.values[feature.name] = value
        return self.values[feature.name]

    def graph(self, inputs: Sequence[str], outputs: Mapping[str, str]) -> Graph:
        """The joined graph, its outputs under the pipeline's own names. outputs: those -> names so far"""
        if again := next((name for name in outputs if name in inputs and outputs[name] != name), None):
            raise UnreadableArtifact(
                f"{self.owner} gives {again!r} anew, which is also its input; the two cannot be told apart"
                " here",
                "give the output another name",
            )
        names = {value: output for output, value in outputs.items() if value != output}
        used = self.taken | set(outputs)
        for output in [output for output in names.values() if output in self.taken and output not in names]:
            number = next(number for number in count(1) if f"{output}_{number}" not in used)
            names[output] = f"{output}_{number}"
            used.add(names[output])
        entering = tuple(self.values[name] for name in inputs)
        graph = Graph(entering, tuple(outputs.values()), tuple(self.nodes), self.constants, self.values)
        return renamed(graph, names)


def stages_of(model: Any) -> Iterator[tuple[str, Any]]:
    """The models of a pipeline with their names; a suppression is one of itself."""
    kind = model.WhichOneof("Type")
    if kind == OP:
        yield OP, model
        return
    pipeline = model.pipeline if kind == "pipeline" else getattr(model, kind).pipeline
    named = len(pipeline.names) == len(pipeline.models)
    for place, stage in enumerate(pipeline.models):
        yield pipeline.names[place][:LONGEST_NAME] if named else f"model{place}", stage


def same_shape(one: Value, other: Value) -> bool:
    """Whether what is known of two shapes agrees."""
    if one.any_rank or other.any_rank:
        return True
    return len(one.shape) == len(other.shape) and all(
        size == with_size or None in (size, with_size) for size, with_size in zip(one.shape, other.shape)
    )


def names_of(graph: Graph) -> set[str]:
    """Every name that a graph or a graph nested in it defines or reads."""
    names = {value.name for value in graph.inputs} | set(graph.outputs) | set(graph.constants)
    names |= set(graph.values)
    for node in graph.nodes:
        names |= set(references(node.inputs)) | {value.name for value in node.outputs}
        names = names.union(*map(names_of, node.blocks))
    return names


def renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph and those nested in it with other names for some of its values."""

    def value(declared: Value) -> Value:
        return replace(declared, name=names.get(declared.name, declared.name))

    def argument(item: Any) -> Any:
        if isinstance(item, Ref):
            return Ref(names.get(item.name, item.name))
        return type(item)(map(argument, item)) if isinstance(item, (list, tuple)) else item

    def node(operation: Node) -> Node:
        return replace(
            operation,
            name=names.get(operation.name, operation.name),
            inputs={key: argument(item) for key, item in operation.inputs.items()},
            outputs=tuple(map(value, operation.outputs)),
            blocks=tuple(renamed(block, names) for block in operation.blocks),
        )

    return Graph(
        tuple(map(value, graph.inputs)),
        tuple(names.get(name, name) for name in graph.outputs),
        tuple(map(node, graph.nodes)),
        {names.get(name, name): constant for name, constant in graph.constants.items()},
        {names.get(name, name): value(declared) for name, declared in graph.values.items()},
    )
