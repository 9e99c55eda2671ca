"""Weights of few bits: ternary, binary and uniform codes, how they are found, kept in the graph, and stored.

- Codes: `codes` says what they are; `ternary`, `binary` and `uniform` find them, `methods` by name, all with `levels`;
  `compensation`, by the steps of `feedback`, corrects for their errors on samples.
- In the graph: `coded_weights` is the one form in which passes see a weight as codes, a DequantizeLinear for each;
  `signs` that of activations with two levels.
- Coding a model: `options` and `ends` say which weights, `bits` how many bits each, `coding` is the whole of it, one by
  one or in `sequence`, with `matching` of the outputs and `outcome` to report; `activations` and
  `binary_activations` are for what layers read.
- In a file: `storage` packs, `expanding` unpacks to the bit. `digits` and `blobs` are the packed codes, `forms` chooses
  what runs fastest, `kernel_form` and `kernel_restoring` are the form of MatMulNBits, `folding` evaluates what a file
  computes from constants, `economy` saves room around the weights.
- Questions: `reading` and `recognition` know codes whoever wrote the file.

Training moves the floats behind the codes: `compressor.training.projections`.
"""
