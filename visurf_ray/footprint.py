"""The memory that the actors of a run need, on each GPU and on each node, compared with what there is."""

from dataclasses import dataclass

from visurf_ray.cluster.placement import Plan, Seat
from visurf_ray.config.schema import Config
from visurf_ray.errors import ConfigError
from visurf_ray.learner import memory
from visurf_ray.learner.memory import ModelSize, Sizes

_IN_A_STEP = ("activations", "logits")  # what a rank needs while it learns, and frees before workers sample


@dataclass(frozen=True)
class Footprint:
    """Bytes that each actor needs, by what they hold.

    Attributes:
        rank: of a learner rank on its GPU; without GPUs, in its node's memory.
        offloaded: of a learner rank in its node's memory, in addition.
        worker: of a rollout worker on each of its GPUs; without GPUs, in its node's memory.
        asleep: of a rollout worker in its node's memory while it sleeps.
        least: of a rollout worker on each of its GPUs: weights, and the KV cache of one response of the longest kind.
        gpu: what each GPU has; None if that is not known, or there is none.
    """

    rank: Sizes
    offloaded: Sizes
    worker: Sizes
    asleep: float
    least: float
    gpu: float | None

    @property
    def learning(self) -> float:
        """Bytes of a rank on its device while it learns."""
        return sum(self.rank.values())

    @property
    def resting(self) -> float:
        """Bytes that a rank keeps on its device while workers sample."""
        return sum(size for what, size in self.rank.items() if what not in _IN_A_STEP)

    @property
    def sampling(self) -> float:
        """Bytes of a worker on each of its GPUs, or in memory; without `gpu` those that are known."""
        return sum(self.worker.values())

    @property
    def together(self) -> float:
        """The most bytes at a time on a GPU that a rank and a worker share."""
        return max(self.learning, self.resting + self.sampling)


def footprint(config: Config, size: ModelSize, *, prompt: int, gpu: float | None) -> Footprint:
    """Estimate what actors need for a full row with prompts of visual tokens alone and responses of the longest kind.

    Args:
        prompt: tokens of the longest prompt.
        gpu: bytes that each GPU has, if known.
    """
    learner, rollout, method = config.learner, config.rollout, config.method
    responses = (rollout.n if method.rollouts else 0) + (1 if method.label else 0)
    tokens = learner.max_tokens_per_micro_batch
    prompts = max(1, tokens // (prompt + responses * rollout.max_tokens))
    rank, offloaded = memory.model_states(size, learner)
    rank |= memory.buffers(size, learner)
    if config.train.async_checkpoint:
        offloaded["copy of a checkpoint"] = memory.checkpoint_copy(size, learner)
    if method.kl_coef and not learner.lora.rank:  # with adapters, the model without them is the reference
        rank["KL reference"] = memory.reference_weights(size, learner.dtype)
    rank |= memory.activations(size, learner, tokens=tokens, visual_tokens=prompt * prompts)
    weights = memory.sampler_weights(size, rollout.dtype, rollout.gpus)
    worker: Sizes = {"weights": weights}
    if not rollout.gpus:
        worker["KV cache"] = rollout.memory * 2**30
    elif gpu:
        worker["KV cache"] = max(0.0, rollout.memory * gpu - weights)
    longest = memory.kv_bytes_per_token(size, rollout.dtype) * rollout.max_model_len / max(rollout.gpus, 1)
    asleep = weights * rollout.gpus if config.colocated and rollout.sleep_level == 1 else 0.0
    return Footprint(rank, offloaded, worker, asleep, weights + longest, gpu)


@dataclass(frozen=True)
class Need:
    """What something needs, and has; both in bytes.

    Attributes:
        keys: settings that lower the need.
        there: None if it is not known.
    """

    what: str
    keys: str
    needed: float
    there: float | None

    @property
    def met(self) -> bool:
        return self.there is None or self.needed <= self.there


def needs(config: Config, plan: Plan, found: Footprint) -> list[Need]:
    """Return what is compared: each kind of GPU, the workers' share of one, and the memory of each node."""
    compared = []
    smaller = "learner.max_tokens_per_micro_batch, or set learner.zero_stage=3 or learner.offload=true"
    if config.learner.gpus and config.colocated:
        what = "a GPU that a rank and a worker share"
        compared.append(Need(what, f"rollout.memory or {smaller}", found.together, found.gpu))
    elif config.learner.gpus:
        compared.append(Need("the GPU of a learner rank", smaller, found.learning, found.gpu))
    if config.rollout.gpus:
        share = config.rollout.memory * found.gpu if found.gpu else None
        keys = "rollout.max_model_len, or raise rollout.memory or rollout.gpus"
        compared.append(Need("a worker's share of a GPU (rollout.memory)", keys, found.least, share))
    for index, node in enumerate(plan.nodes):
        there = node.total.get("memory", 0) + node.total.get("object_store_memory", 0)
        if needed := in_memory(plan, found, index):
            keys = "the number of actors on it, or take nodes with more memory"
            keys = keys if config.rollout.gpus else f"rollout.memory or {keys}"
            compared.append(Need(f"memory of {node.name}", keys, needed, there or None))
    return compared


def in_memory(plan: Plan, found: Footprint, node: int) -> float:
    """Return the bytes that ranks and workers need in the memory of a node."""

    def here(seats: list[Seat], on_gpu: float, besides: float) -> float:
        return sum(besides + (0 if seat.gpus or seat.ranks else on_gpu) for seat in seats if seat.node == node)

    ranks = here(list(plan.ranks), found.learning, sum(found.offloaded.values()))
    return ranks + here(list(plan.workers), found.sampling, found.asleep)


def check_memory(compared: list[Need]) -> None:
    """Check that all needs are met, as far as it is known.

    Raises:
        ConfigError: one is not.
    """
    for need in compared:
        if not need.met:
            raise ConfigError(
                f"the run does not fit into memory: {need.what} needs {in_units(need.needed)} and has "
                f"{in_units(need.there or 0)}. Lower {need.keys}"
            )


def in_units(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
