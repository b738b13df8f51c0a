"""Scores of answers, one or several to each example: means, pass@k, majority@k, and their bootstrap intervals."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from time import thread_time
from typing import Protocol

import numpy as np
from scipy.stats import bootstrap

from visurf_ray.errors import DataError
from visurf_ray.groups import HIGH, LOW, Metrics, Prediction

_SECONDS = 0.5  # of processor time for each vote
_RESAMPLES = 500
_BATCH = 50  # resamples that are in memory at the same time


class Judge(Protocol):
    """What a task knows of answers; see `tasks.task.Task`."""

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics: ...
    def values(self, prediction: Prediction) -> Metrics: ...
    def correct(self, prediction: Prediction) -> bool | None: ...
    def answer_key(self, prediction: Prediction) -> str | None: ...
    def same(self, first: str, second: str) -> bool: ...


def score_answers(judge: Judge, predictions: Sequence[Prediction]) -> Metrics:
    """Return the metrics of answers to held-out examples. A metric without examples is left out.

    With k > 1 answers to each example every metric of the task is mean@k: it is computed from the first answers, from
    the second ones and so on, and averaged. Beside it come these, where the task can say which answers are right:

    - pass@1, pass@2, pass@4, … pass@k: mean over examples of `pass_at`.
    - majority@k: mean over examples of `majority`, where the task can compare answers too.

    A metric that is a mean over examples has bounds beside it: `name_low` and `name_high`, see `interval`. Others
    (`Task.pooled`, such as average precision) have none, because it would take hundreds of times as long.

    Args:
        judge: The task.
        predictions: The answers, those to the same example one after the other.

    Raises:
        DataError: Examples have different numbers of answers.
    """
    examples = by_example(predictions)
    scores = _means([judge.metrics(answers) for answers in zip(*examples, strict=True)])
    values: dict[str, list[float]] = defaultdict(list)
    for answers in examples:
        found = _means([judge.values(answer) for answer in answers])
        for name, value in (found | repeated(judge, answers)).items():
            values[name].append(value)
    scores |= {name: float(np.mean(each)) for name, each in values.items() if name not in scores}
    bounded: Metrics = {}
    for name, score in scores.items():
        bounded[name] = score
        if bounds := interval(values.get(name, ())):
            bounded[name + LOW], bounded[name + HIGH] = bounds
    return bounded


def by_example(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    """Return the answers to each example. A prediction with the sample number 0, or without one, begins an example.

    Raises:
        DataError: An example lacks an answer that others have, or the numbers are not in order.
    """
    examples: list[list[Prediction]] = []
    for prediction in predictions:
        number = prediction.sample or 0
        if number == 0:
            examples.append([])
        elif not examples or len(examples[-1]) != number or examples[-1][0].id != prediction.id:
            raise DataError(
                f"predictions: answer {number} to the example {prediction.id!r} does not follow answer {number - 1} to "
                "it: give all answers to an example one after the other, from 0"
            )
        examples[-1].append(prediction)
    counts = sorted({len(answers) for answers in examples})
    if len(counts) > 1:
        few = next(answers[0].id for answers in examples if len(answers) == counts[0])
        raise DataError(
            f"predictions: the example {few!r} has {counts[0]} answer(s) and others have {counts[-1]}: give all "
            "examples the same number"
        )
    return examples


def repeated(judge: Judge, answers: Sequence[Prediction]) -> Metrics:
    """Return pass@1, pass@2, … and majority@k of the k answers to one example, or none if k is 1."""
    rights = [judge.correct(answer) for answer in answers]
    k = len(answers)
    if k == 1 or None in rights:
        return {}
    sizes = sorted({2**power for power in range(k.bit_length())} | {k})
    scores = {f"pass@{size}": pass_at(size, k, sum(map(bool, rights))) for size in sizes}
    keys = [judge.answer_key(answer) for answer in answers]
    if None not in keys:
        votes = [(key, bool(right)) for key, right in zip(keys, rights, strict=True) if key]
        scores[f"majority@{k}"] = majority(votes, judge.same)
    return scores


def pass_at(k: int, n: int, right: int) -> float:
    """Return the probability that one of k answers is right, which are drawn from n of which so many are right.

    This is the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, eq. 1).
    """
    return 1 - comb(n - right, k) / comb(n, k)


@dataclass
class _Candidate:
    """An answer that votes were given for."""

    answer: str
    right: bool
    votes: int = 0


def majority(votes: Sequence[tuple[str, bool]], same: Callable[[str, str], bool]) -> float:
    """Return 1 if the answer with the most votes is right, else 0; of several with as many, the share that is right.

    Answers that take long to compare, such as hostile formulas, are compared for half a second of processor time for
    each vote. After that only answers with the same text count as equal.

    Args:
        votes: An answer and whether it is right, for each response that has an answer; without any the score is 0.
        same: Tells whether two answers are equal.
    """
    candidates: list[_Candidate] = []
    end = thread_time() + _SECONDS * len(votes)
    for answer, right in votes:
        candidate = next((each for each in candidates if each.answer == answer), None)
        if candidate is None:
            equal = (each for each in candidates if thread_time() < end and same(each.answer, answer))
            candidate = next(equal, None)
        if candidate is None:
            candidates.append(candidate := _Candidate(answer, right))
        candidate.votes += 1
    most = max((each.votes for each in candidates), default=0)
    leading = [each.right for each in candidates if each.votes == most]
    return float(np.mean(leading)) if leading else 0.0


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the bounds of the 95 % interval of a mean, or None for fewer than two values.

    It is the percentile bootstrap over the values, with 500 resamples and the same random numbers each time. Values
    that are all equal have an interval of width 0.
    """
    if len(values) < 2:
        return None
    found = bootstrap(
        (np.asarray(values, np.float64),),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _means(rows: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over the rows that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    return {name: float(np.mean(each)) for name, each in values.items()}
