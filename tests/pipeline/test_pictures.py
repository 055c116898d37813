"""Pictures at the border of artifacts, read back from the saved files: what an app gives as pixels is what
the model was trained on, prepared here as torchvision does it, in float64."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cidermill
from cidermill import UserError, inspect, open_runner, validate
from cidermill.pipeline.build.config import read_config
from cidermill.pipeline.commands.cli import convert, main
from cidermill.validation.borders import as_arrays

README = Path(__file__).resolve().parents[2] / "README.md"
SIZE = (24, 32)  # height, width
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
# option -> mean and std of colours from 0 to 1
PRESETS = {
    "": ([0.0], [1 / 255]),
    "unit": ([0.0], [1.0]),
    "half": ([0.5], [0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": CLIP,
    "mean=0.1,0.5,0.9:std=0.2,0.1,0.4": ([0.1, 0.5, 0.9], [0.2, 0.1, 0.4]),
    "scale=0.01:bias=-1": ([100 / 255], [100 / 255]),
}


class Net(torch.nn.Module):
    """A convolution without padding, and a picture of values about the middle of 8 bits."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(channels, 64, 3)
        self.wide = torch.nn.Conv2d(64, 64, 3, padding=1)
        self.head = torch.nn.Linear(64, 10)
        self.paint = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, image):
        features = self.wide(self.stem(image).relu()).relu()
        return {"scores": self.head(features.mean((2, 3))), "painted": 128 + 60 * self.paint(image).tanh()}


class ChannelsLast(Net):
    def forward(self, image):
        return super().forward(image.permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def net():
    return Net().eval()


def example(channels=3, batch=1):
    return torch.zeros(batch, channels, *SIZE)


def made(model, inputs, folder, **options):
    options = {"cache": False, "quant": "float16", **options}
    report = cidermill.convert(model, (inputs,), out=folder / "out", **options)
    return report, folder / "out" / report.artifacts[0].path


def photograph(channels=3):
    shape = (*SIZE, channels) if channels > 1 else SIZE
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8))


def as_torchvision(picture, mean, std):
    """PIL image -> [1, C, H, W]: to_tensor, then normalize, in float64."""
    colours = torch.from_numpy(np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1).copy()).double() / 255
    middle, deviation = (torch.tensor(numbers).double().reshape(-1, 1, 1) for numbers in (mean, std))
    return ((colours - middle) / deviation)[None]


def answer_of(model, prepared):
    with torch.no_grad():
        return {name: value.numpy() for name, value in model.double()(prepared).items()}


def decibels(got, expected):
    return 10 * np.log10(np.abs(expected).max() ** 2 / np.mean((got.astype(np.float64) - expected) ** 2))


