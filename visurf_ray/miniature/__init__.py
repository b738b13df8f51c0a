"""The embedded default: a small Qwen2.5-VL, its tokenizer, and data sets of scenes made of real handwritten digits."""
