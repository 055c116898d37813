"""`--part`: the parts of models of transformers as artifacts of their own, which an app calls one after the
other."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill import Report, open_runner
from cidermill import convert as convert_in_python
from cidermill.models.load import load
from cidermill.pipeline.commands.cli import convert, main
from cidermill.pipeline.loading import with_samples
from cidermill.pipeline.parts import compare_together
from cidermill.pipeline.plan import plan_from

README = Path(__file__).resolve().parents[2] / "README.md"
WIDTHS = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
TOKENS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def whisper(transformers):
    config = transformers.WhisperConfig(
        **WIDTHS, **TOKENS, num_mel_bins=20, max_source_positions=50, max_target_positions=32,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def bart(transformers):
    config = transformers.BartConfig(
        **WIDTHS, **TOKENS, max_position_embeddings=32, decoder_start_token_id=1, forced_eos_token_id=None
    )
    return transformers.BartForConditionalGeneration(config)


def clip(transformers):
    text = {**TOWER, **TOKENS, "eos_token_id": 99, "max_position_embeddings": 16}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return transformers.CLIPModel(config)


def florence(transformers):
    vision = {
        "embed_dim": [16] * 2, "num_heads": [2] * 2, "num_groups": [2] * 2, "depths": [1] * 2,
        "window_size": 4,
        "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
        "projection_dim": 32, "image_size": 32, "max_temporal_embeddings": 1, "max_position_embeddings": 8,
    }  # fmt: skip
    text = {
        "model_type": "bart", **WIDTHS, **TOKENS, "max_position_embeddings": 32, "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
    }  # fmt: skip
    config = transformers.Florence2Config(text_config=text, vision_config=vision, image_token_id=99)
    return transformers.Florence2ForConditionalGeneration(config)


def saved(build, folder, seed=0):
    import transformers

    torch.manual_seed(seed)
    model = build(transformers).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return model


def command(words, code=0, of=convert):
    result = CliRunner().invoke(of, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """-> (the model, its folder, the folder of its parts for both targets)"""
    folder = tmp_path_factory.mktemp("speech")
    model = saved(whisper, folder / "whisper")
    targets = ["--target", "coreml", "--target", "executorch-mps"]
    output = command([folder / "whisper", "--part", "decoder,encoder", *targets, "--out", folder / "out"])
    assert "All parts, one after the other, against the whole model: coreml float16: logits" in output
    return model, folder / "whisper", folder / "out"


@pytest.mark.parametrize("suffix", [".mlpackage", ".pte"])
def test_the_artifacts_in_a_row_give_what_the_whole_model_gives(speech, suffix):
    model, _, out = speech
    features, tokens = torch.randn(1, 20, 100), torch.randint(3, 99, (1, 32))
    encoded = open_runner(out / "encoder" / f"whisper-encoder{suffix}")({"input_features": features})
    decoder = open_runner(out / "decoder" / f"whisper-decoder{suffix}")
    answer = decoder({"decoder_input_ids": tokens.int(), **encoded})
    with torch.no_grad():
        wanted = model(input_features=features, decoder_input_ids=tokens).logits.numpy()
    assert np.abs(answer["logits"] - wanted).max() < 0.005 * np.abs(wanted).max()


def test_the_report_is_of_all_parts_and_each_has_its_own(speech):
    _, folder, out = speech
    report = Report.from_json(out)
    assert report.verdict == "pass" and report.source.path == str(folder)
    assert [part.name for part in report.parts] == [
        "encoder",
        "decoder",
    ]  # as they run, not as they were given
    assert [artifact.part for artifact in report.artifacts] == ["encoder"] * 2 + ["decoder"] * 2
    assert all((out / artifact.path).exists() for artifact in report.artifacts)
    assert [spec.name for spec in report.source.inputs] == ["input_features", "decoder_input_ids"]
    assert [spec.name for spec in report.source.outputs] == ["encoder_hidden_states", "logits"]
    own = Report.from_json(out / "decoder")
    assert (own.source.part, own.artifacts[0].path) == ("decoder", "whisper-decoder.mlpackage")
    assert own.source.parameters < report.source.parameters  # of what its graph needs
    for chain in report.together:
        assert chain.verdict == "pass" and chain.outputs[0].psnr_db > 50


def test_what_comes_together_wrong_fails(speech, tmp_path):
    """Each part is right, but the encoder is another model's."""
    _, folder, out = speech
    saved(whisper, tmp_path / "whisper", seed=1)
    command([tmp_path / "whisper", "--part", "encoder", "--out", tmp_path / "other"])
    shutil.copytree(out, tmp_path / "mixed")
    package = tmp_path / "mixed" / "encoder" / "whisper-encoder.mlpackage"
    shutil.rmtree(package)
    shutil.copytree(tmp_path / "other" / "whisper-encoder.mlpackage", package)
    plan = plan_from(folder, {"part": ["encoder", "decoder"]})
    joint = Report.from_json(out)
    reports = {
        name: replace(
            Report.from_json(out / name),
            artifacts=tuple(one for one in joint.artifacts if one.part == name and one.target == "coreml"),
        )
        for name in plan.parts
    }
    source, samples = with_samples(load(folder), None)
    right = compare_together(plan, source, samples, reports, out, dict)
    assert [chain.verdict for chain in right] == ["pass"]
    mixed = compare_together(plan, source, samples, reports, tmp_path / "mixed", dict)
    assert [chain.verdict for chain in mixed] == ["fail"] and mixed[0].outputs[0].psnr_db < 30


