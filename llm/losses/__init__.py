"""Losses: pure functions on arrays that never call a model.

Each returns `(loss_sum, weight_sum, metrics)`. All three are sums, so that
packed rows, microbatches and devices add up exactly; the caller divides by
`weight_sum` once, at the end.
"""
