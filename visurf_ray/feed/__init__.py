"""From rows to examples: decoded, resized, processed and tokenized in data actors, ahead of the driver."""