def test_commands_for_releases_take_all_parts_at_once(speech, tmp_path):
    _, folder, out = speech
    lock = ["--lock", tmp_path / "lock.json"]
    command(["check", out, *lock, "--update"], of=main)
    locked = json.loads((tmp_path / "lock.json").read_text())["artifacts"]
    assert sorted(locked) == sorted(
        f"whisper-{part}/{target}/float16"
        for part in ("encoder", "decoder")
        for target in ("coreml", "executorch-mps")
    )
    command(["check", out, *lock], of=main)
    command(["bundle", out, "--out", tmp_path / "bundle"], of=main)
    sources = tmp_path / "bundle" / "Sources" / "AppModels"
    assert (sources / "WhisperEncoder.swift").exists() and (sources / "WhisperDecoder.swift").exists()
    package = out / "decoder" / "whisper-decoder.mlpackage"
    validated = command(["validate", package, "--against", folder, "--part", "decoder"], of=main)
    assert validated.endswith("At least 40 dB are asked: pass")


def test_masks_reach_both_parts(tmp_path):
    model = saved(bart, tmp_path / "bart")
    report = convert_in_python(tmp_path / "bart", part="encoder,decoder", out=tmp_path / "out")
    assert report.verdict == "pass" and report.together[0].outputs[0].psnr_db > 50
    inputs = {part.name: [spec.name for spec in part.inputs] for part in report.parts}
    assert inputs == {
        "encoder": ["input_ids", "attention_mask"],
        "decoder": ["decoder_input_ids", "encoder_hidden_states", "attention_mask"],
    }
    ids, mask = torch.randint(3, 99, (1, 32)), torch.ones(1, 32, dtype=torch.int64)
    mask[:, 20:] = 0
    given = {"input_ids": ids.int(), "attention_mask": mask.int(), "decoder_input_ids": ids.flip(1).int()}
    for part in report.parts:
        runner = open_runner(tmp_path / "out" / part.name / f"bart-{part.name}.mlpackage")
        given |= runner({spec.name: given[spec.name] for spec in part.inputs})
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids.flip(1)).logits.numpy()
    assert np.abs(given["logits"] - wanted).max() < 0.005 * np.abs(wanted).max()


def test_two_towers_and_the_similarity_of_their_embeddings(tmp_path):
    saved(clip, tmp_path / "clip")
    report = convert_in_python(tmp_path / "clip", part="text,image", quant="int8", out=tmp_path / "out")
    assert [(part.name, [spec.name for spec in part.outputs]) for part in report.parts] == [
        ("text", ["text_embeds"]), ("image", ["image_embeds"]),
    ]  # fmt: skip
    (chain,) = report.together
    assert [error.output for error in chain.outputs] == ["text_embeds", "image_embeds", "similarity"]
    assert chain.asked_db is None and min(error.psnr_db for error in chain.outputs) > 35
    whole, parts = report.source.parameters, [part.parameters for part in report.parts]
    # the scale of the logits is in neither; positions and the picture's class are sums by then
    assert sum(parts) == whole - 1 - (16 + 17 + 1) * 32
    page = (tmp_path / "out" / "report.html").read_text()
    assert "All parts, one after the other" in page and "similarity" in page


