"""One data-parallel rank: a DeepSpeed engine around the policy. Runs without Ray as well, as the tests do."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from peft.helpers import rescale_adapter_scale
from transformers.integrations import HfDeepSpeedConfig

from visurf_ray.aliases import Fetch
from visurf_ray.config.schema import Packing
from visurf_ray.groups import Group, Metrics
from visurf_ray.learner.balance import cost, fill
from visurf_ray.learner.packing import PackedGroups, pack
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.learner.trained import Trained
from visurf_ray.method import LossConfig, divergences, is_clipped, token_losses
from visurf_ray.weights.source import named_weights


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


class Rank:
    """Holds the policy and its optimizer; every method is called on all ranks at once."""

    def __init__(self, config: RankConfig, *, rank: int, world_size: int, address: str, port: int, seed: int) -> None:
        self.config = config
        self.rank = rank
        self.world_size = world_size
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        torch.manual_seed(seed)
        deepspeed.init_distributed(get_accelerator().communication_backend_name(), verbose=False)
        # Whole, so before ZeRO-3 has its way. Below adapters lies the policy of the start as it is.
        self.reference = self._load_reference() if config.reference and not config.trained.lora_rank else None
        settings = self._deepspeed_settings()
        self._zero3 = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None  # must outlive from_pretrained
        model = load_model(
            config.model_path,
            dtype=torch.float32,  # DeepSpeed casts to the training dtype; below ZeRO-3 this is the master copy
            packing=config.packing,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        self.adapters = config.trained.apply(model)
        policy = Policy(model, config.temperature, config.banned, config.logprob_chunk)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in policy.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            fused=True,  # also on the CPU, where offloaded states are updated
        )
        self.engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        self.model = model
        self.dtype = getattr(torch, config.dtype)
        self.device = self.engine.device

    def _load_reference(self) -> Policy:
        """The policy at the start, frozen, in the training dtype."""
        model = load_model(
            self.config.model_path,
            dtype=getattr(torch, self.config.dtype),
            packing=self.config.packing,
            gradient_checkpointing=False,
        )
        policy = Policy(model, self.config.temperature, self.config.banned, self.config.logprob_chunk)
        return policy.requires_grad_(False).eval().to(get_accelerator().current_device_name())

    def _deepspeed_settings(self) -> dict[str, Any]:
        offload = {"offload_optimizer": {"device": "cpu"}} if self.config.offload else {}
        return {
            "train_micro_batch_size_per_gpu": 1,  # of no effect here: micro-batches are groups, weighted by ourselves
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,  # backward() accumulates, step() reduces: as many as there are
            "gradient_clipping": self.config.max_grad_norm,
            "zero_optimization": {"stage": self.config.zero_stage, "overlap_comm": False} | offload,
            "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW serves; DeepSpeed would compile its own
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.config.dtype == "bfloat16"},
            "data_types": {"grad_accum_dtype": "fp32"},  # sums over micro-batches: the same however many there are
        }

    def update(
        self,
        minibatches: Sequence[Shard],
        loss: LossConfig,
        fetch: Fetch,
    ) -> list[Metrics]:
        """One optimiser step for each minibatch; returns sums for each, over this rank's response tokens.

        fetch: returns what a reference refers to (in a cluster, `ray.get`). With
        several minibatches the log-probs of the old policy are computed once, before the first step; with one, they
        are those of the same forward pass.
        """
        packed = [self._pack(shard, self._rows(shard), fetch) for shard in minibatches]
        old = [[self._logprobs(part) for part in parts] for parts in packed] if len(packed) > 1 else None
        return [self._step(parts, old[index] if old else None, loss) for index, parts in enumerate(packed)]

    def mean_logprobs(self, groups: Sequence[Group], fetch: Fetch) -> list[list[float]]:
        """The mean log-prob (nats) of a token of each response of each group; nothing is learnt."""
        shard = [(group, [1.0] * len(group.responses)) for group in groups]
        rows = self._rows(shard)
        found: list[list[float]] = [[] for _ in groups]
        for number, packed in enumerate(self._pack(shard, rows, fetch)):
            logprobs = self._logprobs(packed)  # idle rows too: ranks run in lockstep
            chosen = rows[number] if number < len(rows) else []
            for index in chosen:
                lengths = [response.length for response in groups[index].responses]
                parts, logprobs = logprobs[: sum(lengths)].split(lengths), logprobs[sum(lengths) :]
                found[index] = [part.mean().item() for part in parts]
        return found

    def _rows(self, shard: Shard) -> list[list[int]]:
        """Which groups come into one forward pass."""
        return fill([cost(group) for group, _ in shard], self.config.max_tokens_per_micro_batch)

    def _pack(self, shard: Shard, rows: Sequence[Sequence[int]], fetch: Fetch) -> list[PackedGroups]:
        parts = [[shard[index] for index in chosen] for chosen in rows]
        packed = [
            pack(
                [group for group, _ in part],
                [weights for _, weights in part],
                self.model.model.get_rope_index,
                fetch=fetch,
                image_token_id=self.model.config.image_token_id,
                dtype=self.dtype,
                packing=self.config.packing,
            ).to(self.device)
            for part in parts
        ]
        # Ranks run forward and backward in lockstep (ZeRO-3 gathers parameters in them), so all run equally many.
        count = torch.tensor([len(packed)], device=self.device)
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
        idle = replace(packed[-1], weight_T=torch.zeros_like(packed[-1].weight_T))
        return packed + [idle] * (int(count) - len(packed))

    @torch.no_grad()
    def _logprobs(self, packed: PackedGroups) -> torch.Tensor:
        """Those of the policy as the sampler has it: without dropout."""
        self.engine.eval()
        try:
            return self.engine(packed)[0]
        finally:
            self.engine.train()

    @torch.no_grad()
    def _reference_logprobs(self, packed: PackedGroups) -> torch.Tensor:
        """Those of the policy of the start."""
        if self.reference:
            return self.reference(packed)[0]
        # Scaled to nothing and not switched off: ZeRO-3 foresees the layers of a pass, and they stay the same.
        with rescale_adapter_scale(self.model, 0.0):
            return self._logprobs(packed)

    def _step(self, parts: Sequence[PackedGroups], old: Sequence[torch.Tensor] | None, loss: LossConfig) -> Metrics:
        sums: Metrics = {"loss": 0.0}
        for index, packed in enumerate(parts):
            sampled = bool((~packed.is_label_T).any())
            compares = self.config.reference and loss.kl_coef and sampled
            reference = self._reference_logprobs(packed) if compares else None
            logprobs, entropy = self.engine(packed)
            old_logprobs = old[index] if old else logprobs.detach()
            losses = token_losses(
                logprobs,
                old_logprobs,
                packed.advantage_T,
                packed.is_label_T,
                packed.sampler_logprob_T,
                entropy,
                reference,
                loss,
            )
            weighted = (losses * packed.weight_T).sum()
            # DeepSpeed averages over ranks; the weights' denominators are global already.
            self.engine.backward(weighted * self.world_size)
            if packed.weight_T.any():
                for name, value in _token_sums(packed, logprobs.detach(), old_logprobs, entropy.detach(), loss).items():
                    sums[name] = max(sums.get(name, 0.0), value) if name == DIFF_MAX else sums.get(name, 0.0) + value
                sums["loss"] += weighted.item()
                if reference is not None:
                    kl = divergences(logprobs.detach(), reference)[~packed.is_label_T].sum().item()
                    sums["kl/rollout"] = sums.get("kl/rollout", 0.0) + kl
        self.engine.step()
        sums["grad_norm"] = float(self.engine.get_global_grad_norm() or 0.0)
        if not math.isfinite(sums["grad_norm"]):
            raise FloatingPointError(
                "the gradient is not finite: lower learner.learning_rate, and look at the last steps in metrics.jsonl"
            )
        return sums

    def release(self) -> None:
        """Give memory that is not in use back to the GPU, where an engine shares it."""
        if self.config.shares_gpu:
            get_accelerator().empty_cache()

    def save(self, folder: Path) -> None:
        """Write the training state (trained parameters and optimizer) as a DeepSpeed checkpoint."""
        self.engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, with the same number of ranks and ZeRO stage; the configured rates stay."""
        # Frozen parameters are not in it, hence not strict.
        loaded, _ = self.engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG, load_module_strict=False)
        if loaded is None:
            raise ValueError(f"{folder} holds no DeepSpeed checkpoint that {self.world_size} ranks can load")
        for group in self.engine.optimizer.param_groups:  # DeepSpeed restores those of the run that wrote it
            group["lr"] = self.config.learning_rate
            group["betas"] = self.config.adam_betas
            group["weight_decay"] = self.config.weight_decay

    def export(self, folder: Path) -> None:
        """Write a Hugging Face model, weights in the training dtype; every rank gathers, rank 0 writes.

        Adapters are merged into it, and also written by themselves, to `adapter/`.
        """
        parameters = list(self.model.parameters())
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.config.zero_stage == 3):
            if self.rank == 0:
                state = {name: weight.value().cpu() for name, weight in named_weights(self.model).items()}
                self.model.save_pretrained(folder, state_dict=state)
                if self.adapters:
                    self.adapters.save_pretrained(str(folder / ADAPTER_FOLDER), save_embedding_layers=False)
        torch.distributed.barrier()


