"""Sampling: vLLM engines in Ray actors, and the pool that feeds them."""
