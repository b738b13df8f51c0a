# shellcheck shell=bash
# Functions for one Ray job, from the upload of the code to its exit status. local.sh, submit.sh and slurm.sbatch source this
# file and set root (the repository), address (of the job server) and job (the submission id).
# shellcheck disable=SC2034,SC2154 # the files use each other's variables

# Upload the code and nothing else of the folder. The patterns have gitignore's syntax; a plain "/*" would also match the
# folder itself (".") and exclude everything.
excludes='["/[!.]*", "/.?*", "!/visurf_ray", "!/visurf_ray/**", "!/conf", "!/conf/**", "__pycache__"]'
# A stopped job has this long to save its last step (train.grace, 30 s) and to end its actors. Stop it by SIGINT: on SIGTERM,
# Ray's default, Abseil's signal handler in Ray's core ends the driver after 3 s.
stop_seconds=60
runtime_env="\"excludes\": $excludes"

export no_proxy="${no_proxy:+$no_proxy,}127.0.0.1,localhost"

say() { echo "${0##*/}: $*"; }

# How often a run that was killed is submitted again, and after how many seconds: meanwhile its actors end, within 15 s, and
# free the memory of their GPUs. If they take longer, the run waits for them itself, but only if it had begun to train.
resubmissions=${RESUBMISSIONS:-2}
settle_seconds=30
if [[ ! $resubmissions =~ ^[0-9]+$ ]]; then
    say "RESUBMISSIONS must be a whole number from 0 on, not '$resubmissions': how often a killed run is submitted again" >&2
    exit 2
