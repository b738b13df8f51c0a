"""Makes the checks of a run, draws where its actors go, and estimates their memory. Starts no actor.

It writes nothing but what the check of the rows remembers (feed.cache).
"""

import sys
from contextlib import nullcontext
from itertools import count

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from visurf_ray.checks import check, check_budget, plan_run, reward_demand, segmenter_demand
from visurf_ray.cluster.placement import Plan
from visurf_ray.cluster.resources import Node, cluster_nodes, connected, this_machine
from visurf_ray.config.schema import Config
from visurf_ray.config.stages import plan_stages
from visurf_ray.errors import ClusterError
from visurf_ray.feed.mixture import Mixture
from visurf_ray.feed.progress import CheckProgress
from visurf_ray.feed.strictness import max_prompt_tokens
from visurf_ray.footprint import Footprint, Need, check_memory, footprint, in_memory, in_units, needs
from visurf_ray.learner import memory
from visurf_ray.learner.memory import ModelSize, Sizes
from visurf_ray.learner.trained import trained_weights
from visurf_ray.resume_checks import with_rows


def dry_run(config: Config) -> None:
    """Print what the run would do, where its actors would go, and the memory that they need.

    With `cluster.address=local` the run is compared with this machine, otherwise with the cluster. If the run needs
    GPUs, this machine has none, and cluster.gpu_memory is given, it is compared with imagined nodes.

    Raises:
        UserError: the one that the run would raise, or the memory of GPUs or nodes is known and too small.
    """
    local = config.cluster.address == "local"
    imagined = local and config.learner.gpus > 0 and config.cluster.gpu_memory is not None
    imagined = imagined and not this_machine().total["GPU"]
    checked = check(config, here=not imagined)
    with nullcontext() if local else connected(config.cluster.address):
        nodes = _imagined(config) if imagined else [this_machine()] if local else cluster_nodes()
        plan = plan_run(config, nodes)
    with CheckProgress() as progress:
        data = Mixture(config, train=True, put=lambda value: value, progress=progress.show)
    findings = data.findings
    size = memory.measure(config.model, trained_weights(config))
    check_budget(config, findings.longest["train"], findings.longest_labelled)
    with_rows(checked.state, checked.resume, findings, override=config.train.resume_override)
    longest = max(findings.longest.values()) or max_prompt_tokens(config)  # of which no row was checked
    found = footprint(config, size, prompt=longest, gpu=_gpu_memory(config))
    compared = needs(config, plan, found)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if findings.warning:
        console.print(findings.warning, soft_wrap=True)
    console.print(_run_table(config, data, size, nodes, start=checked.state.step))
    console.print(_drawing(plan, found))
    console.print(_memory_table(config, size, found))
    console.print(_comparison(compared))
    check_memory(compared)
    console.print("dry run: all checks passed; nothing was trained, or written to output_dir")


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
    unchecked = " among the rows that feed.check names" if config.feed.checked_rows is not None else ""
    room = min(rollout.max_tokens, rollout.max_model_len - longest)
    there = {kind: sum(node.total.get(kind, 0) for node in nodes) for kind in ("GPU", "CPU")}
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
    table.add_row(
        "longest prompt", f"{longest} tokens{unchecked}, which leave {room} of {rollout.max_tokens} for a response"
    )
    table.add_row("longest label", f"{data.findings.longest_label} tokens{unchecked}")
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
    resources = [f"{count:g} {kind}" for kind, count in there.items() if kind in nodes[0].total]
    table.add_row("cluster", ", ".join([f"{len(nodes)} node(s)", *resources]))
    return table


def _memory_table(config: Config, size: ModelSize, found: Footprint) -> Table:
    """A table of the memory of a learner rank and of a rollout worker, by what they hold."""
    rollout = config.rollout
    place = "on its GPU" if config.learner.gpus else "in memory"
    table = _table("whose", "what", "bytes")
    _add(table, f"learner rank, {place}", found.rank)
    if found.offloaded:
        _add(table, "learner rank, in memory", found.offloaded)
    _add(table, f"rollout worker, {'on each GPU' if rollout.gpus > 1 else place}", found.worker)
    if "KV cache" in found.worker:
        held = found.worker["KV cache"] * max(rollout.gpus, 1) / memory.kv_bytes_per_token(size, rollout.dtype)
        table.add_row("", "KV cache holds", f"{held:,.0f} tokens, {held / rollout.max_model_len:,.0f} whole responses")
    return table


