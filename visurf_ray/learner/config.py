"""The settings of a learner rank.

Separate from `rank`, so that the driver imports neither DeepSpeed nor vLLM.
"""

from dataclasses import dataclass

from visurf_ray.config.choices import Dtype, HeadDtype
from visurf_ray.config.schema import ModelSource
from visurf_ray.learner.cost import TOKENS, Cost
from visurf_ray.learner.trained import Trained


@dataclass(frozen=True)
class RankConfig:
    """Settings of a rank; see `conf/config.yaml`.

    Attributes:
        model: as for `policy.load_model`.
        banned: token ids that are never sampled.
        cost: of groups, by which rows and ranks are balanced.
        learning_rate: until an update sets another.
        async_checkpoint: see `train.async_checkpoint`.
        timeout: seconds that a rank may take for a call, and waits for the others: `cluster.timeout`.
        epochs: passes over the minibatches of an update.
        shares_gpu: whether a rollout engine uses the same GPU; memory is then freed after each call.
        reference: whether to keep the reference policy of the KL term.
        skip_nan: whether an update goes on after an optimiser step whose loss or gradient is not finite.
        deterministic: see `rollout.deterministic`.
    """

    model: ModelSource
    temperature: float
    banned: tuple[int, ...]
    zero_stage: int
    offload: bool
    trained: Trained
    learning_rate: float
    weight_decay: float
    adam_betas: tuple[float, float]
    max_grad_norm: float
    max_tokens_per_micro_batch: int
    logprob_chunk: int
    gradient_checkpointing: bool
    dtype: Dtype
    head_dtype: HeadDtype
    timeout: float
    async_checkpoint: bool
    cost: Cost = TOKENS
    epochs: int = 1
    shares_gpu: bool = False
    reference: bool = False
    skip_nan: bool = False
    deterministic: bool = False


REFERENCE_FILE = "reference.safetensors"  # in a checkpoint: the reference policy, unless it is the initial one
