"""An exception of a model's own code in; the line and the module that it comes from out."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def where(error: Exception, root: torch.nn.Module) -> str:
    """ "modeling.py:12, in module encoder.layer.0 (Layer)": the last line that is neither torch's nor ours,
    and the innermost module of `root` that was running."""
    import torch

    foreign = str(Path(torch.__file__).parent), str(Path(__file__).parent)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(foreign)
    ]
    recorded = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', str(error))
    user = [match for match in recorded if foreign[0] not in match[0]]
    place = (
        f"{user[-1][0]}:{user[-1][1]}"
        if user
        else f"{frames[-1].filename}:{frames[-1].lineno}"
        if frames
        else ""
    )
    module = module_at(error, root)
    return ", ".join(part for part in (place, f"in module {module}" if module else "") if part) or "unknown"


def module_at(error: Exception, root: torch.nn.Module) -> str:
    """Qualified name of the innermost module whose forward was running when the error was raised."""
    import torch

    names = {id(module): name or type(module).__name__ for name, module in root.named_modules()}
    innermost, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and id(owner) in names:
            innermost = f"{names[id(owner)]} ({type(owner).__name__})"
        trace = trace.tb_next
    return innermost
