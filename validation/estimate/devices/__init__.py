"""The chips: a device's or a chip's name comes in, a `Device` with the numbers that the estimates need
leaves.

chips.csv is derived from the project's device study. Columns named in a row's `estimated` are not published
for that chip: they are taken from its neighbours (same Neural Engine or memory generation) and carry no
measurement.
"""

import csv
import difflib
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ....models.errors import UserError

DATA = Path(__file__).parent
DEFAULT_DEVICE = "iPhone 15 Pro"


@dataclass(frozen=True)
class Device:
    """A product, or a chip by its own name. Rates are peaks: TOPS and TFLOP/s in float16 unless named int8,
    GB/s = 1e9 bytes/s.

    generation: the A-series year whose Neural Engine it has (an M1 has 14's), which sets the limits of
    `support.py`.
    cpu_relative: matrix speed of the CPU against the M4's, estimated. estimated: names of the fields that are
    not published.
    """

    name: str
    chip: str
    generation: int
    ane_fp16_tops: float
    ane_int8_tops: float
    gpu_tflops: float
    memory_bandwidth_gbs: float
    cpu_relative: float
    estimated: tuple[str, ...] = ()


def all_devices() -> tuple[Device, ...]:
    """Every known product, in the order of chips.csv (phones and tablets by year, then Macs)."""
    return tuple(_device(name, row) for row in _rows() for name in row["devices"].split(";"))


def all_chips() -> tuple[Device, ...]:
    """One entry per chip, named by the chip."""
    return tuple(_device(row["chip"], row) for row in _rows())


def find_device(name: str) -> Device:
    """ "iPhone 15 Pro", "iphone15pro", "A14" or "M4" -> Device; case and spaces do not matter. UserError
    names the nearest known names."""
    known = _by_key()
    if device := known.get(_key(name)):
        return device
    near = difflib.get_close_matches(_key(name), known, n=3, cutoff=0.5)
    names = [known[key].name for key in near] or [chip.name for chip in all_chips()]
    raise UserError(
        (
            f"unknown device {name!r}: the nearest known names are {', '.join(names)}"
            if near
            else f"unknown device {name!r}: known chips are {', '.join(names)}"
        ),
        'Give a product ("iPhone 15 Pro") or a chip ("A17 Pro", "M4").',
    )


@functools.cache
def planner() -> dict:
    """planner.json: what Core ML's placement planner charges for operations, launches and switches, with its
    provenance."""
    return json.loads((DATA / "planner.json").read_text())


@functools.cache
def _rows() -> tuple[dict, ...]:
    with (DATA / "chips.csv").open(newline="") as stream:
        return tuple(csv.DictReader(stream))


@functools.cache
def _by_key() -> dict[str, Device]:
    return {_key(device.name): device for device in (*all_devices(), *all_chips())}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _device(name: str, row: dict) -> Device:
    return Device(
        name=name,
        chip=row["chip"],
        generation=int(row["generation"]),
        ane_fp16_tops=float(row["ane_fp16_tops"]),
        ane_int8_tops=float(row["ane_int8_tops"]),
        gpu_tflops=float(row["gpu_tflops"]),
        memory_bandwidth_gbs=float(row["memory_bandwidth_gbs"]),
        cpu_relative=float(row["cpu_relative"]),
        estimated=tuple(row["estimated"].split()),
    )
