"""What is learnt, by name: reading a data set, the prompt, the ground truth as a response, the metrics."""

from visurf_ray import names
from visurf_ray.config import TaskConfig
from visurf_ray.tasks.task import Task

TASKS = {
    "non_object": "visurf_ray.tasks.box_task:BoxTask",
    "miniature": "visurf_ray.miniature.task:MiniatureTask",
}


def load_task(config: TaskConfig, seed: int) -> Task:
    """The task that `config.name` names. Raises UserError for an unknown name, with the nearest known one."""
    return names.load("task", config.name, TASKS)(config, seed)
