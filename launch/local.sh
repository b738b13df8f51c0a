#!/usr/bin/env bash
# Trains on this machine: creates the environment, starts Ray if none runs, submits the job and follows it to its end.
#
#   bash launch/local.sh                                   the embedded default
#   bash launch/local.sh method=rlvr train.steps=200       any Hydra override
#   bash launch/local.sh -m method=visurf,rlvr seed=1,2    a sweep: one run after the other
#   bash launch/local.sh output_dir=runs/a train.resume=auto
#   bash launch/local.sh --config-dir FOLDER task=mine     your own configuration files beside ours
#   bash launch/local.sh --cfg job                         print the configuration, run nothing
#
# Outputs go to ./outputs/<time> or to the output_dir that is given; those of a sweep to a folder below it for each run.
# Relative paths of the configuration (task.train, model.path, --config-dir, …) start from the folder here. Ctrl-C stops
# the job, then the Ray that this script started. A Ray that `ray start` started (or that RAY_ADDRESS names) is used and kept.
# shellcheck disable=SC2329 # finish runs when the script exits
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/job.sh
source "$root/launch/job.sh"

bash "$root/launch/setup.sh"
export PATH="$root/.venv/bin:$PATH"
python=$root/.venv/bin/python

for argument in "$@"; do
    case $argument in
        -c | --cfg* | -h | --help | --hydra-help | --version | -i | --info* | -sc | --shell-completion)
            exec python -m visurf_ray.train "$@" ;; # prints something and runs nothing
    esac
done

export RAY_AUTH_MODE=token
if [[ -z ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} && ! -s ~/.ray/auth_token ]]; then
    (umask 077 && ray get-auth-token --generate >/dev/null)
fi

output_dir=$(given_output_dir "$@")
output_dir=${output_dir:-outputs/$(date +%Y-%m-%d_%H-%M-%S)}
output_dir=$(realpath -ms -- "${output_dir/#\~\//$HOME/}")
job=visurf-$(date +%Y%m%d-%H%M%S)-$$

head=""     # process id of the Ray that this script starts
folder=""   # and its files
follower="" # process id of `ray job submit`
job_status=NONE

start_ray() {
    folder=$(mktemp -d /tmp/vsr.XXXXXX) # short: a Unix socket's path has 107 characters at most
    local gcs client dashboard agent
    # Free ports outside the ranges from which the kernel (32768 and above) and Ray's workers (10002-19999) take theirs.
    read -r gcs client dashboard agent < <(python -c '
import random, socket
free = []
for port in random.sample(range(20000, 32000), 200):
    with socket.socket() as probe:
        if len(free) < 4 and probe.connect_ex(("127.0.0.1", port)):
            free.append(port)
print(*free)')
    address=http://127.0.0.1:$dashboard
    say "starting Ray"
    # Ctrl-C must not reach Ray, because the job has to end before its cluster: setsid. If this script is killed, Ray ends
    # too: pdeathsig. Bash lets background processes ignore SIGINT, the signal that stops the job: --default-signal. Ray's
    # default ports would collide with another Ray on this machine. The variable has Ray listen on the loopback address
    # alone: no other machine is to join this cluster.
    env --default-signal=INT RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 setsid setpriv --pdeathsig TERM \
        ray start --head --block --disable-usage-stats --temp-dir "$folder" \
        --port "$gcs" --ray-client-server-port "$client" --dashboard-agent-listen-port "$agent" \
        --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" >"$folder/start.log" 2>&1 </dev/null &
    head=$!
    local deadline=$((SECONDS + 180))
    # The dashboard agent starts last, and jobs are refused before it runs.
    until listens 127.0.0.1 "$dashboard" && listens 127.0.0.1 "$agent"; do
        if ! kill -0 "$head" 2>/dev/null || ((SECONDS > deadline)); then
            say "Ray did not start; the end of its log:" >&2
            tail -n 20 "$folder/start.log" >&2
            exit 1
        fi
        sleep 0.2
    done
}

# Every living process of our Ray: those of its session, and those that left the session (workers, the job, vLLM's child
# processes), which have an open file or their working folder below Ray's folder.
ray_processes() {
    {
        cat /proc/[0-9]*/stat | awk -v session="$head" '{ pid = $1; sub(/.*\) /, "") } $1 != "Z" && $4 == session { print pid }'
        find /proc/[0-9]*/fd /proc/[0-9]*/cwd -maxdepth 1 -lname "$folder/*" | cut -d/ -f3
    } 2>/dev/null | sort -u || true # processes may end during the search
}

stop_ray() {
    say "stopping Ray"
    kill -TERM "$head" 2>/dev/null || true
    local pids fifths
    for ((fifths = 0; fifths < 150; fifths++)); do
        pids=$(ray_processes)
        if [[ -z $pids ]]; then break; fi
        # shellcheck disable=SC2086
        case $fifths in
            75) kill -TERM $pids 2>/dev/null || true ;;
            125) kill -KILL $pids 2>/dev/null || true ;;
        esac
        sleep 0.2
    done
}

finish() {
    local code=$?
    trap '' INT TERM HUP
    if [[ $job_status == RUNNING || $job_status == PENDING ]]; then
        say "stopping the job (it has $stop_seconds s)"
        # If the job is not submitted yet, end the submission as well.
        stop_job || { kill "$follower" 2>/dev/null && stop_job; } || true
        timeout 5 tail --pid "$follower" -f /dev/null || kill "$follower" 2>/dev/null || true # prints the end of the log
    fi
    if [[ -n $head ]]; then
        stop_ray
        if ((code == 0 || code > 128)); then rm -rf "$folder"; else say "Ray's logs are kept in $folder"; fi
    fi
    if [[ -d $output_dir ]]; then
        say "the run is in $output_dir"
        local folder name
        for folder in "$output_dir" "$output_dir"/*/; do # the run's, or those of a sweep's runs
            for name in config.yaml metrics.jsonl summary.json report.html export checkpoints; do
                if [[ -e $folder/$name ]]; then echo "  ${folder%/}/$name"; fi
            done
        done
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The job server of the Ray at $RAY_ADDRESS, whichever of Ray's kinds of address that is.
job_server() {
    timeout 60 python -c 'from ray.dashboard.utils import get_address_for_submission_client as f; print(f(None))'
}

running=$(cat /tmp/ray/ray_current_cluster 2>/dev/null || true) # where `ray start` writes its address
if [[ -n ${RAY_ADDRESS:-} ]]; then
    address=$(job_server)
    say "using the Ray at $address (RAY_ADDRESS)"
elif [[ -n $running ]] && listens "${running%:*}" "${running##*:}" && address=$(RAY_ADDRESS=$running job_server 2>/dev/null); then
    say "using the Ray that runs at $address"
else
    start_ray
fi

on_gpus=()
# Defaults of the miniature on GPUs. The command line overrides them, and an experiment brings its own.
if [[ $(<"$root/.venv/installed") == *" gpu"* && $* != *"+experiment="* ]]; then
    on_gpus=(rollout.gpus=1 rollout.dtype=bfloat16 rollout.memory=0.5 learner.gpus=1 learner.dtype=bfloat16)
    if (($(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true) == 1)); then on_gpus=(+experiment=one_gpu); fi
fi
say "submitting $job; Ctrl-C stops it"
runtime_env+=", \"py_executable\": \"$python\"" # a Ray that runs already may use another environment
run_job "$python" -m visurf_ray.train "${on_gpus[@]}" "$@" "$(quoted_override output_dir "$output_dir")"
exit "$job_code"
