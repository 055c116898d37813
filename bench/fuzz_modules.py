"""Random small modules through conversion, on inputs of their own: none may crash, none may pass falsely.

    python bench/fuzz_modules.py [--count 2000] [--seed 0] [--target coreml|executorch-mps] [--minutes M]
    [--only INDEX]... [--together 10] [--keep DIR] [--show]

Program INDEX of a seed is always the same text (bench/module_grammar.py grows it, hypothesis chooses). They
are converted within this process, some together as one module and those that are not right once more alone
(bench/pressing_together.py, bench/pressing.py). Bad ones are printed, and kept in DIR as files that
bench/cases.py takes. Exit code 1 where any program crashed or passed falsely.
"""

import argparse
import functools
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent))
import pressing
from module_grammar import grow
from module_steps import STEPS
from pressing_together import press_all

BLOCK = 50  # programs that are drawn at a time


def drawn(seed: int, count: int) -> list[str]:
    """`count` programs, the same for a seed."""
    texts: list[str] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=2 * count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.randoms(use_true_random=True))
    def draw(random: Any) -> None:
        if len(texts) < count:
            texts.append(grow(lambda options: random.choice(list(options)), STEPS))

    draw()
    return texts


def program(seed: int, index: int) -> str:
    return drawn(seed * 1_000_003 + index // BLOCK, BLOCK)[index % BLOCK]


def made(text: str) -> tuple[Any, Any]:
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(text, "program", "exec"), names)
    return names["make"]()


def forward_of(text: str) -> str:
    """The lines of a program that differ from others'."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line.startswith(("self.", "v", "return v", "return net"))]
    return "\n    ".join(kept)


def told(ending: pressing.Ending) -> str:
    """The end of a traceback, the beginning of a refusal."""
    lines = ending.detail.strip().splitlines()
    return "\n    ".join(lines[-6:] if ending.kind == "CRASH" else lines[:4])


def without_places(detail: str) -> str:
    """A refusal without places and shapes, so that it is counted with its like."""
    operators = re.findall(r"- (aten\.\S+)", detail)
    return ", ".join(operators) if operators else re.sub(r"[\d\[].*", "", " ".join(detail.split()))[:100]


def texts_of(seed: int, indices: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(index, text) of each; a block of programs is drawn once."""
    texts: dict[int, list[str]] = {}
    for index in indices:
        block = index // BLOCK
        if block not in texts:
            texts = {block: drawn(seed * 1_000_003 + block, BLOCK)}
        yield index, texts[block][index % BLOCK]


def fuzz(arguments: argparse.Namespace) -> Counter[str]:
    ends: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    start = time.monotonic()
    indices = arguments.only or range(arguments.start, arguments.start + arguments.count)
    programs = (each for each in texts_of(arguments.seed, indices) if answers_all_inputs(*each))
    while group := list(itertools.islice(programs, arguments.together)):
        makes = [functools.partial(_model, index, text) for index, text in group]
        for (index, text), ending in zip(group, press_all(makes, arguments.target)):
            ends[ending.kind] += 1
            if ending.kind == "refused":
                reasons[without_places(ending.detail)] += 1
            show(arguments, index, text, ending)
        print(f"{arguments.target}, seed {arguments.seed}, to {group[-1][0]}: {dict(ends)}", flush=True)
        if arguments.minutes and time.monotonic() - start > 60 * arguments.minutes:
            break
    for reason, count in reasons.most_common():
        print(f"  refused {count}: {reason}")
    return ends


def answers_all_inputs(index: int, text: str) -> bool:
    """Whether the source takes the numbers that the judge draws: some look things up in tables that are too
    short for them."""
    model = _model(index, text)
    try:
        for values in (model.inputs, *pressing.own_inputs(model)):
            pressing.answers(model.module, values)
    except (IndexError, RuntimeError):
        return False
    return True


def _model(index: int, text: str) -> pressing.Model:
    return pressing.Model(*made(text), seed=index)


def show(arguments: argparse.Namespace, index: int, text: str, ending: pressing.Ending) -> None:
    shown = ("right", "refused", "near edge") if not arguments.show else ("right",)
    if ending.kind in shown:
        return
    print(
        f"{arguments.target} {index}: {ending.kind}\n    {forward_of(text)}\n    -> {told(ending)}",
        flush=True,
    )
    if arguments.keep:
        arguments.keep.mkdir(exist_ok=True, parents=True)
        (arguments.keep / f"program_{arguments.seed}_{index}.py").write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--target", choices=pressing.TARGETS, default="coreml")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--together", type=int, default=10, help="programs that are converted as one module")
    parser.add_argument("--only", type=int, action="append")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--show", action="store_true", help="print what is refused or near an edge too")
    ends = fuzz(parser.parse_args())
    return 1 if any(ends[kind] for kind in pressing.BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
