"""What only some commands need: the name of an extra enters; where its packages are missing, a UserError that
says how to install them leaves."""

from importlib.util import find_spec

from .errors import UserError

# Extra (pyproject.toml, optional-dependencies) -> the modules that the code imports of it
EXTRAS = {
    "study": ("optuna", "plotly"),
    "bundle": ("cryptography", "cyclonedx", "tree_sitter", "tree_sitter_swift"),
    "cluster": ("distributed",),
}


def require_extra(extra: str, user: str) -> None:
    """Raises UserError where a package of `extra` is not installed. user: what needs it, as the subject of a
    sentence ("--cluster")."""
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if not missing:
        return
    words = "package" if len(missing) == 1 else "packages"
    be, them = ("is", "it") if len(missing) == 1 else ("are", "them")
    raise UserError(
        f"{user} needs the {words} {' and '.join(missing)}, which {be} not installed.",
        f'Install {them}: pip install "cidermill[{extra}]"',
    )
