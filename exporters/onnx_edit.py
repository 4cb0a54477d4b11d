"""Small changes to ONNX graphs, as onnxscript's `ir` has them."""

from onnxscript import ir


def multiplied(node: ir.Node) -> str:
    """NAME where `node` multiplies with the weight NAME.weight, else nothing."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    return (weight.name or "").removesuffix(".weight") if weight is not None and weight.is_initializer() else ""


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new weight of the graph; one of the same name goes."""
    graph.initializers.pop(name, None)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, node: ir.Node, new: ir.Value) -> None:
    """Remove `node`; `new` takes the place, name and type of its one output."""
    old = node.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    for place, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[place] = new
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)
