"""Hugging Face folders: the model's own inputs and outputs, offline, quietly; and folders that are not
whole."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cidermill.models.configured_inputs import _image_shape, _text_shape, _wave_shape, inputs_of
from cidermill.models.errors import UserError
from cidermill.models.hugging_face import _configuration
from cidermill.models.inputs import InputSpec
from cidermill.models.load import load
from cidermill.models.samples import synthetic


def refusal(path, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, *args, **options)
    assert error.value.hint
    return str(error.value)


@pytest.fixture
def folder(bert_folder, tmp_path):
    return shutil.copytree(bert_folder, tmp_path / "model")


def configure(folder, **changes):
    settings = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in settings.items() if value is not None})
    )


def test_text(bert_folder, as_tensors, capfd):
    source = load(bert_folder)
    assert capfd.readouterr() == ("", "")
    assert source.format == "hugging-face" and source.warnings == ()
    assert [(s.name, s.shape, s.dtype) for s in source.inputs] == [
        ("input_ids", (1, 24), "int32"),
        ("attention_mask", (1, 24), "int32"),
    ]
    assert source.limits == {"input_ids": (0, 50, False)}
    inputs = as_tensors(synthetic(source.inputs, 1, 0, source.limits).batches[0])
    with torch.no_grad():
        outputs = source.module(**inputs)
        exported = torch.export.export(source.module, (), inputs, strict=False)
        assert torch.allclose(exported.module()(**inputs)["logits"], outputs["logits"], atol=1e-6)
    assert list(outputs) == ["logits"] and "bert.embeddings.word_embeddings.weight" in exported.state_dict
    assert any("scaled_dot_product_attention" in str(node.target) for node in exported.graph.nodes)


def test_caches_are_switched_off(bert_folder):
    import transformers

    assert json.loads((bert_folder / "config.json").read_text())["use_cache"]
    assert not _configuration(bert_folder, transformers.BertForSequenceClassification).use_cache


def test_shapes_and_further_inputs_by_name(bert_folder):
    given = (
        InputSpec("token_type_ids", (1, 5)),
        InputSpec("input_ids", (1, 5)),
        InputSpec("attention_mask", (1, 5), "int32"),
    )
    source = load(bert_folder, given)
    assert [(s.name, s.shape, s.dtype) for s in source.inputs] == [
        ("input_ids", (1, 5), "int32"),
        ("attention_mask", (1, 5), "int32"),
        ("token_type_ids", (1, 5), "int32"),
    ]
    assert source.limits["token_type_ids"] == (0, 2, False)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            InputSpec("tokens", (1, 5)),
            "has no input 'tokens'. Its inputs are: input_ids (1x24 int32), attention_mask (1x24 int32).",
        ),
        (
            InputSpec("input_ids", (5,)),
            "Input 'input_ids' of BertForSequenceClassification has 2 dimensions, but --input gives 1: 5.",
        ),
        (InputSpec("input_ids", (1, 5), "float32"), "is int32, but --input says float32."),
        (InputSpec("input_ids", (1, 99)), "does not run on input_ids (1x99 int32)"),
    ],
    ids=["name", "rank", "dtype", "length"],
)
def test_wrong_inputs(bert_folder, given, message):
    assert message in refusal(bert_folder, (given,))


def test_identity_is_of_config_and_weights(folder):
    before = load(folder).sha256
    (folder / "README.md").write_text("hello")
    assert load(folder).sha256 == before
    configure(folder, id2label={"0": "yes", "1": "no"})
    assert load(folder).sha256 != before


def test_half_precision_is_loaded_as_float32(folder):
    import transformers

    transformers.BertForSequenceClassification.from_pretrained(folder).half().save_pretrained(folder)
    assert {p.dtype for p in load(folder).module.parameters()} == {torch.float32}


def test_weights_only_bin_folder(folder):
    from safetensors.torch import load_file

    expected = load(folder).module.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert all(torch.equal(value, expected[name]) for name, value in load(folder).module.state_dict().items())


def test_payload_in_bin_does_not_run(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return __import__("os").system, (f"touch {tmp_path / 'ran'}",)

    (folder / "model.safetensors").unlink()
    torch.save({"w": Payload()}, folder / "pytorch_model.bin")
    assert "holds more than tensors: it would import posix.system. None of it was run." in refusal(folder)
    assert not (tmp_path / "ran").exists()


def shard(folder):
    import transformers

    transformers.BertForSequenceClassification.from_pretrained(folder).save_pretrained(
        folder, max_shard_size="4KB"
    )
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def test_shards(folder):
    expected = load(folder).module.state_dict()
    assert len(shard(folder)) > 1
    assert all(torch.equal(value, expected[name]) for name, value in load(folder).module.state_dict().items())


def test_missing_and_truncated_shards(folder):
    shards = shard(folder)
    data = shards[0].read_bytes()
    shards[0].write_bytes(data[:-10])
    assert f"{shards[0].name} is not a sound safetensors file" in refusal(folder)
    shards[0].unlink()
    assert f"lacks 1 of {len(shards)} weight files: {shards[0].name}." in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "is not a weight index" in refusal(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"architectures": ["BertForTelepathy"]},
            "the architecture 'BertForTelepathy' is not a model class of transformers",
        ),
        ({"architectures": ["pipeline"]}, "the architecture 'pipeline' is not a model class"),
        (
            {"architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
            "brings its own code for Mine (auto_map)",
        ),
        ({"architectures": None}, "names no architectures."),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is already quantized (gptq)."),
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 in num_hidden_layers, but the files hold"),
        (
            {"hidden_size": 17},
            "cannot be loaded as BertForSequenceClassification: The hidden size (17) is not a multiple",
        ),
        ({"vocab_size": 51}, "word_embeddings.weight is 50x16, BertForSequenceClassification wants 51x16"),
        (
            {"hidden_size": "many"},
            (
                "is not a configuration of BertForSequenceClassification: Validation error for field"
                " 'hidden_size': TypeError"
            ),
        ),
        ({"architectures": ["BertForMaskedLM"]}, "of BertForMaskedLM are not in the files: cls.predictions"),
    ],
)
def test_bad_configurations(folder, changes, message):
    configure(folder, **changes)
    assert message in refusal(folder)


def test_custom_code_in_the_folder_is_never_imported(folder, tmp_path):
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    configure(folder, auto_map={"AutoModel": "mine.Mine", "AutoConfig": "mine.MineConfig"})
    load(folder)
    assert not (tmp_path / "ran").exists()


def test_unused_weights_are_mentioned(folder):
    configure(folder, architectures=["BertModel"])
    assert load(folder).warnings == (
        "2 stored weights are not part of BertModel and were left out: classifier.bias, classifier.weight",
    )


def test_broken_config(folder):
    (folder / "config.json").write_text('{"architectures": [')
    assert "config.json is not valid JSON" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "names no architectures" in refusal(folder)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    assert (
        "has no weights: none of model.safetensors, model.safetensors.index.json, pytorch_model.bin"
        in refusal(folder)
    )
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter (LoRA), not a whole model." in refusal(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "is not a sound safetensors file: its tensors need" in refusal(folder)


@pytest.mark.parametrize(
    "config, processor, shape",
    [
        ({"image_size": 32}, None, (1, 3, 32, 32)),
        ({"image_size": [32, 48], "num_channels": 1}, None, (1, 1, 32, 48)),
        ({}, {"size": {"shortest_edge": 256}, "crop_size": {"height": 240, "width": 200}}, (1, 3, 240, 200)),
        ({}, {"size": {"shortest_edge": 256}}, (1, 3, 256, 256)),
        ({}, None, (1, 3, 224, 224)),
        ({"image_size": 32, "num_frames": 8}, None, (1, 8, 3, 32, 32)),
    ],
)
def test_image_shapes(tmp_path, config, processor, shape):
    if processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert _image_shape(tmp_path, SimpleNamespace(**config)) == shape


def configs():
    import transformers as T

    encoder = dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
    decoder = dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16)
    tokens = dict(vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    text = dict(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return {
        "whisper": lambda: T.WhisperForConditionalGeneration(
            T.WhisperConfig(
                num_mel_bins=8,
                max_source_positions=10,
                max_target_positions=9,
                **encoder,
                **decoder,
                **tokens,
            )
        ),
        "t5": lambda: T.T5ForConditionalGeneration(
            T.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        "clip": lambda: T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)),
        "mamba": lambda: T.MambaForCausalLM(
            T.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4)
        ),
    }


@pytest.mark.parametrize(
    "name, inputs, outputs",
    [
        (
            "whisper",
            {"input_features": (1, 8, 20), "decoder_input_ids": (1, 9)},
            {"logits", "encoder_last_hidden_state"},
        ),
        (
            "t5",
            {"input_ids": (1, 128), "attention_mask": (1, 128), "decoder_input_ids": (1, 128)},
            {"logits", "encoder_last_hidden_state"},
        ),
        (
            "clip",
            {"input_ids": (1, 12), "pixel_values": (1, 3, 32, 32), "attention_mask": (1, 12)},
            {
                "logits_per_image",
                "logits_per_text",
                "text_embeds",
                "image_embeds",
                "text_model_output_last_hidden_state",
                "text_model_output_pooler_output",
                "vision_model_output_last_hidden_state",
                "vision_model_output_pooler_output",
            },
        ),
        ("mamba", {"input_ids": (1, 16), "attention_mask": (1, 16)}, {"logits"}),
    ],
)
def test_other_kinds(tmp_path, name, inputs, outputs, as_tensors):
    torch.manual_seed(0)
    configs()[name]().save_pretrained(tmp_path)
    source = load(tmp_path)
    assert {spec.name: spec.shape for spec in source.inputs} == inputs
    batch = as_tensors(synthetic(source.inputs, 1, 0, source.limits).batches[0])
    with torch.no_grad():
        assert set(source.module(**batch)) == outputs, "caches are left out"


def test_the_mask_is_as_long_as_the_text_that_was_asked_for(bert_folder):
    source = load(bert_folder, (InputSpec("input_ids", (2, 8)),))
    assert [spec.shape for spec in source.inputs] == [(2, 8), (2, 8)]


def test_a_backbone_without_fused_attention_is_loaded_with_eager_attention(tmp_path):
    import transformers as T

    backbone = T.RTDetrResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = T.RTDetrV2Config(
        backbone_config=backbone, encoder_in_channels=[4] * 3, encoder_hidden_dim=8, encoder_ffn_dim=8,
        encoder_attention_heads=2, d_model=8, decoder_in_channels=[8] * 3, decoder_layers=2,
        decoder_attention_heads=2, decoder_ffn_dim=8, num_queries=4, num_denoising=0,
    )  # fmt: skip
    model = T.RTDetrV2ForObjectDetection(config).eval()
    model.save_pretrained(tmp_path)
    source = load(tmp_path, (InputSpec("pixel_values", (1, 3, 64, 64)),))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        answers, expected = source.module(pixel_values=pixels), model(pixels)
    assert torch.allclose(answers["logits"], expected.logits, atol=1e-5)
    for level, features in enumerate(expected.encoder_last_hidden_state):
        assert torch.allclose(answers[f"encoder_last_hidden_state_{level}"], features, atol=1e-5)


def test_codecs_take_channels(tmp_path):
    import transformers as T

    assert _wave_shape(tmp_path, T.EncodecConfig(audio_channels=2)) == (1, 2, 16000)
    assert _wave_shape(tmp_path, T.MimiConfig()) == (1, 1, 16000)
    assert _wave_shape(tmp_path, T.DacConfig()) == (1, 1, 16000)
    assert _wave_shape(tmp_path, T.Wav2Vec2Config()) == (1, 16000)


def test_boxes_of_a_document_model_are_drawn_within_its_tables(tmp_path):
    import transformers as T

    config = T.LayoutLMConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_2d_position_embeddings=64,
    )  # fmt: skip
    T.LayoutLMModel(config).save_pretrained(tmp_path)
    source = load(tmp_path, (InputSpec("input_ids", (1, 6)), InputSpec("bbox", (1, 6, 4), "int32")))
    assert source.limits["bbox"] == (0, 64, True)
    box = synthetic(source.inputs, 1, 0, source.limits).batches[0]["bbox"]
    assert box.max() > 32 and (np.diff(box, axis=-1) >= 0).all()


def test_a_model_that_returns_a_tensor(tmp_path, as_tensors):
    """As vocoders do; other models of transformers name what they return."""
    import transformers as T

    config = T.SpeechT5HifiGanConfig(
        model_in_dim=4, upsample_initial_channel=8, upsample_rates=[2], upsample_kernel_sizes=[4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
    )  # fmt: skip
    model = T.SpeechT5HifiGan(config).eval()
    model.save_pretrained(tmp_path)
    source = load(tmp_path, inputs=(InputSpec("spectrogram", (1, 6, 4)),))
    inputs = as_tensors(synthetic(source.inputs).batches[0])
    with torch.no_grad():
        assert torch.equal(source.module(**inputs)["output"], model(**inputs))


def test_features_whose_number_no_configuration_tells_are_asked_for(tmp_path):
    """Only Whisper's kin say how many frames they take; it ended in exit 70."""
    import transformers as T

    config = T.Wav2Vec2BertConfig()
    with pytest.raises(
        UserError, match="takes input_features, whose shape config.json does not tell"
    ) as error:
        inputs_of(tmp_path, T.Wav2Vec2BertForCTC, config, ())
    assert error.value.hint == "Give --input input_features:SHAPE."
    (spec,) = inputs_of(tmp_path, T.Wav2Vec2BertForCTC, config, (InputSpec("input_features", (1, 9, 160)),))
    assert (spec.shape, spec.dtype) == ((1, 9, 160), "float32")


def test_siglip_takes_text_and_image(tmp_path):
    import transformers as T

    specs = inputs_of(tmp_path, T.SiglipModel, T.SiglipConfig(), ())
    assert {spec.name: spec.shape for spec in specs} == {
        "input_ids": (1, 64), "attention_mask": (1, 64), "pixel_values": (1, 3, 224, 224),
    }  # fmt: skip


def test_text_of_any_length_takes_the_usual(tmp_path):
    """XLNet has -1 positions, which ended in exit 70."""
    import transformers as T

    config = T.XLNetConfig()
    assert config.max_position_embeddings == -1
    assert _text_shape(tmp_path, config) == (1, 128)
