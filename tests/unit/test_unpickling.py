"""Training states are read without running code that is in them, though DeepSpeed would run it."""

import os
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from visurf_ray.errors import UserError
from visurf_ray.learner.unpickling import without_code


def test_what_deepspeed_writes_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as many set since PyTorch 2.6
    written = {
        "loss_scaler": LossScaler(2),
        "zero_stage": ZeroStageEnum.weights,
        "slices": {"a": fragment_address(numel=3, start=1)},
        "state": {"step": torch.ones(1), "shape": torch.Size([1, 2]), "group": [{"betas": (0.9, 0.999)}]},
    }
    torch.save(written, tmp_path / "state.pt")
    with without_code("the state"):
        read = torch.load(tmp_path / "state.pt", weights_only=False)  # as DeepSpeed does
    assert read["zero_stage"] is ZeroStageEnum.weights and read["slices"]["a"].numel == 3
    assert read["loss_scaler"].cur_scale == 2 and read["state"]["group"] == written["state"]["group"]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ and os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_code_in_a_state_is_refused_and_not_run(tmp_path):
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "ran"), "w")

    folder = tmp_path / "state"
    folder.mkdir()
    torch.save({"module": Runs()}, folder / "mp_rank_00_model_states.pt")
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(UserError, match="the state holds objects that no training state"), without_code("the state"):
        get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag="state")
    assert not (tmp_path / "ran").exists()
