"""Tracklets from disk to uint8 batches. Nothing in this package imports jax: loader processes start fast."""
