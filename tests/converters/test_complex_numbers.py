"""converters/complex_numbers.py: complex numbers and Fourier transforms on both targets, from the saved
artifacts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cidermill.converters.complex_numbers import split_complex_numbers
from cidermill.converters.coreml.lower import lower
from cidermill.converters.coreml.write import write_mlpackage
from cidermill.converters.mps.write import write_pte
from cidermill.models.capture import capture
from cidermill.models.errors import UnsupportedOperators, UserError
from cidermill.models.evaluate import evaluate
from cidermill.models.graphs import draft
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.judge.compare import compare, verdict
from tests.converters.conftest import ByName

WRITERS = {"m.mlpackage": write_mlpackage, "m.pte": write_pte}
LEAST_DB = {"float32": 60.0, "float16": 40.0}


def captured_of(function, tensor):
    module = function if isinstance(function, torch.nn.Module) else ByName(function)
    spec = TensorSpec("x", tuple(tensor.shape), str(tensor.numpy().dtype))
    source = Source(Path("calls.pt"), "module", "0", module.eval(), (spec,))
    return capture(source, Samples("synthetic", ({"x": tensor.numpy()},), 0))


def check(folder, function, tensor, recipe="float32"):
    captured = captured_of(function, tensor)
    for name, write in WRITERS.items():
        write(compress(captured, parse_recipe(recipe)), folder / name)
        results = open_runner(folder / name, host="reference")(captured.samples.batches[0])
        errors = compare(captured.reference, [results])
        assert verdict(errors, LEAST_DB[recipe]) == "pass", (name, errors)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def number(x):
    return torch.complex(x, x.flip(-1) * 0.7 + 0.1)


def real(*numbers):
    return tuple(torch.view_as_real(z.resolve_conj()) for z in numbers)


V = normal(2, 12)
WINDOW = torch.hann_window(16)
MATRIX = torch.arange(36).reshape(3, 12) * (0.1 + 0.02j)
SQUARES = (torch.arange(16).reshape(4, 4) * (0.2 - 0.1j)).expand(2, 4, 4)


def rotary(x):
    angles = torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.1, 0.01, 0.001]))
    turns = torch.polar(torch.ones(6, 4), angles)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 4, 2))
    return torch.view_as_real(pairs * turns[None]).flatten(2)


def written_into(x):
    z = torch.zeros(2, 12, dtype=torch.cfloat)
    z[:, 2:5] = number(x)[:, 2:5]
    z.real[:, 6:] = x[:, 6:]
    return z.index_put((torch.tensor([0, 1]), torch.tensor([0, 1])), number(x)[:, 0])


class Modes(torch.nn.Module):
    """A Fourier neural operator: complex weights on the lowest frequencies."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 5, 4, dtype=torch.cfloat))

    def forward(self, x):
        spectrum = torch.fft.rfft(x.reshape(1, 2, 12))
        low = torch.einsum("bix,iox->box", spectrum[..., :4], self.weight)
        return torch.fft.irfft(F.pad(low, (0, 3)), n=12)


