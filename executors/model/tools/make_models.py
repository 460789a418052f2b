"""Writes the models of the tests. Run it in an environment with `onnx` (see install-onnxruntime.sh).

linear.onnx   x: float32 [n, 3], b: int64 [n]  ->  y: float32 [n, 1] = x . (1, 10, 100) + b,  z: float32 [n, 3] = x * 2
fixed.onnx    x: float32 [4, 2]                ->  y: float32 [4, 2] = x + 1; takes four items at once and no other number
half.onnx     x: float16 [n, 2], c: bfloat16 [n]  ->  y: float16 [n, 2] = x + 1,  d: bfloat16 [n] = c
texts.onnx    s: string [n]  ->  y: float32 [n] = 1 for "yes", 0 for "no", else -1;  t: string [n] = s
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
    learned = [helper.make_opsetid("ai.onnx.ml", 2)] if any(node.domain for node in nodes) else []
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), *learned], ir_version=8)
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
HALF, BRAIN, TEXT = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.STRING
write(
    "half",
    [
        node("Cast", ["x"], ["wide"], to=FLOAT),
        node("Add", ["wide", "one"], ["more"]),
        node("Cast", ["more"], ["y"], to=HALF),
        node("Cast", ["c"], ["wider"], to=FLOAT),
        node("Cast", ["wider"], ["d"], to=BRAIN),
    ],
    [("x", HALF, ["n", 2]), ("c", BRAIN, ["n"])],
    [("y", HALF, ["n", 2]), ("d", BRAIN, ["n"])],
    [("one", FLOAT, [1], [1.0])],
)
labels = {"keys_strings": ["yes", "no"], "values_floats": [1.0, 0.0], "default_float": -1.0}
write(
    "texts",
    [node("LabelEncoder", ["s"], ["y"], domain="ai.onnx.ml", **labels), node("Identity", ["s"], ["t"])],
    [("s", TEXT, ["n"])],
    [("y", FLOAT, ["n"]), ("t", TEXT, ["n"])],
    [],
)
