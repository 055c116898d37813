"""A real trained model through the main job: the MiniLM sentence encoder keeps its embeddings at int8 on both
targets."""

import json

import numpy as np
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert
from cidermill.validation import open_runner

LENGTH = 32
SENTENCES = [
    "The orchard was picked before the first frost.", "Apples are pressed into juice in the old mill.",
    "Cider ferments for weeks in oak barrels.", "A neural network is a function with many parameters.",
    "Quantization stores each weight in fewer bits.", "The train to Lyon leaves at seven.",
    "She plays the cello in a small orchestra.", "Rain is expected over the northern hills tonight.",
    "The court rejected the appeal on Tuesday.", "How do I reset my password?",
    "I forgot the code to my account.", "Stock markets fell after the announcement.",
    "Photosynthesis turns light into sugar.", "The recipe needs two eggs and a cup of flour.",
    "He ran the marathon in under three hours.", "Glaciers are retreating in the Alps.",
    "The museum opens at ten and closes at five.", "Please send the signed contract by Friday.",
    "The dog barked at the postman again.", "Quantum computers use qubits instead of bits.",
]  # fmt: skip


def embed(call, tokens):
    """Mean of the token vectors under the mask, at unit length: what sentence-transformers makes of this
    model. -> [sentences, 384]"""
    rows = []
    for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"]):
        hidden = call(ids[None].astype(np.int32), mask[None].astype(np.int32))[0]
        pooled = (hidden * mask[:, None]).sum(0) / mask.sum()
        rows.append(pooled / np.linalg.norm(pooled))
    return np.stack(rows)


def test_embeddings_survive_int8_on_both_targets(encoder, tmp_path):
    import torch
    import transformers

    out = tmp_path / "out"
    arguments = [
        str(encoder),
        "--quant",
        "int8",
        "--target",
        "coreml",
        "--target",
        "executorch-mps",
        "--out",
        str(out),
        "--json",
    ]
    for name in ("input_ids", "attention_mask"):
        arguments += ["--input", f"{name}:1x{LENGTH}"]
    result = CliRunner().invoke(convert, arguments)
    assert result.exit_code == 0, result.output
    sizes = {
        artifact["target"]: artifact["size_bytes"] for artifact in json.loads(result.stdout)["artifacts"]
    }
    parameters = json.loads(result.stdout)["source"]["parameters"]
    assert all(size < 1.05 * parameters for size in sizes.values())

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    tokens = tokenizer(
        SENTENCES, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np"
    )
    model = transformers.AutoModel.from_pretrained(encoder).eval()

    def source(ids, mask):
        with torch.no_grad():
            return model(
                torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
            ).last_hidden_state.numpy()

    wanted = embed(source, tokens)
    assert np.abs(wanted @ wanted.T - np.eye(len(SENTENCES))).max() < 0.9, (
        "the sentences must differ for this to prove anything"
    )
    for name in ("model.mlpackage", "model.pte"):
        runner = open_runner(out / name)
        found = embed(
            lambda ids, mask: runner({"input_ids": ids, "attention_mask": mask})["last_hidden_state"], tokens
        )
        cosines = (wanted * found).sum(1)
        assert cosines.min() >= 0.99, (name, cosines.min())
