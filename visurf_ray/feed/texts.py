"""Checks of texts before a run: special tokens in what users wrote, and the tags of labels."""

from collections.abc import Sequence

from visurf_ray.aliases import Tokenizer
from visurf_ray.errors import DataError, short

_PAIRS = (("<think>", "</think>"), ("<answer>", "</answer>"))
_TAGS = tuple(tag for pair in _PAIRS for tag in pair)


class TextCheck:
    """Finds what would break a prompt or a label, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = {key for key, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}

    def encode(self, texts: Sequence[str], where: str) -> list[list[int]]:
        """Return the token ids of texts of a row.

        Args:
            texts: The texts, without what the model's chat template adds.
            where: File and row, for error messages.

        Raises:
            DataError: A text has a special token of the tokenizer, such as an image placeholder or the end of a turn;
                or it is not valid Unicode.
        """
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise DataError(f"{where}: its text has half of a surrogate pair, which is not valid Unicode")
        encoded = self.tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
        for text, ids in zip(texts, encoded, strict=True):
            if found := self.special & set(ids):
                token = self.tokenizer.convert_ids_to_tokens(min(found))
                place = max(0, text.find(token) - 30)
                raise DataError(
                    f"{where}: its text must not contain {token}, a special token of the model: {short(text[place:])!r}"
                )
        return encoded


def check_tags(label: str, thinking: str | None, where: str) -> None:
    """Check that a label has one thought, at its beginning, and one answer at most, and that no tag is in the thought.

    Raises:
        DataError: It has others, or half of the tags of one. The message names the row.
    """
    for tag in _TAGS:
        if tag in (thinking or ""):
            raise DataError(f"{where}: its thinking must not contain {tag}: {short(thinking)!r}")
        if label.count(tag) > 1:
            raise DataError(
                f"{where}: its label has {tag} {label.count(tag)} times, from the solution: {short(label)!r}"
            )
    for opening, closing in _PAIRS:
        if (opening in label) != (closing in label) or label.find(opening) > label.find(closing):
            raise DataError(
                f"{where}: its label has {opening} or {closing} without the other, from the solution: {short(label)!r}"
            )
    if "<think>" in label and not label.lstrip().startswith("<think>"):
        raise DataError(f"{where}: its label has a thought after its beginning, from the solution: {short(label)!r}")
