"""The pool of rollout workers."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from itertools import islice
from threading import Lock

import ray

from visurf_ray.aliases import ActorHandle
from visurf_ray.groups import Example, Group, Phase, Prediction
from visurf_ray.rollout.actor import Sampled, Sampling


class RolloutPool:
    """Feeds prompts to vLLM engines: each holds at most its share of the unfinished prompts, and `max_in_flight`.

    An engine has one call in flight, which submits new prompts and returns every prompt whose rollouts have all
    finished since the last call. The slower the driver, the fewer and larger are the calls. Sampling and weight syncs
    exclude each other, also when different threads call.
    """

    def __init__(
        self,
        actors: Sequence[ActorHandle],
        *,
        sampling: Sampling,
        max_in_flight: int,
        oversample: int = 0,
        sleep_level: int | None = None,
    ) -> None:
        """Take engines that have started or are starting.

        Args:
            actors: `RolloutActor` handles.
            sampling: settings of training; evaluation is greedy.
            max_in_flight: the most prompts that an engine holds.
            oversample: prompts to draw beyond a batch. The slowest are aborted, unless the method uses all.
            sleep_level: how deep engines sleep while the learner uses their GPUs; None if they share no GPUs.
        """
        self.actors = list(actors)
        self.sampling = sampling
        self.max_in_flight = max_in_flight
        self.oversample = oversample
        self.sleep_level = sleep_level
        self._asleep = False
        self._send_weights: Callable[[], None] | None = None
        self._turn = Lock()  # held while the engines sample, or take weights

    def connect(self, send_weights: Callable[[], None]) -> None:
        """Set the function that sends the learner's weights to all engines."""
        self._send_weights = send_weights

    def prompts(self, batch_size: int) -> int:
        """Return how many prompts to draw for a batch of groups."""
        return batch_size + self.oversample

    def sample(self, examples: Sequence[Example], enough: int) -> Generator[dict[int, Group], None, None]:
        """Yield {index of the example: group} as groups finish. After `enough` groups, abort the others.

        The generator blocks `sync` and `answer` from its first item until it is exhausted or closed.
        """
        with self._turn, closing(self._generate(examples, self.sampling)) as generated:
            for finished in generated:
                chosen = finished[:enough]
                yield {index: Group(examples[index], responses) for index, responses in chosen}
                enough -= len(chosen)
                if not enough:
                    return

    def answer(self, examples: Sequence[Example], *, max_tokens: int) -> list[Prediction]:
        """Return one greedy answer to each example."""
        with self._turn:
            generated = self._generate(examples, Sampling(n=1, temperature=0.0, max_tokens=max_tokens))
            answers = {index: responses[0].text for finished in generated for index, responses in finished}
        return [Prediction.of(example, answers[index]) for index, example in enumerate(examples)]

    def sync(self, phase: Phase = nullcontext) -> None:
        """Wait for sampling or an evaluation in progress, then send the learner's weights to the engines.

        Args:
            phase: makes context managers that time the phases `wait` and `sync`.
        """
        with phase("wait"):
            self._turn.acquire()
        try:
            with phase("sync"):
                self._take_weights()
        finally:
            self._turn.release()

    def wake(self, phase: Phase = nullcontext) -> None:
        """Wake engines that sleep, which sends them the learner's weights; see `sync`."""
        if self._asleep:
            self.sync(phase)

    def sleep(self) -> None:
        """Put engines that share GPUs with the learner to sleep; nothing may be sampled at the time.

        They wake in `sync` or when they sample next. Both send them the weights again.
        """
        if self.sleep_level is not None and not self._asleep:
            ray.get([actor.sleep.remote(self.sleep_level) for actor in self.actors])
            self._asleep = True

    def shut_down(self) -> None:
        """End the engines and their child processes, within 30 s. Engines that have died are skipped."""
        ray.wait([actor.shut_down.remote() for actor in self.actors], num_returns=len(self.actors), timeout=30)

    def _take_weights(self) -> None:
        assert self._send_weights is not None, "call connect before sync"
        if self._asleep:  # the KV cache is allocated after the transfer, during which the learner needs the memory
            ray.get([actor.wake_up.remote("weights") for actor in self.actors])
        self._send_weights()
        if self._asleep:
            ray.get([actor.wake_up.remote("kv_cache") for actor in self.actors])
            self._asleep = False

    def _generate(self, examples: Sequence[Example], sampling: Sampling) -> Generator[list[Sampled], None, None]:
        """Yield rollouts as they finish, numbered by example; abort what is still running when it is closed."""
        if self._asleep:  # sleeping engines may have dropped their weights
            self._take_weights()
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
                self._abort(())  # a call that arrived after its abort has begun requests since

    def _abort(self, calls: Iterable[ray.ObjectRef]) -> None:
        """Abort all requests; return when the calls have returned and the engines are idle."""
        references = [*calls, *(actor.abort.remote() for actor in self.actors)]
        ray.wait(references, num_returns=len(references))


def without_rollouts(examples: Sequence[Example]) -> Generator[dict[int, Group], None, None]:
    """Yield groups without rollouts, in the form of `RolloutPool.sample`, for methods that do not sample."""
    yield {index: Group(example, []) for index, example in enumerate(examples)}
