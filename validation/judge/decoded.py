"""What the stored weights of an artifact decompress to: a Graph read from a file enters, values leave,
computed by the reference runner's own operators from the file's bytes, one weight at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations

import torch

from ..graph import Graph, interpret, load_constants, references
from ..mil.run import call_operator, fold_constants, with_tensors
from .stored import StoredWeight

LARGEST_RANK = 5  # of weights whose axes may have been reordered


class Decoder:
    """Decodes stored weights of a graph and of the delegates inside it. Nothing is kept between two
    weights."""

    def __init__(self, graph: Graph, program: Graph | None = None):
        """program: what a runner has made of the graph, where one has decoded it already."""
        self.graph = fold_constants(with_tensors(graph), call_operator) if program is None else program
        self.delegates = [
            _ConstantPart(block)
            for node in graph.nodes
            if node.op == "delegate:MPSBackend"
            for block in node.blocks
        ]

    def values(self, weight: StoredWeight) -> Iterator[torch.Tensor]:
        """What a weight is decompressed to. In a delegate: every value on the way from the stored constant to
        where an input comes in."""
        if weight.name in self.graph.constants:
            constant = self.graph.constants[weight.name]
            yield constant() if callable(constant) else constant
            return
        for part in self.delegates:
            if weight.name in part.block.constants:
                yield from part.along(weight.name)


class _ConstantPart:
    """What a delegate computes from its constants only."""

    def __init__(self, block: Graph):
        self.block = block
        self.makers: dict[str, int] = {}  # name -> index of the node that computes it
        self.users: dict[str, list[int]] = {}  # name -> indices of the nodes that read it
        for index, node in enumerate(block.nodes):
            sources = set(references(node.inputs))
            if all(name in block.constants or name in self.makers for name in sources):
                self.makers |= {value.name: index for value in node.outputs}
                for name in sources:
                    self.users.setdefault(name, []).append(index)

    def along(self, name: str) -> Iterator[torch.Tensor]:
        """A constant itself and, in order, every value that is computed from it."""
        environment: dict[str, torch.Tensor] = {}
        load_constants(self.block, [name], environment)
        yield environment[name]
        for index in sorted(self._closure([name], self._read_by)):
            yield self._computed(index)

    def _computed(self, last: int) -> torch.Tensor:
        from ..pte import mps_ops

        needed = sorted({last, *self._closure(references(self.block.nodes[last].inputs), self._made_by)})
        nodes = tuple(self.block.nodes[index] for index in needed)
        name = nodes[-1].outputs[0].name
        part = replace(self.block, inputs=(), outputs=(name,), nodes=nodes)
        return interpret(part, partial(mps_ops.call, rounding=True), {})[name]

    def _read_by(self, name: str) -> Iterator[tuple[int, Iterable[str]]]:
        for index in self.users.get(name, ()):
            yield index, (value.name for value in self.block.nodes[index].outputs)

    def _made_by(self, name: str) -> Iterator[tuple[int, Iterable[str]]]:
        if name in self.makers:
            yield self.makers[name], references(self.block.nodes[self.makers[name]].inputs)

    @staticmethod
    def _closure(
        names: Iterable[str], neighbours: Callable[[str], Iterator[tuple[int, Iterable[str]]]]
    ) -> set[int]:
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            for index, further in neighbours(waiting.pop()):
                if index not in found:
                    found.add(index)
                    waiting += further
        return found


def same(decoded: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two weights hold the same values, rounded to float16, in the same order, with axes reordered or
    of length 1 left out, or turned as the weight of a transposed convolution that is computed as a plain
    one."""
    if decoded.numel() != expected.numel():
        return False
    if decoded.shape == expected.shape and torch.equal(decoded, expected):
        return True
    decoded, expected = decoded.half(), expected.half()
    if torch.equal(decoded.reshape(-1), expected.reshape(-1)) or _is_turned(decoded, expected):
        return True
    target = _long_axes(decoded)
    squeezed = expected.reshape(_long_axes(expected))
    if squeezed.ndim > LARGEST_RANK or sorted(target) != sorted(squeezed.shape):
        return False
    decoded = decoded.reshape(target)
    orders = (
        order
        for order in permutations(range(squeezed.ndim))
        if [squeezed.shape[axis] for axis in order] == target
    )
    return any(torch.equal(decoded, squeezed.permute(order)) for order in orders)


def _is_turned(decoded: torch.Tensor, expected: torch.Tensor) -> bool:
    """expected [groups * in, out, *kernel], found [groups * out, in, *kernel] with the kernel read
    backwards."""
    if (
        expected.ndim < 3
        or decoded.shape[0] % expected.shape[1]
        or expected.shape[0] % (groups := decoded.shape[0] // expected.shape[1])
    ):
        return False
    kernel = list(expected.shape[2:])
    turned = (
        expected.reshape(groups, -1, expected.shape[1], *kernel)
        .transpose(1, 2)
        .flip(list(range(3, 3 + len(kernel))))
    )
    return torch.equal(decoded.reshape(-1), turned.reshape(-1))


def _long_axes(tensor: torch.Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]
