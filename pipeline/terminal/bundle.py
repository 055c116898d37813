"""What `bundle`, `verify` and `keygen` found in, lines and tables in the terminal out."""

from ..report import summaries as fig
from .report import console
from .text import clean, line, table, verdict_text


def show_bundle(result: dict) -> None:
    out = console()
    rows = [
        [clean(model["name"]), clean(one["name"]), clean(_needs(one["requires"])), clean(_place(one)), fig.size_text(one["size_bytes"])]
        for model in result["models"] for one in model["variants"]
    ]  # fmt: skip
    out.print(line((clean(result["bundle"]), "bold"), (f"  Swift package {result['name']}, {result['files']} files, ", ""),
                   (fig.size_text(result["size_bytes"]), "")), soft_wrap=True)  # fmt: skip
    out.print(table(out, ["model", "variant", "needs", "stored as", "size"], rows))
    for one in result["sharing"]:
        stored = "stored once" if one["stored"] == "once" else f"stored separately: {one['reason']}"
        told = (
            f"{fig.size_text(one['shared_bytes'])} of weights shared by {', '.join(one['variants'])}:"
            f" {stored}"
        )
        out.print(line((clean(told), "")), soft_wrap=True)
    out.print(line((clean(f"Swift checked by {'; '.join(result['checked_by'])}"), "dim")), soft_wrap=True)
    if result["signer"]:
        out.print(line((f"signed by {result['signer']['fingerprint']}", "dim")), soft_wrap=True)
    for note in result["notes"]:
        out.print(line(("note: ", "yellow"), (clean(note), "")), soft_wrap=True)


def show_verification(result: dict) -> None:
    out = console()
    signed = result["signature"]
    words = {
        "none": "not signed",
        "valid": "signed by ",
        "invalid": "signature does not hold: ",
        "not checked": "signature not checked",
    }
    trust = (
        ""
        if signed["status"] != "valid"
        else (
            ", the key that you trust" if signed["trusted"] else ", which no key of yours vouches for (--key)"
        )
    )
    named = line((clean(result["bundle"]), "bold"), (f"  {result['files']} files  ", ""))
    out.print(named.append_text(verdict_text(result["verdict"])), soft_wrap=True)
    out.print(
        line((clean(words[signed["status"]] + str(signed.get("fingerprint") or "") + trust), "dim")),
        soft_wrap=True,
    )
    for problem in result["problems"]:
        out.print(
            line(("  " + clean(problem["file"]), "red"), (" " + clean(problem["problem"]), "")),
            soft_wrap=True,
        )
    for one in result["runs"] if isinstance(result["runs"], list) else []:
        out.print(
            line(
                (f"  {clean(one['variant'])} ", ""),
                (clean(one["problem"]) or "runs", "red" if one["problem"] else "green"),
            ),
            soft_wrap=True,
        )


def show_key(result: dict) -> None:
    out = console()
    out.print(
        line((clean(f"{result['key']} (keep it secret), {result['public_key']} (for those who verify)"), "")),
        soft_wrap=True,
    )
    out.print(line((f"fingerprint {result['fingerprint']}", "dim")), soft_wrap=True)


def _needs(requires: dict) -> str:
    parts = [f"iOS {requires['iOS']}, macOS {requires['macOS']}", " or ".join(requires["chips"])]
    parts.append(f"{fig.size_text(requires['memory_bytes'])} of memory" if requires["memory_bytes"] else "")
    return "; ".join(part for part in parts if part)


def _place(one: dict) -> str:
    return one["resource"] + (f", function {one['function']}" if one["function"] else "")
