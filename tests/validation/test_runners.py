"""Opening and calling artifacts: conversions and checks of inputs, precision, taps, hosts, and the native
libraries' signatures."""

import inspect
import platform

import numpy as np
import pytest
import torch

from cidermill.models.errors import UnreadableArtifact, UnsupportedOperators, UserError
from cidermill.validation import open_runner
from cidermill.validation.graph import OperatorFailed
from cidermill.validation.mil.files import coreml_protos

IDS, X = np.array([[1, 0]], np.int32), np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)


def lookup(mb, ids, x):
    return mb.linear(x=mb.gather(x=x, indices=ids, axis=0), weight=WEIGHT, name="out")


@pytest.fixture
def package(mil_package):
    return mil_package(lookup, IDS, X)


@pytest.fixture
def runner(package):
    return open_runner(package, host="reference")


def test_by_name_by_position_and_from_wider_types(runner):
    want = X[IDS] @ WEIGHT.T
    tensors = (torch.tensor(IDS).long(), torch.tensor(X).double())
    for inputs in ({"x0": IDS, "x1": X}, [IDS, X], tensors, [IDS.tolist(), X.astype(np.float64)]):
        outputs = runner(inputs)
        assert list(outputs) == ["out"] and outputs["out"].dtype == np.float32
        np.testing.assert_allclose(outputs["out"], want, rtol=1e-5)
    assert runner.kind == "reference" and runner.precision == "float32"


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"x0": IDS}, "x1 is missing"),
        ({"x0": IDS, "x1": X, "mask": X}, "mask is not an input"),
        ({"x0": IDS, "x1": X.T}, "x1 is float32 [3, 2]"),
        ({"x0": IDS.astype(np.float32), "x1": X}, "x0 is float32 [1, 2]"),
        ({"x0": IDS, "x1": X.astype(np.int32)}, "x1 is int32 [2, 3]"),
        ({"x0": np.array([[1, 1 << 40]]), "x1": X}, "x0 holds numbers beyond int32"),
        ([IDS], "takes 2 inputs, 1 were given"),
    ],
)
def test_inputs_that_do_not_fit_are_named(runner, inputs, message):
    with pytest.raises(UserError) as caught:
        runner(inputs)
    assert message in str(caught.value) and "it takes x0: int32 [1, 2], x1: float32 [2, 3]" in str(
        caught.value
    )


def test_all_problems_are_named_at_once(runner):
    with pytest.raises(UserError, match="x1 is missing; y is not an input; x0 is int32"):
        runner({"x0": IDS.T, "y": X})


def test_tap_sees_every_intermediate(runner):
    seen = {}
    runner([IDS, X], tap=lambda name, value: seen.update({name: tuple(value.shape)}))
    assert list(seen.values()) == [(1, 2, 3), (1, 2, 4)] and "out" in seen


def test_what_the_tap_saw_leads_to_its_operation(runner):
    seen = []
    runner([IDS, X], tap=lambda name, value: seen.append(name))
    assert [runner.operation(name).op for name in seen] == ["gather", "linear"]
    assert runner.operation("out").outputs[0].shape == (1, 2, 4)
    with pytest.raises(KeyError, match="no operation of model.mlpackage computes 'x0'"):
        runner.operation("x0")


def test_second_call_gives_the_same_from_kept_weights(runner):
    first, second, third = (runner([IDS, X])["out"] for _ in range(3))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_float16_program_and_its_unrounded_run(mil_package):
    """300 * 300 overflows float16; run in float32 the same program shows what the overflow hides."""
    x = np.array([300.0, 2.0], np.float16)
    path = mil_package(lambda mb, v: mb.sqrt(x=mb.mul(x=v, y=v)), x)
    rounded, exact = open_runner(path, "reference"), open_runner(path, "reference", precision="float32")
    assert rounded.precision == "float16"
    (half,), (full,) = rounded([x]).values(), exact([x]).values()
    assert half.dtype == np.float16 and np.isinf(half[0]) and half[1] == 2
    np.testing.assert_allclose(full, [300, 2])


