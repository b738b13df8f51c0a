#!/usr/bin/env bash
# Runs all benchmarks of tests/benchmarks one after another and writes one page.
#
#   bash launch/bench.sh [--quick] [--device cuda]
#
# The page is outputs/benchmarks.md, or where BENCH_PAGE says. A benchmark that fails is named, and the rest still run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
python=$PWD/.venv/bin/python
"$python" -c 'import trl' 2>/dev/null || "$python" -m pip install --quiet -e ".[bench]"

page=${BENCH_PAGE:-outputs/benchmarks.md}
mkdir -p "$(dirname "$page")"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{
    echo "# Benchmarks"
    echo
    echo "\`bash launch/bench.sh${*:+ $*}\`, $(date -u +%Y-%m-%d), $(nproc) cores"
} >"$page"

status=0
for name in packing vision logprob learner memory step pipeline visurf_vs_rlvr weight_sync "weight_sync --transport gloo" \
    feed driver_scale vs_trl; do
    echo "bench: $name" >&2
    printf '\n## %s\n\n' "$name" >>"$page"
    # shellcheck disable=SC2086 # a name may have an argument
    if HF_HUB_OFFLINE=1 "$python" -m tests.benchmarks.$name "$@" 2>"$log" >"$log.out"; then
        # Without DeepSpeed's log lines, and the JSON line, which comes in a block of its own.
        sed -e '/^\[20/d' -e '$d' "$log.out" >>"$page"
        # shellcheck disable=SC2016 # Markdown's quotes
        printf '\n```json\n%s\n```\n' "$(tail -n 1 "$log.out")" >>"$page"
        tail -n 1 "$log.out"
    else
        status=1
        tail -n 20 "$log" >&2
        echo "It failed: $(tail -n 1 "$log")" >>"$page"
    fi
    rm -f "$log.out"
done
echo "bench: the page is $page" >&2
exit $status
