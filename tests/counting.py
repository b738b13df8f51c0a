"""The example of visurf_ray/tasks/README.md: its files as printed, and pictures with as many discs as they say."""

import json
import re
import shlex
from pathlib import Path

from PIL import Image, ImageDraw

_README = Path(__file__).parent.parent / "visurf_ray" / "tasks" / "README.md"


def write_example(folder: Path) -> list[list[str]]:
    """Write the example's files and pictures to a folder; returns its commands, each as a list of arguments."""
    text = _README.read_text(encoding="utf-8")
    for name, content in re.findall(r"^```\w+ (\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(content)
        if name.endswith(".jsonl"):
            for line in content.splitlines():
                _draw(folder, **json.loads(line))
    (commands,) = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in commands.splitlines()]


def _draw(folder: Path, *, image: str, problem: str, solution: int) -> None:
    picture = Image.new("RGB", (84, 84), "white")
    pen = ImageDraw.Draw(picture)
    for number in range(solution):
        left, top = 4 + 28 * (number % 3), 4 + 28 * (number // 3)
        pen.ellipse((left, top, left + 20, top + 20), fill="navy")
    (folder / image).parent.mkdir(exist_ok=True)
    picture.save(folder / image)
