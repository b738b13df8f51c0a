"""Lets torchvision be imported beside a CPU build of PyTorch.

PyPI's torchvision is built for CUDA. Beside a CPU torch its compiled library does not load, and `import torchvision`
then dies with "operator torchvision::nms does not exist", because Python code registers fake kernels for operators that
nobody declared. transformers' image processors and vLLM import torchvision in several child processes, so the cure has
to reach all of them: PyTorch loads every entry point of the group `torch.backends` at the end of `import torch`
(https://docs.pytorch.org/tutorials/unstable/python_extension_autoload.html), and this module is one.

It imports nothing but torch, which is loaded by then. Calling `nms` still fails, as it should: nothing here needs it.
"""

import importlib.util
from pathlib import Path

_libraries: list[object] = []  # torch.library.Library undoes its definitions when it is collected


def declare_operators() -> None:
    """Declare the schemas of `torchvision::nms` and `qnms` where torchvision's own library cannot."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return
    for shared_object in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(shared_object))
            return
        except OSError:  # linked against CUDA libraries that a CPU build of PyTorch does not bring
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
