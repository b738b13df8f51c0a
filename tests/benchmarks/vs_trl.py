"""RLVR steps of this project against TRL's GRPOTrainer, on the CPU: sampling, rewards and update together.

    python -m pip install -e ".[bench]"
    python -m tests.benchmarks.vs_trl [--quick]

Both train the same model with random weights on the same pictures and questions, with equally many responses of the
same longest length, in turns in one run, with the same threads. TRL samples with transformers' `generate`, the only way
it has on a CPU. (miniature) 16 prompts × 8 responses × 64 tokens, 2 M parameters; (picture) 4 prompts × 8 responses ×
100 tokens, pictures of 448×448 (256 visual tokens), 30 M parameters; (ragged) 8 prompts × 8 responses of at most 512
tokens that end after 130 on average, each token with the same probability, 30 M parameters.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.harness import arguments, finish, start, table
from tests.benchmarks.job import started
from tests.benchmarks.models import write_model
from visurf_ray.config.load import load_config
from visurf_ray.driver import Driver
from visurf_ray.tasks import load_task

ROLLOUTS = 8
CASES = ("miniature", "picture", "ragged")


def write_pictures(folder: Path, count: int) -> list[str]:
    """Random pictures with a question each; returns the overrides that choose them."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        name = f"{number}.png"
        coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        coarse.resize((448, 448), Image.Resampling.BICUBIC).save(folder / name)
        truth = json.dumps([{"bbox_2d": [10, 10, 200, 200], "point_2d": [105, 105]}])
        rows.append({"id": str(number), "problem": "the largest patch", "solution": truth, "image": name})
    data = folder / "pictures.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["task=non_object", f"task.train={data}", f"task.held_out={data}"]


class InTurns(TrainerCallback):
    """Times TRL's steps, and takes one of our own after each."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.seconds: dict[str, list[float]] = {"trl": [], "ours": []}
        self.tokens: list[float] = []  # of our responses, the mean of each step

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        middle = time.perf_counter()
        number = len(self.seconds["ours"])
        batch = self.driver.collect(number)
        self.driver.step(batch)
        self.seconds["trl"].append(middle - self.begin)
        self.seconds["ours"].append(time.perf_counter() - middle)
        self.tokens.append(statistics.mean(r.length for group in batch.groups for r in group.responses))


def measure(
    folder: Path, settings: list[str], *, prompts: int, tokens: int, steps: int, micro_batch: int
) -> dict[str, float]:
    """Responses per second of both, the first step left out.

    Args:
        micro_batch: TRL's responses of a forward pass, whose logits of all words are in memory at once.
    """
    overrides = [
        "method=rlvr",
        f"model.path={folder}",
        f"train.batch_size={prompts}",
        f"rollout.n={ROLLOUTS}",
        f"rollout.max_tokens={tokens}",
        "rollout.max_model_len=1024",
        "learner.max_tokens_per_micro_batch=4096",
        "learner.learning_rate=1e-9",
        *settings,
    ]
    config = load_config(overrides)
    task = load_task(config.task, config.seed)
    rows = task.train_rows()[: prompts * (steps + 1)]
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": task.question(row)}], "image": row.open_image()} for row in rows]
    )
    rng = np.random.default_rng(0)
    trainer_config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=prompts * ROLLOUTS // micro_batch,
        num_generations=ROLLOUTS,
        max_completion_length=tokens,
        max_steps=steps + 1,
        learning_rate=1e-9,
        beta=0.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    with started(*overrides) as job:
        turns = InTurns(job.driver())
        GRPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
            processing_class=AutoProcessor.from_pretrained(folder),
            reward_funcs=lambda completions, **_: rng.random(len(completions)).tolist(),
            args=trainer_config,
            train_dataset=data,
            callbacks=[turns],
        ).train()
    responses = prompts * ROLLOUTS
    trl, ours = (responses / statistics.median(turns.seconds[name][1:]) for name in ("trl", "ours"))
    return {"trl": trl, "ours": ours, "ratio": ours / trl, "mean_tokens": statistics.mean(turns.tokens)}


def run_case(case: str, quick: bool) -> dict[str, float]:
    """Measure one case in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if case == "miniature":
            write_model(folder / case, hidden=128, layers=6, heads=4, vision_hidden=96, vision_depth=4)
            return measure(folder / case, [], prompts=16, tokens=64, steps=2 if quick else 8, micro_batch=128)
        if case == "picture":
            write_model(folder / case, hidden=512, layers=7, heads=8, max_pixels=448 * 448)
            pictures = write_pictures(folder, 32)
            return measure(folder / case, pictures, prompts=4, tokens=100, steps=3, micro_batch=16)
        write_model(folder / case, hidden=512, layers=7, heads=8, mean_response=130)
        return measure(folder / case, [], prompts=8, tokens=512, steps=3, micro_batch=8)


def in_its_own_process(case: str, flags: list[str]) -> dict[str, float]:
    """Measure one case in a process of its own: what TRL leaves behind would not leave memory for the next."""
    command = [sys.executable, "-m", "tests.benchmarks.vs_trl", "--case", case, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__, devices=["cpu"])
    parser.add_argument("--case", choices=CASES, help="measure this one alone, in this process")
    options = parser.parse_args()
    start(options)
    if options.case:
        finish(run_case(options.case, options.quick))
        return
    flags = ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    results = {case: in_its_own_process(case, flags) for case in (CASES[:1] if options.quick else CASES)}
    table(
        ["case", "TRL responses/s", "ours responses/s", "ratio", "tokens"],
        [[case, *result.values()] for case, result in results.items()],
    )
    finish({f"ratio_{case}": result["ratio"] for case, result in results.items()})


if __name__ == "__main__":
    main()