DIFF_MAX = "rollout_logprob_diff_max"
CHECKPOINT_TAG = "state"
ADAPTER_FOLDER = "adapter"


def _token_sums(packed: PackedGroups, logprobs, old_logprobs, entropy, loss: LossConfig) -> Metrics:
    """Sums over response tokens, by source, of what is logged as means."""
    sums: Metrics = {}
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = is_clipped(logprobs, old_logprobs, packed.advantage_T, packed.is_label_T, loss).float()
    for source, chosen in (("rollout", ~packed.is_label_T), ("label", packed.is_label_T)):
        if chosen.any():
            sums[f"tokens/{source}"] = float(chosen.sum())
            sums[f"entropy/{source}"] = entropy[chosen].sum().item()
            sums[f"logprob/{source}"] = logprobs[chosen].sum().item()
            sums[f"ratio/{source}"] = ratio[chosen].sum().item()
            sums[f"clip_share/{source}"] = clipped[chosen].sum().item()
    sampled = ~packed.sampler_logprob_T.isnan()
    if sampled.any():
        difference = (old_logprobs - packed.sampler_logprob_T)[sampled].abs()
        sums["tokens/compared"] = float(sampled.sum())
        sums["rollout_logprob_diff"] = difference.sum().item()
        sums[DIFF_MAX] = difference.max().item()
    return sums
