"""How Core ML holds each form: the storable form has the same values, and the saved file has exactly its
bits."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.converters.coreml.deployment import required_target
from cidermill.converters.coreml.storage import storable, stored_bits
from cidermill.converters.coreml.write import write_mlpackage
from cidermill.converters.mps.write import write_pte
from cidermill.models.capture import capture
from cidermill.models.source import Samples, Source, TensorSpec
from cidermill.quantization.compress import Compressed, Decision
from cidermill.quantization.recipe import parse_recipe
from cidermill.quantization.weight import Codes, CompressedWeight, Palette
from cidermill.validation.judge.audit import audit

ROWS, COLUMNS = 32, 64
generator = torch.Generator().manual_seed(0)


def codes(bits, blocks, zero_point=False):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    drawn = torch.randint(low, high, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    scale = (torch.rand(blocks, generator=generator) + 0.1).half().float()
    return Codes(
        bits,
        drawn,
        scale,
        torch.randint(low, high, blocks, generator=generator, dtype=torch.int8) if zero_point else None,
    )


def palette(bits, groups=(1, 1), vector=1, scaled=False, int8=False):
    indices = torch.randint(0, 2**bits, (ROWS // vector, COLUMNS), generator=generator, dtype=torch.int32).to(
        torch.uint8
    )
    lut = torch.randn(*groups, 2**bits, vector, generator=generator).half().float()
    table_scale = (
        (torch.rand(*groups, 1, 1, generator=generator) * 0.01 + 0.001).half().float() if int8 else None
    )
    if int8:
        lut = (torch.randint(-127, 128, lut.shape, generator=generator) * table_scale).half().float()
    scale = (torch.rand(ROWS, 1, generator=generator) + 0.5).half().float() if scaled else None
    return Palette(bits, indices, lut, 0 if vector > 1 else None, scale, table_scale)


FORMS = {
    **{f"int{bits}": codes(bits, (ROWS, 1)) for bits in range(2, 9)},
    **{f"int{bits} asymmetric": codes(bits, (ROWS, 1), True) for bits in range(2, 9)},
    **{f"int{bits} block16": codes(bits, (ROWS, 4), bits % 2 == 0) for bits in range(2, 9)},
    "int5 per-tensor": codes(5, (1, 1)),
    "int2 per-tensor": codes(2, (1, 1), True),
    **{f"palettize{bits}": palette(bits) for bits in (1, 2, 3, 4, 6, 8)},
    "group8": palette(4, (4, 1)),
    "vector2": palette(4, vector=2),
    "vector4": palette(6, (2, 1), 4),
    "scaled": palette(4, scaled=True),
    "scaled 1 bit": palette(1, scaled=True),
    "scaled vector2 group8": palette(1, (4, 1), 2, True),
    "int8 table": palette(4, int8=True),
    "int8 tables": palette(2, (4, 1), int8=True),
    "int8 vector2 scaled": palette(4, (4, 1), 2, True, True),
}


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    array = np.random.default_rng(0).standard_normal((1, COLUMNS)).astype(np.float32)
    net = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS, bias=False))
    source = Source(Path("m.pt"), "module", "0", net.eval(), (TensorSpec("input", (1, COLUMNS), "float32"),))
    return capture(source, Samples("synthetic", ({"input": array},), 0))


def made(form, pruned):
    mask = (
        (torch.rand(ROWS // 4, COLUMNS, generator=torch.Generator().manual_seed(1)) > 0.5).repeat_interleave(
            4, 0
        )
        if pruned
        else None
    )
    return CompressedWeight("0.weight", (ROWS, COLUMNS), FORMS[form], mask)


def audited(captured, weight, write):
    decision = Decision(weight.name, weight.shape, "x", "x", weight.bits_per_weight())
    artifact = write(Compressed(captured, parse_recipe("int8"), {weight.name: weight}, (decision,)))
    section = audit(artifact.path, (decision,), artifact.realised, {weight.name: weight})
    (entry,) = [entry for entry in section.weights if entry.name == weight.name]
    return artifact, section, entry


# In CI: every way in which a target stores a weight once, dense or pruned by turns, and both systems where
# their files differ. The rest is slow.
PACKAGED = (
    "int2", "int3 asymmetric", "int5", "int6 block16", "int8 table", "scaled", "int4", "int7",
    "int8 asymmetric", "int4 block16", "int5 per-tensor", "palettize1", "palettize3", "palettize4",
    "palettize8", "group8", "vector4", "scaled 1 bit", "scaled vector2 group8", "int8 tables",
    "int8 vector2 scaled",
)  # fmt: skip
DIFFER = 5  # of these, the first, are stored otherwise from iOS26 on
DELEGATED = (
    "int2", "int4", "int4 block16", "int4 asymmetric", "int8 asymmetric", "palettize1", "palettize8",
    "vector4", "group8", "palettize8", "scaled", "scaled vector2 group8", "int8 table", "int8",
)  # fmt: skip
PACKAGES_IN_CI = {
    (("iOS18", "iOS26")[place // 2 % 2], form, place % 2 == 1) for place, form in enumerate(PACKAGED)
}
PACKAGES_IN_CI |= {
    (("iOS26", "iOS18")[place // 2 % 2], form, place % 2 == 0) for place, form in enumerate(PACKAGED[:DIFFER])
}
DELEGATES_IN_CI = {(form, place % 2 == 1) for place, form in enumerate(DELEGATED)}


def cases(every, chosen):
    return [
        pytest.param(*case, marks=() if case in chosen else pytest.mark.slow, id="-".join(map(str, case)))
        for case in every
    ]


@pytest.mark.parametrize(
    "target, form, pruned", cases(itertools.product(("iOS18", "iOS26"), FORMS, (False, True)), PACKAGES_IN_CI)
)
def test_the_package_decodes_to_what_was_made_in_as_many_bits_as_said(
    captured, tmp_path, target, form, pruned
):
    weight = made(form, pruned)
    stored, _ = storable(weight, target == "iOS26")
    assert torch.equal(stored.dense(), weight.dense())
    artifact, section, entry = audited(
        captured, weight, lambda compressed: write_mlpackage(compressed, tmp_path / "m.mlpackage", target)
    )
    assert section.verdict == "pass" and entry.decoded == "equal"
    assert artifact.realised[weight.name][1] == pytest.approx(stored_bits(stored) / weight.dense().numel())
    # the axis of a vector takes 4 bytes
    assert entry.bits_per_weight == pytest.approx(artifact.realised[weight.name][1], abs=0.02)


@pytest.mark.parametrize("form, pruned", cases(itertools.product(FORMS, (False, True)), DELEGATES_IN_CI))
def test_the_delegate_decodes_to_what_was_made(captured, tmp_path, form, pruned):
    weight = made(form, pruned)
    artifact, section, entry = audited(
        captured, weight, lambda compressed: write_pte(compressed, tmp_path / "m.pte")
    )
    assert section.verdict == "pass" and entry.decoded == "equal"
    # an index offset of 8 bytes
    assert entry.bits_per_weight == pytest.approx(artifact.realised[weight.name][1], abs=0.04)


def test_a_table_per_channel_is_taken_only_where_it_is_cheap():
    wide = replace(made("scaled", False), shape=(32, 640))
    scaled = replace(wide, values=replace(wide.values, indices=wide.values.indices.repeat(1, 10)))
    folded, reason = storable(scaled, True)
    assert folded.values.channel_scale is None and "multiplied into a table for each of them" in reason
    assert torch.equal(folded.dense(), scaled.dense())
    kept, reason = storable(made("scaled", False), True)
    assert kept.values.channel_scale is not None and "takes no scales after a table" in reason


@pytest.mark.parametrize(
    "form, ios26, scheme",
    [
        ("int2", True, Codes),
        ("int2", False, Palette),
        ("int5", True, Codes),
        ("int5 per-tensor", False, Palette),
        ("int7", True, Codes),
    ],
)
def test_the_smallest_form_that_the_system_takes(form, ios26, scheme):
    assert isinstance(storable(made(form, False), ios26)[0].values, scheme)


@pytest.mark.parametrize(
    "text, target",
    [
        ("float32", "iOS15"),
        ("float16", "iOS15"),
        ("int8", "iOS16"),
        ("int8:per-tensor", "iOS16"),
        ("int8:asymmetric", "iOS16"),
        ("prune50", "iOS16"),
        ("palettize4", "iOS16"),
        ("palettize1", "iOS16"),
        ("palettize8:sensitive", "iOS16"),
        ("palettize3", "iOS18"),
        ("palettize4:group16", "iOS18"),
        ("palettize4:vector2", "iOS18"),
        ("palettize4:scaled", "iOS18"),
        ("palettize4:int8", "iOS18"),
        ("w8a8", "iOS17"),
        ("prune50+w8a8", "iOS18"),
        ("int8:block32", "iOS18"),
        ("int4", "iOS18"),
        ("int4:per-channel", "iOS18"),
        ("int6", "iOS18"),
        ("prune50+int8", "iOS18"),
        ("prune50+palettize4", "iOS18"),
        ("int8; a=int4", "iOS18"),
        ("float16; a=int8", "iOS16"),
    ],
)
def test_required_target(text, target):
    found, reason = required_target(parse_recipe(text))
    assert found == target
    assert reason
