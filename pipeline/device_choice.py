"""What `--device` names enters; the devices that latency is estimated for leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..validation.estimate.devices import DEFAULT_DEVICE, Device, all_devices, find_device

ALL_DEVICES = "all"


@dataclass(frozen=True)
class DeviceChoice:
    """named: products and chips in the order that they were given. every_chip: with one product of each other
    chip after them."""

    named: tuple[Device, ...] = ()
    every_chip: bool = False

    def devices(self, limited: Iterable[Device] = ()) -> tuple[Device, ...]:
        """What to estimate for, the one to place on first: never empty. limited: devices that have a limit,
        which are estimated for as well; where none is named or limited, it is the default device."""
        names = {device.name for device in self.named}
        others = {device.name: device for device in limited if device.name not in names}
        first = (*self.named, *others.values()) or (find_device(DEFAULT_DEVICE),)
        return (*first, *_other_chips(first)) if self.every_chip else first


def choose_devices(names: Sequence[str]) -> DeviceChoice:
    """("A14", "all") -> DeviceChoice. Raises UserError for a name that is not known."""
    named = tuple(find_device(name) for name in names if name.lower() != ALL_DEVICES)
    return DeviceChoice(named, any(name.lower() == ALL_DEVICES for name in names))


def default_devices() -> tuple[Device, ...]:
    return DeviceChoice().devices()


def _other_chips(named: Sequence[Device]) -> tuple[Device, ...]:
    """The first product of every chip that none of `named` has, in the order of the products."""
    chips = {device.chip for device in named}
    first_of_chip = {device.chip: device for device in reversed(all_devices())}
    return tuple(device for chip, device in reversed(first_of_chip.items()) if chip not in chips)
