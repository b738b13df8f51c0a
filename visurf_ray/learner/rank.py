"""One data-parallel rank: a DeepSpeed engine around the policy. Does not depend on Ray."""

import math
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import distributed_c10d
from transformers.integrations import HfDeepSpeedConfig

from visurf_ray.aliases import Fetch, HFModel, Json
from visurf_ray.config.choices import Dtype, Packing
from visurf_ray.errors import LostError
from visurf_ray.groups import Group
from visurf_ray.learner.background import BackgroundEngine
from visurf_ray.learner.balance import GroupPart, Shard, fill
from visurf_ray.learner.config import REFERENCE_FILE, RankConfig
from visurf_ray.learner.metrics import StepReport, UpdateSums, update_sums
from visurf_ray.learner.packing import PackedGroups, pack_prefix, pack_rows
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.learner.reference import EarlierAdapters, FrozenCopy, Reference
from visurf_ray.learner.trained import adapter_files, merged_weights
from visurf_ray.learner.universal import CHECKPOINT_TAG
from visurf_ray.learner.unpickling import without_code
from visurf_ray.method import LossConfig, TokenValues, scaled, token_losses
from visurf_ray.seeds import seed_of
from visurf_ray.weights.source import gathered
from visurf_ray.weights.stored import save_model

ADAPTER_FOLDER = "adapter"


