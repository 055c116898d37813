#!/usr/bin/env bash
# ExecuTorch 1.4.1: CPU kernels sum up in half precision, and norms subtract two squares, also in float32.
# Expected: what the same exported program gives in torch, to the precision of its type.
# Seen: cumsum over 4,096 ones in float16 ends at 2,048 (one more is rounded away from there on; torch: 4,096).
# group_norm in float32 of numbers that are 999 or 1001 gives -2 and 2 (torch: -1 and 1): the variance is computed as
# E[x^2] - E[x]^2, whose digits cancel.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "executorch==1.4.1" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
from importlib.metadata import version

import torch
from executorch.exir import to_edge
from executorch.runtime import Runtime


class Sums(torch.nn.Module):
    def forward(self, ones, steep):
        return ones.cumsum(0)[-1], torch.nn.functional.group_norm(steep, 1)


inputs = torch.ones(4096, dtype=torch.float16), 1000 + torch.arange(64.0).remainder(2).reshape(1, 1, 64) * 2 - 1
program = to_edge(torch.export.export(Sums().eval(), inputs)).to_executorch()
total, normal = Runtime.get().load_program(program.buffer).load_method("forward").execute(inputs)
expected = Sums()(*inputs)
print("executorch", version("executorch"), "sum of 4,096 ones:", total.item(), "torch:", expected[0].item(), end="; ")
print("group_norm of 999 and 1001:", sorted(set(normal.flatten().tolist()))[:3], "torch:", sorted(set(expected[1].flatten().tolist())))
assert total.item() == 2048 and expected[0].item() == 4096, "half precision is summed up in float32 now"
assert not torch.allclose(normal, expected[1], atol=0.01), "group_norm is stable now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