FUNCTIONS = {
    "sums with Python's 1j": lambda x: real(
        x.abs() * torch.exp(x * 1j), (x + 1j * x) * (2 - 1j), 1 - number(x), number(x) + x, x - number(x)
    ),
    "quotients": lambda x: real(
        x / number(x), number(x) / number(x + 2), 1 / number(x), (1 + 2j) / number(x), x / (1 + 2j)
    ),
    "size and angle": lambda x: (
        number(x).abs(),
        number(x).angle(),
        number(x).conj().imag,
        torch.angle(x),
        torch.view_as_real(torch.polar(x.abs(), x)),
        torch.view_as_real(torch.sgn(number(x))),
    ),
    "exponentials": lambda x: real(
        torch.exp(number(x)), torch.log(number(x)), torch.sqrt(number(x)), torch.rsqrt(number(x)),
        number(x) ** 2, number(x) ** 3, number(x) ** -1.5, 2.0 ** number(x), torch.log2(number(x)),
    ),
    "trigonometry": lambda x: real(
        torch.sin(number(x)), torch.cos(number(x)), torch.tan(number(x)), torch.sinh(number(x)),
        torch.cosh(number(x)), torch.tanh(number(x)), torch.sigmoid(number(x)),
    ),
    "products of matrices": lambda x: real(
        number(x) @ number(x).mH,
        number(x) @ x.t().to(torch.cfloat),
        F.linear(number(x), MATRIX, torch.ones(3) * 1j),
        torch.einsum("bi,bj->bij", number(x), number(x).conj()),
        torch.baddbmm(number(x).reshape(2, 3, 4), number(x).reshape(2, 3, 4), SQUARES, alpha=2),
    ),
    "reductions": lambda x: (
        *real(number(x).mean(-1), number(x).sum(), number(x)[:, :5].prod(-1), number(x).cumsum(-1)),
        torch.view_as_real(number(x)[:, :5].cumprod(-1)),
        torch.linalg.vector_norm(number(x), dim=-1),
        number(x).var(-1),
    ),
    "choices": lambda x: (
        *real(torch.where(x > 0, number(x), x.to(torch.cfloat)), number(x).masked_fill(x > 0, 2j)),
        (number(x) == number(x.abs())).float() + torch.isfinite(number(x)),
    ),
    "moves": lambda x: real(
        torch.stack(torch.chunk(number(x), 2, -1) + number(x).split(6, -1)),
        number(x).roll(2, 1).flip(0).repeat(2, 1),
        F.pad(number(x), (1, 2), value=1.5),
        number(x)[:, torch.tensor([3, 1, 2])].gather(1, torch.tensor([[0, 2], [1, 1]])),
        torch.cat([number(x), x], 1),
        x.view(torch.cfloat),
        written_into(x),
    ),
    "complex weights": Modes(),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_complex_numbers(name, tmp_path):
    check(tmp_path, FUNCTIONS[name], V)


def test_rotary_embedding(tmp_path):
    check(tmp_path, rotary, normal(2, 6, 8), "float16")


TRANSFORMS = {
    "fft": lambda x: real(
        torch.fft.fft(x), torch.fft.fft(x, norm="ortho"), torch.fft.fft(x, n=16, norm="forward"),
        torch.fft.fft(x, n=7), torch.fft.ifft(number(x)), torch.fft.ifft(number(x), norm="ortho", dim=0),
    ),
    "rfft": lambda x: (
        *real(torch.fft.rfft(x), torch.fft.rfft(x, n=11, norm="ortho"), torch.fft.ihfft(x)),
        torch.fft.hfft(number(x)),
        torch.fft.irfft(number(x)),
        torch.fft.irfft(number(x), n=13, norm="ortho"),
        torch.fft.irfft(number(x), n=40, norm="forward"),
    ),
    "several axes": lambda x: (
        torch.view_as_real(torch.fft.fft2(x.reshape(2, 3, 4))),
        torch.fft.irfft2(torch.fft.rfft2(x.reshape(2, 3, 4), norm="ortho") * 1j, s=(3, 4), norm="ortho"),
        torch.fft.fftshift(torch.fft.fftn(x.reshape(2, 3, 4), norm="ortho")).abs(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, tmp_path):
    check(tmp_path, TRANSFORMS[name], V)


def vocoder(x):
    spectrum = torch.stft(x, 16, 4, window=WINDOW, return_complex=True)
    size, phase = spectrum.abs(), spectrum.angle()
    sound = torch.istft(size * torch.exp(phase * 1j), 16, 4, window=WINDOW, length=60)
    return sound, torch.cat([size, phase.cos()], 1)


@pytest.mark.parametrize("recipe", LEAST_DB)
def test_sounds_from_size_and_phase(recipe, tmp_path):
    check(tmp_path, vocoder, normal(1, 64), recipe)


def test_windowed_transforms(tmp_path):
    def spectra(x):
        hamming = torch.hamming_window(20)
        wide = torch.stft(
            x, 32, 8, 20, hamming, pad_mode="constant", normalized=True, onesided=False, return_complex=True
        )
        back = torch.istft(torch.stft(x, 16, return_complex=True), 16)
        return torch.view_as_real(wide), back

    check(tmp_path, spectra, normal(1, 64))


def test_overlapping_windows_are_added_up(tmp_path):
    check(tmp_path, lambda x: F.fold(x, (4, 5), (2, 4), stride=(1, 2), padding=(0, 1)), normal(1, 8, 6))


@pytest.mark.parametrize("points", [8, 12, 30, 16])
def test_the_lowest_and_the_highest_frequency_are_real(points, tmp_path):
    """A sine of 1.2e-16 instead of 0 turns the angle of a negative number by pi."""
    captured = captured_of(lambda x: torch.fft.rfft(x).imag, normal(3, points) - 5)
    imaginary = evaluate(lower(captured.program), captured)[0]["output"]
    assert not np.abs(imaginary[:, [0, -1]]).any()
    if points == 16:
        check(tmp_path, lambda x: torch.fft.rfft(x).angle()[:, [0, -1]], normal(3, points) - 5, "float16")


def test_angles_in_all_quarters(tmp_path):
    edges = torch.tensor([[0.0, 1.0, 0.0, -1.0, 3.0], [1.0, 0.0, -1.0, 0.0, -2.0]])
    check(
        tmp_path,
        lambda x: torch.atan2(x, x.flip(0)),
        torch.cat([edges, edges.flip(0) * 2, torch.zeros(2, 5)]),
    )


def test_small_numbers_keep_their_size(tmp_path):
    check(tmp_path, lambda x: torch.log(torch.complex(x, x * 2).abs()), torch.tensor([[1e-9, 3e-12, 1e-20]]))


@pytest.mark.parametrize("function", [
    lambda x: torch.view_as_real(torch.fft.fft(x, norm="ortho")),
    lambda x: torch.view_as_real(torch.fft.rfft(x, norm="ortho")),
    lambda x: torch.fft.irfft(torch.complex(x, x.flip(1)), n=6000, norm="ortho"),
])  # fmt: skip
def test_many_points(function):
    """More than one matrix would hold are transformed in two steps."""
    captured = captured_of(function, normal(1, 6000))
    results = evaluate(lower(captured.program), captured)
    assert verdict(compare(captured.reference, results), 100.0) == "pass"
    assert all(tensor.numel() < 2e5 for tensor in lower(captured.program).state_dict.values())


def test_what_has_no_rule_is_named_for_both_targets(tmp_path):
    captured = captured_of(lambda x: torch.linalg.eigvals(x).abs() + torch.fft.fft(x).abs(), normal(4, 4))
    for target, (name, write) in zip(("Core ML", "MPS target"), WRITERS.items()):
        with pytest.raises(UnsupportedOperators, match=f"{target} cannot express 1 operator") as caught:
            write(compress(captured, parse_recipe("float32")), tmp_path / name)
        assert "linalg_eig" in caught.value.operators[0]
        assert "torch.view_as_real" in caught.value.hint


def test_points_with_a_large_prime_factor_are_named():
    captured = captured_of(lambda x: torch.fft.rfft(x).abs(), normal(1, 4099))
    with pytest.raises(UnsupportedOperators, match="_fft_r2c"):
        split_complex_numbers(draft(captured.program), "Core ML")


def test_complex_outputs_are_refused_in_words():
    with pytest.raises(UserError, match=r"returns complex numbers \(output\), which no artifact can hold"):
        captured_of(torch.fft.fft, V)


def test_the_pass_tells_whether_it_changed_anything():
    work = draft(captured_of(lambda x: torch.fft.rfft(x).abs(), V).program)
    assert split_complex_numbers(work, "Core ML") is True
    assert split_complex_numbers(work, "Core ML") is False
