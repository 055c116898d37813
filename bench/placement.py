"""How well the placement model agrees with Core ML's own planner on an M4.

    python bench/placement.py [--nets NETS.csv] [--costs COSTS.csv] [--keep DIR]

Rebuilds the networks of data/planner_nets.csv with coremltools, places each saved package and compares unit
by unit (a last ReLU may fall either way: its costs tie); computes every row of data/planner_costs.csv and
compares the costs; times the placement of a 500-operation program.
"""

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cidermill.validation.estimate.costs import cost_ms
from cidermill.validation.estimate.devices import find_device
from cidermill.validation.estimate.operations import Operation, operations
from cidermill.validation.estimate.placement import place
from cidermill.validation.estimate.support import engine_refusal
from cidermill.validation.graph import Graph, Node, Ref, Value
from cidermill.validation.mil.read import read_package

DATA = Path(__file__).resolve().parent / "data"
PARAMETERS = {
    "conv": ("x", "weight"),
    "conv_transpose": ("x", "weight"),
    "linear": ("x", "weight"),
    "matmul": ("x", "y"),
    "gather": ("x", "indices"),
    "gather_nd": ("x", "indices"),
    "gather_along_axis": ("x", "indices"),
    "lstm": ("x", "weight_ih", "weight_hh"),
    "gru": ("x", "weight_ih", "weight_hh"),
    "rnn": ("x", "weight_ih", "weight_hh"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
}
DTYPES = {"fp16": "float16", "fp32": "float32", "i32": "int32", "uint16 const": "uint16", "const": None}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", type=Path, default=DATA / "planner_nets.csv")
    parser.add_argument("--costs", type=Path, default=DATA / "planner_costs.csv")
    parser.add_argument(
        "--keep", type=Path, help="folder for the rebuilt packages (default: a temporary one)"
    )
    options = parser.parse_args()
    compare_costs(options.costs)
    with tempfile.TemporaryDirectory() as scratch:
        compare_networks(options.nets, options.keep or Path(scratch))
    print(f"placement of 500 operations: {time_placement(500) * 1e3:.1f} ms of CPU time")


def compare_networks(table: Path, folder: Path) -> None:
    import planner_nets

    folder.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(table.open()))
    equal = identical = 0
    for row in rows:
        path = folder / f"{row['case']}.mlpackage"
        if not path.exists():
            planner_nets.build(row["inputs"], row["expression"]).save(str(path))
        ops = place(read_package(path).functions["main"], "M4", "cpu_and_ne").ops
        units = "".join("A" if op.unit == "ane" else "C" for op in ops)
        same = units == row["units"] or (units[:-1] == row["units"][:-1] and ops[-1].type == "relu")
        equal, identical = equal + same, identical + (units == row["units"])
        if not same:
            print(f"  {row['case']}: planner {row['units']}, here {units}")
    print(
        f"networks placed operator by operator as the planner did: {equal} of {len(rows)} ({identical} with"
        " the last ReLU too)"
    )


def compare_costs(table: Path) -> None:
    device, errors, refusals = find_device("M4"), [], 0
    rows = list(csv.DictReader(table.open()))
    for row in rows:
        step = operation_of(row)
        refusals += bool(engine_refusal(step, device)) == (row["ane_supported"] == "1")
        for backend, column in (("ane", "ane_ms"), ("bnns", "bnns_ms"), ("classic_cpu", "classic_cpu_ms")):
            if row[column]:
                errors.append(
                    (
                        abs(cost_ms(step, backend, device) / float(row[column]) - 1),
                        row["case"],
                        row["op_type"],
                        backend,
                    )
                )
    values = [error for error, *_ in errors]
    within = sum(error <= 0.10 for error in values) / len(values)
    print(
        f"costs: {len(rows)} operators, {len(values)} numbers, median error {statistics.median(values):.4%},"
        f" within 10 %: {within:.1%}"
    )
    for error, *where in sorted(errors, reverse=True):
        if error > 0.10:
            print(f"  {' '.join(where)}: off by {error:.0%}")
    print(f"support by the Neural Engine differs in {refusals} of {len(rows)} rows")


def operation_of(row: dict) -> Operation:
    """A row of planner_costs.csv as the one operation of a graph."""
    before, _, after = row["dtype"].partition(">")
    facts = dict(part.split("=", 1) for part in row["attributes"].split(";") if "=" in part)
    names = PARAMETERS.get(row["op_type"], tuple(f"x{index}" for index in range(9)))
    inputs, constants, values = {}, {}, {}
    for name, text in zip(names, filter(None, row["in_shapes"].split(";"))):
        values[name] = tensor(name, text, before)
        constants |= {name: None} if "const" in text or "weight" in name or name == "indices" else {}
        inputs[name] = Ref(name)
    inputs |= literals(row["op_type"], facts)
    outputs = tuple(
        tensor(f"out{index}", text, after or before) for index, text in enumerate(row["out_shape"].split(";"))
    )
    constants = {} if "dynamic_weight" in row["attributes"] or len(constants) == len(inputs) else constants
    constants = {} if row["case"] == "embedding" else constants  # its indices are computed
    node = Node(row["op_type"], inputs, outputs)
    return operations(
        Graph(
            (), (outputs[0].name,), (node,), constants, {**values, **{value.name: value for value in outputs}}
        )
    )[0]


def tensor(name: str, text: str, dtype: str) -> Value:
    """ "wih=256x64", "32(uint16 const)" or "1x64" -> Value."""
    shape, _, note = text.partition("=")[2].partition("(") if "=" in text else text.partition("(")
    dtype = DTYPES.get(note.rstrip(")") or dtype, note.rstrip(")") or dtype) or "float16"
    return Value(name, dtype, tuple(int(size) for size in shape.split("x")))


def literals(op: str, facts: dict) -> dict:
    found = {}
    if "k" in facts and "pool" in op:
        found["kernel_sizes"] = np.array([int(size) for size in facts["k"].split("x")], np.int32)
    if "d" in facts:
        found["dilations"] = np.array([int(size) for size in facts["d"].split("x")], np.int32)
    if "perm" in facts:
        found["perm"] = np.array([int(axis) for axis in facts["perm"].split(",")], np.int32)
    if op == "matmul":
        found |= {"transpose_x": facts["tx"] == "1", "transpose_y": facts["ty"] == "1"}
    if op == "gelu":
        found["mode"] = facts["mode"]
    return found


def time_placement(count: int) -> float:
    """CPU seconds to place a chain of convolutions and ReLUs, the best of five."""
    values = {"x": Value("x", "float16", (1, 64, 32, 32)), "w": Value("w", "float16", (64, 64, 3, 3))}
    nodes, last = [], "x"
    for index in range(count):
        value = Value(f"v{index}", "float16", (1, 64, 32, 32))
        arguments = {"x": Ref(last), "weight": Ref("w")} if index % 2 == 0 else {"x": Ref(last)}
        nodes.append(Node("conv" if index % 2 == 0 else "relu", arguments, (value,), value.name))
        values[value.name], last = value, value.name
    graph = Graph((values["x"],), (last,), tuple(nodes), {"w": None}, values)
    return min(elapsed(graph) for _ in range(5))


def elapsed(graph: Graph) -> float:
    start = time.process_time()
    place(graph, "M4")
    return time.process_time() - start


if __name__ == "__main__":
    main()
