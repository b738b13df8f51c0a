"""The tasks of a run by name: the parts that it trains on, and further held-out sets. It dispatches to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visurf_ray.answers.boxes import Box
from visurf_ray.config.schema import Config, ModelConfig, TaskConfig
from visurf_ray.errors import naming
from visurf_ray.groups import Example, Metrics, Prediction, without_bounds
from visurf_ray.tasks import load_task
from visurf_ray.tasks.task import Task


@dataclass(frozen=True)
class Tasks:
    """The tasks of a run. Examples and predictions say in `part` whose they are.

    Attributes:
        parts: The tasks that the run trains on. A run of one task has one part, named ''.
        sets: The tasks of the held-out sets in `eval.sets`.
    """

    parts: Mapping[str, Task]
    sets: Mapping[str, Task]

    @staticmethod
    def of(config: Config, *, model: ModelConfig | None = None) -> "Tasks":
        """Load the tasks that a configuration names.

        Args:
            config: A run's configuration.
            model: See `load_task`. It may be None where answers are scored and nothing else.

        Raises:
            UserError: See `load_task`; the message names the key.
        """

        def load(section: str, settings: Mapping[str, TaskConfig]) -> dict[str, Task]:
            tasks = {}
            for name, task in settings.items():
                with naming(section, name):
                    tasks[name] = load_task(task, config.seed, strict=config.answers.strict, model=model)
            return tasks

        return Tasks(load("task.parts", config.parts), load("eval.sets", config.eval.sets))

    def __getitem__(self, part: str) -> Task:
        return self.parts[part] if part in self.parts else self.sets[part]

    def label(self, example: Example, style: str) -> str:
        """Return the label of an example; see `Task.label`."""
        return self[example.part].label(example, style)

    def shown_boxes(self, text: str, example: Example) -> list[Box]:
        """Return the boxes of a response to an example; see `Task.shown_boxes`."""
        return self[example.part].shown_boxes(text, example)

    def true_boxes(self, example: Example) -> list[Box] | None:
        """Return the true boxes of an example; see `Task.true_boxes`."""
        return self[example.part].true_boxes(example)

    def score(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the metrics of answers: NAME of the run's task, PART/NAME of each part and each set.

        The NAME of a mixture is the mean over the parts that have this metric, each part counting the same. Sets do not
        count in it. The mean over several parts has no bounds; the metrics of each part have those of `Task.score`.

        Raises:
            KeyError: A prediction is of another part.
            DataError: Examples of a part have different numbers of answers.
        """
        of_part: dict[str, list[Prediction]] = {}
        for prediction in predictions:
            of_part.setdefault(prediction.part, []).append(prediction)
        scores = {part: self[part].score(found) for part, found in of_part.items()}
        named = {f"{part}/{name}": value for part, found in scores.items() if part for name, value in found.items()}
        trained = [found for part, found in scores.items() if part in self.parts]
        if len(trained) > 1:
            trained = [without_bounds(found) for found in trained]
        whole = {
            name: sum(values) / len(values)
            for name in dict.fromkeys(name for found in trained for name in found)
            if (values := [found[name] for found in trained if name in found])
        }
        return whole | named