def spec_of(package, ct):
    return ct.utils.load_spec(str(package / "Data/com.apple.CoreML/model.mlmodel"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_picture_through_the_artifact_is_what_torchvision_prepares(preset, tmp_path):
    report, package = made(Net().eval(), example(), tmp_path, image=f"image:rgb:{preset}".rstrip(":"))
    assert report.verdict == "pass"
    got = open_runner(package, host="reference")({"image": photograph()})
    expected = answer_of(Net().eval(), as_torchvision(photograph(), *PRESETS[preset]))
    assert {name: decibels(got[name], expected[name]) > 55 for name in expected} == dict.fromkeys(
        expected, True
    )


def test_the_picture_type_has_the_size_and_order_that_were_asked_for(net, tmp_path, ct):
    _, package = made(net, example(), tmp_path, image="image:bgr", image_output="painted:rgb")
    spec = spec_of(package, ct)
    (taken,), given = spec.description.input, {out.name: out.type for out in spec.description.output}
    image = taken.type.imageType
    assert (image.height, image.width, image.colorSpace) == (*SIZE, image.ColorSpace.Value("BGR"))
    image = given["painted"].imageType
    assert (image.height, image.width, image.colorSpace) == (*SIZE, image.ColorSpace.Value("RGB"))
    assert given["scores"].WhichOneof("Type") == "multiArrayType"
    assert spec.description.metadata.userDefined["cidermill.image.image"] == "bgr"


def test_blue_comes_first_where_the_model_was_trained_so(tmp_path):
    """The published numbers are of red, green and blue; the model has them the other way round."""
    _, package = made(Net().eval(), example(), tmp_path, image="image:bgr:imagenet")
    got = open_runner(package, host="reference")({"image": photograph()})
    prepared = as_torchvision(photograph(), *PRESETS["imagenet"]).flip(1)
    expected = answer_of(Net().eval(), prepared)
    assert decibels(got["scores"], expected["scores"]) > 55


def test_channels_last_are_transposed_in_the_graph(tmp_path):
    model = ChannelsLast().eval()
    report, package = made(model, torch.zeros(1, *SIZE, 3), tmp_path, image="image:imagenet")
    assert report.source.inputs[0].shape == (1, 3, *SIZE)
    got = open_runner(package, host="reference")({"image": photograph()})
    prepared = as_torchvision(photograph(), *PRESETS["imagenet"]).permute(0, 2, 3, 1)
    assert decibels(got["scores"], answer_of(ChannelsLast().eval(), prepared)["scores"]) > 55


@pytest.mark.parametrize("io", ["float32", "float16"])
def test_gray_is_of_8_bits_or_of_half_precision(io, tmp_path, ct):
    options = {"image": "image:mean=0.4:std=0.3", "image_output": "painted", "io": io}
    report, package = made(Net(1).eval(), example(1), tmp_path, **options)
    spec, named = spec_of(package, ct), {"float32": "GRAYSCALE", "float16": "GRAYSCALE_FLOAT16"}[io]
    for entry in (spec.description.input[0], spec.description.output[1]):
        assert entry.type.imageType.colorSpace == entry.type.imageType.ColorSpace.Value(named)
    got = open_runner(package, host="reference")({"image": photograph(1)})
    assert got["painted"].mode == {"float32": "L", "float16": "F"}[io] and got["scores"].dtype == io
    expected = answer_of(Net(1).eval(), as_torchvision(photograph(1), [0.4], [0.3]))
    assert decibels(got["scores"], expected["scores"]) > 55 and report.verdict == "pass"


def test_an_output_comes_as_a_pil_image(net, tmp_path):
    _, package = made(net, example(), tmp_path, image="image:unit", image_output="painted:bgr")
    got = open_runner(package, host="reference")({"image": photograph()})["painted"]
    assert got.mode == "RGB" and got.size == SIZE[::-1]
    expected = answer_of(Net().eval(), as_torchvision(photograph(), [0.0], [1.0]))["painted"]
    pixels = np.asarray(got).transpose(2, 0, 1)[::-1]  # the model's order is blue, green, red
    assert np.abs(pixels - np.clip(expected.round(), 0, 255)[0]).max() <= 1
    assert as_arrays({"painted": got}, {"painted": "BGR"})["painted"].shape == (1, 3, *SIZE)


def test_an_output_beyond_pixels_is_said(net, tmp_path):
    report, _ = made(net, example(), tmp_path, image="image:unit", image_output="painted")
    assert not report.artifacts[0].warnings

    class Normalised(Net):
        def forward(self, image):
            return {"painted": self.paint(image).sigmoid()}

    (tmp_path / "second").mkdir()
    report, _ = made(Normalised(), example(), tmp_path / "second", image="image:unit", image_output="painted")
    warning = report.artifacts[0].warnings[0]
    assert re.match(r"painted: the model gives numbers from 0\.\d+ to 0\.\d+ on the samples", warning)


def test_std_of_each_channel_costs_an_int8_recipe_nothing(tmp_path):
    """Operations of the graph prepare the pixels, so that int8 sees the weights that it sees without them:
    folded into the first convolution, of 8x8 without padding, they would cost it more than 2 dB here."""

    class Patches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem = torch.nn.Conv2d(3, 64, 8, 8)
            self.head = torch.nn.Linear(64, 50)

        def forward(self, image):
            return {"scores": self.head(torch.nn.functional.gelu(self.stem(image)).mean((2, 3)))}

    pixels = np.random.default_rng(1).integers(0, 256, (1, 3, *SIZE)).astype(np.float32)
    mean, std = (np.reshape(numbers, (3, 1, 1)) for numbers in PRESETS["imagenet"])
    plain, folded = Patches().eval(), Patches().eval()
    with torch.no_grad():
        weight = folded.stem.weight.double()
        folded.stem.bias += (weight * torch.tensor(-mean / std)).sum((1, 2, 3)).float()
        folded.stem.weight.copy_((weight * torch.tensor(1 / (255 * std))).float())
    cases = {
        "tensor": (plain, {}, ((pixels / 255 - mean) / std).astype(np.float32)),
        "operations": (plain, {"image": "image:imagenet"}, pixels),
        "folded": (folded, {"image": "image"}, pixels),
    }
    cost = {}
    for name, (model, options, sample) in cases.items():
        (tmp_path / name).mkdir()
        report, _ = made(
            model, example(), tmp_path / name, quant="int8", samples=[{"image": sample}], **options
        )
        cost[name] = report.artifacts[0].validation.compression[0].psnr_db
    assert abs(cost["operations"] - cost["tensor"]) < 0.1
    assert cost["folded"] < cost["operations"] - 2


def test_report_and_terminal_say_how_it_was_done(net, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net.float(), (), {"image": example()}), path)
    told = command(path, tmp_path / "out", "--image image:imagenet --image-output painted --no-cache")
    told = " ".join(told.split())
    assert "image: a picture, RGB; operations before the first layer compute pixels *" in told
    assert "painted: a picture, RGB; its pixels are the model's numbers" in told
    (artifact,) = json.loads((tmp_path / "out/report.json").read_text())["artifacts"]
    taken, given = artifact["pictures"]
    assert taken["prepared"] == "operations" and given["prepared"] == ""
    np.testing.assert_allclose(taken["scale"], 1 / 255 / np.array(PRESETS["imagenet"][1]))
    assert "operations before the first layer" in (tmp_path / "out/report.html").read_text()
    inspection = inspect(tmp_path / "out/net.mlpackage")
    assert inspection.takes == (f"image: float32 [1, 3, {SIZE[0]}, {SIZE[1]}] (a picture, RGB)",)
    assert inspection.gives[1] == f"painted: float32 [1, 3, {SIZE[0]}, {SIZE[1]}] (a picture, RGB)"


def command(model, out, options, code=0):
    result = CliRunner().invoke(convert, [str(model), "--out", str(out), *shlex.split(options)])
    assert result.exit_code == code, result.output
    return result.output


def test_validate_prepares_pictures_as_the_artifact_says_or_the_user(tmp_path, ct):
    _, package = made(Net().eval(), example(), tmp_path, image="image:bgr:imagenet", image_output="painted")
    assert validate(package, Net().eval(), (example(),)).verdict == "pass"
    assert validate(package, Net().eval(), (example(),), image="image:half").verdict == "fail"
    spec = spec_of(package, ct)
    del spec.description.metadata.userDefined["cidermill.image.image"]
    (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(spec.SerializeToString())
    assert validate(package, Net().eval(), (example(),), image="image:imagenet").verdict == "pass"
    blind = validate(package, Net().eval(), (example(),))
    assert blind.verdict == "fail" and any(
        "nothing says how the model wants them" in warning for warning in blind.warnings
    )


def test_names_and_pictures_of_one_input(tmp_path, ct):
    options = {"name": "image=photo", "metadata": "describe.photo=A photo"}
    for index, name in enumerate(("image", "photo")):
        (tmp_path / str(index)).mkdir()
        _, package = made(Net().eval(), example(), tmp_path / str(index), image=f"{name}:imagenet", **options)
        (taken,) = spec_of(package, ct).description.input
        assert (taken.name, taken.shortDescription, taken.type.imageType.width) == (
            "photo", "A photo", SIZE[1],
        )  # fmt: skip
        assert validate(package, Net().eval(), (example(),)).verdict == "pass"


def test_samples_are_pictures(net, tmp_path):
    pixels = np.asarray(photograph())
    samples = [{"image": photograph()}, {"image": pixels}, {"image": pixels.transpose(2, 0, 1)[None]}]
    report, _ = made(net.float(), example(), tmp_path, image="image:bgr:imagenet", samples=samples)
    assert report.verdict == "pass" and report.source.samples.count == 3
    np.savez(tmp_path / "pictures.npz", image=np.stack([pixels, pixels]))
    (tmp_path / "file").mkdir()
    report, _ = made(
        net, example(), tmp_path / "file", image="image:unit", samples=str(tmp_path / "pictures.npz")
    )
    assert report.verdict == "pass" and report.source.samples.count == 2


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.full((1, 3, *SIZE), 0.5), "from 0 to 1 only, as after a division by 255"),
        (np.full((1, 3, *SIZE), -1.0), "has values from -1 to -1; pixels are 0 to 255"),
        (np.full((1, 3, *SIZE), 256.0), "has values from 256 to 256"),
        (np.full((1, 3, *SIZE), 12.5), "are no whole numbers"),
        (Image.new("RGB", (8, 8)), "has shape 8x8x3, the model takes 1x3x24x32"),
    ],
)
def test_samples_that_are_no_pictures_are_refused(net, sample, words, tmp_path):
    with pytest.raises(UserError, match=re.escape(words)):
        made(net, example(), tmp_path, image="image:unit", samples=[{"image": sample}])
    assert list(tmp_path.iterdir()) == []


