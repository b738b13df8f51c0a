#!/usr/bin/env bash
# Submits a training job to a Ray cluster elsewhere and follows it. This machine needs only the `ray` command.
#
#   bash launch/submit.sh http://HEAD:8265 output_dir=/shared/runs/a [any Hydra override…]
#
# The cluster's machines need visurf_ray's environment (docker/Dockerfile), whose `python` runs the job. output_dir and every
# other path must be on storage that all of them can read; relative paths start from the folder here. Ctrl-C stops following
# the job, not the job.
# WANDB_API_KEY and HF_TOKEN must be set on the cluster's machines; the job does not bring them along.
# If the cluster has token authentication, give the token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in
# ~/.ray/auth_token.
# NODES=2 in front of the command waits, ten minutes at most, until two machines belong to the cluster.
# A sweep (-m) and the folder of --config-dir work as with local.sh; the folder must be on the shared storage.
# shellcheck disable=SC2329 # leave runs as a trap
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/job.sh
source "$root/launch/job.sh"

usage() {
    echo "submit.sh: $1" >&2
    echo "usage: bash launch/submit.sh http://HEAD:8265 output_dir=/storage/that/the/cluster/shares [overrides…]" >&2
    exit 2
}
if [[ ! ${1:-} =~ ^https?:// ]]; then usage "the first argument is the address of the cluster's job server"; fi
address=${1%/}
shift
output_dir=$(given_output_dir "$@")
if [[ -z $output_dir ]]; then usage "give an output_dir, on storage that the whole cluster sees"; fi

if [[ -x $root/.venv/bin/ray ]]; then PATH="$root/.venv/bin:$PATH"; fi
if ! command -v ray >/dev/null; then
    ray=$(sed -nE 's/.*"(ray\[default\]==[0-9.]+)".*/\1/p' "$root/pyproject.toml")
    echo "submit.sh: there is no 'ray' command: pip install '$ray', or bash launch/setup.sh" >&2
    exit 1
fi
if [[ -n ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} || -s ~/.ray/auth_token ]]; then export RAY_AUTH_MODE=token; fi

job=visurf-$(date +%Y%m%d-%H%M%S)-$$
if ! api /api/version ray_version >/dev/null; then
    say "no job server answers there: is the address right, is it reachable, is the token the cluster's?" >&2
    exit 1
fi

deadline=$((SECONDS + 600))
until [[ -z ${NODES:-} || $(nodes) -ge ${NODES:-} ]]; do
    if ((SECONDS > deadline)); then say "the cluster has $(nodes) machines, not NODES=$NODES" >&2 && exit 1; fi
    sleep 2
done

leave() {
    trap '' INT TERM HUP
    kill "$follower" 2>/dev/null || true
    if api "/api/jobs/$job" status >/dev/null 2>&1; then
        say "$job goes on. To follow it again, or to stop it:"
        echo "  RAY_AUTH_MODE=${RAY_AUTH_MODE:-} ray job logs --follow --address $address $job"
        echo "  RAY_AUTH_MODE=${RAY_AUTH_MODE:-} ray job stop --address $address $job"
    else
        say "left before $job was submitted"
    fi
    exit "$1"
}
say "submitting $job to $address; Ctrl-C leaves it running"
follower=""
trap 'leave 130' INT
trap 'leave 143' TERM HUP
run_job python -m visurf_ray.train "$@"
if ((job_code == 0)); then say "the run is in $output_dir"; fi
exit "$job_code"
