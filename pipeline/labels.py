"""`--labels FILE|auto[:OUTPUT]`: the text enters, `LabelsOption` leaves; a captured model enters, the same
giving probabilities of its classes leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.errors import UserError

if TYPE_CHECKING:
    from ..models.capture import Captured
    from ..models.classes import Classes, Labels
    from ..models.source import Source, TensorSpec
    from .plan import Plan

AUTO = "auto"
OPTION = "--labels"
EXAMPLE = "Write --labels labels.txt with a label a line, or --labels auto for a Hugging Face folder."
INT64 = range(-(1 << 63), 1 << 63)
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_PLACEHOLDER = re.compile(r"LABEL_[0-9]+")
MOST_NAMED = 5


@dataclass(frozen=True)
class LabelsOption:
    """labels: None where they are the configuration's (`auto`); output: the model's own name of the output
    that has a number for each, "" for the only one that can be meant; origin: as messages name it."""

    labels: Labels | None
    output: str = ""
    origin: str = AUTO


def parse_labels(text: str) -> LabelsOption:
    """ "labels.txt:logits" -> its lines, for the output logits. Raises UserError."""
    file, output = _parts(text)
    if file == AUTO:
        return LabelsOption(None, output)
    return LabelsOption(read_labels(Path(file)), output, file)


def given_labels(labels: LabelsOption | Sequence[Any] | None) -> LabelsOption | None:
    """What Python may give besides: the labels themselves."""
    if labels is None or isinstance(labels, LabelsOption):
        return labels
    whole = all(isinstance(label, int) and not isinstance(label, bool) for label in labels)
    if not whole and not all(isinstance(label, str) for label in labels):
        raise UserError("labels are neither all texts nor all whole numbers.", 'Give ["cat", "dog"].')
    if whole and (beyond := next((label for label in labels if label not in INT64), None)) is not None:
        raise UserError(f"labels: {beyond} is no integer of 64 bits.", "Give texts, or smaller numbers.")
    texts = [str(label) for label in labels]
    _check([(text, f"entry {number}") for number, text in enumerate(texts)], "labels")
    return LabelsOption(tuple(int(text) for text in texts) if whole else tuple(texts), origin="labels")


def read_labels(file: Path) -> Labels:
    """The lines of a file; whole numbers where every line is one. Raises UserError."""
    try:
        text = file.read_text("utf-8-sig")  # some editors write a mark in front
    except FileNotFoundError as error:
        raise UserError(f"{OPTION} {file}: there is no such file.", EXAMPLE) from error
    except (OSError, ValueError) as error:
        why = "it is no text in UTF-8" if isinstance(error, UnicodeError) else error
        raise UserError(f"{OPTION} {file} cannot be read: {why}.", EXAMPLE) from error
    lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    _check([(line, f"line {number}") for number, line in enumerate(lines, 1)], f"{OPTION} {file}")
    if all(_WHOLE.fullmatch(line) and int(line) in INT64 for line in lines):
        return _as_numbers(lines, file)
    return tuple(lines)


def check_auto_labels(plan: Plan) -> None:
    """Raises UserError where no configuration can be found that `auto` reads."""
    if plan.labels is None or plan.labels.labels is not None or not plan.model.exists():
        return
    if not (plan.model / "config.json").is_file():
        raise UserError(
            f"{OPTION} {AUTO}: {plan.model} is no Hugging Face folder, whose config.json names its classes.",
            "Give a file with a label a line: --labels labels.txt.",
        )


def as_classifier(
    option: LabelsOption, captured: Captured, names: Mapping[str, str]
) -> tuple[Captured, dict[str, str]]:
    """-> (the captured model, giving a probability for each label, with both outputs' names; what is left of
    the new names). names: the model's own name of an input or output -> the artifact's.

    Raises UserError: no output or several can be meant, or it has another number of classes.
    """
    from ..models.classes import LABEL, PROBABILITIES, Classes, with_probabilities
    from ..models.naming import renamed

    labels, warnings = labels_of(option, captured.source)
    output = _output(option, captured)
    _check_count(labels, output, option)
    captured, scores = with_probabilities(captured, output.name, _holds_several(captured.source))
    left = dict(names)
    label, called = left.pop(LABEL, LABEL), left.pop(PROBABILITIES, PROBABILITIES)
    classes = Classes(labels, label, left.pop(output.name, called), scores)
    _check_names(classes, output, captured)
    source = replace(captured.source, warnings=(*captured.source.warnings, *warnings))
    captured = replace(captured, source=source, classes=classes)
    return renamed(captured, {output.name: classes.probabilities}), left


def named_classes(source: Source) -> list[str]:
    """The labels that a model's configuration names, in their order; none where it has placeholders."""
    try:
        names = _of_configuration(source)
    except UserError:
        return []
    return [] if all(map(_PLACEHOLDER.fullmatch, names)) else names


