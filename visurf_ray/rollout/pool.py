"""The pool of rollout workers."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import ray

from visurf_ray.groups import Example, Group, Prediction, Response
from visurf_ray.rollout.actor import Sampling


class RolloutPool:
    """Feeds vLLM engines: least-loaded first, a bounded number of prompts in flight on each."""

    def __init__(self, actors: Sequence[Any], *, sampling: Sampling, max_in_flight: int) -> None:
        """actors: `RolloutActor` handles. sampling: for training; evaluation is greedy."""
        self.actors = list(actors)
        self.sampling = sampling
        self.max_in_flight = max_in_flight

    def sample(self, examples: Sequence[Example], count: int) -> Iterator[tuple[int, Group]]:
        """A group of rollouts for each example, with the example's index, as they finish: the first `count` of them.

        The others are aborted, so that the longest responses keep nobody waiting.
        """
        with closing(self._generate(examples, self.sampling)) as generated:
            for index, responses in islice(generated, count):
                yield index, Group(examples[index], responses)

    def answer(self, examples: Sequence[Example], *, max_tokens: int) -> list[Prediction]:
        """One greedy answer to each example."""
        answers = dict(self._generate(examples, Sampling(n=1, temperature=0.0, max_tokens=max_tokens)))
        return [Prediction.of(example, answers[index][0].text) for index, example in enumerate(examples)]

    def shut_down(self) -> None:
        """End the engines and their child processes; one that has died already is passed by."""
        ray.wait([actor.shut_down.remote() for actor in self.actors], num_returns=len(self.actors), timeout=30)

    def _generate(
        self, examples: Sequence[Example], sampling: Sampling
    ) -> Generator[tuple[int, list[Response]], None, None]:
        """(index, responses) as they finish. What still runs when the caller stops is aborted."""
        loads = [0] * len(self.actors)
        running: dict[ray.ObjectRef, tuple[int, int]] = {}
        pending = iter(enumerate(examples))
        exhausted = False
        try:
            while running or not exhausted:
                while not exhausted and min(loads) < self.max_in_flight:
                    entry = next(pending, None)
                    if entry is None:
                        exhausted = True
                        break
                    index, example = entry
                    worker = loads.index(min(loads))
                    reference = self.actors[worker].sample.remote(example, sampling)
                    running[reference] = (index, worker)
                    loads[worker] += 1
                if running:
                    done, _ = ray.wait(list(running), num_returns=1)
                    for reference in done:
                        index, worker = running.pop(reference)
                        loads[worker] -= 1
                        yield index, ray.get(reference)
        finally:
            for reference in running:
                ray.cancel(reference)
            if running:  # until the engines have heard of it: weights are not to come before
                ray.wait(list(running), num_returns=len(running))
