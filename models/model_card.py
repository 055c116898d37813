"""A model's folder in; what the card in it (README.md, YAML between two lines of ---) says of author and
licence out.

https://huggingface.co/docs/hub/model-cards#model-card-metadata: `license` is an identifier; where it is
`other`, `license_name` says which.
"""

from pathlib import Path
from typing import Any

CARD = "README.md"
MOST_BYTES = 1 << 20  # of a card that are looked at: fields stand at its beginning
LONGEST = 1000  # characters of a field's text
NOTHING = ("", "null", "~")


def read_card(folder: Path) -> dict[str, str]:
    """-> "author" and "license", as far as the card has them: a card that is missing or odd says nothing."""
    fields = _front_matter(folder / CARD)
    author = _text(fields.get("author")) or _text(fields.get("authors"))
    licence = _text(fields.get("license"))
    if licence == "other":
        licence = _text(fields.get("license_name")) or licence
    return {key: text for key, text in (("author", author), ("license", licence)) if text}


def _front_matter(file: Path) -> dict[str, Any]:
    import yaml

    try:
        with file.open("rb") as stream:
            lines = stream.read(MOST_BYTES).decode("utf-8-sig", "replace").split("\n")
        if not lines or lines[0].rstrip() != "---":
            return {}
        end = next(number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
        # every scalar is a text, and no key is merged with others, which can take for ever
        loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
        fields = yaml.load("\n".join(lines[1:end]), Loader=loader)
    except (OSError, StopIteration, RecursionError, yaml.YAMLError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(field: Any) -> str:
    """One line of a text, or of several in a list; "" for anything else."""
    if isinstance(field, list) and all(isinstance(part, str) for part in field):
        field = ", ".join(field)
    if not isinstance(field, str) or len(field) > LONGEST:
        return ""
    text = " ".join(field.split())
    return text if text.isprintable() and text not in NOTHING else ""
