"""Writes the models of the tests. Run it in an environment with `onnx` (see install-onnxruntime.sh).

linear.onnx   x: float32 [n, 3], b: int64 [n]  ->  y: float32 [n, 1] = x . (1, 10, 100) + b,  z: float32 [n, 3] = x * 2
fixed.onnx    x: float32 [4, 2]                ->  y: float32 [4, 2] = x + 1; takes four items at once and no other number
gather.onnx   i: int64 [n]                     ->  y: float32 [n] = (0.5, 1.5, 2.5)[i]; fails where i is out of range
"""

from pathlib import Path

from onnx import TensorProto, checker, helper, save

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


def write(name, nodes, inputs, outputs, constants):
    tensors = [helper.make_tensor(key, kind, shape, values) for key, kind, shape, values in constants]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, name, [info(*i) for i in inputs], [info(*o) for o in outputs], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    save(model, DATA / f"{name}.onnx")


node = helper.make_node
write(
    "linear",
    [
        node("MatMul", ["x", "w"], ["product"]),
        node("Cast", ["b"], ["bias"], to=FLOAT),
        node("Unsqueeze", ["bias", "one"], ["column"]),
        node("Add", ["product", "column"], ["y"]),
        node("Mul", ["x", "two"], ["z"]),
    ],
    [("x", FLOAT, ["n", 3]), ("b", INT, ["n"])],
    [("y", FLOAT, ["n", 1]), ("z", FLOAT, ["n", 3])],
    [("w", FLOAT, [3, 1], [1.0, 10.0, 100.0]), ("two", FLOAT, [1], [2.0]), ("one", INT, [1], [1])],
)
write(
    "fixed",
    [node("Add", ["x", "one"], ["y"])],
    [("x", FLOAT, [4, 2])],
    [("y", FLOAT, [4, 2])],
    [("one", FLOAT, [1], [1.0])],
)
write(
    "gather",
    [node("Gather", ["table", "i"], ["y"])],
    [("i", INT, ["n"])],
    [("y", FLOAT, ["n"])],
    [("table", FLOAT, [3], [0.5, 1.5, 2.5])],
)
