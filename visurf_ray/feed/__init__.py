"""From rows to examples: data actors decode, resize, process and tokenize them one batch ahead of the driver."""