def test_a_text_beside_a_picture_begins_with_the_picture(tmp_path):
    model = saved(florence, tmp_path / "florence")
    report = convert_in_python(tmp_path / "florence", part="encoder,decoder", out=tmp_path / "out")
    assert report.verdict == "pass"
    inputs = [spec.name for spec in report.parts[0].inputs]
    assert inputs == ["input_ids", "pixel_values", "attention_mask"]
    picture, count = (
        torch.randn(1, 3, 32, 32),
        len(model.get_image_features(torch.zeros(1, 3, 32, 32)).pooler_output[0]),
    )
    ids = torch.cat([torch.full((1, count), 99), torch.randint(3, 98, (1, 32 - count))], 1)
    given = {
        "input_ids": ids.int(), "pixel_values": picture, "attention_mask": torch.ones(1, 32).int(),
        "decoder_input_ids": ids.flip(1)[:, :32].int() % 98,
    }  # fmt: skip
    with torch.no_grad():
        tokens = given["decoder_input_ids"].long()
        wanted = model(input_ids=ids, pixel_values=picture, decoder_input_ids=tokens).logits.numpy()
    for part in report.parts:
        runner = open_runner(tmp_path / "out" / part.name / f"florence-{part.name}.mlpackage")
        given |= runner({spec.name: given[spec.name] for spec in part.inputs})
    assert np.abs(given["logits"] - wanted).max() < 0.01 * np.abs(wanted).max()


def test_names_samples_and_descriptions_are_of_the_part_that_has_them(speech, tmp_path):
    _, folder, _ = speech
    numbers = np.random.default_rng(0)
    np.savez(
        tmp_path / "samples.npz",
        input_features=numbers.standard_normal((2, 1, 20, 100), dtype=np.float32),
        decoder_input_ids=numbers.integers(3, 99, (2, 1, 32)).astype(np.int32),
    )
    options = [
        "--name",
        "encoder_hidden_states=sound",
        "--name",
        "logits=scores",
        "--metadata",
        "describe.sound=Heard",
    ]
    command([
        folder, "--part", "encoder,decoder", *options, "--samples", tmp_path / "samples.npz",
        "--out", tmp_path / "out",
    ])  # fmt: skip
    report = Report.from_json(tmp_path / "out")
    assert (report.source.samples.kind, report.source.samples.count) == ("real", 2)
    assert [[spec.name for spec in part.outputs] for part in report.parts] == [["sound"], ["scores"]]
    assert [error.output for error in report.together[0].outputs] == ["logits"]


@pytest.mark.parametrize(
    "options, told",
    [
        ("--part decoder,dekoder", "{folder} has no such part. → Its parts are encoder and decoder."),
        ("--part encoder,encoder", "--part names encoder twice."),
        ("--part encoder,", "names a part that is empty."),
        ("--part encoder,decoder --budget 1MB", "--budget is for one model, and --part names 2."),
        ("--part encoder,decoder --labels auto", "--labels is for one model, and --part names 2."),
        ("--part encoder,decoder --dry-run", "--dry-run is for one model, and --part names 2."),
        ("--part encoder,decoder --name nothing=x", "no part has an input or output 'nothing'."),
    ],
)  # fmt: skip
def test_wrong_parts_are_answered_in_words(speech, tmp_path, options, told):
    _, folder, _ = speech
    output = command([folder, *shlex.split(options), "--out", tmp_path / "out"], 2)
    assert " ".join(told.format(folder=folder).split()) in output
    assert not (tmp_path / "out").exists()


def test_a_model_without_parts_says_so(zoo_path, tmp_path):
    output = command([zoo_path("bert"), "--part", "encoder", "--out", tmp_path / "out"], 2)
    assert "is one model without parts." in output and "Leave --part out." in output


def test_one_part_is_converted_as_a_model_of_its_own(speech, tmp_path):
    _, folder, _ = speech
    command([folder, "--part", "encoder", "--out", tmp_path / "out"])
    report = Report.from_json(tmp_path / "out")
    assert (report.source.part, report.artifacts[0].path) == ("encoder", "whisper-encoder.mlpackage")
    assert not report.parts
    assert "float16" in command([folder, "--part", "decoder", "--dry-run"])


def test_the_example_of_the_readme_runs(speech, tmp_path, monkeypatch):
    text = README.read_text().partition("### Parts of a model")[2]
    words = re.search(r"```\ncidermill convert \./whisper-folder (.+)\n```", text)[1]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(speech[1], "whisper-folder")
    command(["./whisper-folder", *shlex.split(words)])
    assert Report.from_json(tmp_path / "whisper-folder-artifacts").verdict == "pass"
