"""Scores of a model and the drop between two models on the same samples, each with a 95 % interval.

Outputs are the model's outputs in order, each [samples, ...]; the built-in metrics look at the first one.

| metric | first output | labels | interval of the drop |
| --- | --- | --- | --- |
| top1, f1 (macro) | [n, C]; binary [n] or [n, 1]; integer ids [n] | class ids [n] | Tango; bootstrap |
| top5 | [n, C], C > 5 | class ids [n] | Tango |
| auc | [n], [n, 1], or [n, 2] | 0 or 1 [n] | bootstrap |
| mse, mae, cosine | any shape | the same shape | t, of the differences |
| psnr | any shape | the same shape | bootstrap |
| spearman | [n] or [n, 1] | numbers [n] | bootstrap |
| perplexity | logits [n, T, V] | token ids [n, T], -100 is ignored | bootstrap |
| agreement | any shape | none: the original's outputs are the truth | Wilson; t |
| file.py:function | all outputs | as given | bootstrap, 200 resamples |

A binary model with one column says class 1 above 0.5 when the original's outputs lie within [0, 1], above 0
otherwise. The bootstrap draws 1,000 resamples, the same for both models: about a second for 10,000 samples.
Infinite outputs count as the largest float32. One sample gives the widest interval that the metric has, which
may be infinite.
"""

from compressor.metrics.catalogue import check_labels, default_metric, names
from compressor.metrics.comparison import Comparison, compare, score
from compressor.metrics.unlabelled import agreement

__all__ = ["Comparison", "agreement", "check_labels", "compare", "default_metric", "names", "score"]
