"""Looks at a data set before a run: its schema, its rows, what a run would refuse. Nothing is trained or started."""
