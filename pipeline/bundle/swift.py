"""Models in, the sources of a Swift package out: one typed wrapper for each model, what they share, and
Package.swift.

Models are `.copy` resources: SwiftPM compiles no Core ML models
(https://github.com/swiftlang/swift-package-manager/pull/2651; its list of types that go to Xcode has none),
its `process` rule would take the files of an .mlpackage one by one, and `copy` keeps a folder's structure and
bytes (https://developer.apple.com/documentation/packagedescription/resource/copy(_:)). Each stands for itself
in Package.swift, since a bundle for iOS with a folder `Resources` cannot be signed. The wrapper then does
what Apple says of downloaded models: compile once, keep the result
(https://developer.apple.com/documentation/coreml/downloading-and-compiling-a-model-on-the-user-s-device).
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...models.errors import UserError
from .deliverables import Model, unique, version
from .members import RESERVED, literal, parts_of

TEMPLATES = Path(__file__).parent


def swift_files(name: str, models: Sequence[Model], digests: Mapping[str, str]) -> dict[str, str]:
    """The package's sources by their paths. name: of the package and its module; digests: resource ->
    SHA-256, as the manifest has it."""
    types = type_names(name, models)
    ios, macos = platforms(models)
    machines = json.loads((Path(__file__).parent / "machines.json").read_text())
    known = sorted(
        (machine, chip) for chip, listed in machines.items() if chip != "source" for machine in listed
    )
    render = _renderer()
    files = {
        "Package.swift": render(
            "Package.swift.j2", name=name, ios=ios, macos=macos, resources=sorted(digests)
        ),
        f"Sources/{name}/ModelRuntime.swift": render("ModelRuntime.swift.j2", machines=known),
    }
    for model, kind in zip(models, types):
        files[f"Sources/{name}/{kind}.swift"] = render(
            "Model.swift.j2", model=model, type=kind, digests=digests, floor=(ios, macos), **parts_of(model)
        )
    return files


def check_module_name(name: str) -> None:
    """Raises UserError for what cannot be a Swift module."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None or name in RESERVED:
        raise UserError(
            f"--name {name!r} cannot be the name of a Swift module.",
            "Give letters, digits and _, as in AppModels; no word of Swift.",
        )


def type_names(module: str, models: Sequence[Model]) -> list[str]:
    """A Swift type for each model, unlike each other whatever the case: each is a file, too."""
    taken = {word.lower() for word in (*RESERVED, module)}
    return [unique(_type_name(model.name), taken, "{name}{count}") for model in models]


def comment(text: Any) -> str:
    """One line of a comment: what could end it, or turn the reading direction, becomes ?."""
    return (
        "".join(char if char.isprintable() else "?" for char in str(text)).encode("ascii", "replace").decode()
    )


def platforms(models: Sequence[Model]) -> tuple[str, str]:
    """The oldest (iOS, macOS) on which every model has a variant: of its Core ML packages where it has
    some."""
    needed = []
    for model in models:
        core = [one for one in model.variants if one.is_package] or list(model.variants)
        needed.append(min((one.requires.systems for one in core), key=lambda systems: version(systems[0])))
    return max((one[0] for one in needed), key=version), max((one[1] for one in needed), key=version)


def _renderer() -> Any:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters |= {"literal": literal, "label": label, "comment": comment, "everywhere": _everywhere}
    return lambda template, **values: env.get_template(template).render(cidermill=__version__, **values)


def label(value: str | int) -> str:
    """A class's label as a literal."""
    return literal(value) if isinstance(value, str) else str(value)


def _everywhere(systems: tuple[str, str], floor: tuple[str, str]) -> bool:
    """Whether what a variant needs is no more than what the package needs: Swift warns of a check that always
    holds."""
    return all(version(needed) <= version(least) for needed, least in zip(systems, floor))


def _type_name(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.findall(r"[A-Za-z0-9]+", plain)
    joined = "".join(word[0].upper() + word[1:] for word in words)[:64]
    joined = joined if joined and not joined[0].isdigit() else f"Model{joined}"
    return f"{joined}Model" if joined in RESERVED else joined
