"""The held-out examples of an evaluation, prepared while it answers."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from visurf_ray.aliases import Fetch, Reference
from visurf_ray.feed.curriculum import Place
from visurf_ray.feed.strictness import Dropped
from visurf_ray.groups import Example, Prompt

_CHUNK = 8  # examples that an actor prepares in a call


class HeldOut:
    """Held-out examples without the learner's features. Each is prepared shortly before it is taken, and not kept.

    Attributes:
        taken: What was taken in the latest iteration, in this order, without prompts: they refer to images.
    """

    def __init__(
        self,
        places: Sequence[Place],
        request: Callable[[int, Sequence[Place]], Reference],
        get: Fetch,
        on_drop: Callable[[Place, Dropped], None],
        *,
        ahead: int,
    ) -> None:
        """Take where the examples come from; nothing is prepared yet.

        Args:
            places: Where they come from.
            request: Has the examples of some places prepared, and returns a reference to them. It is also given the
                number of the request, from 0.
            get: Resolves such a reference.
            on_drop: Is told of rows that cannot be used and are dropped.
            ahead: How many requests to make beforehand.
        """
        self.places = places
        self.taken: list[Example] = []
        self._request = request
        self._get = get
        self._on_drop = on_drop
        self._ahead = ahead

    def __len__(self) -> int:
        """Return the number of examples, with those that will be dropped."""
        return len(self.places)

    def __iter__(self) -> Iterator[Example]:
        self.taken = []
        chunks = [self.places[begin : begin + _CHUNK] for begin in range(0, len(self.places), _CHUNK)]
        waiting: deque[Reference] = deque()
        requested = 0
        for chunk in chunks:
            while requested < len(chunks) and len(waiting) <= self._ahead:
                waiting.append(self._request(requested, chunks[requested]))
                requested += 1
            for place, found in zip(chunk, self._get(waiting.popleft()), strict=True):
                if isinstance(found, Dropped):
                    self._on_drop(place, found)
                    continue
                self.taken.append(replace(found, prompt=Prompt([], [])))
                yield found
