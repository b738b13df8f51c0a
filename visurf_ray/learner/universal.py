"""Training states for another number of ranks than have written them, by DeepSpeed's universal checkpoints.

Source: https://deepspeed.readthedocs.io/en/latest/model-checkpointing.html
"""

from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

CHECKPOINT_TAG = "state"  # the folder of DeepSpeed's files in a checkpoint


def ranks_of(folder: Path) -> int:
    """Return how many ranks have written the training state in a folder."""
    return sum(1 for _ in (folder / CHECKPOINT_TAG).glob("*_optim_states.pt"))


def convert(folder: Path, target: Path) -> None:
    """Convert a training state, so that any number of ranks with its ZeRO stage can load it.

    Args:
        folder: as `Rank.save` wrote it.
        target: an empty folder. It takes 12 bytes for each trained parameter.
    """
    from deepspeed.checkpoint import ds_to_universal

    from visurf_ray.learner.unpickling import without_code

    (target / CHECKPOINT_TAG).mkdir()
    arguments = Namespace(
        input_folder=str(folder / CHECKPOINT_TAG),
        output_folder=str(target / CHECKPOINT_TAG),
        num_extract_workers=1,  # in this process: it has threads, and must not be forked
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # what only Megatron's checkpoints have
    )
    with without_code(str(folder)), redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it shows its progress
        ds_to_universal.main(arguments)
