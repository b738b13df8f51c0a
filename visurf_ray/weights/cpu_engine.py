"""The receiving side of a weight transfer without GPUs, in vLLM's worker.

vLLM's own backends (`nccl`, `ipc`) move weights between GPUs. This one follows the same protocol
(https://docs.vllm.ai/en/v0.32.0/training/weight_transfer). Weights come through shared memory or by a gloo broadcast.
The sender chooses when it connects, because an engine starts before it is known where the learner will be.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferUpdateInfo

from visurf_ray.aliases import HFModel, Json
from visurf_ray.weights.gloo import GlooInitInfo
from visurf_ray.weights.shared_memory import SharedMemoryInitInfo


@dataclass
class CpuUpdateInfo(WeightTransferUpdateInfo):
    """Empty: engines know since the start what an update holds."""


class CpuEngine(WeightTransferEngine[SharedMemoryInitInfo | GlooInitInfo, CpuUpdateInfo]):
    """Loads weights into vLLM's model, whichever way they come."""

    update_info_cls = CpuUpdateInfo
    receive: Callable[[], Iterator[list[tuple[str, Tensor]]]] | None = None  # the weights of one update, in parts

    def parse_init_info(self, init_dict: dict[str, Json]) -> SharedMemoryInitInfo | GlooInitInfo:
        return SharedMemoryInitInfo(**init_dict) if "path" in init_dict else GlooInitInfo(**init_dict)

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo | GlooInitInfo) -> None:
        self.shutdown()  # of an earlier learner
        self.receive = init_info.open()

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: CpuUpdateInfo) -> None:
        assert self.receive is not None, "init_transfer_engine comes first"
        model: HFModel = self.model  # vLLM types it as a torch module, which has no load_weights
        for weights in self.receive():
            model.load_weights(iter(weights))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        # The reload skips a head that is tied to the embedding, because it has no weight of its own. On a CPU such a
        # head computes with a packed copy of the weight, which must be made again.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        self.receive = None
