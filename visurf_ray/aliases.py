"""Names for values that a library gives no type for. This is the one place in the package for most uses of `Any`."""

from collections.abc import Callable
from typing import Any

ActorHandle = Any  # a handle of a Ray actor
ActorOptions = dict[str, Any]  # what `.options` of a Ray actor takes
Reference = Any  # a reference into Ray's object store; outside a cluster, the object itself
Fetch = Callable[[Reference], Any]  # returns what a reference refers to: `ray.get`
Json = Any  # what json.loads returns
Dataset = Any  # a datasets.Dataset
HFConfig = Any  # a transformers model configuration
HFModel = Any  # a transformers model
Processor = Any  # a transformers processor
Tokenizer = Any  # a transformers tokenizer