def test_subnormal_halves_are_kept(mil_package):
    """1e-4 * 1e-3 lies between the subnormal numbers 2^-24 and 2^-23 of float16 and rounds to the nearer;
    below half of 2^-24 nothing is left."""
    x = np.array([1e-4, 1e-4], np.float16)
    path = mil_package(lambda mb, v: mb.mul(x=v, y=np.array([1e-3, 1e-4], np.float16)), x)
    (out,) = open_runner(path, "reference")([x]).values()
    np.testing.assert_array_equal(out, np.array([2.0**-23, 0], np.float16))


def test_rounding_in_place_leaves_inputs_and_constants_alone(mil_package):
    """A result that shares memory with an argument (a division by one that the operator may skip, a cast, a
    view) is not rounded in place."""
    x = np.array([[1.0001, 2.0002]], np.float32)
    path = mil_package(
        lambda mb, v: (mb.cast(x=mb.transpose(x=v, perm=[1, 0]), dtype="fp16"), mb.mul(x=v, y=1.0)), x
    )
    runner = open_runner(path, "reference")
    for _ in range(2):
        half, full = runner([x]).values()
        np.testing.assert_array_equal(half.T, x.astype(np.float16))
        np.testing.assert_array_equal(full, x)


def test_a_weight_is_decoded_once_where_weights_are_kept(package, monkeypatch):
    from cidermill.validation.mil import read as mil_read

    decoded = []
    read = mil_read.read_tensor
    monkeypatch.setattr(
        mil_read, "read_tensor", lambda *arguments: decoded.append(arguments) or read(*arguments)
    )
    for keep, want in ((True, 1), (False, 3)):
        decoded.clear()
        runner = open_runner(package, host="reference", keep_weights=keep)
        runner.decode_weights() if keep else None
        for _ in range(3):
            runner([IDS, X])
        assert len(decoded) == want


def test_constant_results_leave_the_program(mil_package):
    out = open_runner(
        mil_package(lambda mb, x: (mb.relu(x=x), mb.const(val=np.float32([1, 2]))), X), host="reference"
    )([X])
    np.testing.assert_array_equal(list(out.values())[1], [1, 2])


def test_image_input_takes_a_picture(package, mil_package):
    class Picture:  # what the runner uses of PIL.Image
        def convert(self, mode):
            assert mode == "RGB"
            return np.arange(12, dtype=np.uint8).reshape(2, 2, 3)

    x = np.zeros((1, 3, 2, 2), np.float32)
    path = mil_package(lambda mb, v: mb.mul(x=v, y=1.0), x, name="image")
    file = path / "Data/com.apple.CoreML/model.mlmodel"
    model = coreml_protos()[0].Model()
    model.ParseFromString(file.read_bytes())
    model.description.input[0].type.imageType.colorSpace = 30
    file.write_bytes(model.SerializeToString())
    (out,) = open_runner(path, "reference")([Picture()]).values()
    np.testing.assert_array_equal(out[0, :, 0, 1], [5, 4, 3])  # blue, green, red of the second pixel


def test_unknown_operators_are_collected(package):
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    model = coreml_protos()[0].Model()
    model.ParseFromString(file.read_bytes())
    for operation in model.mlProgram.functions["main"].block_specializations["CoreML8"].operations:
        operation.type = {"gather": "gather_lines", "linear": "custom_layer"}.get(
            operation.type, operation.type
        )
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOperators) as caught:
        open_runner(package, host="reference")
    assert len(caught.value.operators) == 2 and "custom_layer (out)" in str(caught.value)


def test_a_result_of_another_shape_than_declared_is_a_failure(package):
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    model = coreml_protos()[0].Model()
    model.ParseFromString(file.read_bytes())
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    block.operations[-1].outputs[0].type.tensorType.dimensions[2].constant.size = 5
    file.write_bytes(model.SerializeToString())
    with pytest.raises(
        OperatorFailed,
        match=r"linear \(out\) failed: the result out has shape \[1, 2, 4\], the program declares \[1, 2, 5",
    ):
        open_runner(package, host="reference")([IDS, X])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(host="gpu"), "unknown host 'gpu'\nuse one of auto, native, reference"),
        (dict(precision="half"), "unknown precision 'half'\nuse one of declared, float32"),
        (dict(function="other"), "has no function 'other'\nuse one of main"),
    ],
)
def test_options_are_checked(package, options, message):
    with pytest.raises(UserError) as caught:
        open_runner(package, **{"host": "reference", **options})
    assert message in str(caught.value)


