"""Tasks by name. A task reads a data set, asks the question, writes the label and computes the metrics."""

from visurf_ray import names
from visurf_ray.config.choices import QuestionForm
from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.models import coordinates_of
from visurf_ray.tasks.custom import CUSTOM, load_custom
from visurf_ray.tasks.task import Task

__all__ = ["TASKS", "Task", "load_task"]

TASKS = {
    "non_object": "visurf_ray.tasks.box_task:BoxTask",
    "gui_grounding": "visurf_ray.tasks.gui_grounding:GuiGroundingTask",
    "anomaly": "visurf_ray.tasks.anomaly:AnomalyTask",
    "lesion": "visurf_ray.tasks.lesion:LesionTask",
    "math": "visurf_ray.tasks.math:MathTask",
    "vqa": "visurf_ray.tasks.vqa:VqaTask",
    "reasoning_segmentation": "visurf_ray.tasks.reasoning_segmentation:ReasoningSegmentationTask",
    "detection": "visurf_ray.tasks.detection:DetectionTask",
    "classification": "visurf_ray.tasks.classification:ClassificationTask",
    "grounding": "visurf_ray.tasks.grounding:GroundingTask",
    "miniature": "visurf_ray.miniature.task:MiniatureTask",
    "miniature_anomaly": "visurf_ray.miniature.anomaly:MiniatureAnomaly",
    "miniature_classification": "visurf_ray.miniature.classification:MiniatureClassification",
    "miniature_detection": "visurf_ray.miniature.detection:MiniatureDetection",
    "miniature_grounding": "visurf_ray.miniature.grounding:MiniatureGrounding",
    "miniature_gui": "visurf_ray.miniature.gui:MiniatureGui",
    "miniature_lesion": "visurf_ray.miniature.lesion:MiniatureLesion",
    "miniature_math": "visurf_ray.miniature.math:MiniatureMath",
    "miniature_vqa": "visurf_ray.miniature.vqa:MiniatureVqa",
}


def load_task(config: TaskConfig, seed: int, *, strict: bool = True, model: ModelConfig | None = None) -> Task:
    """Return the task that `config.name` names, or for `custom` the user's own that `config.module` names.

    Args:
        config: The task's settings.
        seed: Draws the training rows of a drawn task.
        strict: The value of answers.strict.
        model: The model that answers; None: answers are in the task's own unit, and questions as the data have them.

    Raises:
        UserError: The name is unknown, the user's task cannot be used, or the task does not support a setting.
    """
    if config.name == CUSTOM:
        task = load_custom(config, seed)
    else:
        task = names.load("task", config.name, {**TASKS, CUSTOM: ""})(config, seed)
    task.strict = strict
    if model:
        task.answer_in(coordinates_of(model))
        task.normalises_questions = model.question is QuestionForm.normalised
    return task
