"""Several small modules in, how each one's conversion ended out.

They are converted as one module, which takes half as long as one by one; those that do not simply come out
right are pressed once more, alone.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pressing
import torch
from pressing import LEAST_DB, Ending, Judged, Model

from cidermill.models.errors import UserError
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import TOLERANCE_DB, converted


class Together(torch.nn.Module):
    """The inputs of all parts in, one part's after the other's; the answers of all out."""

    def __init__(self, models: Sequence[Model]):
        super().__init__()
        self.parts = torch.nn.ModuleList([model.module for model in models])
        self.counts = [len(model.inputs) for model in models]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answers: list[torch.Tensor] = []
        start = 0
        for part, count in zip(self.parts, self.counts):
            answer = part(*inputs[start : start + count])
            answers += answer if isinstance(answer, tuple) else [answer]
            start += count
        return tuple(answers)


def press_all(makes: Sequence[Callable[[], Model]], target: str) -> list[Ending]:
    """makes: give a fresh model each time that they are called. -> the ending of each"""
    if len(makes) == 1:
        return [pressing.press(makes[0](), target)]
    endings: list[Ending | None] = [None] * len(makes)
    group = list(range(len(makes)))
    while len(group) > 1:
        outcome = _press_group([makes[index]() for index in group], target)
        if isinstance(outcome, Trouble):
            suspects = [group[part] for part in outcome.parts if part < len(group)]
            if suspects:  # the rest once more without them
                group = [index for index in group if index not in suspects]
                continue
            half = len(group) // 2
            for part in (group[:half], group[half:]):
                for index, ending in zip(part, press_all([makes[index] for index in part], target)):
                    endings[index] = ending
            break
        for index, ending in zip(group, outcome):
            endings[index] = ending
        break
    return [ending or pressing.press(make(), target) for ending, make in zip(endings, makes)]


class Trouble:
    """Why a group as a whole gave no artifact. parts: which of its modules the message names."""

    def __init__(self, message: str):
        self.parts = {int(number) for number in re.findall(r"\bparts\.(\d+)\b", message)}


def _press_group(models: list[Model], target: str) -> list[Ending | None] | Trouble:
    """-> "right" for each module that is, None for those that have to be looked at alone"""
    together = Model(Together(models).eval(), tuple(value for model in models for value in model.inputs))
    with tempfile.TemporaryDirectory() as name:
        try:
            report = pressing.convert_model(together, target, "float16", Path(name))
        except UserError as error:
            return Trouble(str(error))
        except Exception:
            return Trouble("")
        artifact = report.artifacts[0]
        try:
            judged = _judge_parts(models, Path(name) / artifact.path)
        except Exception:
            return Trouble("")
    accepted = _accepted(models, report)
    if report.verdict != "pass" and all(accepted):
        return Trouble("")
    return [
        Ending("right", one.detail) if good and one.psnr_db >= LEAST_DB else None
        for good, one in zip(accepted, judged)
    ]


def _accepted(models: list[Model], report: Any) -> list[bool]:
    """Whether the product finds nothing wrong with any output of a part."""
    errors = list(report.artifacts[0].validation.conversion)
    accepted = []
    for model in models:
        count = len(pressing.answers(model.module, model.inputs))
        of_part, errors = errors[:count], errors[count:]
        accepted.append(all(converted(error, TOLERANCE_DB["float16"]) for error in of_part))
    return accepted


def _judge_parts(models: list[Model], path: Path) -> list[Judged]:
    """The worst output of each part, over all inputs of the parts' own."""
    runner = open_runner(path, host="reference")
    worst = [Judged(200.0, "") for _ in models]
    for drawn in zip(*[pressing.own_inputs(model) for model in models]):
        given = list(runner([pressing.as_taken(value) for values in drawn for value in values]).values())
        for index, (model, values) in enumerate(zip(models, drawn)):
            wanted = pressing.answers(model.module, values)
            have, given = given[: len(wanted)], given[len(wanted) :]
            judged = pressing.worst_of(wanted, have)
            worst[index] = min(worst[index], judged, key=lambda one: one.psnr_db)
    return worst
