"""What the pool makes of the answers that engines return to an evaluation, in any order."""

from tests.unit.groups import example
from visurf_ray.groups import Response, Source, TokenSpan
from visurf_ray.rollout.actor import Sampled, Sampling
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.seeds import seed_of

EVALUATION = seed_of(7, "evaluation")  # the same at each


class Answering(RolloutPool):
    """Records how it is asked to sample, and answers the last example first."""

    def __init__(self) -> None:
        super().__init__(lambda: [], sampling=Sampling(8, 1.0, 99, seed=7), max_in_flight=4, timeout=60)
        self.asked: list[Sampling] = []

    def _generate(self, examples, sampling, count, at_once=None):
        self.asked.append(sampling)
        examples = list(examples)
        for number in reversed(range(len(examples))):
            texts = [f"{examples[number].id}.{place}" for place in range(sampling.n)]
            yield [Sampled(number, [Response(Source.ROLLOUT, text, TokenSpan.of([1])) for text in texts])]


def test_several_answers_to_an_example_follow_one_another_with_their_numbers():
    pool = Answering()
    answers = pool.answer([example(identity=name) for name in "ab"], max_tokens=5, n=3, temperature=0.7)
    assert [(each.id, each.response, each.sample) for each in answers] == [
        *[("a", f"a.{number}", number) for number in range(3)],
        *[("b", f"b.{number}", number) for number in range(3)],
    ]
    assert pool.asked == [Sampling(3, 0.7, 5, seed=EVALUATION)]


def test_a_single_answer_is_greedy_and_has_no_number():
    pool = Answering()
    (answer,) = pool.answer([example(identity="a")], max_tokens=5)
    assert (answer.response, answer.sample) == ("a.0", None) and pool.asked == [Sampling(1, 0.0, 5, seed=EVALUATION)]
