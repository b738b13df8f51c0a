"""Checkpoints of a run: what they hold, which one it resumes from, and how they are written."""
