#!/usr/bin/env bash
# coremltools 9.0: converting a convolution from which a tensor is subtracted negates that tensor in the caller's model.
# Expected: a conversion reads the model; the same program can be converted again, and the model still computes the same.
# Seen: `conv(x) - bias` becomes a convolution with a bias; its pass multiplies the constant by -1 where it lies, which is
# the module's own parameter: [1, 2] is [-1, -2] afterwards, and the model itself adds instead of subtracting.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import torch


class Shifted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 1, bias=False)
        self.shift = torch.nn.Parameter(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), requires_grad=False)

    def forward(self, x):
        return self.conv(x) - self.shift


net, x = Shifted().eval(), torch.randn(1, 2, 3, 3)
program = torch.export.export(net, (x,)).run_decompositions({})
with torch.no_grad():
    before = net(x)
    ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    change = (net(x) - before).abs().max().item()
print("coremltools", ct.__version__, "parameter:", net.shift.flatten().tolist(), "the model's answers change by", change)
assert net.shift.flatten().tolist() == [-1.0, -2.0] and change > 1, "coremltools leaves the model as it is now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
