"""Adapters: trained as a plain loop trains them, served beside the base weights, exported merged and by themselves."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tests.integration.architectures import ARCHITECTURES, make_model
from tests.integration.architectures import make_groups as architecture_groups
from tests.integration.groups import make_groups
from tests.integration.runs import SMALL, rows, run_here
from tests.integration.test_learner import LORA, batches, distance, loaded, make_learner  # noqa: F401  # fixtures
from tests.integration.test_policy import losses_of, packed_groups, plain_rows
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import ModelSource
from visurf_ray.errors import ConfigError
from visurf_ray.evaluation import as_model
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.learner.trained import Trained, adaptable, merged_weights
from visurf_ray.method import LossConfig
from visurf_ray.models import banned_token_ids, resolve_model
from visurf_ray.weights.source import ZeroSource
from visurf_ray.weights.stored import stored_name


def load(path):
    return load_model(ModelSource(path), dtype=torch.float32, gradient_checkpointing=False)


@pytest.fixture
def miniature(config):
    return load(resolve_model(config.model.path))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    return load(make_model(request.param, tmp_path_factory.mktemp(request.param)))


def randomise(adapters: PeftModel) -> None:
    """A fresh adapter changes nothing."""
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)


# Which weights


@pytest.mark.parametrize("tower", [False, True])
@pytest.mark.parametrize("projector", [False, True])
def test_tower_and_projector_are_frozen_apart_and_only_the_rest_is_sent(model, tower, projector):
    Trained(freeze_vision=tower, freeze_projector=projector).apply(model)
    sent = {meta.name for meta in ZeroSource(model).metadata()}
    for name, parameter in model.named_parameters():
        merges = ".merger." in name or ".deepstack_merger_list." in name
        frozen = projector if merges else tower and ".visual." in name
        assert parameter.requires_grad is (stored_name(model, name) in sent) is not frozen, name


@pytest.mark.parametrize(
    "targets", [None, ["q_proj", "v_proj"], ["q_proj", "visual.qkv", "visual.up_proj", "merger.0"]]
)
def test_adapters_lie_beside_the_named_layers(tmp_path, targets):
    model = load(make_model("qwen2_5_vl", tmp_path))
    Trained(lora_rank=2, lora_alpha=4.0, lora_targets=targets).apply(model)
    adapted = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    blocks = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
    expected = {
        f"model.language_model.layers.{layer}.{block}.{name}"
        for layer in range(3)
        for block, names in blocks.items()
        for name in names
        if targets is None or name in targets
    }
    if targets and "merger.0" in targets:
        expected |= {
            f"model.visual.blocks.{layer}.{name}" for layer in range(3) for name in ("attn.qkv", "mlp.up_proj")
        }
        expected.add("model.visual.merger.mlp.0")
    assert adapted == expected
    assert all((".lora_" in name) is parameter.requires_grad for name, parameter in model.named_parameters())


def test_an_unknown_target_is_named_with_the_nearest_and_all(miniature):
    with pytest.raises(ConfigError) as error:
        Trained(lora_rank=2, lora_alpha=4.0, lora_targets=["q_proj", "qkv_proj"]).apply(miniature)
    assert "'qkv_proj'" in str(error.value) and "Did you mean" in str(error.value)
    assert "down_proj, gate_proj, k_proj, merger.0, merger.2, o_proj, q_proj, up_proj, v_proj" in str(error.value)


# Merged weights


def test_merged_weights_compute_what_the_adapters_do(model):
    """On every architecture, in the vision tower and the projector too."""
    import copy

    plain = copy.deepcopy(model)
    model = copy.deepcopy(model)
    merger = [name for name in adaptable(model) if name.startswith("merger.")]
    assert merger
    randomise(
        Trained(lora_rank=3, lora_alpha=6.0, lora_targets=["q_proj", "up_proj", "visual.qkv", *merger]).apply(model)
    )
    groups = architecture_groups(model)

    def logprobs(model):
        packed = packed_groups(model, groups)
        with torch.no_grad():
            return Policy(model, temperature=1.0, banned=(), chunk=7)(packed)[0]

    before = logprobs(copy.deepcopy(plain))
    with_adapters = logprobs(model)
    merged = dict(merged_weights(model, model.named_parameters()))
    assert merged.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(merged, strict=False)
    assert (with_adapters - before).abs().max() > 0.1
    torch.testing.assert_close(logprobs(plain), with_adapters, atol=1e-4, rtol=1e-5)


def test_adapters_are_merged_in_float32_and_rounded_once(model):
    """In bfloat16 the product and the sum would each be rounded on their way."""
    import copy

    model = copy.deepcopy(model).to(torch.bfloat16)
    randomise(Trained(lora_rank=16, lora_alpha=32.0, lora_targets=["q_proj"]).apply(model))
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    merged = dict(merged_weights(model, model.named_parameters()))
    for name, layer in layers:
        up, down = (getattr(layer, side)["default"].weight.double() for side in ("lora_B", "lora_A"))
        exact = layer.base_layer.weight.double() + 2.0 * up @ down
        error = (merged[f"{name}.weight"].double() - exact).abs()
        assert (error <= exact.abs() * (2.0**-8 / (1 + 2.0**-8) + 1e-6)).all(), name  # half a unit in the last place


# Training


@pytest.fixture(scope="module")
def plain(config, processor, loader):
    """Two steps of a plain PyTorch loop over an adapter that peft makes: merged weights and gradient norms."""
    torch.manual_seed(0)
    model = load(resolve_model(config.model.path))
    adapters = LORA.apply(model)
    policy = Policy(model, 1.0, banned_token_ids(processor), chunk=64)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    norms = []
    for seed in (0, 1):
        packed = packed_groups(model, make_groups(loader, 6, seed=seed))
        logprobs, _ = policy(packed)
        (losses_of(logprobs, packed, LossConfig()) * packed.weight_T).sum().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    return dict(adapters.merge_and_unload().named_parameters()), norms


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("ranks", "stage", "checkpointing"),
    [
        (1, 1, False),
        (2, 2, True),
        (2, 3, False),
        (2, 3, True),
    ],
)
def test_adapters_learn_as_in_a_plain_loop_and_are_exported_both_ways(
    make_learner,  # noqa: F811
    batches,  # noqa: F811
    plain,
    config,
    processor,
    loader,
    tmp_path,
    ranks,
    stage,
    checkpointing,
):
    weights, norms = plain
    learner = make_learner(ranks, zero_stage=stage, trained=LORA, gradient_checkpointing=checkpointing)
    metrics = [learner.update(groups, LossConfig()) for groups in batches]
    assert [update["train/grad_norm"] for update in metrics] == pytest.approx(norms, rel=1e-4)
    learner.export(tmp_path)
    merged = loaded(tmp_path)
    base = load(resolve_model(config.model.path))
    assert distance(merged, weights) < 1e-5 < 1e-3 < distance(merged, dict(base.named_parameters()))
    changed = {name for name, weight in base.named_parameters() if not torch.equal(weight, merged[name])}
    assert changed == {name for name in merged if ".language_model." in name and name.endswith("_proj.weight")}
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter").get_base_model().eval()
    whole = load(tmp_path).eval()
    groups = make_groups(loader, 6)
    with torch.no_grad():
        for group, means in zip(groups, learner.mean_logprobs(batches[0]), strict=True):
            expected = plain_rows(whole, processor, group)
            torch.testing.assert_close(plain_rows(with_adapter, processor, group), expected, atol=1e-4, rtol=1e-5)
            parts = expected.split([response.length for response in group.responses])
            assert means == pytest.approx([part.mean().item() for part in parts], abs=1e-4)


@pytest.mark.usefixtures("ray_cluster")
def test_dropout_acts_in_training_alone(make_learner, batches):  # noqa: F811
    """Two learners of different dropout: other gradients after a first step, the same log-probs before it."""
    means, norms = [], []
    for dropout in (0.0, 0.5):
        learner = make_learner(trained=Trained(lora_rank=4, lora_alpha=8.0, lora_dropout=dropout))
        means.append(learner.mean_logprobs(batches[0]))
        norms.append(learner.update(batches[0], LossConfig())["train/grad_norm"])
    assert means[0] == means[1] and norms[0] != pytest.approx(norms[1], rel=1e-2)


# A run


@pytest.fixture(scope="module")
def finished(ray_cluster, tmp_path_factory):
    """Two steps with adapters beside a part of vLLM's joined layers, against the policy of the start."""
    folder = tmp_path_factory.mktemp("lora")
    settings = ["learner.lora.rank=4", "learner.lora.targets=[q_proj,v_proj,up_proj]", "learner.learning_rate=1e-2"]
    settings += ["method.kl_coef=0.01", "learner.gradient_checkpointing=true"]
    settings += ["train.steps=2", "train.checkpoint_every=1"]
    done = run_here("train", *SMALL, *settings, f"output_dir={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_sampler_has_the_learners_adapters(finished):
    first, second = (row for row in rows(finished) if "train/loss" in row)
    assert first["train/kl/rollout"] == pytest.approx(0.0, abs=1e-6) and second["train/kl/rollout"] > 1e-3
    assert max(row["train/rollout_logprob_diff_max"] for row in (first, second)) < 1e-4
    assert json.loads((finished / "export" / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert (finished / "export" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_adapters_of_a_checkpoint_are_those_of_its_runs_export(finished, tmp_path):
    settings = replace(load_config([]).model, path="another")
    with ExitStack() as stack:
        model, adapters = as_model(f"{finished}/checkpoints/step_000002", settings, tmp_path, stack)
    assert model.path == resolve_model("miniature") and not list(tmp_path.iterdir()), "nothing is merged"
    exported, stored = finished / "export" / "adapter", "adapter_config.json"
    ours = safetensors.torch.load(adapters.files["adapter_model.safetensors"].tobytes())
    theirs = safetensors.torch.load_file(exported / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    settings_of = [json.loads(each) for each in (adapters.files[stored].tobytes(), (exported / stored).read_bytes())]
    for each in settings_of:
        each["target_modules"].sort()  # PEFT writes a set
    assert settings_of[0] == settings_of[1]


def test_a_checkpoint_is_evaluated_with_its_adapters(finished, tmp_path):
    done = run_here("evaluate", f"checkpoint={finished}/checkpoints/step_000002", *SMALL, f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((finished / "summary.json").read_text())
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found == pytest.approx(summary["after"]) and found != pytest.approx(summary["before"])


def test_a_run_goes_on_with_the_same_adapters_only(finished):
    done = run_here("train", *SMALL, "learner.lora.rank=8", "train.resume=auto", f"output_dir={finished}")
    assert done.returncode == 2 and "learner.lora.rank=4" in done.stderr
