"""Seeds that do not depend on which process asks for them, nor on what it drew before."""

import json
from hashlib import blake2b


def seed_of(*key: int | str) -> int:
    """Return the seed of what the key names: a hash of the key alone, the same in every process.

    It has 62 bits: the seed of each of a prompt's samples, to which vLLM adds the sample's number, has at most 63.
    """
    return int.from_bytes(blake2b(json.dumps(key).encode(), digest_size=8).digest()) >> 2
