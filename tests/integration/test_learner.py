"""The DeepSpeed learner: ranks, ZeRO stages, micro-batches and order change nothing; checkpoints keep all."""

import math
from dataclasses import replace

import pytest
import ray
import torch
from transformers import AutoModelForImageTextToText

from tests.integration.groups import make_groups
from tests.integration.test_policy import losses_of, packed_groups
from tests.unit.test_checkpoints import small_disk  # noqa: F401  # a fixture
from visurf_ray.checkpoints.stored import State
from visurf_ray.checkpoints.writing import Checkpoints
from visurf_ray.config.choices import Clip, HeadDtype, ImportanceLevel, LabelTerm, OnExcess, RatioLevel
from visurf_ray.errors import DiskFullError
from visurf_ray.groups import Group
from visurf_ray.learner.config import RankConfig
from visurf_ray.learner.group import LearnerGroup, read_groups
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.learner.trained import Trained
from visurf_ray.method import Importance, LossConfig
from visurf_ray.models import banned_token_ids, resolved

pytestmark = pytest.mark.usefixtures("ray_cluster")

LORA = Trained(lora_rank=4, lora_alpha=8.0)
LEAST = 120  # tokens that hold a prompt and any response: most groups are cut into parts


def rank_config(config, processor, **changes) -> RankConfig:
    settings = {
        "model": resolved(config.model),
        "temperature": 1.0,
        "banned": tuple(banned_token_ids(processor)),
        "zero_stage": 1,
        "offload": False,
        "trained": Trained(),
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "adam_betas": (0.9, 0.999),
        "max_grad_norm": 1.0,
        "max_tokens_per_micro_batch": 300,
        "logprob_chunk": 64,
        "gradient_checkpointing": False,
        "dtype": "float32",
        "head_dtype": HeadDtype.float32,
        "timeout": 600.0,
        "async_checkpoint": False,
    }
    return RankConfig(**(settings | changes))


@pytest.fixture
def make_learner(config, processor, learner_actors):
    """Makes a learner; the one before of as many ranks ends with it."""

    def make(ranks=1, minibatches=1, **changes) -> LearnerGroup:
        settings = rank_config(config, processor, **changes)
        return LearnerGroup(learner_actors(ranks), settings, seed=0, minibatches=minibatches, cores=[[]] * ranks)

    return make


@pytest.fixture(scope="module")
def batches(loader):
    """Two batches of groups, features in the object store."""
    found = [make_groups(loader, 6, seed=seed) for seed in (0, 1)]
    for groups in found:
        for group in groups:
            prompt = replace(group.example.prompt, features=ray.put(group.example.prompt.features))
            group.example = replace(group.example, prompt=prompt)
    return found


def exported(learner, folder) -> dict[str, torch.Tensor]:
    learner.export(folder)
    return loaded(folder)


