"""Which rows are refused, which are dropped, and what the check of a row finds."""

from dataclasses import dataclass, replace

from visurf_ray.config.choices import OnBad, OnBadBox, OnLong
from visurf_ray.config.schema import Config
from visurf_ray.data.rows import Row
from visurf_ray.errors import BoxError, DataError, LengthError


@dataclass(frozen=True)
class Strictness:
    """Which rows are refused, and what happens to them.

    Attributes:
        on_bad_box: What to do with a row whose boxes have swapped corners or reach outside the image.
        on_long: What to do with a row whose prompt is too long, or whose label is longer than any response can be: stop
            refuses the prompt and only warns of the label.
        on_bad: What to do with a row that cannot be used for any other reason.
        max_label_tokens: The longest response, the end-of-turn token included; None: labels may have any length.
        trains_on_labels: Whether the run trains on labels: then the data's reasoning counts for their length.
    """

    on_bad_box: OnBadBox = OnBadBox.stop
    on_long: OnLong = OnLong.stop
    max_label_tokens: int | None = None
    trains_on_labels: bool = True
    on_bad: OnBad = OnBad.stop

    @staticmethod
    def of(config: Config) -> "Strictness":
        """Return what a run's configuration says."""
        feed, trains = config.feed, config.method.label or config.method.sft_steps > 0
        return Strictness(feed.on_bad_box, feed.on_long, config.rollout.max_tokens, trains, feed.on_bad)

    def drops(self, error: DataError) -> bool:
        """Return whether the row with this error is dropped; otherwise it ends the run."""
        if isinstance(error, BoxError):
            return self.on_bad_box is OnBadBox.drop
        if isinstance(error, LengthError):
            return self.on_long is OnLong.drop
        return self.on_bad is OnBad.drop


def max_prompt_tokens(config: Config) -> int:
    """Return the length of the longest prompt in tokens: it leaves room for one token of a response."""
    return config.rollout.max_model_len - 1


def over_budget(config: Config, prompt: int, labelled: int) -> str | None:
    """Return why a micro-batch of the learner cannot hold a prompt with its responses, or None if it can.

    Args:
        config: The run's configuration.
        prompt: The tokens of the prompt.
        labelled: The tokens that a prompt and its label have together.
    """
    rollout, method, budget = config.rollout, config.method, config.learner.max_tokens_per_micro_batch
    sampled = prompt + min(rollout.max_tokens, rollout.max_model_len - prompt) if method.rollouts else 0
    found = [
        (sampled, f"the longest prompt of {prompt} tokens with a rollout of rollout.max_tokens={rollout.max_tokens}"),
        (labelled if method.label or method.sft_steps else 0, "the longest prompt with its label"),
    ]
    for tokens, what in found:
        if tokens - 1 > budget:  # the last token is predicted, but is no input
            return f"learner.max_tokens_per_micro_batch={budget} does not hold {what}: set it to at least {tokens - 1}"
    return None


@dataclass(frozen=True)
class Dropped:
    """A row that is left out: the split, where it is, its id, and why."""

    split: str
    where: str
    id: str
    reason: str

    def of_part(self, part: str) -> "Dropped":
        """Return it with the split of a named part: `PART/train` or `PART/held_out`."""
        return replace(self, split=f"{part}/{self.split}") if part else self


@dataclass(frozen=True)
class Checked:
    """A row that can be used: the tokens of its prompt and of its label, and the largest coordinate of its boxes.

    `too_long` says that no response can be as long as the label.
    """

    row: Row
    prompt: int
    label: int
    largest_coordinate: float | None
    too_long: str | None
