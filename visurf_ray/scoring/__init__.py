"""Scores of predictions: metrics, average precision, stored predictions, and SAM2's masks."""
