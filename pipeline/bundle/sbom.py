"""A packed bundle in, its software bill of materials out: CycloneDX 1.6 as JSON
(https://cyclonedx.org/docs/1.6/json/).

Each artifact is a machine-learning-model component, the source that it was made from its ancestor, and the
packages that made it the tools. Nothing of it depends on when it is made: it has no timestamp, and its serial
number is derived from its content.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import __version__
from .deliverables import Model, Variant
from .manifest import LICENCE, Licence, metrics

if TYPE_CHECKING:
    from .packing import Packed

DIGEST = "SHA-256 over the relative names and the bytes of its files, in name order"
FIGURES = ("conversion_psnr_db", "compression_psnr_db")


def sbom_json(name: str, packed: Packed, licence: Licence | None) -> str:
    """name: of the Swift package. licence: as in the manifest."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    whole = _component(
        name,
        "library",
        bom_ref=f"bundle:{name}",
        licenses=_licences(licence),
        description="Swift package of models",
    )
    parts = [
        _artifact(resource, size, digest, packed.models, licence)
        for resource, (size, digest) in packed.digests.items()
    ]
    bom = Bom(components=parts)
    bom.metadata.component = whole
    bom.metadata.tools.components.update(_tools(packed.models))
    bom.register_dependency(whole, parts)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"], document["serialNumber"]
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}"
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _artifact(resource: str, size: int, digest: str, models: Sequence[Model], licence: Licence | None) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Pedigree

    users = [(model, one) for model in models for one in model.variants if one.resource == resource]
    sources = {model.source.sha256: model.source for model, _ in users}
    facts = [("size_bytes", str(size)), *(fact for model, one in users for fact in _facts(model, one))]
    facts += [("digest", DIGEST)] if resource.endswith(".mlpackage") else []
    return _component(
        resource,
        "machine-learning-model",
        bom_ref=f"model:{resource}",
        licenses=_licences(licence),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        properties=[Property(name=f"cidermill:{key}", value=value) for key, value in facts],
        pedigree=Pedigree(
            ancestors=[
                _component(
                    one.name,
                    "machine-learning-model",
                    bom_ref=f"source:{sha256}:{resource}",
                    hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
                )
                for sha256, one in sorted(sources.items())
            ]
        ),
    )


def _facts(model: Model, one: Variant) -> list[tuple[str, str]]:
    """What a variant is, under its model's and its own name."""
    errors = metrics(one.artifact)
    known = {
        "recipe": one.artifact.recipe,
        "target": one.artifact.target,
        "function": one.function,
        **{key: getattr(errors, key) for key in FIGURES},
    }
    return [
        (f"{model.name}/{one.name}:{key}", str(value))
        for key, value in known.items()
        if value not in (None, "")
    ]


def _tools(models: Sequence[Model]) -> list[Any]:
    from packageurl import PackageURL

    used = {pair for model in models for one in model.variants for pair in one.tools.items()} | {
        ("cidermill", __version__)
    }
    return [
        _component(name, "library", bom_ref=f"tool:{name}@{number}", version=number,
                   purl=None if name == "cidermill" else PackageURL("pypi", None, name, number))
        for name, number in sorted(used)
    ]  # fmt: skip


def _component(name: str, kind: str, **details: Any) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=name, type=ComponentType(kind), **details)


def _licences(licence: Licence | None) -> list[Any]:
    """An SPDX identifier or expression as such; other words as a name."""
    from cyclonedx.factory.license import LicenseFactory
    from cyclonedx.model.license import DisjunctiveLicense

    if licence is None:
        return []
    return (
        [DisjunctiveLicense(name=f"see {LICENCE}")]
        if licence.file
        else [LicenseFactory().make_from_string(licence.text)]
    )
