"""The Ray actor of one vLLM engine."""

import asyncio
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from visurf_ray.groups import Example, Response, Source, Tokens, TokenSpan
from visurf_ray.models import BANNED_BIAS
from visurf_ray.rollout.vllm_engine import EngineConfig, end_with_children, start_engine
from visurf_ray.seeds import seed_of
from visurf_ray.weights.interface import use_interface

if TYPE_CHECKING:  # see `vllm_engine.start_engine`
    from vllm import SamplingParams, TokensPrompt
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput


@dataclass(frozen=True)
class Sampling:
    """How to sample; top-p and top-k are off.

    Attributes:
        n: responses per prompt.
        temperature: 0 is greedy.
        max_tokens: the longest response.
        logprobs_every: one prompt of so many returns the log-probs of its responses; 0: none does. With a small model
            vLLM takes a fifth longer if all prompts return them.
        seed: with an example's row and epoch and a response's number it decides what is drawn for that response.
    """

    n: int
    temperature: float
    max_tokens: int
    logprobs_every: int = 0
    seed: int = 0

    def with_logprobs(self, number: int) -> bool:
        """Return whether the responses to the prompt with this number have log-probs."""
        return self.logprobs_every > 0 and number % self.logprobs_every == 0


class Sampled(NamedTuple):
    """The rollouts of the example with the caller's number; their tokens are in one store."""

    number: int
    responses: list[Response]


def in_one_store(sampled: Sequence[Sampled]) -> tuple[list[Sampled], Tokens]:
    """Move the tokens of all responses into one store, to which their spans then refer; see `RolloutActor.sample`."""
    if not sampled:
        return [], Tokens(np.zeros(0, np.int32))
    stores = [each.responses[0].tokens.store for each in sampled]
    begins = accumulate((len(store.ids) for store in stores), initial=0)
    for each, begin in zip(sampled, begins, strict=False):
        for response in each.responses:
            span = response.tokens
            response.tokens = TokenSpan(None, begin + span.begin, begin + span.end)
    ids = [store.ids for store in stores]
    known = [store.sampler_logprobs for store in stores]
    with_logprobs = any(each is not None for each in known)
    filled = [
        np.full(len(own), np.nan, np.float32) if each is None else each for own, each in zip(ids, known, strict=True)
    ]
    return list(sampled), Tokens(np.concatenate(ids), np.concatenate(filled) if with_logprobs else None)


