"""8-bit activations through the main job on a trained model: the MiniLM sentence encoder keeps its
embeddings."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert
from cidermill.validation import open_runner

LENGTH = 32
CALIBRATION = [
    "An old press turns fruit into juice.", "Barrels are cleaned before the wine is filled in.",
    "The model learns from many examples.", "Numbers are rounded to the nearest step.",
    "The bus to the airport is late again.", "He practises the violin every evening.",
    "Snow will fall in the valleys tomorrow.", "The minister resigned after the vote.",
    "My account is locked, what can I do?", "Prices rose sharply in the spring.",
    "Leaves are green because of chlorophyll.", "Stir the dough until it is smooth.",
]  # fmt: skip
SENTENCES = [
    "The orchard was picked before the first frost.", "Quantization stores each weight in fewer bits.",
    "The train to Lyon leaves at seven.", "How do I reset my password?",
    "Stock markets fell after the announcement.", "Photosynthesis turns light into sugar.",
    "Glaciers are retreating in the Alps.", "The dog barked at the postman again.",
]  # fmt: skip


def pooled(hidden, mask):
    """Mean of the token vectors under the mask, at unit length."""
    row = (hidden * mask[:, None]).sum(0) / mask.sum()
    return row / np.linalg.norm(row)


@pytest.mark.parametrize("recipe", ["w8a8:average"])
def test_embeddings_survive_8_bit_activations(recipe, encoder, tmp_path):
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    calibration, tokens = (
        tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np")
        for texts in (CALIBRATION, SENTENCES)
    )
    names = ("input_ids", "attention_mask")
    np.savez(
        tmp_path / "samples.npz", **{name: calibration[name].astype(np.int32)[:, None] for name in names}
    )
    arguments = [
        str(encoder),
        "--quant",
        recipe,
        "--samples",
        str(tmp_path / "samples.npz"),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    for name in names:
        arguments += ["--input", f"{name}:1x{LENGTH}"]
    result = CliRunner().invoke(convert, arguments)
    assert result.exit_code == 0, result.output
    artifact = json.loads(result.stdout)["artifacts"][0]
    assert artifact["validation"]["tolerance_db"] == 25 and artifact["verdict"] == "pass"
    left = next(warning for warning in artifact["warnings"] if "keep float activations" in warning)
    assert "embeddings.word_embeddings.weight: its input is no activation of the graph" in left

    model = transformers.AutoModel.from_pretrained(encoder).eval()
    runner = open_runner(tmp_path / "out" / "model.mlpackage", host="reference")
    cosines = []
    for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"]):
        with torch.no_grad():
            wanted = (
                model(torch.from_numpy(ids[None]).long(), torch.from_numpy(mask[None]).long())
                .last_hidden_state[0]
                .numpy()
            )
        found = runner(
            {"input_ids": ids[None].astype(np.int32), "attention_mask": mask[None].astype(np.int32)}
        )["last_hidden_state"][0]
        cosines.append(float(pooled(wanted, mask) @ pooled(found, mask)))
    assert min(cosines) >= 0.99, cosines
