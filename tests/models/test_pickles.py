"""Pickles: torch.nn modules load without trust, everything else only with it, and nothing of a refused file
runs."""

import os
import pickle

import pytest
import torch

from cidermill.models.errors import UserError
from cidermill.models.inputs import InputSpec
from cidermill.models.load import load
from cidermill.models.pickles import globals_of, imported_names

IMAGE = (InputSpec("x", (1, 3, 8, 8)),)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, **options)
    assert error.value.hint
    return str(error.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: {"weight": torch.ones(2), "x": p}], ids=["bare", "in-state-dict"]
)
def test_payload_does_not_run(tmp_path, zipped, wrap):
    torch.save(wrap(Payload(tmp_path / "ran")), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "m.pt", inputs=IMAGE)
    assert (
        "is a pickle that would import code: posix.system. None of it was run." in message
        and "--trust-pickle" in message
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_payload_in_a_plain_pickle(tmp_path, protocol):
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=protocol))
    assert (
        "is a plain pickle, not written by torch.save. It would import posix.system; none of it was run."
        in refusal(tmp_path / "m.pt")
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_payload_of_a_later_protocol(tmp_path, protocol):
    torch.save(Payload(tmp_path / "ran"), tmp_path / "m.pt", pickle_protocol=protocol)
    assert "would import code: posix.system." in refusal(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


def test_the_payload_can_run(tmp_path):
    """Otherwise the tests above would prove nothing."""
    torch.save(Payload(tmp_path / "ran"), tmp_path / "m.pt")
    refusal(tmp_path / "m.pt", trust_pickle=True)
    assert (tmp_path / "ran").exists()


def test_torch_functions_are_not_layers(tmp_path):
    """Only classes of torch.nn pass, not whatever else those modules happen to import."""
    (tmp_path / "m.pt").write_bytes(b"")
    for name in (
        b"torch.nn.modules.module\nTensor",
        b"torch.hub\nload",
        b"torch.nn.modules.module\nwarnings",
        b"torch\nload",
    ):
        data = b"\x80\x02c" + name + b"\n."
        torch.save({"a": torch.ones(1)}, tmp_path / "m.pt")
        repack(tmp_path / "m.pt", data)
        assert "would import code" in refusal(tmp_path / "m.pt"), name


def test_a_module_without_its_parts(tmp_path, convnet):
    torch.save(convnet, tmp_path / "m.pt")
    repack(tmp_path / "m.pt", b"\x80\x02ctorch.nn.modules.container\nSequential\n)\x81.")
    assert "holds an incomplete Sequential: 'Sequential' object has no attribute" in refusal(
        tmp_path / "m.pt", inputs=IMAGE
    )


def repack(path, pickled):
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else data)


def test_globals_follow_the_memo():
    class_twice = pickle.dumps([os.system, os.system, os.getcwd], protocol=4)
    assert globals_of(class_twice) == ("posix.system", "posix.getcwd")
    assert globals_of(pickle.dumps({"a": {1}}, protocol=2)) == ("builtins.set",)


MODULES = {
    "convnet": (
        lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.SiLU()),
        (1, 3, 8, 8),
    ),
    "transformer": (
        lambda: torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu"), 1),
        (4, 1, 8),
    ),
    "half": (
        lambda: torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Upsample(scale_factor=2)).half(),
        (1, 3, 8),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_torch_nn_loads_without_trust(tmp_path, name):
    build, shape = MODULES[name]
    torch.manual_seed(0)
    model = build()
    torch.save(model, tmp_path / "m.pt")
    source = load(tmp_path / "m.pt", (InputSpec("x", shape),))
    x = torch.randn(shape)
    assert source.format == "module" and not source.module.training
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.inputs] == [("x", shape, "float32")]
    with torch.no_grad():
        assert torch.allclose(source.module(x=x), model.float().eval()(x), atol=1e-6)
    assert set(source.module.state_dict()) == set(model.state_dict())
    allowed = [
        entry
        for entry in torch.serialization.get_safe_globals()
        if isinstance(entry, tuple) and "torch.nn" in entry[1]
    ]
    assert not allowed, "the allowance must not outlive the load"


def test_a_legacy_module_needs_trust(tmp_path, convnet):
    torch.save(convnet, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert "is a whole module in the format from before torch 1.6" in refusal(tmp_path / "m.pt", inputs=IMAGE)
    source = load(tmp_path / "m.pt", IMAGE, trust_pickle=True)
    with torch.no_grad():
        assert torch.equal(source.module(x=torch.ones(1, 3, 8, 8)), convnet(torch.ones(1, 3, 8, 8)))


def test_own_classes_need_trust(tmp_path, package, monkeypatch):
    name = package(
        "their_net",
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, image): return image * 2\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(__import__(name).Net(), tmp_path / "m.pt")
    assert imported_names(tmp_path / "m.pt", False)[0] == "their_net.Net"
    assert "would import code: their_net.Net." in refusal(tmp_path / "m.pt", inputs=IMAGE)
    source = load(tmp_path / "m.pt", (InputSpec("image", (1, 2)),), trust_pickle=True)
    assert source.module(image=torch.ones(1, 2)).tolist() == [[2.0, 2.0]]
    assert "has no input x. Its inputs are: image." in refusal(
        tmp_path / "m.pt", inputs=IMAGE, trust_pickle=True
    )
    __import__("sys").modules.pop(name)
    (tmp_path / f"{name}.py").unlink()
    __import__("importlib").invalidate_caches()
    message = refusal(tmp_path / "m.pt", inputs=IMAGE, trust_pickle=True)
    assert "needs a class that cannot be imported here: No module named 'their_net'" in message