def configured_classes(source: Source) -> int | None:
    """How many classes a model's configuration names; None where it has none."""
    try:
        return len(_of_configuration(source))
    except UserError:
        return None


def _parts(text: str) -> tuple[str, str]:
    """ "labels.txt:logits" -> ("labels.txt", "logits"). A file may have a colon in its name."""
    if Path(text).is_file() or ":" not in text:
        return text, ""
    file, _, output = text.rpartition(":")
    if not file or not output:
        raise UserError(f"{OPTION} {text!r} does not name labels and an output.", EXAMPLE)
    return file, output


def _check(labels: Sequence[tuple[str, str]], where: str) -> None:
    """Raises UserError for none, blank ones and equal ones. labels: (label, its place in words)."""
    if not labels:
        raise UserError(f"{where} holds no labels.", "Write a label a line, in the order of the classes.")
    for label, place in labels:
        if not label.strip():
            raise UserError(f"{where}: {place} is blank.", "Give every class a label.")
        if any("\ud800" <= character <= "\udfff" for character in label):
            raise UserError(f"{where}: {place} holds half a character ({label!a}).", "Give texts in Unicode.")
    first: dict[str, str] = {}
    for label, place in labels:
        if label in first:
            raise UserError(
                f"{where}: {first[label]} and {place} are both {label!r}.",
                "Core ML keeps probabilities by label: give every class one of its own.",
            )
        first[label] = place


def _as_numbers(lines: Sequence[str], file: Path) -> tuple[int, ...]:
    numbers = tuple(map(int, lines))
    _check([(str(number), f"line {place}") for place, number in enumerate(numbers, 1)], f"{OPTION} {file}")
    return numbers


def labels_of(option: LabelsOption, source: Source) -> tuple[Labels, list[str]]:
    """-> the labels, and what is to be said of them."""
    if option.labels is not None:
        return option.labels, []
    names = _of_configuration(source)
    if all(map(_PLACEHOLDER.fullmatch, names)):
        return tuple(names), [
            "The labels are placeholders (LABEL_0, ...): the model's configuration does not name its"
            " classes.\nGive a file with a label a line: --labels labels.txt."
        ]
    counts = Counter(names)
    twice = [name for name, count in counts.items() if count > 1]
    if not twice:
        _check([(name, f"class {number}") for number, name in enumerate(names)], f"{OPTION} {AUTO}")
        return tuple(names), []
    own = [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]
    _check([(name, f"class {number}") for number, name in enumerate(own)], f"{OPTION} {AUTO}")
    return tuple(own), [
        f"The model's configuration calls several classes {', '.join(map(repr, twice[:MOST_NAMED]))}: their"
        " numbers were added, as Core ML keeps probabilities by label.\nGive a file to choose other labels."
    ]


