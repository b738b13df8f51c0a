"""Pictures that the data workers prepare a second, and the memory of an evaluation of many pictures.

    python -m tests.benchmarks.feed [--quick]

The pictures are JPEGs of 840×840 pixels, drawn into a temporary folder. `images_per_second_1` and `_2` are those of
training batches with `feed.workers` 1 and 2: decoded, resized, processed into the learner's features, tokenized and put
into Ray's object store. Batches are taken as a run takes them, the next one being prepared meanwhile.

`rss_growth_mib` is by how much the memory of all processes and of Ray's object store together grows from the 200th
held-out picture that is answered to the last of 2,000. In place of vLLM an actor fetches the picture of each
prompt and answers at once; the pool, the data actors and the object store are a run's own. Before the 200th, what grows
is what all libraries allocate once.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import ray
from PIL import Image

from tests.benchmarks.harness import arguments, finish, start, table
from visurf_ray.actors import start_data
from visurf_ray.cluster.resources import connected
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import Config
from visurf_ray.feed.feed import DataFeed
from visurf_ray.feed.held_out import HeldOut
from visurf_ray.groups import Example, Response, Source, Tokens, TokenSpan
from visurf_ray.rollout.actor import Sampled, Sampling, in_one_store
from visurf_ray.rollout.pool import RolloutPool

SIDE = 840


def draw(folder: Path, count: int) -> Iterator[Path]:
    """Draw JPEGs: 16 of smooth shapes with noise, of about 200 kB, as photographs are; the others are links to them."""
    for number in range(count):
        path = folder / f"{number}.jpg"
        if number < 16:
            rng = np.random.default_rng(number)
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
            noise = rng.normal(0, 12, (SIDE, SIDE, 3))
            Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            path.symlink_to(folder / f"{number % 16}.jpg")
        yield path


def settings(folder: Path, train: int, held_out: int) -> list[str]:
    """Write tables of pictures; return the settings of a run on them."""
    folder.mkdir()
    paths = list(draw(folder, max(train, held_out)))
    truth = json.dumps([{"bbox_2d": [10, 10, 50, 40], "point_2d": [30, 25]}])
    for name, count in (("train", train), ("held_out", held_out)):
        lines = [json.dumps({"problem": "the dog", "solution": truth, "image": path.name}) for path in paths[:count]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return [
        "task=non_object",
        f"task.train={folder}/train.jsonl",
        f"task.held_out={folder}/held_out.jsonl",
        "model.max_pixels=705600",
        "rollout.max_model_len=2048",
        f"feed.cache={folder}/cache",
    ]


def speed(config: Config, batches: int) -> float:
    """Pictures a second, from the second batch on."""
    data = DataFeed(config, train=True)
    size = config.train.batch_size
    data.take(size)
    ray.wait(data.ahead, num_returns=len(data.ahead))
    begin = time.perf_counter()
    for _ in range(batches):
        data.take(size)
        ray.wait(data.ahead, num_returns=len(data.ahead))
    seconds = time.perf_counter() - begin
    for worker in data._workers:
        ray.kill(worker)
    return batches * size / seconds


@ray.remote(num_cpus=0)
class Answering:
    """Fetches the pictures of prompts as an engine does, and answers at once."""

    @ray.method(num_returns=2)
    def sample(self, examples: list[tuple[int, Example]], sampling: Sampling) -> tuple[list[Sampled], Tokens]:
        found = []
        for number, example in examples:
            (image,) = ray.get(list(example.prompt.images))
            assert image.size == (SIDE, SIDE)
            found.append(Sampled(number, [Response(Source.ROLLOUT, "<answer>[]</answer>", TokenSpan.of([1]))]))
        return in_one_store(found)


def memory() -> float:
    """MiB that this process and all below it hold by themselves, and that Ray's object store holds."""
    own = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            found = process.memory_info()
            own += found.rss - found.shared
        except psutil.NoSuchProcess:
            continue
    return own / 2**20 + stored()


def stored() -> float:
    """MiB in Ray's object store: what a process shares is counted here once."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return (total["object_store_memory"] - free["object_store_memory"]) / 2**20


class Watched:
    """Held-out examples that note the memory as they are taken."""

    def __init__(self, examples: HeldOut, every: int) -> None:
        self.examples, self.every = examples, every
        self.memory: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        for number, example in enumerate(self.examples):
            if number % self.every == 0:
                self.memory[number] = memory()
            yield example


def growth(config: Config, first: int) -> tuple[float, list[list[float]]]:
    """MiB of growth after the first examples; and the memory on the way."""
    data = start_data(config, train=False)
    pool = RolloutPool(
        lambda: [Answering.remote()],  # type: ignore[attr-defined]
        sampling=Sampling(1, 1.0, 8),
        max_in_flight=config.rollout.max_in_flight,
        timeout=config.cluster.timeout,
    )
    watched = Watched(data.held_out(None), first)
    answers = pool.answer(watched, max_tokens=8)
    assert len(answers) == len(watched)
    watched.memory[len(watched)] = memory()
    late = [value for number, value in watched.memory.items() if number >= first]
    return max(late) - late[0], [[float(number), value] for number, value in watched.memory.items()]


def main() -> None:
    options = arguments(__doc__, devices=["cpu"]).parse_args()
    start(options)
    batches, size, held_out, first = (1, 8, 40, 10) if options.quick else (6, 64, 2000, 200)
    with tempfile.TemporaryDirectory() as name, connected("local"):
        overrides = [*settings(Path(name, "train"), 64, 1), f"train.batch_size={size}"]
        found = {workers: speed(load_config([*overrides, f"feed.workers={workers}"]), batches) for workers in (1, 2)}
        table(["workers", "pictures a second"], [[workers, value] for workers, value in found.items()])
        config = load_config([*settings(Path(name, "held_out"), 1, held_out), "feed.check=off"])
        grown, way = growth(config, first)
        table(["held-out pictures", "MiB of all processes and the object store"], way)
    finish({"images_per_second_1": found[1], "images_per_second_2": found[2], "rss_growth_mib": grown})


if __name__ == "__main__":
    main()
