"""Weight transfer from the learner to vLLM, by its own protocol."""
