"""Writes EVA's visual encoder with random weights as an ONNX model: `onnx_encoder.py <folder> '{"width": 1408, …, "kind": "f32"}'`.

Its attention is ONNX Runtime's own fused one. `int8` is what its dynamic quantisation makes of the linear layers: weights in 8 bits, and
activations that are rounded as they come. The weights go to the disk as they are drawn.
"""

import json
import os
import sys

import numpy as np
from onnx import TensorProto, helper, save

folder, text = sys.argv[1:]
task = json.loads(text)
width, inner, patch, side = task["width"], task["inner"], task["patch"], task["side"]
rows = (side // patch) ** 2 + 1
int8 = task["kind"] == "int8"
random = np.random.default_rng(1)
nodes, tensors = [], []
numbers = open(os.path.join(folder, "weights"), "wb")


def outside(name, array):
    """A weight that lies in the file beside the model."""
    numbers.write(b"\0" * (-numbers.tell() % 64))
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights", "offset": numbers.tell(), "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    numbers.write(array.tobytes())
    tensors.append(tensor)
    return name


def inside(name, array):
    tensors.append(helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel()))
    return name


def node(kind, inputs, name, domain="", **attributes):
    nodes.append(helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes))
    return name


def normal(*shape):
    return random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)


rounded = {}


def quantised(x):
    """An input in 8 bits, once for all layers that read it."""
    if x not in rounded:
        names = [f"{x}.8bit", f"{x}.scale", f"{x}.zero"]
        nodes.append(helper.make_node("DynamicQuantizeLinear", [x], names, name=f"{x}.quantise"))
        rounded[x] = names
    return rounded[x]


def linear(x, name, fan_in, fan_out, bias=True):
    if int8:
        values, scale, zero = quantised(x)
        weight = outside(f"{name}.weight", random.integers(-127, 128, (fan_in, fan_out), dtype=np.int8))
        weight_scale = inside(f"{name}.weight_scale", np.float32([0.02 / 64]))
        weight_zero = inside(f"{name}.weight_zero", np.int8([0]))
        product = node("MatMulInteger", [values, weight, zero, weight_zero], f"{name}.integers")
        product = node("Cast", [product], f"{name}.floats", to=TensorProto.FLOAT)
        scales = node("Mul", [scale, weight_scale], f"{name}.scales")
        product = node("Mul", [product, scales], f"{name}.product")
    else:
        product = node("MatMul", [x, outside(f"{name}.weight", normal(fan_in, fan_out))], f"{name}.product")
    return node("Add", [product, inside(f"{name}.bias", normal(fan_out))], name) if bias else product


def norm(x, name):
    weight = inside(f"{name}.weight", np.ones(width, np.float32))
    return node("LayerNormalization", [x, weight, inside(f"{name}.bias", normal(width))], name, axis=-1, epsilon=1e-6)


kernel = outside("patch.weight", normal(width, 3, patch, patch))
x = node("Conv", ["pixels", kernel, inside("patch.bias", normal(width))], "patch", strides=[patch, patch])
x = node("Reshape", [x, inside("patch.shape", np.int64([0, width, rows - 1]))], "patch.flat")
x = node("Transpose", [x], "patch.rows", perm=[0, 2, 1])
frames = node("Shape", ["pixels"], "frames", start=0, end=1)
shape = node("Concat", [frames, inside("class.rest", np.int64([1, width]))], "class.shape", axis=0)
first = node("Expand", [inside("class.row", normal(1, 1, width)), shape], "class")
x = node("Concat", [first, x], "rows", axis=1)
x = node("Add", [x, inside("positions", normal(1, rows, width))], "embeddings")
for index in range(task["depth"]):
    at = f"block{index}."
    normed = norm(x, f"{at}norm1")
    q, k, v = (linear(normed, f"{at}{name}", width, width, bias=name != "k") for name in "qkv")
    attended = node("MultiHeadAttention", [q, k, v], f"{at}attention", "com.microsoft", num_heads=task["heads"])
    x = node("Add", [x, linear(attended, f"{at}proj", width, width)], f"{at}attended")
    hidden = node("Gelu", [linear(norm(x, f"{at}norm2"), f"{at}fc1", width, inner)], f"{at}gelu")
    x = node("Add", [x, linear(hidden, f"{at}fc2", inner, width)], f"{at}out")
numbers.close()
pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["frames", 3, side, side])
features = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["frames", rows, width])
graph = helper.make_graph(nodes, "encoder", [pixels], [features], tensors)
versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
save(helper.make_model(graph, opset_imports=versions, ir_version=10), os.path.join(folder, "model.onnx"))
