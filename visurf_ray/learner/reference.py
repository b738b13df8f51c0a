"""The reference policy of the KL term: the initial policy, or the one that `take` was called with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import deepspeed
import torch
from jaxtyping import Float
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file, save
from torch import Tensor

from visurf_ray.aliases import HFModel
from visurf_ray.learner.config import REFERENCE_FILE
from visurf_ray.learner.packing import PackedGroups
from visurf_ray.learner.policy import Policy


class Reference(ABC):
    """Computes the log-probs of the reference policy. Call a method on all ranks together."""

    def __init__(self, model: HFModel, *, partitioned: bool) -> None:
        """Begin with the initial policy.

        Args:
            model: the policy's model, whose parameters DeepSpeed trains.
            partitioned: whether ZeRO-3 partitions them.
        """
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.partitioned = partitioned
        self.taken = False  # whether it differs from the initial policy

    @abstractmethod
    def logprobs(self, packed: PackedGroups) -> Float[Tensor, " T"]:
        """Return the reference's log-probs of the response tokens."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Return the reference's value of each trained parameter, unsharded, by the parameter's name."""

    @abstractmethod
    def _hold(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy these values of the trained parameters into the reference."""

    def take(self) -> None:
        """Make the current policy the reference."""
        self._hold(self._current())
        self.taken = True

    def stored(self) -> bytes | None:
        """Return the contents of REFERENCE_FILE; None for the initial policy, which needs no file."""
        if not self.taken:
            return None
        return save({name: weight.detach().cpu().contiguous() for name, weight in self.weights().items()})

    def load(self, folder: Path) -> None:
        """Read the reference that `stored` has returned; without its file it stays the initial policy."""
        if (folder / REFERENCE_FILE).is_file():
            self._hold(load_file(folder / REFERENCE_FILE).items())
            self.taken = True

    def _current(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the policy's trained parameters, gathered one at a time."""
        for name, weight in self.trained.items():
            with deepspeed.zero.GatheredParameters([weight], enabled=self.partitioned):
                yield name, weight.detach()


class FrozenCopy(Reference):
    """A second, unsharded model, for a policy whose own weights are trained."""

    def __init__(self, model: HFModel, copy: Policy, *, partitioned: bool) -> None:
        """See `Reference`.

        Args:
            copy: the initial policy, frozen.
        """
        super().__init__(model, partitioned=partitioned)
        self.copy = copy

    @torch.no_grad()
    def logprobs(self, packed: PackedGroups) -> Float[Tensor, " T"]:
        return self.copy(packed)[0]

    def weights(self) -> dict[str, Tensor]:
        of_copy = dict(self.copy.model.named_parameters())
        return {name: of_copy[name] for name in self.trained}

    @torch.no_grad()
    def _hold(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        own = self.weights()
        for name, weight in weights:
            own[name].copy_(weight)


class EarlierAdapters(Reference):
    """The policy itself with earlier adapters, at first with none: a second model is not needed."""

    def __init__(
        self, model: HFModel, logprobs: Callable[[PackedGroups], Float[Tensor, " T"]], *, partitioned: bool
    ) -> None:
        """See `Reference`.

        Args:
            logprobs: returns the current policy's log-probs, without dropout and gradients.
        """
        super().__init__(model, partitioned=partitioned)
        self.model = model
        self.policy_logprobs = logprobs
        self.adapters: dict[str, Tensor] = {}

    def logprobs(self, packed: PackedGroups) -> Float[Tensor, " T"]:
        if not self.taken:
            # Scale adapters by 0 instead of disabling them: ZeRO-3 prefetches parameters in the order of earlier
            # passes, so every pass must run the same layers.
            with rescale_adapter_scale(self.model, 0.0):
                return self.policy_logprobs(packed)
        with self._exchanged():
            return self.policy_logprobs(packed)

    def weights(self) -> dict[str, Tensor]:
        return self.adapters

    def _hold(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.adapters = {name: weight.to(self.trained[name].device, copy=True) for name, weight in weights}

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Give the policy the earlier adapters inside the context. No backward pass may be under way."""
        current = {name: weight.clone() for name, weight in self._current()}
        self._write(self.adapters)
        try:
            yield
        finally:
            self._write(current)

    @torch.no_grad()
    def _write(self, adapters: dict[str, Tensor]) -> None:
        parameters = list(self.trained.values())
        # On exit ZeRO-3 broadcasts what rank 0 has written, and partitions it again.
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=self.partitioned):
            for name, parameter in self.trained.items():
                parameter.copy_(adapters[name])
