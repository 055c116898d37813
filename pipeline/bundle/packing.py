"""Models in, their artifacts in a bundle's resources out: each stored once, Core ML packages with the same
weights as functions of one.

A merged package is only kept when every function was proved to hold and to answer what its own package does,
bit for bit.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...models.digest import Content, content_of, files_of
from ..targets import find_target
from .deliverables import Model, Variant, slug, unique
from .manifest import Sharing
from .shared_weights import Proposal, differences, function_names, merge, proposals, weights_of

PROOF = (
    "every function holds the constants and gives the answers of its own package, bit for bit, in the"
    " reference runner"
)


@dataclass(frozen=True)
class Packed:
    """models: with resource and function of every variant. digests: by resource. sharing: as the manifest
    tells it."""

    models: tuple[Model, ...]
    digests: dict[str, Content]
    sharing: list[Sharing]


@dataclass(frozen=True)
class Place:
    """Where an artifact lies in the bundle. function: of a package that several share, else ""."""

    resource: str
    function: str = ""


def pack(models: Sequence[Model], folder: Path, step: Callable[[str], None]) -> Packed:
    """Write the resources of a bundle into `folder`, which it makes. step(label): what is being done."""
    folder.mkdir(parents=True)
    pairs = [(model, variant) for model in models for variant in model.variants]
    # equal artifacts once, the first's name
    distinct = list({variant.sha256: (model, variant) for model, variant in reversed(pairs)}.values())[::-1]
    taken: set[str] = set()
    places: dict[str, Place] = {}
    sharing = []
    core = [(model, variant) for model, variant in distinct if variant.is_package]
    for proposal in proposals(
        [variant for _, variant in core], [weights_of(variant.path) for _, variant in core]
    ):
        step(f"sharing {proposal.shared_bytes / 1e6:.1f} MB of weights")
        sharing.append(_share([core[index] for index in proposal.members], proposal, folder, taken, places))
    for model, variant in distinct:
        if variant.sha256 not in places:
            resource = _resource(f"{model.name} {variant.name}", variant, taken)
            step(resource)
            _copy(variant.path, folder / resource)
            places[variant.sha256] = Place(resource)
    done = tuple(
        replace(model, variants=tuple(_placed(one, places[one.sha256]) for one in model.variants))
        for model in models
    )
    return Packed(done, {path.name: content_of(path) for path in sorted(folder.iterdir())}, sharing)


def _share(
    members: Sequence[tuple[Model, Variant]],
    proposal: Proposal,
    folder: Path,
    taken: set[str],
    places: dict[str, Place],
) -> Sharing:
    """Try to store the members' weights once. -> what the manifest says of it"""
    sharers = tuple(f"{model.name}/{variant.name}" for model, variant in members)
    if proposal.obstacle:
        return Sharing(sharers, proposal.shared_bytes, "separately", reason=proposal.obstacle)
    resource = _resource(f"{members[0][0].name} shared", members[0][1], taken)
    names = function_names([(model.name, variant.name) for model, variant in members])
    packages = [(name, variant.path) for name, (_, variant) in zip(names, members)]
    merge(packages, folder / resource)
    if problem := _disproof(packages, folder / resource):
        shutil.rmtree(folder / resource)
        return Sharing(sharers, proposal.shared_bytes, "separately", reason=problem)
    places |= {variant.sha256: Place(resource, name) for name, (_, variant) in zip(names, members)}
    return Sharing(sharers, proposal.shared_bytes, "once", resource, PROOF)


def _disproof(packages: Sequence[tuple[str, Path]], merged: Path) -> str:
    from ...models.errors import UserError
    from ...validation.graph import OperatorFailed

    for name, package in packages:
        try:
            problem = differences(name, package, merged)
        except (
            UserError,
            OperatorFailed,
        ) as error:
            # an operator that the reference runner cannot compute: nothing is proved then
            problem = f"it could not be proved: {error}"
        if problem:
            return f"function {name} is not what its package was: {problem}"
    return ""


def _resource(name: str, variant: Variant, taken: set[str]) -> str:
    return unique(slug(name), taken) + find_target(variant.artifact.target).suffix


def _placed(variant: Variant, place: Place) -> Variant:
    return replace(variant, resource=place.resource, function=place.function)


def _copy(path: Path, target: Path) -> None:
    """The bytes alone: links are followed, and times and permissions are not part of an artifact."""
    for file in files_of(path):
        beside = target if path.is_file() else target / file.relative_to(path)
        beside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, beside)
