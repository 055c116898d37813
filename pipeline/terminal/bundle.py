"""What `bundle`, `verify` and `keygen` found in, lines and tables in the terminal out."""

from ..bundle.bundle import BundleResult
from ..bundle.manifest import ManifestVariant, Needs
from ..bundle.signature import KeyPair
from ..bundle.verify import SignatureState, Verification
from ..report import summaries
from .console import console
from .text import clean, line, table, verdict_text


def show_bundle(result: BundleResult) -> None:
    out = console()
    rows = [
        [
            clean(model.name),
            clean(variant.name),
            clean(_needs(variant.requires)),
            clean(_place(variant)),
            summaries.size_text(variant.size_bytes),
        ]
        for model in result.models
        for variant in model.variants
    ]
    about = f"  Swift package {result.name}, {result.files} files, {summaries.size_text(result.size_bytes)}"
    out.print(line((clean(result.bundle), "bold"), (about, "")), soft_wrap=True)
    out.print(table(out, ["model", "variant", "needs", "stored as", "size"], rows))
    for shared in result.sharing:
        stored = "stored once" if shared.stored == "once" else f"stored separately: {shared.reason}"
        size, sharers = summaries.size_text(shared.shared_bytes), ", ".join(shared.variants)
        out.print(line((clean(f"{size} of weights shared by {sharers}: {stored}"), "")), soft_wrap=True)
    out.print(line((clean(f"Swift checked by {'; '.join(result.checked_by)}"), "dim")), soft_wrap=True)
    if result.signer:
        out.print(line((f"signed by {result.signer.fingerprint}", "dim")), soft_wrap=True)
    for note in result.notes:
        out.print(line(("note: ", "yellow"), (clean(note), "")), soft_wrap=True)


def show_verification(result: Verification) -> None:
    out = console()
    named = line((clean(result.bundle), "bold"), (f"  {result.files} files  ", ""))
    out.print(named.append_text(verdict_text(result.verdict)), soft_wrap=True)
    out.print(line((clean(_signed_text(result.signature)), "dim")), soft_wrap=True)
    for problem in result.problems:
        said = ("  " + clean(problem.file), "red"), (" " + clean(problem.problem), "")
        out.print(line(*said), soft_wrap=True)
    for run in result.runs if isinstance(result.runs, list) else []:
        came_of_it = clean(run.problem) or "runs", "red" if run.problem else "green"
        out.print(line((f"  {clean(run.variant)} ", ""), came_of_it), soft_wrap=True)


def _signed_text(signature: SignatureState) -> str:
    by = signature.fingerprint or ""
    if signature.status == "valid":
        trust = "the key that you trust" if signature.trusted else "which no key of yours vouches for (--key)"
        return f"signed by {by}, {trust}"
    words = {
        "none": "not signed",
        "invalid": "signature does not hold: ",
        "not checked": "signature not checked",
    }
    return words[signature.status] + by


def show_key(pair: KeyPair) -> None:
    out = console()
    places = f"{pair.key} (keep it secret), {pair.public_key} (for those who verify)"
    out.print(line((clean(places), "")), soft_wrap=True)
    out.print(line((f"fingerprint {pair.fingerprint}", "dim")), soft_wrap=True)


def _needs(requires: Needs) -> str:
    memory = f"{summaries.size_text(requires.memory_bytes)} of memory" if requires.memory_bytes else ""
    parts = [f"iOS {requires.iOS}, macOS {requires.macOS}", " or ".join(requires.chips), memory]
    return "; ".join(part for part in parts if part)


def _place(variant: ManifestVariant) -> str:
    return variant.resource + (f", function {variant.function}" if variant.function else "")
