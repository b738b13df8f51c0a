"""DeepSpeed's files, read without running code that is in them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import safe_globals

from visurf_ray.errors import UserError

_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # see `torch.load`


@contextmanager
def without_code(folder: str) -> Iterator[None]:
    """Make `torch.load` refuse everything but tensors, plain values and three classes of DeepSpeed.

    DeepSpeed asks for `weights_only=False`, which runs any function that a file names. This holds for the whole
    process: no other thread may call `torch.load` meanwhile.

    Args:
        folder: what is read, for the message.

    Raises:
        UserError: a file holds anything else.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORBID)}  # torch refuses both at once
    os.environ[_FORCE] = "1"
    try:
        with safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except UnpicklingError as error:
        raise UserError(
            f"{folder} holds objects that no training state of this program has, which might run code; it is not read "
            f"({str(error).splitlines()[-1][:200]})"
        ) from error
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})
