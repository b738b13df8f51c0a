"""Learning: the DeepSpeed ranks in Ray actors, packed groups, forward, step and checkpoint."""
