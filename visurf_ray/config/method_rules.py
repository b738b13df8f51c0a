"""Settings of the method that contradict each other. Each rule is named after what it forbids."""

from visurf_ray.config.choices import IMITATION, SUPERVISED, Clip, Route
from visurf_ray.config.schema import Config, Rule


def nothing_to_learn_from(config: Config) -> str | None:
    if not config.method.rollouts and not config.method.label:
        return "method.rollouts and method.label are both false: set one to true, to have something to learn from"
    return None


def group_of_one(config: Config) -> str | None:
    method = config.method
    stays = method.label_decay is None and method.mu.peak is None
    compared = method.label and method.label_coef > 0 and method.label_term not in IMITATION and stays
    if method.rollouts and config.rollout.n + compared < 2:
        return f"rollout.n={config.rollout.n}: a group needs at least two responses to compare: raise it"
    return None


def comparison_without_rollouts(config: Config) -> str | None:
    method = config.method
    if not method.rollouts and method.label_term not in IMITATION:
        return (
            f"method.label_term={method.label_term} compares the label with rollouts: with method.rollouts=false set "
            "method.label_term to ce, dft or chord"
        )
    return None


def divergence_without_rollouts(config: Config) -> str | None:
    if config.method.kl_coef and not config.method.rollouts:
        return (
            f"method.kl_coef={config.method.kl_coef:g} is of rollout tokens: with method.rollouts=false set "
            "method.kl_coef=0"
        )
    return None


def selection_of_groups_that_all_teach(config: Config) -> str | None:
    method = config.method
    if method.dynamic_sampling and method.label and method.label_term in SUPERVISED:
        return (
            "method.dynamic_sampling leaves out groups without an advantage, but with "
            f"method.label_term={method.label_term} every label teaches: set method.dynamic_sampling=false"
        )
    return None


def labels_that_end_without_rollouts(config: Config) -> str | None:
    method = config.method
    if not method.rollouts and (method.label_decay is not None or not method.label_coef):
        return (
            f"method.label_decay={method.label_decay}, method.label_coef={method.label_coef:g}: with "
            "method.rollouts=false nothing is left to learn from when the label's factor is 0: set "
            "method.label_decay=null and method.label_coef=1"
        )
    return None


def mu_without_two_losses(config: Config) -> str | None:
    method = config.method
    if method.mu.peak is not None and not (method.rollouts and method.label and method.label_term in SUPERVISED):
        return (
            f"method.mu.peak={method.mu.peak:g} weighs the rollouts' loss against the label's: it needs "
            "method.rollouts=true, method.label=true and a method.label_term of ce, dft, chord or srft"
        )
    return None


def two_factors_of_the_label(config: Config) -> str | None:
    method = config.method
    if method.mu.peak is not None and (method.label_decay is not None or method.label_coef != 1):
        return (
            f"method.mu.peak={method.mu.peak:g} is the factor of the label's loss: with it set method.label_decay=null "
            "and method.label_coef=1"
        )
    return None


def route_without_two_ways(config: Config) -> str | None:
    method = config.method
    if method.route == Route.hpt and not (method.rollouts and method.label and method.label_term in IMITATION):
        return (
            "method.route=hpt chooses between rollouts and a cross-entropy on the label: it needs "
            "method.rollouts=true, method.label=true and a method.label_term of ce, dft or chord"
        )
    return None


def label_gate_beside_a_route(config: Config) -> str | None:
    if config.method.route == Route.hpt and config.method.label_gate:
        return "method.route=hpt decides which groups keep their label: set method.label_gate=false"
    return None


def dual_clip_without_ppo(config: Config) -> str | None:
    method = config.method
    if method.dual_clip is not None and method.clip != Clip.ppo:
        return f"method.dual_clip={method.dual_clip:g} belongs to method.clip=ppo: with {method.clip} set it to null"
    return None


def sft_to_the_end(config: Config) -> str | None:
    sft_steps, steps = config.method.sft_steps, config.train.steps
    if sft_steps and sft_steps >= steps:
        return (
            f"method.sft_steps={sft_steps} leaves no step to the second stage: train.steps={steps} must be larger than "
            "method.sft_steps"
        )
    return None


def sft_settings_without_steps(config: Config) -> str | None:
    method = config.method
    for name in ("sft_batch_size", "sft_learning_rate"):
        if not method.sft_steps and getattr(method, name) is not None:
            return (
                f"method.{name} is for a stage of SFT before the method's own, but method.sft_steps=0: set sft_steps, "
                f"or method.{name}=null"
            )
    return None


def curriculum_without_rollouts(config: Config) -> str | None:
    if config.feed.curriculum is not None and not config.method.rollouts:
        return (
            f"feed.curriculum={config.feed.curriculum} leaves out what every rollout has solved: with "
            "method.rollouts=false set it to null"
        )
    return None


METHOD_RULES: tuple[Rule, ...] = (
    nothing_to_learn_from,
    group_of_one,
    comparison_without_rollouts,
    divergence_without_rollouts,
    selection_of_groups_that_all_teach,
    labels_that_end_without_rollouts,
    mu_without_two_losses,
    two_factors_of_the_label,
    route_without_two_ways,
    label_gate_beside_a_route,
    dual_clip_without_ppo,
    sft_to_the_end,
    sft_settings_without_steps,
    curriculum_without_rollouts,
)
