#!/usr/bin/env bash
# coremltools 9.0 with torch 2.13.0: the front end for exported programs drops arguments that are given by keyword
# only.
# Expected: torch.add(x, y, alpha=3), which torch.export keeps as one aten.add.Tensor, is x + 3 y, or refused.
# Seen: the package computes x + y: one `add`, and no 3 anywhere in the program. The same function by
# torch.jit.trace, whose operators have all arguments in order, is refused in words.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import torch


class Weighted(torch.nn.Module):
    def forward(self, x, y):
        return torch.add(x, y, alpha=3)


def operators(model, **inputs):
    package = ct.convert(
        model,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
        **inputs,
    )
    return [op.op_type for op in package._mil_program.functions["main"].operations if op.op_type != "const"]


examples = (torch.ones(4), torch.ones(4))
exported = torch.export.export(Weighted().eval(), examples).run_decompositions({})
traced = torch.jit.trace(Weighted().eval(), examples)
types = [ct.TensorType(name=name, shape=(4,)) for name in ("x", "y")]
by_export = operators(exported)
try:
    by_trace = operators(traced, inputs=types)
except ValueError as error:
    by_trace = str(error)
print("coremltools", ct.__version__, "torch", torch.__version__, "exported:", by_export, "traced:", by_trace)
assert by_export == ["add"], "the factor is kept now"
assert "scale factor" in by_trace, "the traced form has changed"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