@ray.remote
class RolloutActor:
    """Samples responses, and receives weights by vLLM's weight-transfer protocol.

    The methods from `init_weight_transfer_engine` to `update_weight_version` are those that vLLM's
    `RayVLLMWeightSyncClient` calls.
    """

    def __init__(self, config: EngineConfig, cores: list[int]) -> None:
        """Start the engine; arguments as for `start_engine`."""
        use_interface(ray.util.get_node_ip_address())
        self.has_gpus = bool(config.gpus)
        self.processes = max(1, config.gpus)
        self.first_process = 0  # see `join`
        self.engine = start_engine(config, cores)
        self.tokenizer = self.engine.get_tokenizer()
        self.banned = dict.fromkeys(config.banned, BANNED_BIAS)
        self.deterministic = config.deterministic
        self.running: set[asyncio.Task[Sampled]] = set()
        self.ended = False
        end_with_children(unless=lambda: self.ended)
        self.adapters: LoRARequest | None = None  # the loaded ones

    @ray.method(num_returns=2)
    async def sample(self, examples: Sequence[tuple[int, Example]], sampling: Sampling) -> tuple[list[Sampled], Tokens]:
        """Begin sampling numbered examples; return all that have finished since the last call.

        Waits for the first to finish if none has. A deterministic engine waits for all.

        Returns:
            The rollouts, and apart from them their tokens: what is returned belongs to the caller, and outlives this
            actor. A caller that does not read the tokens does not fetch them.
        """
        if self.deterministic:
            with self._ending_with_engine():
                return in_one_store(await self._sample_together(examples, sampling))
        self.running |= {asyncio.create_task(self._respond(*entry, sampling)) for entry in examples}
        done, _ = await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
        self.running -= done
        with self._ending_with_engine():
            return in_one_store([task.result() for task in done if not task.cancelled()])

    async def abort(self) -> None:
        """Abort all running prompts; returns when the engine has dropped them."""
        running, self.running = self.running, set()  # a late call of `sample` may begin others during the wait
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _sample_together(self, examples: Sequence[tuple[int, Example]], sampling: Sampling) -> list[Sampled]:
        """Sample numbered examples such that their order and the weights alone decide which are computed together.

        In a matrix product a row's last bits depend on how many rows there are. So the engine starts when it has all
        prompts, with empty caches.
        """
        await self.engine.pause_generation(mode="keep")  # requests are queued meanwhile
        await self._reset_caches()
        outputs = []
        for number, example in examples:
            prompt, parameters = await self._request(number, example, sampling)
            request_id = uuid.uuid4().hex
            outputs.append(await self.engine.add_request(request_id, prompt, parameters, lora_request=self.adapters))
        await self.engine.resume_generation()
        return [
            self._sampled(number, example, sampling, await output.get())
            for (number, example), output in zip(examples, outputs, strict=True)
        ]

    async def _respond(self, number: int, example: Example, sampling: Sampling) -> Sampled:
        """Sample `sampling.n` responses to one example, from one prefill."""
        prompt, parameters = await self._request(number, example, sampling)
        final = None
        request_id = uuid.uuid4().hex
        async for output in self.engine.generate(prompt, parameters, request_id, lora_request=self.adapters):
            final = output
        return self._sampled(number, example, sampling, final)

    async def _request(
        self, number: int, example: Example, sampling: Sampling
    ) -> tuple["TokensPrompt", "SamplingParams"]:
        """Return vLLM's request for `sampling.n` responses to an example."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        images = [await image if isinstance(image, ray.ObjectRef) else image for image in example.prompt.images]
        parameters = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            logprobs=0 if sampling.with_logprobs(number) else None,  # 0: of the sampled token only
            # vLLM adds the number of a response to it. A row is drawn once in each epoch of its part.
            seed=seed_of(sampling.seed, example.part, example.row, example.epoch),
            flat_logprobs=True,  # lists instead of an object per token
            detokenize=False,  # decoding all at once, below, is cheaper than token by token
            logit_bias=self.banned,
            output_kind=RequestOutputKind.FINAL_ONLY,  # one output with all n samples at the end
        )
        prompt = TokensPrompt(prompt_token_ids=example.prompt.token_ids)
        if images:
            prompt["multi_modal_data"] = {"image": images}
        return prompt, parameters

    def _sampled(self, number: int, example: Example, sampling: Sampling, final: "RequestOutput | None") -> Sampled:
        """Return the responses in vLLM's output."""
        assert final is not None and final.prompt_token_ids is not None and len(final.outputs) == sampling.n
        if final.prompt_token_ids != example.prompt.expanded_ids:
            raise RuntimeError(
                f"example {example.id!r}: vLLM expanded the prompt to {len(final.prompt_token_ids)} tokens, "
                f"the processor to {len(example.prompt.expanded_ids)}"
            )
        token_ids = [output.token_ids for output in final.outputs]
        logprobs = None
        if sampling.with_logprobs(number):
            flat = [output.logprobs.logprobs for output in final.outputs]
            logprobs = np.concatenate(flat, dtype=np.float32)
        store = Tokens(np.concatenate(token_ids, dtype=np.int32), logprobs)
        bounds = pairwise(accumulate(map(len, token_ids), initial=0))
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        spans = [TokenSpan(store, begin, end) for begin, end in bounds]
        responses = [
            Response(Source.ROLLOUT, text, span, truncated=output.finish_reason == "length")
            for text, span, output in zip(texts, spans, final.outputs, strict=True)
        ]
        return Sampled(number, responses)

    async def join(self, number: int) -> str:
        """Note the engine's number among those of a weight transfer, from 0; returns its machine's address."""
        self.first_process = number * self.processes  # number of processes of all engines before this one
        return ray.util.get_node_ip_address()

    async def init_weight_transfer_engine(self, request: "WeightTransferInitRequest") -> None:
        await self.engine.init_weight_transfer_engine(own_ranks(request, self.first_process))

    async def start_weight_update(self) -> None:
        await self.engine.start_weight_update()

    async def update_weights(self, request: "WeightTransferUpdateRequest") -> None:
        await self.engine.update_weights(request)

    async def finish_weight_update(self) -> None:
        """Finish the update, and reset all caches; see `_reset_caches`."""
        await self.engine.finish_weight_update()
        await self._reset_caches()

    async def load_adapters(self, files: dict[str, NDArray[np.uint8]]) -> None:
        """Load adapters in place of those that are loaded, and reset all caches; see `_reset_caches`.

        Args:
            files: the contents of each file of a PEFT adapter, by its name. Weights that have no adapter are those of
                the engine's model.
        """
        from vllm.lora.request import LoRARequest

        with tempfile.TemporaryDirectory() as folder:  # vLLM reads adapters from a folder
            for name, content in files.items():
                content.tofile(Path(folder, name))
            if not await self.engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True)):
                raise RuntimeError("vLLM did not load the adapters")
            self.adapters = LoRARequest("policy", 1, folder)
        await self._reset_caches()

    async def _reset_caches(self) -> None:
        """Reset all caches of what older weights computed.

        The encoder cache is keyed by the image alone: without its reset a cached image would keep the old vision
        tower's features (vllm-project/vllm#44910).

        Raises:
            RuntimeError: a request is in the engine, so that its prefix cache cannot be reset.
        """
        if not await self.engine.reset_prefix_cache():
            raise RuntimeError(
                "vLLM could not reset its prefix cache after a weight update: its samples would mix two policies"
            )
        await self.engine.reset_mm_cache()
        await self.engine.reset_encoder_cache()

    async def update_weight_version(self, version: str) -> None:
        await self.engine.update_weight_version(version)

    async def sleep(self, level: int) -> None:
        """Free the GPU's memory; see `rollout.sleep_level` and https://docs.vllm.ai/en/v0.32.0/features/sleep_mode."""
        await self.engine.sleep(level)

    async def wake_up(self, tag: str) -> None:
        """Allocate the GPU memory of the `weights` or of the `kv_cache` again."""
        await self.engine.wake_up([tag])

    async def shut_down(self) -> None:
        """End the engine's child processes."""
        self.ended = True
        # Without GPUs the one child has nothing to clean up, and takes three seconds for it: it is killed.
        self.engine.shutdown(timeout=None if self.has_gpus else 0)

    async def ready(self) -> None:
        """Return when the engine has started, and answers."""
        with self._ending_with_engine():
            await self.engine.is_sleeping()  # a question that goes to the engine's process and back

    @contextmanager
    def _ending_with_engine(self) -> Iterator[None]:
        """End this process if vLLM's has died before `shut_down`: both are lost, and callers learn it in one way."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError:
            if self.ended:
                raise
            print("vLLM's engine process has died", file=sys.stderr, flush=True)
            os._exit(1)


def own_ranks(request: "WeightTransferInitRequest", first_process: int) -> "WeightTransferInitRequest":
    """Return the request with the rank of this engine's first process: vLLM's client sends all engines the same.

    Args:
        first_process: number of processes of all engines before this one.
    """
    if "rank_offset" not in request.init_info:
        return request
    return replace(
        request, init_info=request.init_info | {"rank_offset": request.init_info["rank_offset"] + first_process}
    )
