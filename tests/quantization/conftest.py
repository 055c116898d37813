"""Small modules, captured as the rest of the program sees them."""

import pytest
import torch

from cidermill.models.capture import Captured, kept_composites


@pytest.fixture(scope="session")
def captured():
    """(module, *inputs) -> Captured with only the program filled in."""

    def capture(module: torch.nn.Module, *inputs: torch.Tensor) -> Captured:
        table = torch.export.default_decompositions()
        for operator in kept_composites():
            table.pop(operator, None)
        program = torch.export.export(module.eval(), inputs).run_decompositions(table)
        return Captured(None, program, (), (), None, ())

    return capture
