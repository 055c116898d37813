#!/usr/bin/env bash
# coremltools 9.0, ClassifierConfig: two classes of one label are taken without a word, and a model with a second output
# cannot be made a classifier.
# Expected: labels that are not unlike each other are refused (the answer is a dictionary by label: one of the two is lost),
# and a model that returns probabilities and features keeps both, as predicted_probabilities_output lets one hope.
# Seen: the package holds ["cat", "cat", "cow"]; ct.convert of a model with two outputs ends in "IndexError: list index out
# of range", with and without predicted_probabilities_output, as its list of output types has one entry less than the block.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import torch


class Net(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear, self.outputs = torch.nn.Linear(4, 3), outputs

    def forward(self, x):
        y = self.linear(x)
        return (y.softmax(-1), y.tanh())[: self.outputs] if self.outputs > 1 else y.softmax(-1)


def converted(outputs, labels):
    program = torch.export.export(Net(outputs).eval(), (torch.zeros(1, 4),)).run_decompositions({})
    config = ct.ClassifierConfig(labels)
    return ct.convert(
        program, classifier_config=config, minimum_deployment_target=ct.target.iOS16, skip_model_load=True
    )


function = converted(1, ["cat", "cat", "cow"]).get_spec().mlProgram.functions["main"]
last = function.block_specializations[function.opset].operations[-1]
listed = last.inputs["classes"].arguments[0].value.immediateValue.list.values
labels = [value.immediateValue.tensor.strings.values[0] for value in listed]
try:
    converted(2, ["cat", "dog", "cow"])
    second = "a model with two outputs is converted"
except IndexError as error:
    second = f"a model with two outputs: IndexError: {error}"
print("coremltools", ct.__version__, "labels in the package:", labels, "--", second)
assert labels == ["cat", "cat", "cow"] and "IndexError" in second, "coremltools checks labels and outputs now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