def test_a_target_without_pictures_takes_their_pixels(net, tmp_path):
    options = {"image": "image:imagenet", "image_output": "painted", "target": ["executorch-mps"]}
    report, program = made(net.float(), example(), tmp_path, **options)
    (warning,) = report.artifacts[0].warnings
    assert warning.startswith("ExecuTorch MPS has no pictures: image, painted are arrays of pixels")
    pixels = np.asarray(photograph()).transpose(2, 0, 1)[None].astype(np.float32)
    got = open_runner(program, host="reference")({"image": pixels})
    expected = answer_of(Net().eval(), as_torchvision(photograph(), *PRESETS["imagenet"]))
    assert decibels(got["scores"], expected["scores"]) > 50 and report.verdict == "pass"


@pytest.mark.parametrize("quant", ["float16", "float32", "int8"])
def test_half_precision_at_the_border(quant, tmp_path, ct):
    report, package = made(Net().eval(), example(), tmp_path, io="float16", quant=quant)
    described = spec_of(package, ct).description
    types = {entry.type.multiArrayType.dataType for entry in (*described.input, *described.output)}
    assert types == {ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16} and report.verdict == "pass"
    sample = torch.randn(1, 3, *SIZE).half()
    got = open_runner(package, host="reference")({"image": sample.numpy()})
    expected = answer_of(Net().eval(), sample.double())
    assert {got[name].dtype.name for name in got} == {"float16"}
    assert decibels(got["scores"], expected["scores"]) > (30 if quant == "int8" else 55)
    assert validate(package, Net().eval(), (example(),), tolerance=30).verdict == "pass"


