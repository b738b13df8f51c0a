"""An engine of the tests. Its process imports this file, which therefore imports little."""

import multiprocessing
import os

import numpy as np
import ray

from visurf_ray.rollout.actor import RolloutActor
from visurf_ray.rollout.vllm_engine import EngineConfig


@ray.remote
class Reader(RolloutActor.__ray_actor_class__):
    """Also reads responses as parts of prompts, and starts one engine after another."""

    def __init__(self, config: EngineConfig, cores: list[int]) -> None:
        self.environment = dict(os.environ)
        super().__init__(config, cores)

    async def start_another(self, config: EngineConfig, cores: list[int]) -> None:
        """End the engine, and start one with these settings: without this process's imports it takes half the time."""
        await self.abort()
        await self.shut_down()
        for child in multiprocessing.active_children():
            child.join()
        os.environ.clear()
        os.environ.update(self.environment)
        super().__init__(config, cores)

    async def read(self, prompt: list[int], responses: list[list[int]], image) -> list[np.ndarray]:
        """Return the log-prob of each token of each response."""
        from vllm import SamplingParams, TokensPrompt

        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0)
        found = []
        for number, response in enumerate(responses):
            tokens = TokensPrompt(prompt_token_ids=[*prompt, *response], multi_modal_data={"image": image})
            async for output in self.engine.generate(tokens, parameters, str(number), lora_request=self.adapters):
                final = output
            last = list(zip(final.prompt_token_ids, final.prompt_logprobs, strict=True))[-len(response) :]
            found.append(np.array([choices[token].logprob for token, choices in last]))
        return found
