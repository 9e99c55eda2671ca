"""Pruning: which weights, channels or layers go, and how what stays makes up for them.

- Single weights: `prunable` finds them, `masks` and `sparsity` say which patterns and how many, `allocation` shares a
  total out over layers, `weight_importance` scores, `optimal_brain` solves what stays; `weights` is the whole of it.
- Channels (found and cut by `compressor.channels`): `channel_importance` and `channel_scores` say what each is worth,
  `channel_widths` and `channel_selection` what may go, `channel_cost` and `channel_latency` what it saves,
  `channel_choice` and `channel_targets` choose; `solvable`, `least_squares` and `reconstruction` solve the layers
  behind a cut again; `channel_pruning` is the whole of it.
- Layers: `blocks`.

What layers read on samples comes from `layer_inputs`, `unfolding` and `stepping`.
"""
