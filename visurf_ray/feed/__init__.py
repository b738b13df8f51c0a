"""From rows to examples: a data actor decodes, resizes, processes and tokenizes them one batch ahead of the driver."""