REFUSED = {
    "no input": ("--image :rgb", "does not say which input takes pictures"),
    "an unknown word": ("--image image:cmyk", "holds 'cmyk', which is none of its words"),
    "two layouts": ("--image image:rgb:bgr", "says that, or its like, twice"),
    "two presets": ("--image image:unit:half", "says that, or its like, twice"),
    "two ways": ("--image image:unit:scale=2", "says in two ways how pixels become"),
    "auto and mean": ("--image image:auto:mean=0.5", "says in two ways"),
    "scale 0": ("--image image:scale=0", "scale=0 would make all pixels equal"),
    "std 0": ("--image image:std=0.2,0,0.2", "std=0.2,0,0.2 would divide by 0"),
    "no number": ("--image image:mean=half", "mean=half is not a number"),
    "infinite": ("--image image:bias=inf", "bias=inf is not a number"),
    "five means": ("--image image:mean=1,2,3,4,5", "gives 5 numbers for 3 channels"),
    "three means of gray": ("--image image:gray:mean=1,2,3", "gives 3 numbers for 1 channel"),
    "imagenet of gray": ("--image image:gray:imagenet", "imagenet is of three colours, gray has none"),
    "two scales": ("--image image:scale=1,2,3", "scale is one number for all channels"),
    "twice": ("--image image --image image:rgb", "--image names 'image' twice"),
    "an unknown input": ("--image photo", "the model has no input 'photo'", "Its inputs are image"),
    "rank 2": ("--image flat", "'flat' is 1x8 float32, of 2 dimensions; a picture has 4"),
    "five channels": ("--image five", "'five' is 1x5x8x8, with 5 channels; a picture has 3 or 1"),
    "gray of three": ("--image image:gray", "'image' is 1x3x8x8, with 3 channels; gray has 1"),
    "a batch": ("--image many", "a batch of 4; Core ML has no batches of pictures", "--input many:1x3x8x8"),
    "integers": ("--image ids", "'ids' is 1x3x8x8 int32; pixels are given as floating-point numbers"),
    "auto of a file": ("--image image:auto", "auto reads the preprocessor_config.json", "net.pt2 is none"),
    "an output of rank 2": ("--image-output flat_out", "of 2 dimensions; a picture has 4"),
    "an unknown output": ("--image-output image", "the model has no output 'image'"),
    "an output's scale": ("--image-output image_out:unit", "is not NAME, NAME:rgb, NAME:bgr or NAME:gray"),
    "an output of a batch": ("--image-output many_out", "a batch of 4", "for a batch of 1"),
    "an output's channels": ("--image-output five_out", "with 5 channels"),
    "half precision on iOS15": ("--io float16 --deployment-target iOS15", "--io float16 needs iOS16"),
}  # fmt: skip


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A model of inputs that no picture fits, and one that does."""

    class Several(torch.nn.Module):
        def forward(self, image, flat, many, five, ids):
            given = {"image": image, "flat": flat, "many": many, "five": five, "ids": ids}
            return {f"{name}_out": value + 1 for name, value in given.items()}

    picture = torch.zeros(1, 3, 8, 8)
    example = (picture, torch.zeros(1, 8), picture.expand(4, 3, 8, 8).clone(), torch.zeros(1, 5, 8, 8))
    path = tmp_path_factory.mktemp("several") / "net.pt2"
    torch.export.save(torch.export.export(Several(), (*example, picture.int())), path)
    return path


@pytest.mark.parametrize(("options", "words"), [(row[0], row[1:]) for row in REFUSED.values()], ids=REFUSED)
def test_bad_input_is_one_message_and_nothing_is_written(several, options, words, tmp_path):
    told = " ".join(command(several, tmp_path / "out", f"{options} --no-cache", code=2).split())
    assert all(text in told for text in words) and told.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("hub") / "tiny-vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, num_labels=3, id2label={0: "cat", 1: "dog", 2: "eel"},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


AUTO = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.1], "rescale_factor": 1 / 255, "resample": 3, "size": {"shortest_edge": 40},
    "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
}  # fmt: skip


def test_a_classifier_of_a_hugging_face_folder_in_one_command(vit, tmp_path, ct):
    import transformers

    (vit / "preprocessor_config.json").write_text(json.dumps(AUTO))
    told = command(vit, tmp_path / "out", "--image pixel_values:auto --labels auto --no-cache")
    told = " ".join(told.split())
    assert "pixel_values: left to the app" in told and "takes pictures of 32x32 pixels" in told
    assert "resizing (shortest edge 40, bicubic); cropping the centre (32x32)" in told
    package = tmp_path / "out/tiny-vit.mlpackage"
    metadata = spec_of(package, ct).description.metadata.userDefined
    assert metadata["com.apple.coreml.model.preview.type"] == "imageClassifier"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    got = open_runner(package, host="reference")({"pixel_values": picture})
    prepared = as_torchvision(picture, AUTO["image_mean"], AUTO["image_std"]).float()
    with torch.no_grad():
        model = transformers.ViTForImageClassification.from_pretrained(vit).eval()
        expected = model(prepared).logits.softmax(-1)[0].numpy()
    probabilities = next(value for value in got.values() if isinstance(value, dict))
    np.testing.assert_allclose([probabilities[name] for name in ("cat", "dog", "eel")], expected, atol=2e-3)


def test_a_segmentation_is_previewed_with_its_labels(tmp_path, ct):
    import transformers

    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1] * 4, decoder_hidden_size=16,
        num_labels=3, id2label={0: "sky", 1: "road", 2: "car"},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "seg")
    transformers.SegformerImageProcessorPil().save_pretrained(tmp_path / "seg")
    options = "--image pixel_values:auto --input pixel_values:1x3x64x64 --no-cache"
    told = command(tmp_path / "seg", tmp_path / "out", options)
    assert "takes pictures of 64x64 pixels" in " ".join(told.split())
    said = spec_of(tmp_path / "out/seg.mlpackage", ct).description.metadata.userDefined
    assert said["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    assert json.loads(said["com.apple.coreml.model.preview.params"]) == {"labels": ["sky", "road", "car"]}
    assert said["cidermill.image.pixel_values"] == "rgb:mean=0.485,0.456,0.406:std=0.229,0.224,0.225"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has no preprocessor_config.json"),
        ({**AUTO, "image_std": [0.2, 0, 0.1]}, "image_std is [0.2, 0, 0.1]"),
        ({**AUTO, "image_mean": "half"}, "image_mean is 'half'"),
        ([1], "holds no JSON object"),
    ],
)
def test_auto_without_its_numbers_is_refused(vit, config, words, tmp_path):
    path = vit / "preprocessor_config.json"
    path.unlink(missing_ok=True)
    if config is not None:
        path.write_text(json.dumps(config))
    assert words in " ".join(command(vit, tmp_path / "out", "--image pixel_values:auto", code=2).split())
    assert list(tmp_path.iterdir()) == []


def test_a_detector_takes_pictures(tmp_path, ct):
    class Boxes(Net):
        def forward(self, image):
            features = (
                self.wide(self.stem(image).relu())[:, :7, ::2, ::2].flatten(2).transpose(1, 2).sigmoid()
            )
            return {"boxes": features[0, :, :4], "scores": features[0, :, 4:]}

    options = {"nms": "boxes,scores", "labels": ["cat", "dog", "eel"], "image": "image:imagenet"}
    report, package = made(Boxes().eval(), example(), tmp_path, **options)
    described = spec_of(package, ct).description
    assert described.input[0].type.imageType.width == SIZE[1] and report.verdict == "pass"
    assert described.metadata.userDefined["com.apple.coreml.model.preview.type"] == "objectDetector"
    got = open_runner(package, host="reference")({"image": photograph()})
    assert got["confidence"].shape[1] == 3
    assert validate(package, Boxes().eval(), (example(),)).verdict == "pass"


@pytest.mark.parametrize(
    ("size", "kind"),
    [("24,48x32,40", "enumeratedSizes"), ("16..48@24x16..64@32", "imageSizeRange")],
)
@pytest.mark.parametrize("model", [Net, ChannelsLast])
def test_pictures_of_several_sizes(model, size, kind, tmp_path, ct):
    shape = f"1x3x{size}" if model is Net else f"1x{size}x3"
    options = {"image": "image:imagenet", "image_output": "painted", "input": f"image:{shape}"}
    report = cidermill.convert(model().eval(), out=tmp_path / "out", cache=False, **options)
    package = tmp_path / "out" / report.artifacts[0].path
    described = spec_of(package, ct).description
    assert described.input[0].type.imageType.WhichOneof("SizeFlexibility") == kind
    assert described.output[1].type.imageType.imageSizeRange.heightRange.upperBound == -1
    assert report.verdict == "pass"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    got = open_runner(package, host="reference")({"image": Image.fromarray(pixels)})
    prepared = as_torchvision(Image.fromarray(pixels), *PRESETS["imagenet"])
    expected = answer_of(Net().eval(), prepared)
    assert decibels(got["scores"], expected["scores"]) > 55 and got["painted"].size == (40, 48)


def test_channels_to_choose_from_are_no_pictures(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, image):
            return image.mean((1, 2, 3))

    with pytest.raises(UserError, match="--input offers several numbers of channels"):
        cidermill.convert(Mean(), input="image:1x3,4x8x8", image="image:rgb", out=tmp_path / "out")


@pytest.mark.parametrize("state", ["auto", "io"])
def test_a_picture_and_a_state(state, tmp_path, ct):
    class Trace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(1, 3, *SIZE))

        def forward(self, image):
            self.mean.copy_(0.5 * self.mean + 0.5 * image)
            return {"painted": self.mean + 1}

    options = {"image": "image", "image_output": "painted", "state": state, "io": "float16"}
    report, package = made(Trace(), example(), tmp_path, **options)
    assert report.verdict == "pass" and report.artifacts[0].validation.in_a_row
    described = spec_of(package, ct).description
    assert len(described.state) == (state == "auto") and len(described.input) == 1 + (state == "io")
    assert described.input[0].type.WhichOneof("Type") == "imageType"
    assert validate(package, Trace(), (example(),)).verdict == "pass"


@pytest.mark.parametrize("io", ["float32", "float16"])
def test_the_picture_tower_of_two(io, tmp_path, ct):
    import transformers

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**tower, "vocab_size": 100, "eos_token_id": 99, "max_position_embeddings": 16}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    options = f"--part text,image --image pixel_values:clip --io {io} --no-cache"
    told = command(tmp_path / "clip", tmp_path / "out", options)
    assert "similarity" in told
    package = next((tmp_path / "out/image").glob("*.mlpackage"))
    assert spec_of(package, ct).description.input[0].type.imageType.height == 32
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    got = open_runner(package, host="reference")({"pixel_values": picture})["image_embeds"]
    features = model.get_image_features(as_torchvision(picture, *CLIP).float())
    features = getattr(features, "pooler_output", features)
    expected = (features / features.norm(dim=-1, keepdim=True)).detach().numpy()
    assert decibels(got, expected) > 50 and got.dtype == io
    assert validate(package, tmp_path / "clip", part="image").verdict == "pass"


def test_pictures_decide_what_the_cache_gives(several, tmp_path, monkeypatch):
    monkeypatch.setenv("CIDERMILL_CACHE", str(tmp_path / "cache"))
    models = set()
    for index, options in enumerate(("--image image:unit", "--image image:half", "--io float16")):
        command(several, tmp_path / f"out{index}", options)
        package = tmp_path / f"out{index}/net.mlpackage"
        models.add((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    assert len(models) == 3
    again = command(several, tmp_path / "again", "--image image:half")
    assert "cached" in again or "found an equal conversion" in again


def test_a_bundle_takes_pictures(tmp_path):
    made(Net().eval(), example(), tmp_path, image="image:imagenet", image_output="painted")
    result = CliRunner().invoke(main, ["bundle", str(tmp_path / "out"), "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    manifest = next((tmp_path / "bundle").rglob("manifest.json"))
    (model,) = json.loads(manifest.read_text())["models"]
    assert model["inputs"][0]["picture"] == "RGB"
    assert [output.get("picture") for output in model["outputs"]] == [None, "RGB"]
    swift = "".join(file.read_text() for file in (tmp_path / "bundle").rglob("*.swift"))
    assert "image: CGImage" in swift and "public let painted: CVPixelBuffer" in swift


def test_keys_of_a_build_are_the_options(tmp_path):
    text = """
        [models.net]
        path = "net.pt"
        image = ["image:bgr:imagenet"]
        image-output = "painted"
        io = "float16"
        [[models.net.variants]]
        name = "small"
    """
    (tmp_path / "cidermill.toml").write_text(text)
    (job,) = read_config(tmp_path / "cidermill.toml").jobs
    assert job.plan.images[0].channels == "BGR" and job.plan.image_outputs[0].name == "painted"
    assert {"--image=image:bgr:imagenet", "--image-output=painted", "--io=float16"} <= set(job.words)


def test_the_readme_shows_them_in_one_command(tmp_path, ct):
    (line,) = [
        line for line in README.read_text().splitlines() if "--image-output " in line and "convert" in line
    ]
    words = shlex.split(line.partition(" # ")[0])
    assert words[:3] == ["cidermill", "convert", "model.pt"]
    (taken,) = re.findall(r"--image (\w+)", line)
    (given,) = re.findall(r"--image-output (\w+)", line)

    class Paint(torch.nn.Module):
        def forward(self, **inputs):
            return {given: inputs[taken] * 20 + 100}

    path = tmp_path / "model.pt"
    torch.export.save(torch.export.export(Paint(), (), {taken: torch.zeros(1, 3, 16, 16)}), path)
    result = CliRunner().invoke(
        convert, [str(path), *words[3:], "--out", str(tmp_path / "out"), "--no-cache"]
    )
    assert result.exit_code == 0, result.output
    described = spec_of(tmp_path / "out/model.mlpackage", ct).description
    assert [entry.type.WhichOneof("Type") for entry in (*described.input, *described.output)] == [
        "imageType", "imageType",
    ]  # fmt: skip
