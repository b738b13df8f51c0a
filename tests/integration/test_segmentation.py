"""Masks through the whole stack: a small SAM2 in actors, by reference, in an evaluation from its command line."""

import json

import numpy as np
import pytest
import ray

from tests.integration.runs import run_here
from visurf_ray.answers.boxes import Target, dump_truth, render
from visurf_ray.answers.rle import decode, encode, objects_in
from visurf_ray.groups import Example, Group, Prediction, Prompt, Response, Source, TokenSpan
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.pool import RewardPool
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.scoring.segmentation import Segmentation
from visurf_ray.scoring.segmenter import Segmenter, prompts_of

ANSWER = render([Target((10, 10, 60, 50), (30, 20))], thinking="a")


def picture(seed: int, width: int = 100, height: int = 60):
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_example(name: str, seen, truth: str = "[]") -> Example:
    return Example(name, "the cup", truth, Prompt([], [], (ray.put(seen),)), seen.size)


@pytest.mark.usefixtures("ray_cluster")
def test_predictions_get_the_mask_of_the_stored_image(sam2):
    stored = [picture(0, 200, 120), picture(1, 100, 60)]
    examples = [make_example(str(n), picture(n)) for n in range(2)]
    images = {example.id: ray.put(image) for example, image in zip(examples, stored, strict=True)}
    answers = [ANSWER, "no answer"]
    predictions = [Prediction.of(example, answer) for example, answer in zip(examples, answers, strict=True)]
    segmentation = Segmentation(sam2, timeout=60)
    first, second = segmentation.segment(examples, predictions, lambda example: images[example.id])
    expected = Segmenter(sam2, "task.segmenter").segment(stored[0], prompts_of(ANSWER, 2.0, 2.0))
    assert first.mask == encode(expected) and expected.any()
    assert first.response == ANSWER and first.id == "0"
    assert decode(second.mask).shape == (60, 100) and not decode(second.mask).any()


@pytest.mark.usefixtures("ray_cluster")
def test_a_segmenter_that_is_none_is_told(tmp_path):
    from visurf_ray.errors import UserError

    with pytest.raises(UserError, match=r"task\.segmenter=/nowhere: there is no such folder"):
        Segmentation("/nowhere", timeout=60)


@pytest.mark.usefixtures("ray_cluster")
def test_the_pool_gives_the_image_to_a_reward_that_needs_it(sam2, config):
    mask = np.zeros((60, 100), bool)
    mask[10:50, 10:60] = True
    truth = dump_truth(objects_in(mask), mask=encode(mask))
    groups = [
        Group(make_example(str(n), picture(n), truth=truth), [Response(Source.ROLLOUT, ANSWER, TokenSpan.of([0]))])
        for n in range(3)
    ]
    pool = RewardPool(
        config.reward, {"": RewardSpec("segmentation_mask", {"model": sam2}, needs_image=True)}, cluster_timeout=60
    )
    pool.submit(groups)
    pool.wait()
    alone = load_reward("segmentation_mask", model=sam2)
    for number, group in enumerate(groups):
        assert group.responses[0].reward_parts == alone(ANSWER, truth, picture(number)).parts
    assert len({group.responses[0].reward for group in groups}) == 3, "each by its own image"


@pytest.fixture
def reasonseg(tmp_path) -> str:
    """Scenes of the miniature in ReasonSeg's layout, twice as large as the model knows; the first has no target."""
    from visurf_ray.miniature.drawn import FIND_PROMPT
    from visurf_ray.miniature.scenes import draw_scene, present_query

    folder = tmp_path / "val"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        scene = draw_scene(rng, "test", digits=3)
        query = present_query(rng, scene)
        boxes = [target.box for target in query.targets] if number else []
        shapes = [
            {"label": "target", "points": [[2 * x, 2 * y] for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]}
            for x1, y1, x2, y2 in boxes
        ]
        scene.image.resize((168, 168)).save(folder / f"{number}.jpg", quality=95)
        annotation = {"text": [FIND_PROMPT.format(query=query.text)], "is_sentence": True, "shapes": shapes}
        (folder / f"{number}.json").write_text(json.dumps(annotation))
    return str(folder)


@pytest.mark.usefixtures("ray_cluster")
def test_an_evaluation_segments_and_scores_by_masks(reasonseg, sam2, tmp_path):
    output = tmp_path / "out"
    task = ["task=reasoning_segmentation", f"task.held_out={reasonseg}", f"task.segmenter={sam2}", "task.prompt=plain"]
    settings = [
        "rollout.memory=0.25",
        "rollout.max_tokens=70",
        "model.max_pixels=7056",
        f"output_dir={output}",
    ]
    done = run_here("evaluate", "checkpoint=miniature", *task, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "3"]
    masks, truths = zip(*((line["mask"], json.loads(line["ground_truth"])["mask"]) for line in lines), strict=True)
    assert all(mask["size"] == truth["size"] == [168, 168] for mask, truth in zip(masks, truths, strict=True))
    pairs = [(decode(mask), decode(truth)) for mask, truth in zip(masks, truths, strict=True)]
    assert all(line["size"] == [84, 84] for line in lines) and any(mask.any() for mask, _ in pairs)
    inter, union = (np.array([both(a, b).sum() for a, b in pairs]) for both in (np.logical_and, np.logical_or))
    scores = json.loads((output / "metrics.json").read_text())
    assert scores["ciou"] == pytest.approx(inter.sum() / union.sum())
    nothing_said = lines[0]["response"].endswith("<answer>[]</answer>")
    each = np.divide(inter, union, out=np.zeros(4), where=union > 0)
    each[0] = nothing_said
    assert scores["giou"] == pytest.approx(each.mean()) and scores["n_acc"] == nothing_said
    again = run_here("evaluate", f"predictions={output}/predictions.jsonl", "task=reasoning_segmentation")
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((output / "metrics.json").read_text()) == pytest.approx(scores)