def _add(table: Table, whose: str, sizes: Sizes) -> None:
    for number, (what, size) in enumerate(sizes.items()):
        table.add_row("" if number else whose, what, in_units(size))
    table.add_row("", "together", in_units(sum(sizes.values())))


def _comparison(compared: list[Need]) -> Table:
    table = _table("what", "needed", "there")
    for need in compared:
        there = "unknown" if need.there is None else f"{in_units(need.there)} available"
        table.add_row(need.what, f"{in_units(need.needed)} needed", there + ("" if need.met else ": TOO LITTLE"))
    return table


def _drawing(plan: Plan, found: Footprint) -> Table:
    """A table of who sits where: a row for each GPU of a node, or without GPUs for each actor."""
    table = Table(title="who sits where, and the GiB of each", title_justify="left", box=SIMPLE, pad_edge=False)
    for column in ("node", "on", "learner rank", "GiB", "rollout worker", "GiB", "most at a time"):
        table.add_column(column, justify="right" if "GiB" in column or "most" in column else "left")
    for index, node in enumerate(plan.nodes):
        rows = _rows_of(plan, found, index)
        if not rows:
            continue
        table.add_section()
        if needed := in_memory(plan, found, index):
            rows.append(("memory", "", "", "", "", _gib(needed)))
        for number, row in enumerate(rows):
            table.add_row("" if number else node.name, *row)
    return table


def _rows_of(plan: Plan, found: Footprint, node: int) -> list[tuple[str, ...]]:
    """The rows of one node. Ray chooses which of its free GPUs are the first, the second, …"""
    rows: list[tuple[str, ...]] = []
    gpus = count()
    on_top = {rank: number for number, seat in enumerate(plan.workers) for rank in seat.ranks}
    learning, sampling = _gib(found.learning), _gib(found.sampling)
    for rank, seat in enumerate(plan.ranks):
        if seat.node == node:
            place = f"GPU {next(gpus)}" if seat.gpus else "CPU"
            worker = (f"worker {on_top[rank]}", sampling) if rank in on_top else ("", "")
            most = found.together if rank in on_top else found.learning
            rows.append((place, f"rank {rank}", learning, *worker, _gib(most)))
    for number, seat in enumerate(plan.workers):
        if seat.node == node and not seat.ranks:
            for _ in range(max(1, round(seat.gpus))):
                place = f"GPU {next(gpus)}" if seat.gpus else "CPU"
                rows.append((place, "", "", f"worker {number}", sampling, sampling))
    rows += [(f"{seat.gpus:g} GPU", name, "", "", "", "") for name, seat in plan.others if seat.node == node]
    return rows


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f}"


def _gpu_memory(config: Config) -> float | None:
    """Bytes of each GPU: cluster.gpu_memory, or those of this machine's, which stands for all. None without a GPU."""
    import torch

    if config.cluster.gpu_memory is not None:
        return config.cluster.gpu_memory * 2**30
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _imagined(config: Config) -> list[Node]:
    """Return as many imagined nodes of cluster.gpus_per_node GPUs as the run needs.

    Raises:
        ClusterError: it fits no number of such nodes.
    """
    others = reward_demand(config).count + segmenter_demand(config).count
    gpus, everything = float(config.cluster.gpus_per_node), config.learner.ranks + config.rollout.workers + others
    cpus = everything * max(1.0, config.learner.cpus, config.rollout.cpus)  # CPUs are no reason to refuse
    total, free = {"GPU": gpus}, {"GPU": gpus, "CPU": cpus}
    nodes = [Node("node 1 (imagined)", total, free)]
    while True:
        try:
            plan_run(config, nodes)
        except ClusterError:
            if len(nodes) > everything:  # an actor on each, and one does not fit
                plan_run(config, nodes[:1])  # which is refused too, in fewer lines
            nodes.append(Node(f"node {len(nodes) + 1} (imagined)", total, free))
        else:
            return nodes
