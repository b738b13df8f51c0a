"""One thought and one answer: the format's reward of every built-in reward."""

import json

import pytest

from visurf_ray.rewards import REWARDS, load_reward

BOXES = json.dumps([{"bbox_2d": [1, 1, 5, 5], "point_2d": [2, 2]}])
TRUTHS = {
    "class_name": "rose",
    "math": "2",
    "point_in_box": BOXES,
    "segmentation_mask": "[]",
    "vision_reasoner": BOXES,
    "visual_rft_classification": "rose",
    "visual_rft_detection": "No Objects",
    "visual_rft_grounding": "(1,1),(2,2)",
}


@pytest.mark.parametrize("name", REWARDS)
def test_several_thoughts_or_answers_do_not_have_the_form(name):
    reward, truth = load_reward(name), TRUTHS[name]
    (part,) = reward.thinking_parts
    right, thought = f"<answer>{truth}</answer>", "<think>a.</think>"

    def earned(response: str) -> dict[str, float]:
        return reward(response, truth).parts

    full = earned(thought + right)
    assert full[part] == 1.0
    several = [
        f"{thought}<think>b.</think>{right}",
        f"{thought}<answer>no</answer>{right}",
        f"{thought}<think>b.</think><think>c.</think><answer>no</answer><answer>maybe</answer>{right}",
        f"{thought}<answer>no</answer>{thought}{right}",
    ]
    for response in several:
        assert earned(response) == full | {part: 0.0}, response
