"""Where each operation will run: a Graph and a device come in, a PlacedProgram with a unit and a reason for
every operation leaves.

The rule is Core ML's own: the cheapest path over units (`path.py`) with its planner's costs (`costs.py`) and
limits (`support.py`).
"""

from collections import Counter
from dataclasses import dataclass

from ...models.errors import UserError
from ..graph import Graph, Node
from ..records import Crossing, PlacedOperation, UnitShare
from .advice import advice
from .costs import cost_ms, likely_ms
from .devices import DEFAULT_DEVICE, Device, find_device, planner
from .kernel_costs import BOOKKEEPING, kernel_bytes, kernel_ms
from .operations import Operation, operations
from .path import TIE_MS, UNITS, cheapest_path, path_cost, schedule
from .support import engine_refusal, gpu_refusal

COMPUTE_UNITS = {
    "all": UNITS,
    "cpu_and_ne": ("ane", "cpu"),
    "cpu_and_gpu": ("gpu", "cpu"),
    "cpu_only": ("cpu",),
}
# bnns is never dearer than classic_cpu, and changing between them costs a switch
BACKENDS = {"ane": "ane", "gpu": "gpu", "cpu": "bnns"}
UNIT_NAMES = {"ane": "Neural Engine", "gpu": "GPU", "cpu": "CPU"}
# bytes; on an M4 1.7 GB of weights ran there in part, 3.3 GB not at all (onnxsim, placement.csv)
ENGINE_WEIGHT_LIMIT = 2.5e9
MPS_DELEGATE = "delegate:MPSBackend"


@dataclass(frozen=True)
class PlacedProgram:
    """The estimated placement of a program. crossings: changes of unit, `boundaries` says where; overhead_ms:
    what they and the launches cost."""

    device: Device
    compute_units: str
    ops: tuple[PlacedOperation, ...]
    crossings: int = 0
    overhead_ms: float = 0.0
    boundaries: tuple[Crossing, ...] = ()
    partitions: int | None = None  # delegates of an ExecuTorch program, each of which is one call

    def units(self) -> dict[str, UnitShare]:
        """Per unit, with the share of the operations' time (of their number where all cost nothing)."""
        count: Counter[str] = Counter()
        moved: Counter[str] = Counter()
        spent = dict.fromkeys(UNITS, 0.0)
        for op in self.ops:
            count[op.unit] += 1
            spent[op.unit] += op.cost_ms
            moved[op.unit] += op.bytes
        total = sum(spent.values())
        shares = {
            unit: spent[unit] / total if total else count[unit] / max(1, len(self.ops)) for unit in UNITS
        }
        return {
            unit: UnitShare(count[unit], round(shares[unit], 4), round(spent[unit], 6), moved[unit])
            for unit in UNITS
        }


def place(
    graph: Graph, device: str | Device = DEFAULT_DEVICE, compute_units: str = "all", barred: str = ""
) -> PlacedProgram:
    """The cheapest placement of a Core ML program. compute_units: "all", "cpu_and_ne", "cpu_and_gpu" or
    "cpu_only".

    barred: why the Neural Engine takes no operation of it, "" where it may.
    """
    return place_operations(operations(graph), device, compute_units, barred)


def place_operations(
    steps: list[Operation],
    device: str | Device = DEFAULT_DEVICE,
    compute_units: str = "all",
    barred: str = "",
) -> PlacedProgram:
    """`place` for a program whose operations have been listed already."""
    device = device if isinstance(device, Device) else find_device(device)
    units = allowed_units(compute_units)
    refusals = [_refusals(step, device) for step in steps]
    if barred := barred or _weights_refusal(steps):
        refusals = [{**refusal, "ane": refusal.get("ane") or barred} for refusal in refusals]
    costs = [_unit_costs(step, device, units, refusal) for step, refusal in zip(steps, refusals)]
    order = schedule(steps, [not refusal.get(units[0]) for refusal in refusals])
    chosen = cheapest_path([costs[index] for index in order])
    unit_of = dict(zip(order, chosen))
    reasons = _reasons(order, unit_of, costs, refusals, units)
    placed = tuple(
        PlacedOperation(
            step.node.name or _first_output(step.node),
            step.op,
            step.node.scope,
            unit_of[index],
            reasons.get(index, ""),
            likely_ms(step, BACKENDS[unit_of[index]], device),
            step.moved_bytes,
            advice(step, reasons.get(index, "")),
        )
        for index, step in enumerate(steps)
    )
    boundaries = _boundaries([placed[index] for index in order])
    overhead = path_cost([{unit: 0.0 for unit in UNITS}] * len(chosen), chosen)
    return PlacedProgram(device, compute_units, placed, len(boundaries), overhead, boundaries)


def _boundaries(run_order: list[PlacedOperation]) -> tuple[Crossing, ...]:
    return tuple(
        Crossing(before.unit, after.unit, before.name, after.name)
        for before, after in zip(run_order, run_order[1:])
        if before.unit != after.unit
    )


def place_program(graph: Graph, device: str | Device = DEFAULT_DEVICE) -> PlacedProgram:
    """Placement of an ExecuTorch program: the operations of its MPS delegates on the GPU, all other kernels
    on the CPU.

    There is no planner to imitate: the file says it. Costs are those of `kernel_costs.py`.
    """
    device = device if isinstance(device, Device) else find_device(device)
    ops: list[PlacedOperation] = []
    boundaries: list[Crossing] = []
    for node in (node for node in graph.nodes if node.op not in BOOKKEEPING):
        placed = _placed_kernels(node, graph, device)
        if ops and placed and ops[-1].unit != placed[0].unit:
            boundaries.append(Crossing(ops[-1].unit, placed[0].unit, ops[-1].name, placed[0].name))
        ops += placed
    launches = planner()["launch_ms"]["gpu"] * any(op.unit == "gpu" for op in ops)
    overhead = launches + planner()["switch_ms"] * len(boundaries)
    partitions = sum(node.op == MPS_DELEGATE for node in graph.nodes)
    return PlacedProgram(device, "mps", tuple(ops), len(boundaries), overhead, tuple(boundaries), partitions)


