"""Architectures that a conversion must carry end to end.

Each entry builds a tiny, randomly initialised instance of a published architecture from its `transformers`
configuration. Its weights are rescaled so that activations stay near unit variance: an untouched random
network often gives numbers near zero, which makes every comparison vacuous.

    python tests/zoo/zoo.py OUT_DIR [NAME ...]    # OUT_DIR/NAME/ (a Hugging Face folder), OUT_DIR/NAME.pt2
"""

import sys
from pathlib import Path

import torch
import transformers as T
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

VOCABULARY = 512


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def ids(length=16):
    return {"input_ids": torch.arange(3, 3 + length).remainder(VOCABULARY)[None]}


def text(length=16):
    return {**ids(length), "attention_mask": torch.ones(1, length, dtype=torch.long)}


def image(size=64):
    return {"pixel_values": seeded(1, 3, size, size)}


def sound(length=8000):
    return {"input_values": seeded(1, length)}


WIDTHS = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
ENCODER = dict(WIDTHS, vocab_size=VOCABULARY, max_position_embeddings=64)
DECODER = dict(ENCODER, num_key_value_heads=2, use_cache=False)
VISION = dict(WIDTHS, image_size=64, patch_size=16)


def bert():
    return T.BertForSequenceClassification(T.BertConfig(**ENCODER)), text()


def distilbert():
    config = T.DistilBertConfig(
        vocab_size=VOCABULARY, dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64
    )
    return T.DistilBertForSequenceClassification(config), text()


def albert():
    return T.AlbertForSequenceClassification(T.AlbertConfig(**ENCODER, embedding_size=32)), text()


def t5_encoder():
    config = T.T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    return T.T5EncoderModel(config), text()


def gpt2():
    config = T.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=2, n_head=4, use_cache=False
    )
    return T.GPT2LMHeadModel(config), text()


def llama():
    return T.LlamaForCausalLM(T.LlamaConfig(**DECODER)), text()


def qwen3():
    return T.Qwen3ForCausalLM(T.Qwen3Config(**DECODER, head_dim=16)), text()


def gemma2():
    return T.Gemma2ForCausalLM(T.Gemma2Config(**DECODER, head_dim=16)), text()


def mamba():
    config = T.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, state_size=8, use_cache=False
    )
    return T.MambaForCausalLM(config), ids()


def resnet():
    config = T.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 1, 1], layer_type="bottleneck"
    )
    return T.ResNetForImageClassification(config), image()


def mobilenet_v2():
    return T.MobileNetV2ForImageClassification(T.MobileNetV2Config(depth_multiplier=0.35)), image()


def mobilevit():
    config = T.MobileViTConfig(
        image_size=64, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 128]
    )
    return T.MobileViTForImageClassification(config), image()


def convnext():
    config = T.ConvNextConfig(hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 1, 1])
    return T.ConvNextForImageClassification(config), image()


def vit():
    return T.ViTForImageClassification(T.ViTConfig(**VISION)), image()


def beit():
    return T.BeitForImageClassification(T.BeitConfig(**VISION, use_relative_position_bias=True)), image()


def swin():
    config = T.SwinConfig(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4)
    return T.SwinForImageClassification(config), image()


def segformer():
    config = T.SegformerConfig(
        hidden_sizes=[16, 32, 64, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=32,
    )
    return T.SegformerForSemanticSegmentation(config), image()


def yolos():
    config = T.YolosConfig(**WIDTHS, image_size=[64, 64], patch_size=16, num_detection_tokens=8)
    return T.YolosForObjectDetection(config), image()


def clip_vision():
    return T.CLIPVisionModelWithProjection(T.CLIPVisionConfig(**VISION, projection_dim=32)), image()


def wav2vec2():
    config = T.Wav2Vec2Config(
        **WIDTHS,
        vocab_size=32,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return T.Wav2Vec2ForCTC(config), sound()


def whisper_encoder():
    config = T.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=50,
        num_mel_bins=16,
    )
    encoder = T.models.whisper.modeling_whisper.WhisperEncoder(config)
    return encoder, {"input_features": seeded(1, 16, 100)}


ARCHITECTURES = (
    bert, distilbert, albert, t5_encoder, gpt2, llama, qwen3, gemma2, mamba, resnet, mobilenet_v2, mobilevit,
    convnext, vit, beit, swin, segformer, yolos, clip_vision, wav2vec2, whisper_encoder,
)  # fmt: skip
ZOO = {build.__name__.replace("_", "-"): build for build in ARCHITECTURES}


@torch.no_grad()
def rescale_(model):
    """Every weight gets unit-variance fan-in scaling, every norm non-trivial statistics, in place."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Embedding):
            weight.normal_(0, 0.5, generator=generator)
        elif isinstance(weight, torch.nn.Parameter) and weight.ndim >= 2:
            # transformers' Conv1D holds [in, out], all others [out, in, ...]
            fan_in = weight[0].numel() if type(module).__name__ != "Conv1D" else weight.shape[0]
            weight.normal_(0, fan_in**-0.5, generator=generator)
        elif isinstance(weight, torch.nn.Parameter):
            weight.uniform_(0.5, 1.5, generator=generator)
        bias = getattr(module, "bias", None)
        if isinstance(bias, torch.nn.Parameter):
            bias.normal_(0, 0.1, generator=generator)
        if isinstance(module, BatchNorm):
            module.momentum = 1.0


@torch.no_grad()
def take_statistics_(model, inputs):
    """Batch norms take the statistics of the sample, so that evaluation is well scaled too, in place."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    model.eval()
    for norm in norms:
        norm.train()
    model(**{name: torch.cat([x, x.flip(-1), -x, x * 0.5]) for name, x in inputs.items()})


def build(name):
    """-> (model in eval mode, its inputs by keyword)"""
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    rescale_(model)
    take_statistics_(model, inputs)
    return model.eval(), inputs


class FirstOutput(torch.nn.Module):
    """The first tensor of a `transformers` model's output, as a module with positional arguments."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *args):
        return self.model(**dict(zip(self.names, args)), return_dict=True)[0]


def save(name, folder):
    """Writes FOLDER/NAME.pt2, FOLDER/NAME.inputs.pt and the Hugging Face folder FOLDER/NAME, where such a
    folder can name the model's class."""
    model, inputs = build(name)
    folder = Path(folder)
    if hasattr(T, type(model).__name__):
        model.save_pretrained(folder / name)
    module = FirstOutput(model, list(inputs)).eval()
    program = torch.export.export(module, tuple(inputs.values()), strict=False)
    torch.export.save(program, folder / f"{name}.pt2")
    torch.save(inputs, folder / f"{name}.inputs.pt")


def main(folder, *names):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names or ZOO:
        save(name, folder)
        print(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
