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

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # see `torch.load`


@contextmanager
def without_code(folder: str) -> Iterator[None]:
    """Have `torch.load` make tensors, plain values and DeepSpeed's own objects alone, whatever its caller asks for.

    DeepSpeed asks for `weights_only=False`, which runs any function that a file names.

    Args:
        folder: what is read, for the message.

    Raises:
        UserError: a file holds anything else.
    """
    before = os.environ.get(_FORCE)
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
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
