#!/usr/bin/env bash
# torch 2.13: an exported affine grid that has a side of one cannot be decomposed.
# Expected: whatever `torch.export` captures, `run_decompositions` takes apart, as it does for every other size.
# Seen: AssertionError ("entirely functional graph ... aten.detach_"). For a side of one the decomposition of
# affine_grid_generator makes its only coordinate with `torch.tensor`, which leaves an operator that works in
# place in the graph. Both kinds of grids (pictures, volumes) end so, whichever side it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import torch
import torch.nn.functional as F


class Grid(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, theta):
        return F.affine_grid(theta, self.size, align_corners=False)


def ends(size):
    axes = len(size) - 2
    program = torch.export.export(Grid(size), (torch.zeros(1, axes, axes + 1),))
    try:
        program.run_decompositions()
    except AssertionError as error:
        return "refused" if "detach_" in str(error) else f"other error: {error}"
    return "decomposed"


sizes = ([1, 3, 4, 5], [1, 3, 1, 5], [1, 3, 4, 1], [1, 3, 2, 2, 2], [1, 3, 2, 1, 2])
seen = [ends(size) for size in sizes]
print("torch", torch.__version__, dict(zip(map(tuple, sizes), seen)))
assert seen == ["decomposed", "refused", "refused", "decomposed", "refused"], "it has changed"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
