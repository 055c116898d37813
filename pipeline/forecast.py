"""What `convert --dry-run` tells, as frozen records: field names are its keys, in their order."""

from dataclasses import dataclass

from ..validation.records import Origin


@dataclass(frozen=True)
class Size:
    """Bytes of an artifact by what they hold: compressed weights with their scales, tables and masks; other
    tensors; the graph around them."""

    weights: int
    others: int
    graph: int

    @property
    def total(self) -> int:
        return self.weights + self.others + self.graph


@dataclass(frozen=True)
class RecipeForecast:
    """What a recipe would give. size_bytes, parts: by target; seconds, with their band, and memory: of
    compressing, converting and validating for all targets."""

    recipe: str
    size_bytes: dict[str, int]
    parts: dict[str, Size]
    seconds: float
    low_seconds: float
    high_seconds: float
    peak_rss_bytes: int
    source: Origin = "estimate"


@dataclass(frozen=True)
class Forecast:
    """model: its path."""

    model: str
    recipes: tuple[RecipeForecast, ...]
