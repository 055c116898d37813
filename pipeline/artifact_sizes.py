"""An open artifact, whoever made it, and the model that it should equal in; the sizes to compare them at
out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.flexible import Sizes
    from ..models.source import Source
    from ..validation.borders import Feature
    from ..validation.runner import Runner

MOST_SIZES = 8  # beside the usual one


def sizes_of_artifact(runner: Runner, source: Source) -> Sizes | None:
    """All that it lists, or both ends of its ranges, in the order of the model's inputs. None where it has
    one size, where it does not take the model's, and for pictures, whose axes may lie otherwise."""
    from ..models.flexible import Sizes

    features = _in_order(runner, source)
    if features is None or runner.states or any(feature.channels for feature in features):
        return None
    usual = tuple(spec.shape for spec in source.inputs)
    if not all(feature.allows(shape) for feature, shape in zip(features, usual)):
        return None
    listed = [feature for feature in features if len(feature.shapes) > 1]
    if listed:
        if len({len(feature.shapes) for feature in listed}) > 1:
            return None
        rows = [
            tuple(feature.shapes[row] if feature.shapes[1:] else own for feature, own in zip(features, usual))
            for row in range(len(listed[0].shapes))
        ]
        others = [row for row in rows if row != usual][:MOST_SIZES]
        return Sizes(usual, (usual, *others)) if usual in rows else None
    return _ranged(source, features, usual)


def _ranged(source: Source, features: list[Feature], usual: tuple[tuple[int, ...], ...]) -> Sizes | None:
    from ..models.flexible import Sizes, Span, tied

    spans = [
        Span(((index, axis),), max(low, 1), usual[index][axis] if high is None else high, usual[index][axis])
        for index, feature in enumerate(features)
        for axis, (low, high) in enumerate(feature.ranges)
        if low != high
    ]
    return Sizes(usual, spans=tied(source, usual, spans)) if spans else None


def _in_order(runner: Runner, source: Source) -> list[Feature] | None:
    """What is known of the artifact's inputs, in the model's order: by name where it has its names."""
    from ..validation.borders import Feature

    names = [value.name for value in runner.inputs]
    own = [spec.name for spec in source.inputs]
    if len(names) != len(own):
        return None
    return [runner.features.get(name, Feature()) for name in (own if set(own) == set(names) else names)]
