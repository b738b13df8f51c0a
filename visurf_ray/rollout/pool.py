"""The pool of rollout workers."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock
from typing import Protocol

import numpy as np
import ray
from numpy.typing import NDArray

from visurf_ray.aliases import ActorHandle
from visurf_ray.cluster.waiting import fetch, wait_for
from visurf_ray.errors import LearnerLostError, StalledError, during
from visurf_ray.groups import Example, Group, Phase, Prediction
from visurf_ray.rollout.actor import Sampled, Sampling
from visurf_ray.rollout.engines import Engines, Replacing
from visurf_ray.seeds import seed_of

PROBE_TOKENS = 16  # of the longest response that `probe` samples
_AT_ONCE = 16  # prompts of an evaluation that an engine is given at once: the next ones are prepared while it answers


@dataclass(frozen=True)
class WeightLink:
    """What a pool needs of the learner.

    Attributes:
        open: connects the learner to engines, given their handles.
        send: sends the learner's weights to these engines.
        close: disconnects them, before they end.
    """

    open: Callable[[Sequence[ActorHandle]], None]
    send: Callable[[], None]
    close: Callable[[], None]


class Counted(Protocol):
    """Examples whose number is known before they are taken."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Example]: ...


class RolloutPool:
    """Starts and ends vLLM engines, and feeds prompts to them.

    Engines start when something is to be sampled; before that there are none, and nothing to sync. They take the
    learner's weights as soon as they have started.

    Each engine holds at most its share of the unfinished prompts, and `max_in_flight`. It has one call in flight, which
    submits new prompts and returns every prompt whose rollouts have all finished since the last call. The slower the
    driver, the fewer and larger are the calls. Sampling and weight syncs exclude each other, also when different
    threads call.

    If engines are replaced, the loss of one is no error: the others sample what it has not answered, a new one starts
    meanwhile and is used as soon as the next call takes weights. If it does not start, the pool goes on without it.
    """

    def __init__(
        self,
        launch: Callable[[], Sequence[ActorHandle]],
        *,
        wait: Callable[[Sequence[ActorHandle]], None] = lambda actors: None,
        sampling: Sampling,
        max_in_flight: int,
        timeout: float,
        oversample: int = 0,
        sleep_level: int | None = None,
        deterministic: bool = False,
        replacing: Replacing | None = None,
    ) -> None:
        """Take what starts engines; none is started yet.

        Args:
            launch: begins to start all engines, and returns their `RolloutActor` handles.
            wait: returns when they have started, or raises.
            sampling: settings of training; `answer` takes those of an evaluation.
            max_in_flight: the most prompts that an engine holds.
            timeout: seconds that an engine may take for a call, or for the next prompt's rollouts: `cluster.timeout`.
            oversample: prompts to draw beyond a batch. The slowest are aborted, unless the method uses all.
            sleep_level: how deep engines sleep while the learner uses their GPUs; None if they share no GPUs.
            deterministic: whether engines get prompts in rounds, when all have answered, so that which prompts an
                engine gets together does not depend on their speed.
            replacing: how engines are replaced; None: the loss of one is an error.
        """
        self._engines = Engines(launch, wait, replacing, timeout)
        self.sampling = sampling
        self.max_in_flight = max_in_flight
        self.timeout = timeout
        self.oversample = oversample
        self.sleep_level = sleep_level
        self.deterministic = deterministic
        self._asleep = False
        self._ready = False  # whether the engines have started and hold the learner's weights
        self._link: WeightLink | None = None
        self._open = False  # whether the link is open
        self._turn = Lock()  # held while the engines start, sample, take weights, or end

    @property
    def actors(self) -> list[ActorHandle]:
        """The engines; empty while there are none."""
        return self._engines.actors

    def connect(self, link: WeightLink) -> None:
        """Connect the pool to a learner. Without one, engines sample with the weights that they start with."""
        self._link = link

    def serve(self, adapters: dict[str, NDArray[np.uint8]]) -> None:
        """Have engines load these adapters when they start, in place of a learner's weights; see `load_adapters`."""
        stored = ray.put(adapters)

        def send() -> None:
            fetch([engine.load_adapters.remote(stored) for engine in self.actors], self.timeout)

        self.connect(WeightLink(lambda engines: None, send, lambda: None))

    def reconnect(self) -> None:
        """Connect the engines to a learner that has started anew, and have them take its weights."""
        with self._turn:
            self._open = False
            if self._ready:
                self._take_weights()

    def launch(self) -> None:
        """Begin to start the engines, if there are none; see `start`."""
        self._engines.launch()

    def wait(self) -> None:
        """Wait until the engines that `launch` has begun to start have started."""
        self._engines.wait()

    def start(self) -> None:
        """Start the engines, if there are none; returns when they hold the learner's weights."""
        with self._turn:
            self._ensure_ready()

    def prompts(self, batch_size: int) -> int:
        """Return how many prompts to draw for a batch of groups."""
        return batch_size + self.oversample

    def sample(self, examples: Sequence[Example], enough: int) -> Generator[dict[int, Group], None, None]:
        """Yield {index of the example: group} as groups finish. After `enough` groups, abort the others.

        The generator blocks `sync` and `answer` from its first item until it is exhausted or closed.
        """
        with self._turn, closing(self._generate(examples, self.sampling, len(examples))) as generated:
            for finished in generated:
                chosen = finished[:enough]
                yield {index: Group(examples[index], responses) for index, responses in chosen}
                enough -= len(chosen)
                if not enough:
                    return

    def probe(self, example: Example) -> Group:
        """Return a group of two short rollouts with their log-probs."""
        sampling = replace(self.sampling, n=2, max_tokens=min(PROBE_TOKENS, self.sampling.max_tokens), logprobs_every=1)
        with self._turn:
            ((sampled,),) = self._generate([example], sampling, 1)
        return Group(example, sampled.responses)

    def answer(
        self,
        examples: Counted,
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        stay: bool = True,
    ) -> list[Prediction]:
        """Return n answers to each example, those to the same example one after the other.

        An example is taken when an engine has room for it, and dropped when it is answered. The same answers are drawn
        at each evaluation, as far as the policy is the same.

        Args:
            examples: iterated over once. There may be fewer than its length says.
            temperature: 0 is greedy, and allows one answer only.
            stay: whether the engines stay when they have answered. Otherwise they end, with their processes, and the
                next sampling starts new ones.
        """
        asked: dict[int, Example] = {}  # that are not answered yet

        def noted() -> Iterator[Example]:
            for number, example in enumerate(examples):
                asked[number] = example
                yield example

        answers: dict[int, list[Prediction]] = {}
        sampling = Sampling(n, temperature, max_tokens, seed=seed_of(self.sampling.seed, "evaluation"))
        with self._turn:
            for finished in self._generate(noted(), sampling, len(examples), _AT_ONCE):
                for index, responses in finished:
                    example = asked.pop(index)
                    answers[index] = [
                        Prediction.of(example, response.text, number if n > 1 else None)
                        for number, response in enumerate(responses)
                    ]
            if not stay:
                self._disconnect()
                self.shut_down()
        return [prediction for index in sorted(answers) for prediction in answers[index]]

    def sync(self, phase: Phase = during) -> None:
        """Wait for sampling or an evaluation in progress, then send the learner's weights to the engines.

        Does nothing while there are no engines: they take the weights when they start.

        Args:
            phase: makes context managers that time the phases `wait` and `sync`.
        """
        if not self._engines.exist:
            return
        with phase("wait"):
            self._turn.acquire()
        try:
            with phase("sync"):
                if self._ready:
                    self._take_weights()
        finally:
            self._turn.release()

    def wake(self, phase: Phase = during) -> None:
        """Wake engines that sleep, which sends them the learner's weights; see `sync`."""
        if self._asleep:
            self.sync(phase)

    def sleep(self) -> None:
        """Put engines that share GPUs with the learner to sleep; nothing may be sampled at the time.

        They wake in `sync` or when they sample next. Both send them the weights again.
        """
        if self.actors and self.sleep_level is not None and not self._asleep:
            self._engines.ask("sleep", self.sleep_level)
            self._asleep = True

    def shut_down(self) -> None:
        """End the engines and their processes, within 30 s, whatever they do. Engines that have died are skipped.

        It asks nothing of the learner, so that it also ends a run that has failed.
        """
        self._ready = self._asleep = self._open = False
        self._engines.shut_down()

    def _ensure_ready(self) -> None:
        """Start engines if there are none or some are lost, and wake them; they then hold the learner's weights."""
        self.launch()
        if not self._ready:
            self._engines.wait()
            self.sleep()  # the transfer needs the memory of the KV cache, see `_send`
            self._ready = True
        elif not self._asleep and not self._engines.incomplete:
            return
        self._take_weights()

    def _take_weights(self) -> None:
        """Have all engines take the learner's weights; engines that are lost, before or meanwhile, are replaced."""
        while True:
            self._engines.check()
            if self._engines.incomplete:
                self._disconnect()
                self._engines.replace()
                self._asleep = False
                self.sleep()
            if self._link is None:
                return
            try:
                if not self._open:
                    self._link.open(self.actors)
                    self._open = True
                self._send(self._link)
            except Exception as error:
                lost = self._engines.check()
                if lost or isinstance(error, LearnerLostError):
                    self._engines.lose_all()
                if not lost:
                    raise
            if not self._engines.incomplete:
                return

    def _send(self, link: WeightLink) -> None:
        if self._asleep:  # the KV cache is allocated after the transfer, during which the learner needs the memory
            self._engines.ask("wake_up", "weights")
        link.send()
        if self._asleep:
            self._engines.ask("wake_up", "kv_cache")
            self._asleep = False

    def _disconnect(self) -> None:
        if self._link and self._open:
            self._link.close()
        self._open = False

    def _generate(
        self, examples: Iterable[Example], sampling: Sampling, count: int, at_once: int | None = None
    ) -> Generator[list[Sampled], None, None]:
        """Yield rollouts as they finish, numbered by example; abort what is still running when it is closed.

        Args:
            count: how many examples there are at most.
            at_once: the most examples that an engine is given by one call; None: as many as it has room for.
        """
        self._ensure_ready()
        left = count
        pending = iter(enumerate(examples))
        again: deque[tuple[int, Example]] = deque()  # what engines that are lost have not answered
        held: dict[ActorHandle, dict[int, Example]] = {actor: {} for actor in self.actors}  # unanswered, by engine
        calls: dict[ray.ObjectRef, tuple[ActorHandle, ray.ObjectRef]] = {}  # with the tokens that a call returns

        def waiting() -> Iterator[tuple[int, Example]]:
            while again:
                yield again.popleft()
            yield from pending

        def feed(actor: ActorHandle) -> None:
            share = min(-(-left // len(held)), self.max_in_flight)
            room = max(0, share - len(held[actor]))
            more = list(islice(waiting(), room if at_once is None else min(room, at_once)))
            held[actor].update(more)
            if held[actor]:
                rollouts, tokens = actor.sample.remote(more, sampling)
                calls[rollouts] = actor, tokens

        def lose(actor: ActorHandle, error: Exception) -> None:
            self._engines.lose(actor, error)
            again.extend(held.pop(actor).items())
            if not held:
                self._ensure_ready()
                held.update({new: {} for new in self.actors})
            for idle in [other for other in held if not held[other]]:
                feed(idle)

        def feed_all() -> None:
            for actor in held:
                feed(actor)

        try:
            feed_all()
            while calls:
                try:
                    (done,) = wait_for(list(calls), self.timeout, count=1)
                except StalledError as error:
                    stalled, calls = [actor for actor, _ in calls.values()], {}
                    for actor in stalled:
                        lose(actor, error)
                    continue
                actor, tokens = calls.pop(done)
                try:
                    finished = fetch(done, self.timeout)
                except ray.exceptions.RayActorError as error:
                    lose(actor, error)
                    continue
                for sampled in finished:
                    del held[actor][sampled.number]
                    for response in sampled.responses:
                        response.tokens = replace(response.tokens, store=tokens)
                left -= len(finished)
                if not self.deterministic:
                    feed(actor)
                elif not calls:  # the round is over
                    feed_all()
                yield finished
        except StalledError:
            held = {}  # an engine that does not answer drops no prompts either
            raise
        finally:
            if any(held.values()):
                self._abort(calls)
                self._abort(())  # a call that arrived after its abort has begun requests since

    def _abort(self, calls: Iterable[ray.ObjectRef]) -> None:
        """Abort all requests; return when the calls have returned and the engines are idle."""
        references = [*calls, *(actor.abort.remote() for actor in self.actors)]
        wait_for(references, self.timeout)


def without_rollouts(examples: Sequence[Example]) -> Generator[dict[int, Group], None, None]:
    """Yield groups without rollouts, in the form of `RolloutPool.sample`, for methods that do not sample."""
    yield {index: Group(example, []) for index, example in enumerate(examples)}