def _placed_kernels(node: Node, graph: Graph, device: Device) -> list[PlacedOperation]:
    """A kernel, or the operations inside an MPS delegate."""
    unit = "gpu" if node.op == MPS_DELEGATE else "cpu"
    inside = [inner for block in node.blocks for inner in block.nodes] or [node]
    reason = (
        "delegated to MPS, which is the GPU"
        if unit == "gpu"
        else f"kernel {node.op} is outside every MPS delegate"
    )
    values = {
        **graph.values,
        **{name: value for block in node.blocks for name, value in block.values.items()},
    }
    return [
        PlacedOperation(
            inner.name or _first_output(inner),
            inner.op,
            inner.scope,
            unit,
            reason,
            kernel_ms(inner, values, unit, device),
            kernel_bytes(inner, values),
        )
        for inner in inside
    ]


def allowed_units(compute_units: str) -> tuple[str, ...]:
    if compute_units not in COMPUTE_UNITS:
        raise UserError(
            f"unknown compute units {compute_units!r}: allowed are {', '.join(COMPUTE_UNITS)}",
            "Pass one of them.",
        )
    return COMPUTE_UNITS[compute_units]


def _refusals(step: Operation, device: Device) -> dict[str, str]:
    return {"ane": engine_refusal(step, device), "gpu": gpu_refusal(step)}


def _weights_refusal(steps: list[Operation]) -> str:
    # a tied weight counts once
    constants = {id(operand): operand for step in steps for operand in step.operands if operand.constant}
    stored = sum(operand.stored_bytes for operand in constants.values())
    return (
        f"{stored / 1e9:.1f} GB of weights > {ENGINE_WEIGHT_LIMIT / 1e9:.1f} GB"
        if stored > ENGINE_WEIGHT_LIMIT
        else ""
    )


def _unit_costs(
    step: Operation, device: Device, units: tuple[str, ...], refusal: dict[str, str]
) -> dict[str, float]:
    return {unit: cost_ms(step, BACKENDS[unit], device) for unit in units if not refusal.get(unit)}


def _reasons(
    order: list[int], unit_of: dict[int, str], costs: list, refusals: list, units: tuple[str, ...]
) -> dict[int, str]:
    """Reason for every operation off the Neural Engine; those that it could run are judged by the stretch
    that they stand in."""
    chosen = [unit_of[index] for index in order]
    reasons: dict[int, str] = {}
    stretch: list[int] = []  # places in `order`
    for turn, index in enumerate(order):
        if chosen[turn] == "ane":
            pass
        elif "ane" not in units:
            reasons[index] = "Neural Engine excluded by the compute units"
        elif refusals[index]["ane"]:
            reasons[index] = refusals[index]["ane"]
        else:
            if stretch and chosen[stretch[-1]] != chosen[turn]:
                reasons.update(_stretch_reasons(stretch, order, chosen, costs))
                stretch = []
            stretch.append(turn)
            continue
        reasons.update(_stretch_reasons(stretch, order, chosen, costs))
        stretch = []
    return {**reasons, **_stretch_reasons(stretch, order, chosen, costs)}


def _stretch_reasons(stretch: list[int], order: list[int], chosen: list[str], costs: list) -> dict[int, str]:
    """A run of operations that the Neural Engine could take: what it would save there, and what going there
    would cost."""
    if not stretch:
        return {}
    members, unit = [order[turn] for turn in stretch], chosen[stretch[0]]
    saved = sum(costs[index][unit] - costs[index]["ane"] for index in members)
    elsewhere = UNIT_NAMES[unit]
    if abs(saved) < TIE_MS:
        text = f"costs the same on {elsewhere}"
    elif saved < 0:
        text = f"cheaper on {elsewhere}: saves {_ms_text(-saved)}"
    else:
        where = f"these {len(stretch)} operations" if len(stretch) > 1 else "it"
        detour = f"going there and back costs {_detour_ms(stretch[0], stretch[-1], chosen):.3g} ms"
        text = f"cheaper on {elsewhere}: the Neural Engine saves {_ms_text(saved)} on {where}, {detour}"
    return dict.fromkeys(members, text)


def _ms_text(milliseconds: float) -> str:
    return f"{milliseconds:.2g} ms" if milliseconds >= 1e-4 else "less than 0.0001 ms"


def _detour_ms(first: int, last: int, chosen: list[str]) -> float:
    """What the path would cost more in switches, launches and output, were chosen[first..last] on the Neural
    Engine; the path is the cheapest, so that they save no more there."""
    rules, unit = planner(), chosen[first]
    neighbours = [*chosen[max(0, first - 1) : first], *chosen[last + 1 : last + 2]]
    switches = sum((other != "ane") - (other != unit) for other in neighbours)
    launches = rules["launch_ms"]["ane"] * ("ane" not in chosen) - rules["launch_ms"][unit] * (
        chosen.count(unit) == last - first + 1
    )
    output = rules["output_ms"]["ane"] - rules["output_ms"][unit] if last == len(chosen) - 1 else 0.0
    return rules["switch_ms"] * switches + launches + output


def _first_output(node: Node) -> str:
    return node.outputs[0].name if node.outputs else ""
