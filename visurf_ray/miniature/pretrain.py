"""Pretrains the miniature base model: `python -m visurf_ray.miniature.pretrain --out FOLDER`.

The curriculum raises the number of digits first, then the variation of place and size, then the kinds of questions.
Findings behind it: Reading several digits stays at chance unless short rows with one digit come first. Place is learnt
from rows that list all boxes, if M-RoPE rotates columns far enough (see `base_model`). Finding a digit is learnt if the
thinking judges each digit and values are other tokens than coordinates: the answer is then copied from after a `yes`.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from visurf_ray.aliases import HFModel, Processor
from visurf_ray.miniature.base_model import BASE_MODEL, build_model, build_processor
from visurf_ray.miniature.exam import examine
from visurf_ray.miniature.lessons import Lesson, make_lesson, suitable, tokenizer_corpus
from visurf_ray.miniature.scenes import Scene, draw_scene


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        batches: The number of batches.
        digits: The number of digits of a scene is drawn from these.
        jitter: See `draw_scene`.
        sizes: See `draw_scene`.
        mix: The share of each kind of lesson.
        learning_rate: The rate at the start, which falls linearly to `final_rate`.
        final_rate: The rate at the end.
        direct: The share of questions for boxes that are answered without thinking.
    """

    batches: int
    digits: tuple[int, ...]
    jitter: int
    sizes: tuple[int, int]
    mix: dict[str, float] = field(hash=False)
    learning_rate: float = 1e-3
    final_rate: float = 1e-3
    direct: float = 0.0


_ALL = {"ground": 0.45, "list": 0.15, "presence": 0.2, "read": 0.1, "count": 0.1}
_LAST = {"ground": 0.4, "list": 0.1, "presence": 0.2, "read": 0.05, "count": 0.05, "select": 0.2}
_FORMS = {"ground": 0.26, "list": 0.05, "presence": 0.1, "read": 0.05, "count": 0.05, "select": 0.04} | {
    "sum": 0.1,
    "name": 0.05,
    "detect": 0.18,
    "corners": 0.12,
}
CURRICULUM = (
    Stage(300, (1,), 1, (24, 28), {"read": 1.0}),
    Stage(300, (1, 1, 2), 2, (22, 28), {"read": 0.6, "list": 0.4}),
    Stage(600, (1, 2, 3), 4, (20, 28), {"read": 0.2, "list": 0.8}),
    Stage(600, (1, 2, 3, 4, 4), 4, (20, 28), _ALL),
    Stage(900, (1, 2, 3, 4, 4), 4, (20, 28), _ALL, final_rate=1e-5),
    Stage(200, (1, 2, 3, 4, 4), 4, (20, 28), _ALL, learning_rate=3e-4, final_rate=1e-5, direct=0.25),
    Stage(300, (1, 2, 3, 4, 4), 4, (20, 28), _LAST, learning_rate=5e-4, final_rate=1e-5, direct=0.25),
    Stage(400, (1, 2, 3, 4, 4), 4, (20, 28), _FORMS, final_rate=1e-5, direct=0.25),
)


def draw_lessons(rng: np.random.Generator, stage: Stage, count: int) -> list[Lesson]:
    """Draw a stage's lessons, each about a scene of its own."""
    kinds = rng.choice(list(stage.mix), size=count, p=list(stage.mix.values()))

    def draw() -> Scene:
        digits = int(rng.choice(stage.digits))
        return draw_scene(rng, "train", digits=digits, jitter=stage.jitter, sizes=stage.sizes, max_rotation=12.0)

    return [make_lesson(rng, str(kind), suitable(str(kind), draw), stage.direct) for kind in kinds]


_PART = 48  # rows computed at once; with twice as many each takes a quarter longer, as they outgrow the CPU caches


# Token ids of prompt and answer, and the lesson they come from.
Encoded = tuple[list[int], list[int], Lesson]


class Collator:
    """Turns lessons into padded batches. Only answer tokens contribute to the loss."""

    def __init__(self, processor: Processor, model: HFModel) -> None:
        """Compute what all batches share: the prompt with expanded image tokens, and the M-RoPE positions."""
        self.processor = processor
        self.prompt = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "QUESTION"}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        tokenizer = processor.tokenizer
        self.image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        # Every prompt begins with the same text and image size, so positions depend on the length only.
        probe = processor(text=[self.prompt], images=[draw_scene(np.random.default_rng(0), "train", digits=1).image])
        visual = probe["input_ids"][0].count(self.image_token)
        self.prompt = self.prompt.replace("<|image_pad|>", "<|image_pad|>" * visual)
        ids = torch.tensor(tokenizer(self.prompt + "." * 400).input_ids)[None, :400]
        self.positions = model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.image_token).int(),
            image_grid_thw=torch.as_tensor(probe["image_grid_thw"]),
            attention_mask=torch.ones_like(ids),
        )[0]

    def encode(self, lessons: list[Lesson]) -> list[Encoded]:
        """Tokenize the lessons."""
        tokenizer = self.processor.tokenizer
        prompts = tokenizer([self.prompt.replace("QUESTION", lesson.question) for lesson in lessons]).input_ids
        answers = tokenizer([lesson.answer + "<|im_end|>" for lesson in lessons]).input_ids
        return list(zip(prompts, answers, lessons, strict=True))

    def pad(self, rows: list[Encoded]) -> dict[str, Tensor]:
        """Return the model's inputs for these rows, padded to the longest one, with `labels`.

        There is no attention mask: padding is on the right, where causal attention never looks.
        """
        length = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
        ids = torch.full((len(rows), length), self.processor.tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), -100)
        for row, (prompt, answer, _) in enumerate(rows):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        images = self.processor.image_processor(images=[lesson.scene.image for *_, lesson in rows], return_tensors="pt")
        return {
            "input_ids": ids,
            "labels": labels,
            "position_ids": self.positions[:, :, :length].expand(-1, len(rows), -1),
            "pixel_values": images["pixel_values"],
            "image_grid_thw": images["image_grid_thw"],
        }


