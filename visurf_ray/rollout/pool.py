"""The pool of rollout workers."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import ray

from visurf_ray.groups import Example, Group, Prediction
from visurf_ray.rollout.actor import Sampled, Sampling


class RolloutPool:
    """Feeds vLLM engines: each has its even share of the prompts that are left, and a bounded number at once.

    A worker has one call at a time, which brings new prompts and takes back all that has finished since the last one.
    So the calls are as few as the driver has time for.
    """

    def __init__(
        self, actors: Sequence[Any], *, sampling: Sampling, max_in_flight: int, sleep_level: int | None = None
    ) -> None:
        """Takes engines that are up, or coming up.

        Args:
            actors: `RolloutActor` handles.
            sampling: of training; evaluation is greedy.
            max_in_flight: prompts that an engine holds at once.
            sleep_level: how deep engines sleep that share GPUs with the learner; None where they share none.
        """
        self.actors = list(actors)
        self.sleep_level = sleep_level
        self.asleep = False
        self.sampling = sampling
        self.max_in_flight = max_in_flight

    def sample(self, examples: Sequence[Example], count: int) -> Iterator[dict[int, Group]]:
        """Groups of rollouts by their examples' indices, some at a time as they finish: the first `count` of them.

        The others are aborted, so that the longest responses keep nobody waiting.
        """
        with closing(self._generate(examples, self.sampling)) as generated:
            for finished in generated:
                chosen = finished[:count]
                yield {index: Group(examples[index], responses) for index, responses in chosen}
                count -= len(chosen)
                if not count:
                    return

    def answer(self, examples: Sequence[Example], *, max_tokens: int) -> list[Prediction]:
        """One greedy answer to each example."""
        generated = self._generate(examples, Sampling(n=1, temperature=0.0, max_tokens=max_tokens))
        answers = {index: responses[0].text for finished in generated for index, responses in finished}
        return [Prediction.of(example, answers[index]) for index, example in enumerate(examples)]

    def sleep(self) -> None:
        """Give the GPUs to the learner, where it shares them, until new weights come."""
        if self.sleep_level is not None:
            ray.get([actor.sleep.remote(self.sleep_level) for actor in self.actors])
            self.asleep = True

    @contextmanager
    def taking_weights(self) -> Iterator[None]:
        """Engines that sleep are awake inside for new weights, and afterwards for all."""
        if self.asleep:
            ray.get([actor.wake_up.remote("weights") for actor in self.actors])
        yield
        if self.asleep:
            ray.get([actor.wake_up.remote("kv_cache") for actor in self.actors])
            self.asleep = False

    def shut_down(self) -> None:
        """End the engines and their child processes; one that has died already is passed by."""
        ray.wait([actor.shut_down.remote() for actor in self.actors], num_returns=len(self.actors), timeout=30)

    def _generate(self, examples: Sequence[Example], sampling: Sampling) -> Generator[list[Sampled], None, None]:
        """What is sampled, as it finishes, by the examples' indices. What runs when the caller stops is aborted."""
        left = len(examples)
        pending = iter(enumerate(examples))
        loads = [0] * len(self.actors)
        calls: dict[ray.ObjectRef, int] = {}

        def feed(worker: int) -> None:
            share = min(-(-left // len(self.actors)), self.max_in_flight)
            more = list(islice(pending, max(0, share - loads[worker])))
            loads[worker] += len(more)
            if loads[worker]:
                calls[self.actors[worker].sample.remote(more, sampling)] = worker

        try:
            for worker in range(len(self.actors)):
                feed(worker)
            while calls:
                done, _ = ray.wait(list(calls), num_returns=1)
                worker = calls.pop(done[0])
                finished = ray.get(done[0])
                loads[worker] -= len(finished)
                left -= len(finished)
                feed(worker)
                yield finished
        finally:
            if left:
                self._abort(calls)
                self._abort(())  # a call may arrive later than its abort, and has then begun requests

    def _abort(self, calls: Iterable[ray.ObjectRef]) -> None:
        """Returns when the engines have dropped everything, and the calls have returned: weights may come then."""
        references = [*calls, *(actor.abort.remote() for actor in self.actors)]
        ray.wait(references, num_returns=len(references))
