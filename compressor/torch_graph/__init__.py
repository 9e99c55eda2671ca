"""An ONNX graph as a torch module that trains: initializers are its parameters, under their own names.

    module = to_torch(model)            # a torch.fx.GraphModule
    outputs = module(*inputs)           # the graph's inputs in order; a tensor, or a tuple of several
    trained = write_back(module, model) # a new model with the module's values

The graph is lowered once (`lowering`): what the file decides is computed ahead, shape arithmetic becomes arithmetic on
Python numbers, so that steps never wait for a device and dynamic axes stay dynamic, and any other operator becomes a
call of its kernel, a function in the folder `operators`. `table` finds the kernels: each file there lists its own as
`KERNELS`, those on Python numbers as `HOST_KERNELS`.

The calling rules of kernels (`table.Signature` reads them from the annotations):

- ONNX inputs are positional, None where omitted; attributes are keyword-only, under the schema's names, with the
  defaults of the file's operator set.
- An input that is annotated with a Tensor is given as one; `Tensor | float` is a Python number where the file has a
  constant of rank 0. Without Tensor, a list or Sequence is given as Python numbers in lists, any other as one number.
- Asked for by keyword: `version` is the operator set in which the operator got the form that the file uses, `outputs`
  how many outputs the node has, `training` the module's mode, `result_type` the torch dtype of the first input.
- Several outputs are a tuple.
"""

from compressor.torch_graph.converting import to_torch
from compressor.torch_graph.writing import write_back

__all__ = ["to_torch", "write_back"]