@pytest.mark.skipif(platform.system() == "Darwin", reason="the native runtime is here")
def test_native_needs_macos(package):
    with pytest.raises(
        UserError, match="not run: model.mlpackage on its native runtime needs macOS; this is Linux"
    ):
        open_runner(package, host="native")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist"),
        (b"", "is neither an .mlpackage folder nor"),
        (b"PK\3\4 a zip file", "is neither"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "model.pte").write_bytes(content)
    with pytest.raises(UnreadableArtifact, match=message):
        open_runner(tmp_path / "model.pte")


def test_native_calls_fit_the_installed_libraries(ct):
    """The native branch cannot run here; at least what it calls exists with these parameters."""
    model = ct.models.MLModel
    inspect.signature(model.__init__).bind(None, "path", function_name="main")
    inspect.signature(model.predict).bind(None, {}, state=None)
    inspect.signature(model.make_state).bind(None)
    from executorch.runtime import Method, Program, Runtime

    inspect.signature(Runtime.load_program).bind(None, "path")
    inspect.signature(Program.load_method).bind(None, "forward")
    inspect.signature(Method.execute).bind(None, [])


class Block(torch.nn.Module):
    """Convolution, normalisation and attention: one of each kind of arithmetic."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 4, stride=4)
        self.norm = torch.nn.LayerNorm(16)
        self.attention = torch.nn.Linear(16, 48)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, image):
        tokens = self.norm(self.stem(image).flatten(2).transpose(1, 2))
        query, key, value = self.attention(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.head(torch.nn.functional.gelu(tokens + mixed))


def psnr(got, want):
    return 20 * np.log10(np.abs(want).max() / np.sqrt(np.mean((got.astype(np.float64) - want) ** 2)))


@pytest.mark.parametrize("precision, least_db", [("FLOAT16", 50), ("FLOAT32", 110)])
def test_a_converted_network_computes_what_torch_does(ct, tmp_path, precision, least_db):
    torch.manual_seed(0)
    model, image = Block().eval(), torch.randn(1, 3, 16, 16)
    converted = ct.convert(
        torch.jit.trace(model, image),
        inputs=[ct.TensorType(name="image", shape=image.shape)],
        skip_model_load=True,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision[precision],
    )
    converted.save(str(tmp_path / "block.mlpackage"))
    runner = open_runner(tmp_path / "block.mlpackage", host="reference")
    (out,) = runner([image]).values()
    assert runner.precision == precision.lower()
    assert psnr(out, model(image).detach().numpy()) > least_db


def test_functions_of_one_package(ct, mil_package, tmp_path):
    for name, factor in (("double", 2.0), ("triple", 3.0)):
        mil_package(lambda mb, x: mb.mul(x=x, y=np.float32(factor), name="y"), X, name=name)
    description = ct.utils.MultiFunctionDescriptor()
    for name in ("double", "triple"):
        description.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    description.default_function_name = "double"
    ct.utils.save_multifunction(description, str(tmp_path / "both.mlpackage"))
    for function, factor in (("main", 2), ("double", 2), ("triple", 3)):
        out = open_runner(tmp_path / "both.mlpackage", host="reference", function=function)([X])["y"]
        np.testing.assert_array_equal(out, X * factor)
    with pytest.raises(UserError, match="use one of double, triple"):
        open_runner(tmp_path / "both.mlpackage", host="reference", function="quadruple")


def test_samples_side_by_side_are_what_each_gives_alone(mil_package, monkeypatch):
    """And each weight is decoded once for all of them."""
    path = mil_package(lookup, IDS, X)
    runner = open_runner(path, host="reference", keep_weights=False)
    samples = [{"x0": IDS, "x1": X * scale} for scale in (1.0, -2.0, 0.5)]
    decoded = []
    constants = {
        name: (lambda maker=maker, name=name: decoded.append(name) or maker())
        for name, maker in runner.program.constants.items()
    }
    runner.program.constants.update(constants)
    together = runner.each(samples)
    assert len(decoded) == len(set(decoded)) > 0
    for sample, outputs in zip(samples, together, strict=True):
        assert np.array_equal(outputs["out"], runner(sample)["out"])
    with pytest.raises(UserError, match="x1 is missing"):
        runner.each([samples[0], {"x0": IDS}])
