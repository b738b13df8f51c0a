"""Makes the checks of a run and estimates its memory. Starts no actor and no engine, and writes nothing."""

import sys
from contextlib import nullcontext

from rich.console import Console
from rich.table import Table

from visurf_ray.checks import (
    check,
    check_budget,
    check_cluster,
    reward_demand,
    trained_weights,
)
from visurf_ray.cluster.resources import Node, cluster_nodes, connected, this_machine
from visurf_ray.config.schema import Config
from visurf_ray.config.stages import plan_stages
from visurf_ray.feed.mixture import Mixture
from visurf_ray.learner import memory
from visurf_ray.learner.memory import ModelSize, Sizes


def dry_run(config: Config) -> None:
    """Print what the run would do, and the memory that it needs.

    With `cluster.address=local` the run is compared with this machine, otherwise with the cluster.

    Raises:
        UserError: the one that the run would raise.
    """
    checked = check(config)
    local = config.cluster.address == "local"
    with nullcontext() if local else connected(config.cluster.address):
        nodes = [this_machine()] if local else cluster_nodes()
        check_cluster(config, nodes)
    data = Mixture(config, train=True, put=lambda value: value)
    findings = data.findings
    size = memory.measure(config.model.path, trained_weights(config))
    check_budget(config, findings.longest["train"], findings.longest_labelled)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if findings.warning:
        console.print(findings.warning, soft_wrap=True)
    console.print(_run_table(config, data, size, nodes, start=checked.state.step))
    console.print(_memory_table(config, size, nodes, prompt=max(findings.longest.values())))
    console.print("dry run: all checks passed; nothing was started or written")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _run_table(config: Config, data: Mixture, size: ModelSize, nodes: list[Node], *, start: int) -> Table:
    """A table of the data, the steps, the model and the cluster."""
    left = [(stage.last - max(stage.first, start), stage.batch_size) for stage in plan_stages(config)]
    left = [(steps, size) for steps, size in left if steps > 0]
    rollout = config.rollout
    longest = max(data.findings.longest.values())
    room = min(rollout.max_tokens, rollout.max_model_len - longest)
    gpus, cpus = (sum(node.total.get(kind, 0) for node in nodes) for kind in ("GPU", "CPU"))
    table = _table("what", "value")
    weights = sum(part.weight for part in config.parts.values())
    epochs = []
    for name, loader in (data.parts | data.sets).items():
        dropped = f", {len(loader.dropped)} dropped" if loader.dropped else ""
        held_out = f"{len(loader.rows['held_out'])} held-out rows{dropped}"
        if name in data.sets:
            table.add_row("held-out set", f"{name}: {held_out}")
            continue
        rows, share = len(loader.rows["train"]), config.parts[name].weight / weights
        what = f"{name}, {share:.0%} of the examples: " if name else ""
        table.add_row("data", f"{what}{rows} training rows, {held_out}")
        count = share * sum(steps * size for steps, size in left) / rows
        epochs.append(f"{count:.2f} epochs{f' of {name}' if name else ''}")
    table.add_row("longest prompt", f"{longest} tokens, which leave {room} of {rollout.max_tokens} for a response")
    table.add_row("longest label", f"{data.findings.longest_label} tokens")
    table.add_row(
        "steps",
        ", then ".join(f"{steps} of {size} prompts" for steps, size in left)
        + f": {', '.join(epochs)}"
        + (f", after {start} steps of the checkpoint" if start else ""),
    )
    table.add_row(
        "model",
        f"{size.parameters:,} parameters, {size.vision_parameters:,} of them in the vision tower and projector; "
        f"{size.trained:,} are trained",
    )
    ranks, rewards = config.learner.ranks, reward_demand(config).count
    table.add_row("actors", f"{rollout.workers} rollout worker(s), {ranks} learner rank(s), {rewards} for rewards")
    table.add_row("cluster", f"{len(nodes)} node(s), {gpus:g} GPU, {cpus:g} CPU")
    return table


