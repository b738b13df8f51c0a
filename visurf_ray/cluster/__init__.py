"""Ray: what the cluster has, what a run needs of it, and where actors go."""
