"""The policy on the real model: packing against plain rows, and the gradient identity of ViSurf's eq. 9."""

import numpy as np
import pytest
import torch

from tests.integration.architectures import plain_logprobs
from tests.integration.groups import make_groups
from tests.unit.groups import held, ids
from visurf_ray.config.choices import LabelTerm
from visurf_ray.groups import Response, Source, Tokens, TokenSpan
from visurf_ray.learner.packing import pack_prefix
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.method import LossConfig, TokenValues, token_losses, token_weights
from visurf_ray.models import banned_token_ids, resolved


def load(config):
    return load_model(resolved(config.model), dtype=torch.float32, gradient_checkpointing=False)


@pytest.fixture(scope="module")
def model(config):
    """As users load it, for plain rows."""
    return load(config)


@pytest.fixture
def policy(config, processor):
    return Policy(load(config), temperature=1.0, banned=banned_token_ids(processor), chunk=64)


@pytest.fixture(autouse=True)
def no_gradients(model):
    model.zero_grad()


def packed_groups(model, groups, fetch=held):
    return pack_prefix(groups, token_weights(groups, LossConfig()), model, fetch=fetch, dtype=torch.float32)


def plain_rows(model, processor, group, temperature=1.0):
    return plain_logprobs(model, group, banned=banned_token_ids(processor), temperature=temperature)


def gradient(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def losses_of(logprobs, packed, config: LossConfig) -> torch.Tensor:
    """The loss of each token, on-policy."""
    tokens = TokenValues(
        logprob_T=logprobs,
        old_logprob_T=logprobs.detach(),
        advantage_T=packed.advantage_T,
        is_label_T=packed.is_label_T,
        sampler_logprob_T=packed.sampler_logprob_T,
        entropy_T=torch.zeros_like(logprobs),
        response_T=packed.response_T,
    )
    return token_losses(tokens, config)


def relative_error(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    difference = sum((a[name] - b[name]).square().sum() for name in a).sqrt()
    return float(difference / sum(value.square().sum() for value in b.values()).sqrt())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logprobs_and_gradients_equal_those_of_plain_rows(config, model, processor, loader, temperature):
    groups = make_groups(loader, 4)
    policy = Policy(load(config), temperature, banned_token_ids(processor), chunk=64)
    logprobs, _ = policy(packed_groups(model, groups))
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(1))
    (logprobs * weights).sum().backward()
    plain = torch.cat([plain_rows(model, processor, group, temperature) for group in groups])
    (plain * weights).sum().backward()
    # Random tokens have log-probs of -30 and less, whose float32 has an error of its own.
    torch.testing.assert_close(logprobs, plain, atol=1e-5, rtol=5e-6)
    assert relative_error(gradient(policy.model), gradient(model)) < 1e-5


def test_entropy_is_that_of_the_distribution(model, policy, loader):
    packed = packed_groups(model, make_groups(loader, 2))
    with torch.no_grad():
        _, entropy = policy(packed)
        hidden = policy.model.model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            plan=packed.plan,
            **packed.features,
        ).last_hidden_state
        logits = model.lm_head(hidden)[0, packed.column_T]
        logits[:, policy.model.lm_head.banned] = -torch.inf
    expected = torch.distributions.Categorical(logits=logits.double()).entropy()
    torch.testing.assert_close(entropy.double(), expected, atol=1e-4, rtol=0)


def test_group_gradient_is_scaled_rlvr_plus_weighted_sft(model, policy, processor, loader):
    """−1/(G+1) [Σ Â_j ∇log π(o_j) + Â_y ∇log π(y)] = G/(G+1) · RLVR + Â_y/(G+1) · SFT (eq. 9), means over tokens."""
    groups = [group for group in make_groups(loader, 4) if group.label]
    packed = packed_groups(model, groups)
    logprobs, _ = policy(packed)
    losses = losses_of(logprobs, packed, LossConfig())
    (losses * packed.weight_T).sum().backward()
    total = 0.0
    for group in groups:
        plain = plain_rows(model, processor, group).split([r.length for r in group.responses])
        means = {id(response): logprobs.mean() for response, logprobs in zip(group.responses, plain, strict=True)}
        size = len(group.rollouts)
        rlvr = -sum(r.advantage * means[id(r)] for r in group.rollouts) / size
        sft = -means[id(group.label)]
        total = total + (size / (size + 1) * rlvr + group.label.advantage / (size + 1) * sft) / len(groups)
    total.backward()
    assert relative_error(gradient(policy.model), gradient(model)) < 1e-5


def test_cross_entropy_on_labels_is_supervised_fine_tuning(model, policy, loader, processor):
    """SFT as the learner computes it equals the model's own loss on one row, the field's reference."""
    group = make_groups(loader, 1)[0]
    group.responses = [r for r in group.responses if r.source is Source.LABEL]
    packed = packed_groups(model, [group])
    logprobs, _ = policy(packed)
    config = LossConfig(label_term=LabelTerm.ce)
    loss = losses_of(logprobs, packed, config).mean()
    prompt, answer = group.example.prompt.expanded_ids, ids(group.responses[0])
    row = torch.tensor([prompt + answer])
    reference = model(
        input_ids=row,
        attention_mask=torch.ones_like(row),
        labels=torch.tensor([[-100] * len(prompt) + answer]),
        **group.example.prompt.features | {"mm_token_type_ids": (row == model.config.image_token_id).int()},
    ).loss
    torch.testing.assert_close(loss, reference, atol=1e-4, rtol=1e-4)


def test_packing_fetches_the_tokens_of_a_groups_rollouts_once(model, loader):
    (group,) = make_groups(loader, 1)
    expected = packed_groups(model, [group])
    tokens = [rollout.tokens.resolve(held) for rollout in group.rollouts]
    store = Tokens(
        np.concatenate([t.ids for t in tokens]), np.concatenate([t.sampler_logprobs for t in tokens], dtype=np.float32)
    )
    begin = 0
    for rollout in group.rollouts:
        rollout.tokens = TokenSpan("rollouts", begin, begin + rollout.length)
        begin += rollout.length
    fetched = []

    def fetch(reference):
        fetched.append(reference)
        return store if reference == "rollouts" else reference

    packed = packed_groups(model, [group], fetch)
    assert fetched.count("rollouts") == 1
    assert torch.equal(packed.target_T, expected.target_T)
    torch.testing.assert_close(packed.sampler_logprob_T, expected.sampler_logprob_T, equal_nan=True)


def test_every_token_knows_its_response(model, loader):
    """Numbered over the row, so that no two responses share a number."""
    groups = make_groups(loader, 3)
    lengths = [response.length for group in groups for response in group.responses]
    expected = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert packed_groups(model, groups).response_T.tolist() == expected


def test_packing_refuses_a_response_without_tokens(model, loader):
    groups = make_groups(loader, 1)
    groups[0].responses[1] = Response(Source.ROLLOUT, "", TokenSpan.of([]))
    with pytest.raises(ValueError, match=groups[0].example.id):
        pack_prefix(groups, [[0.0] * 5], model, fetch=held, dtype=torch.float32)
