"""A path -> Source: the format is recognised by content, the model loaded without running code that came with
the file."""

from pathlib import Path

from .errors import UserError
from .extras import require_extra
from .formats import recognise
from .inputs import InputSpec
from .source import Source
from .source_kind import WHOLE, LoadOptions


def load(
    path: str | Path,
    inputs: tuple[InputSpec, ...] = (),
    model_class: str | None = None,
    trust_pickle: bool = False,
) -> Source:
    """Load a model of any of `formats.SOURCES`; the options are those of `LoadOptions`. Raises UserError for
    everything that is wrong with the file or the options."""
    path = Path(path)
    try:
        kind = recognise(path)
        if kind.extra:
            require_extra(kind.extra, f"{path}, {kind.title},")
        if model_class is not None and kind.holds == WHOLE:
            raise UserError(
                f"{path} is {WHOLE} ({kind.name}), so --model-class has no use.", "Leave --model-class out."
            )
        return kind.load(path, LoadOptions(inputs, model_class, trust_pickle))
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}.",
            "Check the path and who may read it.",
        ) from error
