"""The embedded default: a small Qwen2.5-VL, its tokenizer, and data sets drawn from real handwritten digits."""