def batches(rng: np.random.Generator, stage: Stage, collator: Collator, size: int) -> Iterator[list[dict[str, Tensor]]]:
    """Yield the stage's batches of `size` rows, each in parts of `_PART` rows. A batch has rows of similar length."""
    pool: list[list[Encoded]] = []
    for _ in range(stage.batches):
        if not pool:
            rows = sorted(collator.encode(draw_lessons(rng, stage, 8 * size)), key=lambda row: len(row[0] + row[1]))
            pool = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
            rng.shuffle(pool)
        rows = pool.pop()
        yield [collator.pad(rows[begin : begin + _PART]) for begin in range(0, size, _PART)]


def backward(model: HFModel, parts: list[dict[str, Tensor]]) -> float:
    """Add the gradient of the mean loss over all answer tokens of `parts`, and return that loss."""
    model.train()
    tokens = sum(int((part["labels"] != -100).sum()) for part in parts)
    total = 0.0
    for part in parts:
        labels = part.pop("labels")[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**part, use_cache=False).logits[:, :-1]
        chosen = labels != -100
        loss = torch.nn.functional.cross_entropy(logits[chosen].float(), labels[chosen], reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


def build_optimizers(model: HFModel) -> tuple[torch.optim.Optimizer, ...]:
    """Return Muon for the matrices and AdamW for all other weights, scaled so that one learning rate fits both."""
    matrices = {name for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name}
    muon = [weight for name, weight in model.named_parameters() if name in matrices]
    adamw = [weight for name, weight in model.named_parameters() if name not in matrices]
    return (
        torch.optim.Muon(muon, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adamw, weight_decay=0.02, betas=(0.9, 0.98)),
    )


def pretrain(out: Path, *, seed: int = 0, batch_size: int = 96, scale: float = 1.0, start: int = 0) -> dict[str, float]:
    """Train a base model, evaluate it on the test split and save it.

    Args:
        out: The folder to write: the model, `training_log.jsonl`, and `partial`, the state during training.
        seed: Draws the weights, the scenes and the lessons.
        batch_size: Rows in a batch.
        scale: The share of each stage's batches to train.
        start: The index of the first stage. A value above 0 continues from `out`/partial.

    Returns:
        The scores of `examine` on the test split.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, start) if start else seed)
    if start == 0:
        scenes = [draw_scene(rng, "train", digits=int(rng.integers(1, 5))) for _ in range(500)]
        processor = build_processor(tokenizer_corpus(rng, scenes))
        model = build_model(processor)
    else:
        processor = AutoProcessor.from_pretrained(out / "partial")
        model = AutoModelForImageTextToText.from_pretrained(out / "partial", dtype=torch.float32)
    collator = Collator(processor, model)
    optimizers = build_optimizers(model)
    out.mkdir(parents=True, exist_ok=True)
    begin, rows = time.time(), 0
    with (out / "training_log.jsonl").open("w" if start == 0 else "a") as log:
        for number, stage in list(enumerate(CURRICULUM))[start:]:
            count = max(1, round(stage.batches * scale))
            stage = Stage(**{**vars(stage), "batches": count})
            losses = []
            for index, parts in enumerate(batches(rng, stage, collator, batch_size)):
                share = index / count
                warmup = min(1.0, (index + 1) / 50) if number == start else 1.0
                rate = warmup * (stage.learning_rate + share * (stage.final_rate - stage.learning_rate))
                losses.append(backward(model, parts))
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    optimizer.step()
                model.zero_grad()
                rows += batch_size
                if (index + 1) % 100 == 0 or index + 1 == count:
                    entry = {
                        "stage": number,
                        "batch": index + 1,
                        "rows": rows,
                        "seconds": round(time.time() - begin),
                        "loss": round(float(np.mean(losses[-100:])), 4),
                        "learning_rate": rate,
                    }
                    if (index + 1) % 500 == 0 or index + 1 == count:
                        entry |= examine(model, processor, split="validation", scenes=100, digits=stage.digits)
                        model.save_pretrained(out / "partial")
                        processor.save_pretrained(out / "partial")
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    print(json.dumps(entry), flush=True)
        scores = examine(model, processor, split="test", scenes=500)
        log.write(json.dumps({"test": scores, "seconds": round(time.time() - begin)}) + "\n")
    save(out, model, processor)
    print(json.dumps(scores))
    return scores


def save(out: Path, model: HFModel, processor: Processor) -> None:
    """Write a folder that `from_pretrained` loads. The weights are float16, so that 2 M parameters take 4 MB."""
    processor.save_pretrained(out)
    model.half().save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BASE_MODEL, help="folder to write (default: the package's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of each stage to train, for a quick test")
    parser.add_argument(
        "--start", type=int, default=0, help="continue from FOLDER/partial at this stage of the curriculum"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pretrain(arguments.out, seed=arguments.seed, scale=arguments.scale, start=arguments.start)


if __name__ == "__main__":
    main()
