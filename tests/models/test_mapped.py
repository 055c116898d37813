"""Mapped weights leave memory after their use, unless somebody has written to them."""

import sys
from pathlib import Path

import pytest
import torch

from cidermill.models.mapped import READ_AT_ONCE, Reading, drop_mapped_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the pages")
COUNT = 8 << 20  # numbers: 32 MB


@pytest.fixture
def mapped(tmp_path) -> torch.Tensor:
    """As safetensors maps its files: private, and writable"""
    file = tmp_path / "weights"
    torch.arange(COUNT, dtype=torch.float32).numpy().tofile(file)
    return torch.from_file(str(file), shared=False, size=COUNT)


def resident_bytes(tensor: torch.Tensor) -> int:
    """Rss of the mapping that holds the tensor"""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0].islower() or line[0].isdigit():
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            inside = start <= tensor.data_ptr() < end
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("not mapped")


def test_pages_are_dropped_and_read_again(mapped):
    total = mapped.sum(dtype=torch.float64)
    assert resident_bytes(mapped) >= mapped.nbytes
    drop_mapped_pages({mapped.data_ptr()})
    assert resident_bytes(mapped) == 0
    assert mapped.sum(dtype=torch.float64) == total


def test_what_was_written_is_kept(mapped):
    mapped[COUNT // 2] = -1
    drop_mapped_pages({mapped.data_ptr()})
    assert mapped[COUNT // 2] == -1


def test_mappings_of_others_stay(mapped):
    mapped.sum()
    drop_mapped_pages({torch.zeros(1).data_ptr()})
    assert resident_bytes(mapped) >= mapped.nbytes


def test_a_reading_keeps_a_few_resident(mapped):
    reading = Reading()
    for _ in range(READ_AT_ONCE // mapped.nbytes):
        mapped.sum()
        reading.used(mapped)
    assert resident_bytes(mapped) == 0
