"""Which training rows are left out because every rollout has solved them lately; see `feed.curriculum`."""

from collections.abc import Iterable

Place = tuple[str, int, int]  # where a training example comes from: its part, the number of the row, the part's epoch


class Curriculum:
    """Leaves out a row in the epochs after one in which every rollout has solved it, then draws it again.

    In a mixture the examples of other parts fill the batches meanwhile. What it leaves out depends only on the seed and
    on the rewards that the run has earned. A checkpoint keeps it.
    """

    def __init__(self, epochs: int | None) -> None:
        """Begin with no row left out.

        Args:
            epochs: For how many epochs a row is left out. An epoch is one of the row's own part. None: no row ever is.
        """
        self.epochs = epochs
        self.solved: dict[str, dict[int, int]] = {}  # by part, then by row: the last epoch in which it was solved

    def note(self, places: Iterable[Place]) -> None:
        """Remember which training examples every rollout has solved."""
        if self.epochs:
            for part, row, epoch in places:
                self.solved.setdefault(part, {})[row] = epoch

    def leaves_out(self, place: Place) -> bool:
        """Return whether a row is left out in an epoch of its part."""
        part, row, epoch = place
        last = self.solved.get(part, {}).get(row)
        return last is not None and last < epoch <= last + (self.epochs or 0)

    def state(self) -> dict[str, list[list[int]]]:
        """Return a copy of what it remembers, as JSON holds it."""
        return {part: [[row, epoch] for row, epoch in rows.items()] for part, rows in self.solved.items()}

    def restore(self, state: dict[str, list[list[int]]]) -> None:
        """Remember what a checkpoint has kept, and nothing else."""
        self.solved = {part: {row: epoch for row, epoch in rows} for part, rows in state.items()}
