"""Integers beyond 32 bits as torch computes them in 64, on both targets and in the limbs themselves."""

import pytest
import torch

from cidermill.converters import limbs
from cidermill.converters.ranges import Range, integer_ranges
from cidermill.models.errors import UnsupportedOperators
from cidermill.models.graphs import draft

TARGETS = ("coreml", "executorch-mps")
IDS = torch.tensor([[0, 1, 999_999], [123_456_789, 2**31 - 1, -(2**31)]])
OTHERS = torch.tensor([[7, -3, 40_000], [2**31 - 1, -987_654_321, 5]])


def number_of(parts):
    return sum(limb * limbs.BASE**place for place, limb in enumerate(parts))


def multiplicative_hash(ids):
    """Knuth's: 32 bits of the product, then buckets."""
    hashed = (ids * 2654435761) % 4294967296
    return (hashed ^ (hashed >> 16)) % 97


def feature_cross(a, b):
    return (a * 1_000_003 + b) % 100_003, ((a * 73_856_093) ^ (b * 19_349_663)) & 1023


def quotients(a, b):
    product = a * b
    return product // 12_345, torch.div(product, -7, rounding_mode="trunc") % 1000, torch.fmod(product, 1000)


def decisions(a, b):
    product = a * b
    return product > 10**12, product == b * a, torch.where(product < 0, -product, product) % 1009


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "function, inputs",
    [(multiplicative_hash, (IDS,)), (feature_cross, (IDS, OTHERS))],
    ids=["hash", "cross"],
)
def test_hashes(agrees, target, function, inputs):
    agrees(target, function, *inputs)


@pytest.mark.parametrize("function", [quotients, decisions])
def test_products_that_are_divided_or_compared(agrees, function):
    agrees("coreml", function, IDS, OTHERS)


def hash_as_real_number(ids):
    hashed = ids * 2654435761 % 2**32
    return hashed / 2**32, hashed.float() * 2.0**-32


@pytest.mark.parametrize("recipe, least_db", [("float32", 100), ("float16", 60)])
def test_a_hash_as_a_real_number(agrees, recipe, least_db):
    agrees("coreml", hash_as_real_number, IDS, recipe=recipe, least_db=least_db)


def test_a_divisor_beyond_the_rules_is_refused(press):
    with pytest.raises(UnsupportedOperators, match=r"remainder.*\n.*a power of two or by at most 2147483647"):
        press("coreml", lambda ids: ids * 31 % (2**61 - 1), IDS)


def test_an_index_that_is_multiplied_stays_one_product(captured):
    class Table(torch.nn.Module):
        def forward(self, ids):
            return torch.arange(20.0)[ids * 3 + 1], ids * 2

    work = draft(captured(Table(), torch.tensor([1, 2])).program)
    from cidermill.converters.wide_integers import split_wide_integers

    assert not split_wide_integers(work, "Core ML")


def test_ranges(captured):
    class Steps(torch.nn.Module):
        def forward(self, ids):
            return ids + 1, ids * 1000, (ids * 1000) % 77, (ids * 3) >> 4, torch.abs(ids)

    work = draft(captured(Steps(), torch.tensor([1, 2])).program)
    output = next(node for node in work.graph.nodes if node.op == "output").args[0]
    ranges = integer_ranges(work)
    least, most = -(2**31), 2**31 - 1
    assert [ranges[node] for node in output] == [
        Range(least + 1, most),
        Range(least * 1000, most * 1000),
        Range(0, 76),
        Range(least * 3 >> 4, most * 3 >> 4),
        Range(0, most),
    ]


@pytest.mark.parametrize("divisor", [1, 7, 2**14, 2**16, 100_003, 10**9 + 7, 2**31 - 1, 2**32, 2**45])
def test_division_of_64_bits(divisor):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-(2**31), 2**31, (200,), generator=generator) for _ in range(2))
    product = limbs.multiply(limbs.limbs_of(a, 3), limbs.limbs_of(b, 3), 5)
    square, wrapped = limbs.multiply(product, product, 5), (a * b) * (a * b)
    assert torch.equal(number_of(product), a * b) and torch.equal(number_of(square), wrapped)
    for number, whole in ((product, a * b), (square, wrapped)):
        assert torch.equal(number_of(limbs.divide(number, divisor, 5)), whole // divisor)
        assert torch.equal(number_of(limbs.remainder(number, divisor)), whole % divisor)
    assert torch.equal(limbs.less(product, square), a * b < wrapped)
    assert torch.equal(limbs.low_bits(square), wrapped.int().long())
    torch.testing.assert_close(limbs.as_float(square), wrapped.float(), rtol=3e-7, atol=0)
