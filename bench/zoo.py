"""Every architecture of tests/zoo through the command line, for both targets: exit codes, conversion
error, delegates, sizes.

    python bench/zoo.py [--only NAME]... [--workers 2] [--keep DIR]

Each row is one process `convert FOLDER --target ... --quant ...` on the Hugging Face folder (the .pt2 where a
model has none). The worst output counts. `delegates`: MPS delegates in the .pte, and what stayed outside of
them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ZOO = HERE.parent / "tests" / "zoo"
RECIPES = {
    "float16": ("coreml", "executorch-mps"),
    "int8": ("coreml", "executorch-mps"),
    "int4": ("executorch-mps",),
}


def press(source: Path, recipe: str, out: Path) -> dict:
    """-> exit code, seconds and, per target, the worst conversion PSNR and the size"""
    command = [
        str(Path(sys.executable).parent / "convert"),
        str(source),
        "--quant",
        recipe,
        "--out",
        str(out),
        "--json",
        "--force",
    ]
    for target in RECIPES[recipe]:
        command += ["--target", target]
    done = subprocess.run(command, capture_output=True, text=True)
    result = {
        "code": done.returncode,
        "error": done.stderr.strip().splitlines()[-1:] if done.returncode else [],
        "targets": {},
    }
    if done.stdout.strip():
        report = json.loads(done.stdout)
        result["seconds"] = sum(stage["seconds"] for stage in report["stages"])
        for artifact in report["artifacts"]:
            psnr = min(error["psnr_db"] for error in artifact["validation"]["conversion"])
            result["targets"][artifact["target"]] = {
                "psnr": psnr,
                "size": artifact["size_bytes"],
                "verdict": artifact["verdict"],
            }
    pte = next(out.glob("*.pte"), None)
    if pte is not None:
        result["delegates"], result["outside"] = delegates(pte)
    return result


def delegates(pte: Path) -> tuple[int, Counter]:
    """-> (number of MPS delegates, kernels outside of them)"""
    from cidermill.validation import open_runner

    operators = [node.op for node in open_runner(pte, host="reference").graph.nodes]
    return sum(op.startswith("delegate:") for op in operators), Counter(
        op for op in operators if not op.startswith("delegate:")
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="cidermill-zoo-"))
    sys.path.insert(0, str(ZOO))
    import zoo

    names = args.only or list(zoo.ZOO)
    if missing := [name for name in names if not (folder / f"{name}.pt2").exists()]:
        subprocess.run(
            [sys.executable, str(ZOO / "zoo.py"), str(folder), *missing], check=True, capture_output=True
        )
    jobs = [(name, recipe) for name in names for recipe in RECIPES]
    with ThreadPoolExecutor(args.workers) as pool:
        results = dict(
            zip(
                jobs,
                pool.map(
                    lambda job: press(
                        source_of(folder, job[0]), job[1], folder / "out" / f"{job[0]}-{job[1]}"
                    ),
                    jobs,
                ),
            )
        )
    return show(names, results)


def source_of(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder / f"{name}.pt2"


def show(names: list[str], results: dict) -> int:
    columns = [(recipe, target) for recipe, targets in RECIPES.items() for target in targets]
    table = Table(title="Conversion error: worst output, PSNR in dB (at least 40 wanted)")
    table.add_column("architecture")
    for recipe, target in columns:
        table.add_column(f"{target.removeprefix('executorch-')} {recipe}", justify="right")
    table.add_column("delegates", justify="right")
    table.add_column("outside of delegates")
    passed = 0
    for name in names:
        cells = [cell(results[name, recipe], target) for recipe, target in columns]
        counts = {results[name, recipe].get("delegates", 0) for recipe in RECIPES}
        outside = sum((results[name, recipe].get("outside", Counter()) for recipe in RECIPES), Counter())
        table.add_row(
            name, *[text for text, _ in cells], "/".join(map(str, sorted(counts))), ", ".join(outside)
        )
        passed += all(good for _, good in cells)
    console = Console(width=150)
    console.print(table)
    one = sum(all(results[name, recipe].get("delegates") == 1 for recipe in RECIPES) for name in names)
    console.print(
        f"{passed} of {len(names)} architectures pass everywhere; {one} come out as one MPS delegate in every"
        " recipe."
    )
    return 0 if passed == len(names) else 1


def cell(result: dict, target: str) -> tuple[str, bool]:
    found = result["targets"].get(target)
    if result["code"] != 0 or found is None:
        return f"[red]exit {result['code']} {' '.join(result['error'])[:60]}[/]", False
    good = found["psnr"] >= 40 and found["verdict"] == "pass"
    return (f"{found['psnr']:.1f}" if good else f"[red]{found['psnr']:.1f}[/]"), good


if __name__ == "__main__":
    sys.exit(main())
