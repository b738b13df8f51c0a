"""Groups with responses of many lengths, made without sampling: deterministic, and far from the policy's own."""

from dataclasses import replace

import torch

from visurf_ray.groups import Group, Response, Source, TokenSpan


def make_groups(loader, count: int, *, rollouts: int = 4, seed: int = 0) -> list[Group]:
    """`count` groups of `rollouts` cut and shifted ground truths and the label, with random advantages.

    One group in four has no label, so that inactive and absent labels are there as well; one response has one token.
    """
    generator = torch.Generator().manual_seed(seed)
    tokenizer = loader.processor.tokenizer
    groups = []
    for number, example in enumerate(loader.train_batch(0, count)):
        label = [*tokenizer(loader.task.render(example, "spaced")).input_ids, tokenizer.eos_token_id]
        responses = []
        for _ in range(rollouts):
            length = int(torch.randint(1, 30, (), generator=generator))
            tokens = torch.randint(0, 400, (length,), generator=generator).tolist()
            responses.append(Response(Source.ROLLOUT, "", TokenSpan.of(tokens, [-1.0] * length)))
        if number % 4 != 3:
            responses.append(Response(Source.LABEL, "", TokenSpan.of(label)))
        for response, advantage in zip(responses, torch.randn(len(responses), generator=generator), strict=True):
            response.advantage = float(advantage)
        groups.append(Group(example, responses))
    first = groups[0].responses[0]
    groups[0].responses[0] = replace(first, tokens=replace(first.tokens, end=1))
    return groups