def _memory_table(config: Config, size: ModelSize, nodes: list[Node], *, prompt: int) -> Table:
    """A table of the memory of a learner rank and of a rollout worker, compared with what the machines have.

    It assumes a full row, in which all tokens of prompts are visual and all responses have their longest length.

    Args:
        prompt: tokens of the longest prompt.
    """
    learner, rollout, method = config.learner, config.rollout, config.method
    responses = (rollout.n if method.rollouts else 0) + (1 if method.label else 0)
    tokens = learner.max_tokens_per_micro_batch
    prompts = max(1, tokens // (prompt + responses * rollout.max_tokens))
    device, host = memory.model_states(size, learner)
    device |= memory.buffers(size, learner)
    if config.train.async_checkpoint:
        host["copy of a checkpoint"] = memory.checkpoint_copy(size, learner)
    if method.kl_coef and not learner.lora.rank:  # with adapters, the model without them is the reference
        device["KL reference"] = memory.reference_weights(size, learner.dtype)
    device |= memory.activations(size, learner, tokens=tokens, visual_tokens=prompt * prompts)
    sampler: Sizes = {"weights": memory.sampler_weights(size, rollout.dtype, rollout.gpus)}
    on_gpu = bool(rollout.gpus)
    gpu_memory = _gpu_memory() if on_gpu else None
    if not on_gpu:
        sampler["KV cache"] = rollout.memory * 2**30
    elif gpu_memory:
        sampler["KV cache"] = max(0.0, rollout.memory * gpu_memory - sampler["weights"])

    place = "on its GPU" if on_gpu else "in memory"
    table = _table("whose", "what", "bytes")
    _add(table, f"learner rank, {place}", device)
    if host:
        _add(table, "learner rank, in memory", host)
    _add(table, f"rollout worker, {place}", sampler)
    if "KV cache" in sampler:
        held = sampler["KV cache"] * max(rollout.gpus, 1) / memory.kv_bytes_per_token(size, rollout.dtype)
        table.add_row("", "KV cache holds", f"{held:,.0f} tokens, {held / rollout.max_model_len:,.0f} whole responses")
    for what, needed, there in _comparisons(config, device, host, sampler, gpu_memory, nodes):
        known = "unknown" if there is None else f"{_size(there)} available{'' if needed <= there else ': TOO LITTLE'}"
        table.add_row(what, "", f"{_size(needed)} needed, {known}")
    return table


def _comparisons(
    config: Config, device: Sizes, host: Sizes, sampler: Sizes, gpu_memory: float | None, nodes: list[Node]
) -> list[tuple[str, float, float | None]]:
    """What is compared: a name, the bytes needed, and the bytes available, None where they are unknown."""
    ranks, workers = config.learner.ranks, config.rollout.workers
    there = sum(node.total.get("memory", 0) + node.total.get("object_store_memory", 0) for node in nodes)
    if config.learner.gpus:
        found: list[tuple[str, float, float | None]] = [("GPU of a learner rank", sum(device.values()), gpu_memory)]
        share = config.rollout.memory * gpu_memory if gpu_memory else None
        if config.colocated and share:  # the learner keeps its states while the engine is awake
            states = sum(size for what, size in device.items() if what not in ("activations", "logits"))
            found.append(("GPU of a rank and its engine", states + share, gpu_memory))
        if config.colocated and config.rollout.sleep_level == 1:
            host = host | {"weights of sleeping engines": sampler["weights"]}
        found.append(("rollout.memory of its GPU", sampler["weights"], share))
        return [*found, ("memory", ranks * sum(host.values()), there)] if host else found
    needed = ranks * (sum(device.values()) + sum(host.values())) + workers * sum(sampler.values())
    return [("memory", needed, there)]


def _gpu_memory() -> float | None:
    """Bytes of this machine's GPU, which stands for all GPUs of the cluster. None without a GPU."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _add(table: Table, whose: str, sizes: Sizes) -> None:
    for number, (what, size) in enumerate(sizes.items()):
        table.add_row("" if number else whose, what, _size(size))
    table.add_row("", "together", _size(sum(sizes.values())))


def _size(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
