"""Turns a conversation and its images into a prompt, by the model's own processor."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from visurf_ray.aliases import Json, Processor, Reference
from visurf_ray.groups import Prompt
from visurf_ray.models import has_pixel_bounds

Put = Callable[[object], Reference]  # stores a value and returns a reference to it
Size = tuple[int, int]  # width and height in pixels
Messages = Sequence[dict[str, Json]]  # a conversation as chat templates take it, its contents lists of typed parts

_TOKENS = ("input_ids", "attention_mask")  # what a processor returns of the text; the rest are features
_STAND_IN_SIDE = 56  # pixels of the blank image of a stand-in


class PromptMaker:
    """Makes prompts for one model."""

    def __init__(self, processor: Processor, max_pixels: int | None, put: Put, *, square: int | None = None) -> None:
        """Keep the model's processor.

        Args:
            max_pixels: larger images are scaled down. A processor of the Qwen-VL families has this bound itself.
            put: stores an image or features, and returns a reference; in a cluster, `ray.put`.
            square: every image becomes a square of this side in pixels; None: images keep their shape.
        """
        self.processor = processor
        self.max_pixels = max_pixels
        self.put = put
        self.square = square
        self._expansions = lru_cache(maxsize=2**14)(self._expand)

    def seen_size(self, size: Size) -> Size:
        """Return the size that an image of some size is scaled to before the processor gets it.

        For the Qwen-VL families it is the size that the model sees, of which the visual tokens are a grid.

        Raises:
            ValueError: the model does not accept images of this shape.
        """
        width, height = (self.square, self.square) if self.square else size
        found = self.processor.image_processor
        if has_pixel_bounds(self.processor):
            height, width = smart_resize(
                height,
                width,
                factor=found.patch_size * found.merge_size,
                min_pixels=found.size["shortest_edge"],
                max_pixels=found.size["longest_edge"],
            )
            return width, height
        if self.max_pixels is None or width * height <= self.max_pixels:
            return width, height
        scale = (self.max_pixels / (width * height)) ** 0.5
        return max(1, int(width * scale)), max(1, int(height * scale))

    def text(self, messages: Messages) -> str:
        """Return the conversation as text in the model's chat template, up to where the response begins."""
        return self.processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)

    def token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text from `text`, with one placeholder for each image."""
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

    def length(self, messages: Messages, sizes: Sequence[Size]) -> int:
        """Return the number of tokens of a prompt, those of its images included; decodes no image.

        Args:
            sizes: of the images, as `seen_size` returns them.

        Raises:
            ValueError: the conversation has another number of placeholders than images.
        """
        return len(self._expanded_ids(self.text(messages), sizes))

    def _expanded_ids(self, text: str, sizes: Sequence[Size]) -> list[int]:
        """Return the tokens of a text from `text`, with all that the processor writes in place of each image."""
        first, *others = text.split(self.processor.image_token)
        if len(others) != len(sizes):
            raise ValueError(f"has {len(others)} places for images, but {len(sizes)} images")
        parts = [first]
        for expansion, after in zip(self._expansions(tuple(sizes)), others, strict=True):
            parts += [expansion, after]
        return self.token_ids("".join(parts))

    def _expand(self, sizes: tuple[Size, ...]) -> list[str]:
        """Return what the processor writes in place of the placeholder of each image; it depends on their sizes."""
        if not sizes:
            return []
        found = self.processor(
            text=[self.processor.image_token * len(sizes)],
            images=[[Image.new("RGB", size) for size in sizes]],
            return_text_replacement_offsets=True,
            add_special_tokens=False,
        )
        return [place["replacement"] for place in found["text_replacement_offsets"][0]]

    def make(self, messages: Messages, images: Sequence[Image.Image], *, features: bool = True) -> Prompt:
        """Make a prompt.

        Args:
            images: of the sizes that `seen_size` returns, in the order of their places.
            features: whether the learner will need it. Without features the images are not processed.
        """
        text = self.text(messages)
        if not features:
            expanded = self._expanded_ids(text, [image.size for image in images])
            return Prompt(self.token_ids(text), expanded, tuple(self.put(image) for image in images))
        found = self.processor(
            text=[text],
            images=[list(images)] if images else None,
            return_tensors="pt",
            return_mm_token_type_ids=True,
            add_special_tokens=False,
        )
        return Prompt(
            token_ids=self.token_ids(text),
            expanded_ids=found["input_ids"][0].tolist(),
            images=tuple(self.put(image) for image in images),
            features=self.put({name: value for name, value in found.items() if name not in _TOKENS}),
            stand_in=None if images else self.stand_in,
        )

    @cached_property
    def stand_in(self) -> Prompt:
        """A prompt with a small blank image, whatever shape other images get."""
        image = Image.new("RGB", (_STAND_IN_SIDE, _STAND_IN_SIDE))
        return self.make([{"role": "user", "content": [{"type": "image"}]}], [image])