class Rank:
    """Holds the policy and its optimizer. Call a method on all ranks together: most methods communicate."""

    def __init__(self, config: RankConfig, *, rank: int, world_size: int, init_method: str, seed: int) -> None:
        """Start the rank, and join the process group.

        Args:
            init_method: where the ranks meet, as `torch.distributed.init_process_group` takes it.
        """
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.cost = config.cost
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size)}
        torch.manual_seed(seed)
        # Else threads add the gradients of a position that many tokens look at in any order.
        torch.use_deterministic_algorithms(config.deterministic)
        # Else PyTorch fills the gigabytes that DeepSpeed reserves and never uses.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # of its module's class
        self.dtype = getattr(torch, config.dtype)
        if get_accelerator().device_name() == "cpu":
            _skip_compiled_collectives()
        limit = timedelta(seconds=config.timeout)
        deepspeed.init_distributed(
            get_accelerator().communication_backend_name(),
            timeout=limit,
            verbose=False,
            auto_mpi_discovery=False,
            init_method=init_method,
            rank=rank,
            world_size=world_size,
        )
        # Load the reference unsharded: before HfDeepSpeedConfig makes ZeRO-3 partition what is loaded. With adapters no
        # copy is needed: the policy differs from it by them alone.
        frozen = self._load_frozen() if config.reference and not config.trained.lora_rank else None
        settings = self._deepspeed_settings()
        self._zero3 = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None  # must outlive from_pretrained
        model = load_model(
            config.model,
            # DeepSpeed copies its float32 masters from weights in the training dtype, so loading in float32 would take
            # memory for nothing. ZeRO-3 casts while it partitions.
            dtype=torch.float32 if config.zero_stage == 3 else self.dtype,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        self.adapters = config.trained.apply(model)
        policy = self._policy(model)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in policy.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            fused=True,  # exists for the CPU too, where offloaded states are updated
        )
        self.engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        _limit_collectives(limit)
        self.background = BackgroundEngine(self.engine._config) if config.async_checkpoint else None
        if self.background:
            self.engine.checkpoint_engine = self.background  # DeepSpeed creates none but its own
        self.model = model
        self.device = self.engine.device
        self.reference = self._make_reference(frozen) if config.reference else None

    def _policy(self, model: HFModel) -> Policy:
        config = self.config
        return Policy(model, config.temperature, config.banned, config.logprob_chunk, config.head_dtype)

    def _make_reference(self, frozen: Policy | None) -> Reference:
        partitioned = self.config.zero_stage == 3
        if frozen is None:
            return EarlierAdapters(self.model, self._logprobs, partitioned=partitioned)
        return FrozenCopy(self.model, frozen, partitioned=partitioned)

    def _load_frozen(self) -> Policy:
        """Load the initial policy, frozen, in the training dtype."""
        model = load_model(self.config.model, dtype=self.dtype, gradient_checkpointing=False)
        policy = self._policy(model)
        return policy.requires_grad_(False).eval().to(get_accelerator().current_device_name())

    def _deepspeed_settings(self) -> dict[str, Json]:
        offload = {"offload_optimizer": {"device": "cpu"}} if self.config.offload else {}
        return {
            "train_micro_batch_size_per_gpu": 1,  # required, but without effect: token weights scale the loss
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,  # backward() accumulates and step() reduces, however many there are
            "gradient_clipping": self.config.max_grad_norm,
            "zero_optimization": {"stage": self.config.zero_stage, "overlap_comm": False} | offload,
            "zero_force_ds_cpu_optimizer": False,  # use PyTorch's fused AdamW: DeepSpeed would compile its own
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.config.dtype == Dtype.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},  # in bf16 the sum would depend on the number of micro-batches
        }

    def update(
        self,
        minibatches: Sequence[Shard],
        loss: LossConfig,
        fetch: Fetch,
        learning_rate: float | None = None,
        *,
        step: int = 0,
    ) -> list[StepReport]:
        """Take one optimiser step for each minibatch, `epochs` times; returns a report of each step.

        A step whose loss or gradient is not finite is not taken. Unless such steps are skipped, it is the last one.

        With several steps the old policy's log-probs are computed once, before the first step. With one they are those
        of its own forward pass. The reference's log-probs are computed before the first step too.

        Every epoch has the same minibatches in the same order, as in verl (actor.shuffle=false) and TRL
        (num_iterations), so that a resumed run repeats it.

        Args:
            minibatches: this rank's parts of each minibatch.
            fetch: returns what a reference refers to (in a cluster, `ray.get`).
            learning_rate: of all steps; None keeps the one before.
            step: of the run; see `LearnerGroup.update`.
        """
        torch.manual_seed(seed_of(self.seed, step, self.rank))
        if learning_rate is not None:
            self._set_optimizer(lr=learning_rate)
        packed = [self._pack(self._rows(shard), fetch) for shard in minibatches]
        order = list(range(len(packed))) * self.config.epochs
        old = [[self._logprobs(row) for row in rows] for rows in packed] if len(order) > 1 else None
        compared = self.reference if loss.kl_coef else None
        reference = [[compared.logprobs(row.to(self.device)) for row in rows] for rows in packed] if compared else None
        reports: list[StepReport] = []
        for index in order:
            compared_with = reference[index] if reference else None
            reports.append(self._step(packed[index], old[index] if old else None, compared_with, loss))
            if reports[-1].skipped and not self.config.skip_nan:
                break
        return reports

    def mean_logprobs(self, shard: Shard, fetch: Fetch) -> list[list[float]]:
        """Return, for each response of each part, the mean log-prob of its tokens in nats; trains nothing."""
        rows = self._rows(shard)
        found: dict[GroupPart, list[float]] = {}
        for number, packed in enumerate(self._pack(rows, fetch)):
            logprobs = self._logprobs(packed)  # of idle rows too: ranks run in lockstep
            for part in rows[number] if number < len(rows) else []:
                lengths = [response.length for response in part.group.responses]
                of_part, logprobs = logprobs[: sum(lengths)], logprobs[sum(lengths) :]
                found[part] = [of_response.mean().item() for of_response in of_part.split(lengths)]
        return [found[part] for part in shard]

    def _rows(self, shard: Shard) -> list[list[GroupPart]]:
        """Return the parts of each row; a row is one forward pass."""
        return fill(shard, self.config.max_tokens_per_micro_batch, self.cost)

    def set_packing(self, packing: Packing) -> None:
        """Pack in this way from now on."""
        self.cost = replace(self.cost, packing=packing)

    def logprobs(self, group: Group, packing: Packing, fetch: Fetch) -> Float[np.ndarray, "2 T"]:
        """See `LearnerGroup.logprobs`."""
        packed = self._packed([GroupPart(group, (1.0,) * len(group.responses))], packing, fetch)
        return torch.stack([self._logprobs(packed).cpu(), packed.sampler_logprob_T]).numpy()

    def _pack(self, rows: Sequence[Sequence[GroupPart]], fetch: Fetch) -> list[PackedGroups]:
        """Return the packed rows, on the CPU: each goes to the device for its passes alone."""
        packed, lost = [], None
        try:
            packed = [self._packed(row, self.cost.packing, fetch) for row in rows]
        except LostError as error:
            lost = error
        # ZeRO-3 gathers parameters in forward and backward passes, so all ranks must run equally many: a rank with
        # fewer rows repeats its last one with weight 0.
        found = torch.tensor([len(packed), lost is not None], device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        count, any_lost = found.tolist()
        if any_lost:  # all ranks raise, none waits for the others
            raise lost or LostError("what another rank needs is lost")
        idle = replace(packed[-1], weight_T=torch.zeros_like(packed[-1].weight_T))
        return packed + [idle] * (count - len(packed))

    def _packed(self, parts: Sequence[GroupPart], packing: Packing, fetch: Fetch) -> PackedGroups:
        """Pack parts for one forward pass; with `Packing.rows` it is one part."""
        # A rank that left out the vision tower would wait for the others, which reduce its gradients.
        all_parameters = self.world_size > 1
        if packing is Packing.rows:
            (part,) = parts
            return pack_rows(part.group, part.weights, fetch=fetch, dtype=self.dtype, all_parameters=all_parameters)
        return pack_prefix(
            [part.group for part in parts],
            [part.weights for part in parts],
            self.model,
            fetch=fetch,
            dtype=self.dtype,
            all_parameters=all_parameters,
        )

    @torch.no_grad()
    def _logprobs(self, packed: PackedGroups) -> Float[Tensor, " T"]:
        """Return the policy's log-probs without dropout, as the sampler computes them."""
        self.engine.eval()
        try:
            return self.engine(packed.to(self.device))[0]
        finally:
            self.engine.train()

    def _step(
        self,
        rows: Sequence[PackedGroups],
        old: Sequence[Tensor] | None,
        reference: Sequence[Tensor] | None,
        loss: LossConfig,
    ) -> StepReport:
        sums = UpdateSums()
        for index, packed in enumerate(row.to(self.device) for row in rows):
            logprobs, entropy = self.engine(packed)
            tokens = TokenValues(
                logprob_T=logprobs,
                old_logprob_T=old[index] if old else logprobs.detach(),
                advantage_T=packed.advantage_T,
                is_label_T=packed.is_label_T,
                sampler_logprob_T=packed.sampler_logprob_T,
                entropy_T=entropy,
                response_T=packed.response_T,
                reference_logprob_T=reference[index] if reference else None,
            )
            weighted = (token_losses(tokens, loss) * packed.weight_T).sum()
            # DeepSpeed averages gradients over ranks, but the weights have global denominators.
            self.engine.backward(scaled(weighted, self.world_size))
            if packed.weight_T.any():
                sums += update_sums(tokens, weighted, loss)
        self.engine.step()
        grad_norm = float(self.engine.get_global_grad_norm() or 0.0)
        skipped = not math.isfinite(grad_norm)  # DeepSpeed has dropped such a gradient, and taken no step
        return StepReport(sums, grad_norm, self.engine.optimizer.param_groups[0]["lr"], skipped)

    def _set_optimizer(self, **values: float | tuple[float, float]) -> None:
        """Set values that PyTorch's optimizer reads at each step, such as `lr`."""
        for group in self.engine.optimizer.param_groups:
            group.update(values)

    def take_reference(self) -> None:
        """Make the current policy the reference of the KL term, if there is one."""
        if self.reference:
            self.reference.take()

    def release(self) -> None:
        """Free cached GPU memory, if an engine shares the GPU."""
        if self.config.shares_gpu:
            get_accelerator().empty_cache()

    def save(self, folder: Path) -> None:
        """Write the training state: a DeepSpeed checkpoint of trained parameters and optimizer, and the reference.

        With `RankConfig.async_checkpoint` it is copied, and begins to be written; see `written`.
        """
        self.engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, exclude_frozen_parameters=True)
        if self.reference and self.rank == 0 and (content := self.reference.stored()):
            path = folder / REFERENCE_FILE
            if self.background:
                self.background.write(path, deque([content]))
            else:
                path.write_bytes(content)

    def written(self, *, wait: bool) -> bool:
        """Return whether this rank has written all that `save` was called for.

        Args:
            wait: whether to wait for it.

        Raises:
            OSError: a file could not be written.
        """
        return self.background.written(wait=wait) if self.background else True

    def load(self, folder: Path, converted: Path | None = None) -> None:
        """Read a training state that `save` wrote with the same ZeRO stage.

        Learning rate, betas and weight decay stay those of the configuration.

        Args:
            converted: where `universal.convert` has written it; None: as many ranks have written it as there are.

        Raises:
            ValueError: the folder has no such state.
            UserError: its files hold what might run code.
        """
        # Not strict, because the state has no frozen parameters.
        # DeepSpeed has no other way to say it for one load: it reads its configuration once, at the start.
        self.engine._config.load_universal_checkpoint = converted is not None
        source = str(converted or folder)
        with without_code(source):
            loaded, _ = self.engine.load_checkpoint(source, tag=CHECKPOINT_TAG, load_module_strict=False)
        if loaded is None:
            raise ValueError(f"{folder} holds no DeepSpeed checkpoint that {self.world_size} ranks can load")
        config = self.config  # DeepSpeed has restored the values of the saved run
        self._set_optimizer(lr=config.learning_rate, betas=config.adam_betas, weight_decay=config.weight_decay)
        if self.reference:
            self.reference.load(folder)

    def adapter_files(self) -> dict[str, NDArray[np.uint8]]:
        """Return the adapters as PEFT stores them: the contents of each file by its name, on rank 0; nothing elsewhere.

        All ranks gather the adapters under ZeRO-3.
        """
        if not self.adapters:
            return {}  # without adapters all weights are trained, and would be gathered at the same time
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with deepspeed.zero.GatheredParameters(trained, enabled=self.config.zero_stage == 3):
            return adapter_files(self.adapters) if not self.rank else {}

    def export(self, folder: Path) -> None:
        """Write a Hugging Face model in the training dtype: all ranks gather a layer at a time, and rank 0 writes.

        Adapters are merged into the weights, and also written separately, to `adapter/`.

        Args:
            folder: an empty one.
        """
        weights = merged_weights(self.model, gathered(dict(self.model.named_parameters())))
        if self.rank == 0:
            save_model(self.model, weights, folder)
        else:
            deque(weights, maxlen=0)  # gathers with rank 0, and keeps nothing
        if files := self.adapter_files():
            (folder / ADAPTER_FOLDER).mkdir()
            for name, content in files.items():
                content.tofile(folder / ADAPTER_FOLDER / name)
        torch.distributed.barrier()


def _limit_collectives(limit: timedelta) -> None:
    """Give all process groups this time limit: those that DeepSpeed makes (`_clone_world_group`) have PyTorch's own."""
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(limit, group)


def _skip_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling its collectives for the CPU, which needs a C++ compiler and takes a minute.

    `init_distributed` compiles whatever is compatible, and no setting prevents it (`build_shm_op` in
    deepspeed/comm/torch.py). Only tensor-parallel inference calls these collectives (`inference_all_reduce`); training
    uses PyTorch's with or without them.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
