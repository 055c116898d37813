"""What work inside a stage is told with, so that whoever called can show it, or not."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field


@dataclass
class Step:
    """What a stage is given to report with: `step("encoder.layer.0")` counts one more part. `note` is shown
    when the stage is done."""

    advance: Callable[[str], object]
    note: str = ""
    done: int = field(default=0, init=False)

    def __call__(self, label: str = "") -> None:
        self.done += 1
        self.advance(label)


Show = Callable[..., AbstractContextManager[Step]]  # (name of a stage, number of its parts if known)


@contextmanager
def silent(name: str, total: int | None = None) -> Iterator[Step]:
    """A `Show` that shows nothing."""
    yield Step(lambda label: None)
