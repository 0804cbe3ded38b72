"""Losses of distillation and of ground truth as pure functions of tensors, the selection of negatives, and the weights
of queries.

Shape letters: B queries; K candidates of a query, column 0 the positive; N the candidates kept, column 0 the positive;
Q x G all pairs of a batch, positives on the diagonal; I x T its images and captions, each once. Scores are raw logits.
A teacher's scores are constants: no gradient reaches them. Half precision is computed in float32.

`lists` and `official` hold the losses on candidate lists, `all_pairs` the losses on all pairs of a batch, `vectors` the
loss on the vectors of its images and captions. `table` has all of them by name, and the `[loss]` table of a recipe.
docs/losses.md describes each.
"""
