"""An ONNX graph as a torch module that trains: initializers are its parameters, under their own names.

    module = to_torch(model)            # a torch.fx.GraphModule
    outputs = module(*inputs)           # the graph's inputs in order; a tensor, or a tuple of several
    trained = write_back(module, model) # a new model with the module's values

The graph is lowered once (`lowering`): every operator becomes a call of its kernel, a function of the folder
`operators`, found in one table by its name. Shape arithmetic runs on Python integers, so steps never wait for a
device and dynamic axes stay dynamic.

The calling rules of kernels:

- ONNX inputs are positional, None where omitted; attributes are keyword-only, under the schema's names, with the
  defaults of the file's operator set.
- An input whose annotation holds no Tensor is given as Python numbers and lists.
- Asked for by keyword: `version` is the operator's version, `outputs` how many are wanted, `training` the
  module's mode, `result_type` the torch dtype of the first input.
- Several outputs are a tuple.
"""

from compressor.torch_graph.lowering import to_torch
from compressor.torch_graph.writing import write_back

__all__ = ["to_torch", "write_back"]