fi
resubmissions=$((10#$resubmissions))

# listens HOST PORT: whether something accepts connections there.
listens() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# api PATH KEY…: prints the values of these keys of the job server's answer in one line. Fails without an answer.
api() {
    python3 - "$address$1" "${@:2}" <<'PY'
import json, os, pathlib, sys, urllib.request

url, *keys = sys.argv[1:]
file = pathlib.Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
token = os.environ.get("RAY_AUTH_TOKEN") or (file.read_text().strip() if file.exists() else "")
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
try:
    answer = json.load(urllib.request.urlopen(request, timeout=10))
except (OSError, ValueError) as error:
    sys.exit(f"{url}: {error}")
print(*(answer.get(key) for key in keys))
PY
}

# nodes: prints how many machines of the cluster are alive.
nodes() {
    { ray list nodes --address "$address" --filter state=ALIVE --format json 2>/dev/null || true; } |
        { grep -o '"node_id"' || true; } | wc -l
}

# given KEY ARGUMENT…: prints the value of the last KEY=…, without Hydra's quotes; nothing without one.
given() {
    local argument value=""
    for argument in "${@:2}"; do
        if [[ $argument =~ ^\+*"$1"=(.*)$ ]]; then value=${BASH_REMATCH[1]}; fi
    done
    if [[ $value =~ ^\'(.*)\'$ || $value =~ ^\"(.*)\"$ ]]; then value=${BASH_REMATCH[1]}; fi
    echo "$value"
}

given_output_dir() { given output_dir "$@"; }

# quoted_override KEY TEXT: prints an override that Hydra reads as exactly this text.
quoted_override() { echo "$1='${2//\'/\\\'}'"; }

# submit_job COMMAND…: uploads the code, submits the job in the background, and prints its log. The job runs in a copy of
# the code; the paths of its configuration are relative to the folder here (visurf_ray/config/places.py).
submit_job() {
    local folder
    folder=$(python3 -c 'import json, os; print(json.dumps(os.getcwd()))')
    local environment="$runtime_env, \"env_vars\": {\"RAY_JOB_STOP_SIGNAL\": \"SIGINT\", "
    environment+="\"RAY_JOB_STOP_WAIT_TIME_S\": \"$stop_seconds\", \"VISURF_RAY_FOLDER\": $folder}"
    unset RAY_ADDRESS RAY_API_SERVER_ADDRESS # these take precedence over --address
    # Leave out what Ray's command line prints of itself: hints, packaging, and after a failure the whole log again.
    exec 3> >(
        trap '' INT # print the log to its end after Ctrl-C
        exec sed -u -E -e '/ cli\.py:[0-9]+ -- Status message:/,$d' -e '/ cli\.py:[0-9]+ -- /d' \
            -e '/\s(INFO|WARNING) (sdk|dashboard_sdk|packaging|working_dir|job_manager)\.py:[0-9]+ -- /d'
    )
    printer=$!
    ray job submit --address "$address" --submission-id "$job" --working-dir "$root" \
        --runtime-env-json "{$environment}" -- "$@" >&3 2>&1 &
    follower=$!
    exec 3>&-
}

# run_job PYTHON -m MODULE ARGUMENT…: submits the job and waits for its end. A run whose program was killed, or whose machine
# was lost, is submitted again with train.resume=auto, $resubmissions times at most. One that has failed or was stopped is not.
# Nor is one that begins from a checkpoint that the command names: if it was killed before its own first one, it would begin
# without it. Nor is a sweep: train.resume=auto refuses those of its runs that are finished.
run_job() {
    local first=$job number command=("$@")
    for ((number = 0; ; number++)); do
        job_status=RUNNING
        submit_job "${command[@]}"
        await_job
        if [[ -z $job_killed ]] || ((number >= resubmissions)); then return; fi
        if names_checkpoint "$@" || is_sweep "${@:4}"; then return; fi
        job=$first-again-$((number + 1))
        command=("$@" train.resume=auto)
        say "submitting the run again as $job, from its newest checkpoint, if it has one" \
            "($((number + 1)) of $resubmissions times)" >&2
        sleep "$settle_seconds"
    done
}

# names_checkpoint ARGUMENT…: whether the run begins from a checkpoint that is given by its path.
names_checkpoint() { [[ ! $(given train.resume "$@") =~ ^(auto|null)?$ ]]; }

# is_sweep ARGUMENT…: whether the arguments start several runs. argparse also takes the beginning of --multirun.
is_sweep() {
    local argument
    for argument in "$@"; do
        if [[ $argument =~ ^(-m|--m.*|hydra\.mode=MULTIRUN)$ ]]; then return 0; fi
    done
    return 1
}

# Waits for the job's end. Sets job_status to Ray's status, job_code to the exit status, and job_killed if the program was
# killed (for want of memory, say), or its machine was lost.
await_job() {
    wait "$follower" || true
    wait "$printer" || true
    local told="" silent=0 error
    job_killed=""
    while true; do
        read -r job_status job_code error < <(api "/api/jobs/$job" status driver_exit_code error_type || echo UNKNOWN)
        # A busy machine may miss an answer: try again.
        if [[ $job_status == UNKNOWN ]] && ((++silent < 6)); then sleep 5 && continue; fi
        silent=0
        if [[ $job_status != RUNNING && $job_status != PENDING ]]; then break; fi
        if [[ -z $told ]]; then say "its log broke off; waiting for the job's end" && told=yes; fi
        sleep 5
    done
    if [[ $job_status == SUCCEEDED ]]; then job_code=0 && return; fi
    if [[ ! $job_code =~ ^-?[0-9]+$ || $job_code == 0 ]]; then job_code=1; fi # stopped, or Ray itself failed
    if ((job_code < 0)); then job_code=$((128 - job_code)); fi                # killed by a signal
    if [[ $job_status == FAILED ]] && { [[ $error == *SUPERVISOR_ACTOR_DIED ]] ||
        ((job_code > 128 && job_code <= 128 + 64 && job_code != 130 && job_code != 143)); }; then job_killed=yes; fi
    if [[ $job_status == UNKNOWN ]]; then say "Ray cannot tell what became of the job" >&2 && return; fi
    say "the job did not succeed: $job_status, exit status $job_code" >&2
}

# Stops the job, which has $stop_seconds s to end. Fails if it is not submitted yet.
stop_job() { timeout $((stop_seconds + 30)) ray job stop --address "$address" "$job" >/dev/null 2>&1; }