def loaded(folder) -> dict[str, torch.Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of all weights together, relative to their norm."""
    change = sum((ours[name] - theirs[name]).square().sum() for name in ours).sqrt()
    return float(change / sum(theirs[name].square().sum() for name in ours).sqrt())


@pytest.fixture(scope="module")
def reference(config, processor, loader):
    """Two steps of a plain PyTorch loop in one process: the weights, and each step's loss and gradient norm."""
    model = load_model(resolved(config.model), dtype=torch.float32, gradient_checkpointing=False)
    policy = Policy(model, 1.0, banned_token_ids(processor), chunk=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    losses, norms = [], []
    for seed in (0, 1):
        packed = packed_groups(model, make_groups(loader, 6, seed=seed))
        logprobs, _ = policy(packed)
        loss = (losses_of(logprobs, packed, LossConfig()) * packed.weight_T).sum()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return dict(model.named_parameters()), losses, norms


@pytest.mark.parametrize(
    ("ranks", "stage", "micro_batch", "reverse"),
    [(1, 1, 10_000, False), (1, 2, LEAST, True), (2, 1, 300, False), (2, 2, LEAST, False), (2, 3, 300, True)],
)
def test_partition_changes_neither_loss_nor_weights(
    make_learner, batches, reference, tmp_path, ranks, stage, micro_batch, reverse
):
    """Against the plain loop: Adam turns the smallest gradient differences into steps, hence the bound on weights."""
    weights, losses, norms = reference
    learner = make_learner(ranks, zero_stage=stage, max_tokens_per_micro_batch=micro_batch)
    for groups, loss, norm in zip(batches, losses, norms, strict=True):
        metrics = learner.update(groups[::-1] if reverse else groups, LossConfig())
        assert metrics["train/loss"] == pytest.approx(loss, abs=1e-5)
        assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert distance(exported(learner, tmp_path), weights) < 1e-5


SEQUENCE = Importance(ImportanceLevel.sequence, 0.1, 2.0, OnExcess.clip)
OBJECTIVES = [
    LossConfig(ratio=RatioLevel.sequence, importance=SEQUENCE),
    LossConfig(clip=Clip.cispo, importance=replace(SEQUENCE, level=ImportanceLevel.token, on_excess=OnExcess.mask)),
    LossConfig(clip=Clip.sapo, label_term=LabelTerm.srft, labels_apart=True, entropy_coef=0.1),
    LossConfig(label_term=LabelTerm.chord, labels_apart=True, label_scale=0.3, rollout_scale=0.7),
]


def test_micro_batches_change_no_term_of_the_objective_and_no_metric(make_learner, batches):
    """With a learning rate of 0 the policy stays, so that one learner tries them all."""
    found = []
    for micro_batch in (10_000, 300):
        learner = make_learner(max_tokens_per_micro_batch=micro_batch, learning_rate=0.0, weight_decay=0.0)
        found.append([learner.update(batches[0], objective) for objective in OBJECTIVES])
    for one, several in zip(*found, strict=True):
        one.pop("train/tokens_per_second"), several.pop("train/tokens_per_second")
        assert one == pytest.approx(several, rel=1e-4, abs=1e-6)
        assert one["train/grad_norm"] > 0.0 and 0.0 < one["train/rollout_ess"] <= 1.0
    assert {"train/importance_weight", "train/importance_excess"} <= set(found[0][0])


@pytest.mark.parametrize("ranks", [1, 2])
def test_mean_logprobs_are_those_of_each_response(make_learner, batches, config, processor, loader, ranks):
    model = load_model(resolved(config.model), dtype=torch.float32, gradient_checkpointing=False)
    policy = Policy(model, 1.0, banned_token_ids(processor), chunk=64)
    found = make_learner(ranks, max_tokens_per_micro_batch=300).mean_logprobs(batches[0])
    for group, means in zip(make_groups(loader, 6, seed=0), found, strict=True):
        logprobs, _ = policy(packed_groups(model, [group]))
        parts = logprobs.split([response.length for response in group.responses])
        assert means == pytest.approx([part.mean().item() for part in parts], abs=1e-5)


def test_several_minibatches_have_ratios_and_clipping(make_learner, batches):
    learner = make_learner(minibatches=3, learning_rate=5e-3)
    metrics = learner.update(batches[0], LossConfig(clip_low=0.01, clip_high=0.01))
    assert metrics["train/ratio/rollout"] != 1.0
    assert metrics["train/clip_share/rollout"] > 0.0


@pytest.mark.parametrize("trained", [Trained(), LORA])
@pytest.mark.parametrize("stage", [1, 3])
def test_the_divergence_from_the_policy_of_the_start_grows_from_nothing(make_learner, batches, stage, trained):
    learner = make_learner(zero_stage=stage, reference=True, learning_rate=1e-2, trained=trained)
    first, second = (learner.update(batches[0], LossConfig(kl_coef=0.1))["train/kl/rollout"] for _ in range(2))
    assert first == pytest.approx(0.0, abs=1e-9) and second > 1e-4


def test_one_minibatch_is_on_policy(make_learner, batches):
    metrics = make_learner().update(batches[0], LossConfig())
    assert metrics["train/ratio/rollout"] == metrics["train/ratio/label"] == 1.0
    assert metrics["train/clip_share/rollout"] == metrics["train/clip_share/label"] == 0.0


def save_at_once(actor, folder) -> None:
    """Write the state of a rank without its engine for the background."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    rank = actor.rank
    background, rank.background = rank.background, None
    rank.engine.checkpoint_engine = TorchCheckpointEngine(rank.engine._config)
    rank.save(folder)
    rank.background = rank.engine.checkpoint_engine = background


def files_equal(first, second) -> bool:
    """Whether two folders have the same files, with equal contents; states are compared as PyTorch loads them."""
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    for name in names:
        if not name.endswith(".pt"):
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
            continue
        states = (torch.load(folder / name, weights_only=False) for folder in (first, second))
        torch.testing.assert_close(*map(tensors_of, states), atol=0, rtol=0)
    return any(name.endswith("optim_states.pt") for name in names)


def tensors_of(state, place: str = "") -> dict[str, torch.Tensor]:
    """The tensors and numbers of a state, by their places in it."""
    if isinstance(state, torch.Tensor | int | float):
        return {place: torch.as_tensor(state)}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    found = {}
    for key, value in items:
        found |= tensors_of(value, f"{place}/{key}")
    return found


@pytest.mark.parametrize(
    ("ranks", "stage", "trained", "background"),
    [
        (1, 1, Trained(), False),
        (1, 1, Trained(), True),
        (2, 3, Trained(), True),
        (1, 1, LORA, False),
        (2, 2, Trained(freeze_vision=True), True),
        (2, 3, LORA, True),
    ],
)
def test_a_checkpoint_continues_as_if_nothing_had_happened(
    make_learner, batches, tmp_path, ranks, stage, trained, background
):
    """Also one that is written while the training goes on: it equals one for which the training waits."""
    learner = make_learner(ranks, zero_stage=stage, trained=trained, async_checkpoint=background)
    learner.update(batches[0], LossConfig())
    if background:
        ray.get([actor.__ray_call__.remote(save_at_once, tmp_path / "at once") for actor in learner.actors])
    learner.save(tmp_path / "state")
    metrics = learner.update(batches[1], LossConfig())
    assert learner.written(wait=True)
    assert not background or files_equal(tmp_path / "at once", tmp_path / "state")
    expected = exported(learner, tmp_path / "one")
    continued = make_learner(ranks, zero_stage=stage, trained=trained)
    continued.load(tmp_path / "state")
    found = continued.update(batches[1], LossConfig())
    assert found | {"train/tokens_per_second": 0} == pytest.approx(metrics | {"train/tokens_per_second": 0}, rel=1e-6)
    # Adam makes steps of rounding where a gradient is zero, as a key's bias has it; lost moments would differ by 1e-2.
    assert distance(exported(continued, tmp_path / "other"), expected) < 1e-4


@pytest.mark.parametrize(
    ("before", "after", "stage", "trained", "dtype"),
    [
        (2, 1, 1, LORA, "float32"),
        (1, 2, 3, Trained(), "float32"),
        pytest.param(1, 2, 2, Trained(freeze_vision=True), "float32", marks=pytest.mark.slow),
        pytest.param(2, 1, 2, Trained(), "float32", marks=pytest.mark.slow),
        pytest.param(2, 1, 3, LORA, "float32", marks=pytest.mark.slow),
        pytest.param(2, 3, 3, Trained(freeze_vision=True), "float32", marks=pytest.mark.slow),
        pytest.param(1, 2, 1, Trained(), "bfloat16", marks=pytest.mark.slow),
        pytest.param(2, 1, 2, Trained(), "bfloat16", marks=pytest.mark.slow),
        pytest.param(2, 1, 3, LORA, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_another_number_of_ranks_continues_as_if_nothing_had_happened(
    make_learner, batches, tmp_path, before, after, stage, trained, dtype
):
    tolerance = 1e-4 if dtype == "float32" else 1e-3  # each rank rounds its part of a gradient
    learner = make_learner(before, zero_stage=stage, trained=trained, dtype=dtype)
    learner.update(batches[0], LossConfig())
    learner.save(tmp_path / "state")
    metrics = learner.update(batches[1], LossConfig())
    expected = exported(learner, tmp_path / "one")
    continued = make_learner(after, zero_stage=stage, trained=trained, dtype=dtype)
    continued.load(tmp_path / "state", scratch=tmp_path / "run" / "output")
    assert list((tmp_path / "run" / "output").iterdir()) == [], "nothing of the conversion is left"
    found = continued.update(batches[1], LossConfig())
    for name in ("train/loss", "train/grad_norm", "train/learning_rate"):
        assert found[name] == pytest.approx(metrics[name], rel=tolerance), name
    assert distance(exported(continued, tmp_path / "other"), expected) < tolerance
    continued.save(tmp_path / "again")  # its own checkpoints are loaded as usual
    again = make_learner(after, zero_stage=stage, trained=trained, dtype=dtype)
    again.load(tmp_path / "again")


def test_a_checkpoint_that_cannot_be_written_in_the_background_is_told_of(make_learner, batches, small_disk):  # noqa: F811
    checkpoints, learner = Checkpoints(small_disk / "checkpoints", keep=1), make_learner(async_checkpoint=True)
    checkpoints.begin(State(1), lambda folder: None, lambda wait: True)
    with pytest.raises(DiskFullError, match=r"checkpoint of step 2: No space left on device\. .*disk/checkpoints has"):
        checkpoints.begin(State(2), learner.save, learner.written)  # raises if the thread is fast, for a small file
        learner.update(batches[0], LossConfig())
        checkpoints.finish(wait=True)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_000001"]


@pytest.mark.parametrize("stage", [1, 3])
def test_the_configured_learning_rate_holds_after_a_resume(make_learner, batches, tmp_path, stage):
    learner = make_learner(zero_stage=stage, learning_rate=1e-3)
    learner.update(batches[0], LossConfig())
    learner.save(tmp_path / "state")
    before = exported(learner, tmp_path / "before")
    continued = make_learner(zero_stage=stage, learning_rate=0.0)
    continued.load(tmp_path / "state")
    continued.update(batches[1], LossConfig())
    for name, weight in exported(continued, tmp_path / "after").items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize(("stage", "trained"), [(1, Trained()), (2, Trained()), (3, Trained()), (2, LORA), (3, LORA)])
def test_half_precision_trains_and_its_micro_batches_add_up(make_learner, batches, stage, trained):
    """bfloat16 with float32 sums: how many micro-batches there are changes a gradient by rounding alone."""
    norms = []
    for budget in (10_000, LEAST):
        learner = make_learner(zero_stage=stage, trained=trained, dtype="bfloat16", max_tokens_per_micro_batch=budget)
        metrics = [learner.update(groups[1:4], LossConfig()) for groups in batches]
        norms.append([update["train/grad_norm"] for update in metrics])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


@pytest.mark.parametrize(
    ("ranks", "stage", "trained"),
    [(2, 2, Trained()), (1, 1, Trained(freeze_vision=True)), (2, 3, Trained(freeze_projector=True)), (2, 3, LORA)],
)
def test_a_checkpoint_exports_to_the_weights_of_its_run(make_learner, batches, config, tmp_path, ranks, stage, trained):
    from visurf_ray.learner.export import export_checkpoint

    learner = make_learner(ranks, zero_stage=stage, trained=trained)
    learner.update(batches[0], LossConfig())
    learner.save(tmp_path / "state")
    expected = exported(learner, tmp_path / "run")
    export_checkpoint(tmp_path / "state", resolved(config.model), trained, tmp_path / "offline")
    found = loaded(tmp_path / "offline")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].float(), weight.float(), atol=1e-7, rtol=0, msg=name)


def test_a_deterministic_rank_adds_what_tokens_share_in_one_order(make_learner):
    def sums(_actor) -> set[bytes]:
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(400, 64, generator=generator, requires_grad=True)
        column_T = torch.tensor([99] * 40 + list(range(100, 400)) + [99] * 300)  # responses begin at a prompt's end
        grad = torch.randn(len(column_T), 64, generator=generator)
        found = {torch.autograd.grad(hidden[column_T], hidden, grad)[0].numpy().tobytes() for _ in range(500)}
        torch.set_num_threads(threads)
        return found

    learner = make_learner(deterministic=True)
    assert len(ray.get(learner.actors[0].__ray_call__.remote(sums))) == 1


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 2), (2, 3)])
def test_a_step_whose_gradient_is_not_finite_is_not_taken(make_learner, batches, tmp_path, ranks, stage):
    good, other = batches
    bad = [Group(group.example, [replace(each, advantage=math.nan) for each in group.responses]) for group in other]
    learner = make_learner(ranks, zero_stage=stage, skip_nan=True)
    learner.update(good, LossConfig())
    before = exported(learner, tmp_path / "before")
    assert learner.update(bad, LossConfig())["train/skipped_steps"] == 1
    assert distance(exported(learner, tmp_path / "after"), before) == 0
    assert "train/skipped_steps" not in learner.update(good, LossConfig())
    assert distance(exported(learner, tmp_path / "later"), before) > 0


def test_an_update_ends_with_a_step_that_is_not_taken_unless_such_steps_are_skipped(make_learner, batches):
    good, other = batches
    bad = [Group(group.example, [replace(each, advantage=math.nan) for each in group.responses]) for group in other]
    for skip, taken in ((False, [False, True]), (True, [False, True, False])):
        learner = make_learner(minibatches=3, skip_nan=skip)
        (reports,) = learner.reports([*good[:2], *bad[:2], *good[2:4]], LossConfig())
        assert [report.skipped for report in reports] == taken


def test_a_step_is_repeated_from_files_as_it_was(make_learner, batches, tmp_path):
    """With two ranks, which share groups: the same sums, bit for bit."""
    (tmp_path / "groups").mkdir()
    learner = make_learner(2, zero_stage=3)
    learner.update(batches[0], LossConfig())
    learner.save(tmp_path / "state")
    learner.write_groups(batches[1], tmp_path / "groups")
    expected = learner.update(batches[1], LossConfig(), step=1)
    again = make_learner(2, zero_stage=3)
    again.load(tmp_path / "state")
    found = again.update(read_groups(tmp_path / "groups"), LossConfig(), step=1)
    del expected["train/tokens_per_second"], found["train/tokens_per_second"]
    assert found == expected
