"""`cidermill cache`: what is in the cache, and pruning it."""

from dataclasses import dataclass

import click

from ...models.errors import UserError
from ..exit_codes import PASS
from .shared import CONTEXT, exits_with_user_errors, json_option, tell

SHOWN = 20  # entries


@dataclass(frozen=True)
class Removed:
    """How many entries `--prune` and `--clear` have removed, and their bytes."""

    entries: int
    size_bytes: int


@dataclass(frozen=True)
class CacheEntry:
    """kind: "conversion" or "weight"; what: for people; used: last, in seconds since the epoch."""

    kind: str
    what: str
    size_bytes: int
    used: float


@dataclass(frozen=True)
class CacheContent:
    """The result of `cidermill cache`: field names are the keys of its JSON. entries: the one used last
    first."""

    folder: str
    limit_bytes: int
    size_bytes: int
    removed: Removed
    entries: tuple[CacheEntry, ...]


@click.command(context_settings=CONTEXT)
@click.option(
    "--prune",
    "size",
    metavar="SIZE",
    help="Remove what was used longest ago until no more than this is left: 2GB, 500MB.",
)
@click.option("--clear", is_flag=True, help="Remove everything.")
@json_option
@exits_with_user_errors
def cache(size: str | None, clear: bool, as_json: bool) -> int:
    """Show what the cache holds, or make it smaller.

    `convert` and `build` keep what they made, `study` each compressed weight, by everything that decides it:
    the bytes of the model and the samples, the options, the versions of the tools. The cache is in
    ~/.cache/cidermill ($XDG_CACHE_HOME is honoured) or $CIDERMILL_CACHE ("off": none), and holds at most
    $CIDERMILL_CACHE_SIZE (20GB). It can be removed at any time.
    """
    from ..quantities import parse_size
    from ..store import cache_place, entries, open_cache, prune

    if size is not None and clear:
        raise UserError("--prune and --clear were both given.", "--clear removes everything.")
    limit = 0.0 if clear else parse_size(size, "--prune ") if size is not None else None
    opened = open_cache()
    if opened is None:
        raise UserError(
            f"There is no cache: it is switched off, or {cache_place()[0]} cannot be written to.",
            "Name a folder with CIDERMILL_CACHE.",
        )
    removed = Removed(*prune(opened, limit)) if limit is not None else Removed(0, 0)
    left = tuple(
        CacheEntry(entry.kind, entry.what, entry.size_bytes, entry.used) for entry in entries(opened)
    )
    size_bytes = sum(entry.size_bytes for entry in left)
    content = CacheContent(str(opened.folder), int(opened.limit_bytes), size_bytes, removed, left)
    tell(content, as_json, False, _show)
    return PASS


def _show(result: CacheContent) -> None:
    import time

    from ..report import summaries
    from ..terminal.console import console
    from ..terminal.text import clean, table

    out = console()
    kinds: dict[str, list[CacheEntry]] = {}
    for entry in result.entries:
        kinds.setdefault(entry.kind, []).append(entry)
    sizes = {
        kind: summaries.size_text(sum(entry.size_bytes for entry in of_kind))
        for kind, of_kind in kinds.items()
    }
    parts = [
        f"{len(of_kind)} {kind}{'s' if len(of_kind) != 1 else ''} ({sizes[kind]})"
        for kind, of_kind in kinds.items()
    ]
    if result.removed.entries:
        out.print(
            f"Removed {result.removed.entries} entries, {summaries.size_text(result.removed.size_bytes)}."
        )
    out.print(
        f"{clean(result.folder)}: {', '.join(parts) or 'empty'}, of at most"
        f" {summaries.size_text(result.limit_bytes)}.",
        soft_wrap=True,
    )
    shown = kinds.get("conversion", [])[:SHOWN]
    days = [time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)) for entry in shown]
    rows = [
        [day, summaries.size_text(entry.size_bytes), clean(entry.what)] for day, entry in zip(days, shown)
    ]
    if rows:
        out.print(table(out, ["last used", "size", "conversion"], rows))