def _of_configuration(source: Source) -> list[str]:
    """id2label in the order of the classes. Raises UserError: there is none, or it has gaps."""
    named = getattr(configuration_of(source), "id2label", None)
    if not isinstance(named, dict) or not named:
        raise UserError(
            f"{OPTION} {AUTO}: the model has no configuration that names its classes (id2label).",
            "Give a file with a label a line: --labels labels.txt.",
        )
    numbers = range(len(named))
    if set(named) != set(numbers) or not all(str(name).strip() for name in named.values()):
        raise UserError(
            f"{OPTION} {AUTO}: id2label of the model's config.json does not name the classes 0 to"
            f" {len(named) - 1}.",
            "Correct it, or give a file with a label a line: --labels labels.txt.",
        )
    return [str(named[number]).strip() for number in numbers]


def configuration_of(source: Source) -> Any:
    """Of transformers; None where the model is none of its."""
    modules = source.module.modules() if source.module is not None else ()
    configs = (getattr(module, "config", None) for module in modules)
    return next((config for config in configs if hasattr(config, "id2label")), None)


def _holds_several(source: Source) -> bool:
    return getattr(configuration_of(source), "problem_type", None) == "multi_label_classification"


def _output(option: LabelsOption, captured: Captured) -> TensorSpec:
    """The output that has a number for each class: [1, classes] or [classes]."""
    new_states = {state.output for state in captured.states}
    outputs = [spec for spec in captured.outputs if spec.name not in new_states]
    if option.output:
        named = next((spec for spec in outputs if spec.name == option.output), None)
        if named is None:
            raise UserError(
                f"{OPTION}: the model has no output {option.output!r}.",
                f"Its outputs are {text_of(outputs)}.",
            )
        if not _is_vector(named):
            raise UserError(
                f"{OPTION}: the output {text_of([named])} is not of the shape [1, classes].",
                f"Its outputs are {text_of(outputs)}.",
            )
        return named
    able = [spec for spec in outputs if _is_vector(spec)]
    if not able:
        raise UserError(
            f"{OPTION}: no output is of the shape [1, classes] that a classifier has.",
            f"Its outputs are {text_of(outputs)}.",
        )
    if len(able) > 1:
        raise UserError(
            f"{OPTION}: several outputs could hold the classes: {text_of(able)}.",
            f"Name one: --labels {option.origin}:{able[0].name}.",
        )
    return able[0]


def _is_vector(spec: TensorSpec) -> bool:
    return spec.dtype.startswith("float") and len(spec.shape) in (1, 2) and spec.shape[:-1] in ((), (1,))


def text_of(specs: Sequence[TensorSpec]) -> str:
    """ "logits [1, 1000], features [1, 16, 64]" """
    return ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)


def _check_count(labels: Labels, output: TensorSpec, option: LabelsOption) -> None:
    classes = output.shape[-1]
    if classes < 2:
        raise UserError(
            f"{OPTION}: the output {text_of([output])} is one number, which is no choice between classes.",
            "Leave --labels out, and let the app compare it with a threshold.",
        )
    if len(labels) != classes:
        raise UserError(
            f"{OPTION} {option.origin} has {len(labels)} label{'s' * (len(labels) != 1)}, the output"
            f" {output.name} has {classes} class{'es' * (classes != 1)}.",
            "Give a label for each class, in their order, or name another output:"
            f" --labels {option.origin}:OUTPUT.",
        )


def _check_names(classes: Classes, output: TensorSpec, captured: Captured) -> None:
    """Raises UserError where an output of the classifier is called like another input or output."""
    names = [spec.name for spec in (*captured.inputs, *captured.outputs) if spec.name != output.name]
    for name in (classes.label, classes.probabilities):
        if name in names or classes.label == classes.probabilities:
            raise UserError(
                f"{OPTION}: two inputs or outputs would be called {name!r}.",
                f"Choose another name: --name classLabel=NEW for the label, --name {output.name}=NEW for the"
                " probabilities.",
            )
