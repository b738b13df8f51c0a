"""Makes torchvision importable beside a CPU build of PyTorch.

PyPI's torchvision is built for CUDA. Beside a CPU build of PyTorch its compiled library does not load, and `import
torchvision` fails with "operator torchvision::nms does not exist", because Python code registers fake kernels for
operators that were never declared. transformers' image processors and vLLM import torchvision in several child
processes, and all of them need the declarations. PyTorch loads every entry point of the group `torch.backends` at the
end of `import torch` (https://docs.pytorch.org/tutorials/unstable/python_extension_autoload.html):
`declare_operators` is one.

The module imports nothing but torch, which is loaded by then. Calling `nms` still fails; this project does not need it.
"""

import importlib.util
from pathlib import Path

_libraries: list[object] = []  # keeps references: a torch.library.Library withdraws its definitions when it is freed


def declare_operators() -> None:
    """Declare the schemas of `torchvision::nms` and `qnms`, unless torchvision's own library can be loaded."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return
    for shared_object in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(shared_object))
            return
        except OSError:  # linked against CUDA libraries that a CPU build of PyTorch does not have
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
