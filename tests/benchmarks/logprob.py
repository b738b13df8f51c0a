"""Log-probs and entropies from hidden states: computed in chunks, compared with full logits.

    python -m tests.benchmarks.logprob [--quick] [--device cuda]

2,048 tokens, Qwen2.5-VL's vocabulary of 151,936 entries, hidden size 256; forward and backward pass. Memory is what
each adds to the peak of a process of its own, including the gradients of both inputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.harness import added_memory, arguments, finish, interleaved, peak_memory, start, table
from visurf_ray.learner.logprob import logprob_and_entropy


def naive(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = (hidden @ weight.T).float().log_softmax(-1)
    return logprobs.gather(-1, target[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def make_runs(quick: bool, device: str) -> dict[str, Callable[[], None]]:
    tokens, vocabulary, width = (256, 20_000, 64) if quick else (2048, 151_936, 256)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device).requires_grad_()
    weight = torch.randn(vocabulary, width, device=device).mul_(0.02).requires_grad_()
    target = torch.randint(vocabulary, (tokens,), device=device)

    def run(function: Callable) -> Callable[[], None]:
        def step() -> None:
            hidden.grad = weight.grad = None
            logprob, entropy = function(hidden, weight, target)
            (logprob.sum() + 0.01 * entropy.sum()).backward()

        return step

    return {"chunked": run(logprob_and_entropy), "naive": run(naive)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--memory", choices=["chunked", "naive"], help="print the memory that this one adds, in MiB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = make_runs(options.quick, options.device)
    if options.memory:
        print(added_memory(runs[options.memory], options.device))
        return
    start(options)
    flags = ["--device", options.device, "--threads", str(options.threads)] + ["--quick"] * options.quick
    memory = {name: peak_memory("tests.benchmarks.logprob", name, flags) for name in runs}
    seconds = interleaved(runs, repeats=2 if options.quick else 3)
    table(["", "seconds", "MiB"], [[name, seconds[name], memory[name]] for name in runs])
    finish(
        {
            "memory_ratio": memory["chunked"] / memory["naive"],
            "time_ratio": seconds["chunked"] / seconds["naive"],
        }
    )


if __name__ == "__main__":
    main()
