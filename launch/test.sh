#!/usr/bin/env bash
# Lint, types, import contracts and tests, in this order; stops at the first that fails.
#
#   bash launch/test.sh                     everything but the tests marked slow
#   bash launch/test.sh tests/unit -k pack  any pytest arguments; `-m slow` for the slow ones
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh test
export PATH="$PWD/.venv/bin:$PATH"
# Nothing here may wait for the network.
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 WANDB_MODE=offline

step() {
    local name=$1 start=$SECONDS
    shift
    echo "== $name"
    if ! "$@"; then
        echo "test.sh: $name failed after $((SECONDS - start)) s" >&2
        exit 1
    fi
    # pytest's closing line tells its time, and stays the last one.
    if [[ $name != pytest ]]; then echo "   $((SECONDS - start)) s"; fi
}

step "ruff check" ruff check
step "ruff format" ruff format --check
step mypy mypy --num-workers "$(nproc)" visurf_ray tests/benchmarks
step "import contracts" lint-imports
if (($#)); then
    step pytest pytest -m "not slow" "$@"
else
    step "unit tests" pytest -m "not slow" --numprocesses "$(nproc)" --dist loadgroup tests/unit
    # Two processes, whatever the number of cores: more would take too much memory. See tests/integration/conftest.py.
    step pytest pytest -m "not slow" --numprocesses 2 --dist loadgroup tests/integration
fi
