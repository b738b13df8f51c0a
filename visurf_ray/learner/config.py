"""What the driver tells a learner rank: its settings, and its share of a minibatch.

Apart from `rank`, so that the driver imports neither DeepSpeed nor vLLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from visurf_ray.config.schema import Packing
from visurf_ray.groups import Group
from visurf_ray.learner.trained import Trained


@dataclass(frozen=True)
class RankConfig:
    """What a rank needs of `conf/config.yaml`; see there. `model_path` is a folder or a hub id."""

    model_path: str
    temperature: float
    banned: tuple[int, ...]  # token ids that are never sampled
    zero_stage: int
    offload: bool
    trained: Trained
    learning_rate: float
    weight_decay: float
    adam_betas: tuple[float, float]
    max_grad_norm: float
    max_tokens_per_micro_batch: int
    packing: Packing
    logprob_chunk: int
    gradient_checkpointing: bool
    dtype: str
    shares_gpu: bool = False  # with an engine, which wants the memory back after each call
    reference: bool = False  # keep the policy of the start, for the KL term


Shard = Sequence[tuple[Group, Sequence[float]]]  # groups, with the weight of each token of each response
