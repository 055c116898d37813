"""The bill of materials is valid CycloneDX 1.6, names every artifact with its hash, and knows no time."""

import json
import uuid

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from cidermill.models.digest import content_of


@pytest.fixture
def sbom(converted, cidermill, tmp_path):
    """make(*options) -> (text, bundle)"""

    def make(*options: str):
        out = tmp_path / f"bundle{len(list(tmp_path.iterdir()))}"
        result = cidermill(
            "bundle", converted / "half", converted / "wide", "--out", out, "--quiet", *options
        )
        assert result.exit_code == 0, result.output
        return (out / "sbom.cdx.json").read_text(), out

    return make


@pytest.mark.parametrize(
    "licence",
    [
        (),
        ("--licence", "Apache-2.0"),
        ("--licence", "MIT OR Apache-2.0"),
        ("--licence", "all rights reserved"),
    ],
)
def test_it_is_valid(sbom, licence):
    text, _ = sbom(*licence)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace("machine-learning-model", "apple"))
        is not None
    )


def test_what_it_names(sbom, converted):
    text, out = sbom("--licence", "Apache-2.0")
    document = json.loads(text)
    resources = out / "Sources" / "AppModels" / "Resources"
    found = {one["name"]: one for one in document["components"]}
    assert {path.name: content_of(path).sha256 for path in resources.iterdir()} == {
        name: one["hashes"][0]["content"] for name, one in found.items()
    }
    assert all(
        one["type"] == "machine-learning-model" and one["licenses"] == [{"license": {"id": "Apache-2.0"}}]
        for one in found.values()
    )
    sources = {
        json.loads((converted / name / "report.json").read_text())["source"]["sha256"]
        for name in ("half", "wide")
    }
    ancestors = {
        one["hashes"][0]["content"] for one in found["net-shared.mlpackage"]["pedigree"]["ancestors"]
    }
    assert ancestors == sources
    tools = {one["name"]: one for one in document["metadata"]["tools"]["components"]}
    assert set(tools) == {"cidermill", "torch", "coremltools", "executorch", "transformers", "numpy"}
    assert tools["torch"]["purl"] == "pkg:pypi/torch@2.13.0"
    needed = document["dependencies"][0]
    assert needed["ref"] == "bundle:AppModels" and set(needed["dependsOn"]) == {
        f"model:{name}" for name in found
    }


def test_it_knows_no_time_and_its_number_is_of_its_content(sbom):
    (first, _), (same, _), (other, _) = sbom(), sbom(), sbom("--licence", "MIT")
    assert first == same and "timestamp" not in first
    numbers = [uuid.UUID(json.loads(text)["serialNumber"]) for text in (first, other)]
    assert numbers[0] != numbers[1] and numbers[0].version == 5
