"""Weights that were compressed before: a weight, its recipe and the evidence enter, what `compress_weight`
gave for them the last time leaves.

The key is over the values themselves, so that a weight is clustered or quantized once for each scheme,
whatever model or file it is in.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..models.digest import digest_json, digest_tensor
from ..models.roles import Role
from .layers import Evidence
from .schemes import Recipe
from .weight import Codes, CompressedWeight, Palette

KINDS = {"codes": Codes, "palette": Palette}
NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class WeightCache:
    """Where compressed weights are kept. version: of the kernels; read: key -> an entry's bytes, None where
    there is none; write: takes a key, what the entry is in words, and its bytes."""

    version: str
    read: Callable[[str], bytes | None]
    write: Callable[[str, str, bytes], None]
    # by memory; the tensor is held so that its memory stays its own
    digests: dict[int, tuple[torch.Tensor, str]] = field(default_factory=dict)

    def digest(self, tensor: torch.Tensor) -> str:
        """Of a tensor of the captured program, computed once."""
        place = tensor.data_ptr()
        if place not in self.digests or self.digests[place][0].shape != tensor.shape:
            self.digests[place] = (tensor, digest_tensor(tensor))
        return self.digests[place][1]


@dataclass(frozen=True)
class CachedWeight:
    """A compressed weight, the recipe as realised (its words), why that differs from the wish, and how near
    it is (None: equal)."""

    weight: CompressedWeight
    realised: str
    reason: str
    snr_db: float | None


def key_of(cache: WeightCache, tensor: torch.Tensor, role: Role, recipe: Recipe, evidence: Evidence) -> str:
    statistics = evidence.statistics
    tensors = (
        {part.name: getattr(statistics, part.name) for part in fields(statistics)}
        if statistics is not None
        else {}
    )
    parts = {
        "version": cache.version,
        "weight": cache.digest(tensor),
        "role": str(role),
        "recipe": recipe.words,
        "rescaled": evidence.rescaled,
        "survivors": None if evidence.survivors is None else digest_tensor(evidence.survivors),
        "statistics": {
            name: digest_tensor(value) if isinstance(value, torch.Tensor) else str(value)
            for name, value in tensors.items()
        },
    }
    return digest_json(parts)


def read_weight(cache: WeightCache, key: str, name: str) -> CachedWeight | None:
    """The entry of a key, None where there is none. name: of the weight, which may be another one than when
    it was written."""
    content = cache.read(key)
    if content is None:
        return None
    try:
        tensors = load(content)
        about = json.loads(bytes(tensors.pop("about").numpy()))
    except (SafetensorError, KeyError, ValueError):  # of another version of this file
        return None
    values, shape = about["values"], tuple(about["shape"])
    if "mask" in tensors:
        bits = np.unpackbits(tensors["mask"].numpy(), count=math.prod(shape))
        tensors["mask"] = torch.from_numpy(bits).bool().reshape(shape)
    parts = {part: tensors.get(f"values.{part}", about["plain"].get(part)) for part in about["parts"]}
    weight = CompressedWeight(
        name, shape, KINDS[values](**parts) if values else None, tensors.get("mask"), tensors.get("surviving")
    )
    return CachedWeight(weight, about["realised"], about["reason"], about["snr_db"])


def write_weight(cache: WeightCache, key: str, entry: CachedWeight) -> None:
    """Keep a compressed weight for `read_weight`: its tensors as they are, the mask as bits, the rest as
    JSON."""
    weight, values = entry.weight, entry.weight.values
    parts: dict[str, Any] = (
        {part.name: getattr(values, part.name) for part in fields(values)} if values is not None else {}
    )
    tensors = {f"values.{name}": value for name, value in parts.items() if isinstance(value, torch.Tensor)}
    if weight.surviving is not None:
        tensors["surviving"] = weight.surviving
    about = {
        "shape": list(weight.shape),
        "values": None if values is None else NAMES[type(values)],
        "parts": list(parts),
        "plain": {name: value for name, value in parts.items() if not isinstance(value, torch.Tensor)},
        "realised": entry.realised,
        "reason": entry.reason,
        "snr_db": entry.snr_db,
    }
    stored = {name: value.contiguous() for name, value in tensors.items()}
    if weight.mask is not None:
        stored["mask"] = torch.from_numpy(np.packbits(weight.mask.numpy().reshape(-1)))
    stored["about"] = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    cache.write(key, f"{weight.name} {entry.realised}", save(stored))
