#!/usr/bin/env bash
# Makes the Python environment `.venv` at the repository root, or reuses it.
#
#   bash launch/setup.sh [cpu|gpu] [test]
#
# Without `cpu` or `gpu` a new environment is for `gpu` where nvidia-smi finds a device, for `cpu` elsewhere; one that
# exists stays what it is. `test` adds what launch/test.sh needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$PWD/.venv
python=$venv/bin/python
log=$venv/install.log
stamp=$venv/installed # hash of pyproject.toml, then the extras; written last, so an interrupted install has none

say() { echo "setup: $*" >&2; }

device="" extra=""
for argument in "$@"; do
    case $argument in
        cpu | gpu) device=$argument ;;
        test) extra="test" ;;
        *) say "unknown argument '$argument'; usage: bash launch/setup.sh [cpu|gpu] [test]" && exit 2 ;;
    esac
done

exec 9<pyproject.toml
flock 9 # two installs into one environment spoil it

installed_hash="" installed=""
if [[ -f $stamp ]]; then read -r installed_hash installed <"$stamp" || true; fi
if [[ $installed == *,test ]]; then extra="test"; fi # a later run without `test` takes nothing away
device=${device:-${installed%,test}}
if [[ -z $device ]]; then
    devices=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
    if ((devices > 0)); then device=gpu; else device=cpu; fi
fi
extras=$device${extra:+,$extra}
hash=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [[ -x $python && "$installed_hash $installed" == "$hash $extras" ]]; then exit 0; fi

fits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'
if ! "$python" -m pip --version >/dev/null 2>&1 || ! "$python" -c "$fits" 2>/dev/null ||
    [[ -n $installed && ${installed%,test} != "$device" ]]; then # the CPU and the GPU build of vLLM share file names
    base=""
    for candidate in python3.12 python3.11 python3; do
        if "$candidate" -c "$fits" 2>/dev/null; then base=$candidate && break; fi
    done
    if [[ -z $base ]]; then
        say "no usable Python: visurf_ray needs Python 3.11 or 3.12 with venv and pip"
        say "install one (Debian, Ubuntu: apt-get install python3-venv python3-dev) and run this again"
        exit 1
    fi
    say "making .venv with $("$base" --version)"
    "$base" -m venv --clear "$venv"
fi
rm -f "$stamp"
if [[ $device == cpu ]] && ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
    say "vLLM's CPU build needs libnuma (Debian, Ubuntu: apt-get install libnuma1)"
    exit 1
fi

install() {
    "$python" -m pip install --upgrade pip
    local index=()
    if [[ $device == cpu ]]; then
        # vLLM's CPU build wants torch's, which PyPI does not have. A machine whose pip finds it needs no other index.
        local torch
        torch=$(sed -nE 's/.*"(torch==[0-9.]+)".*/\1+cpu/p' pyproject.toml)
        if ! "$python" -m pip install --dry-run --no-deps "$torch"; then
            index=(--extra-index-url https://download.pytorch.org/whl/cpu)
        fi
    fi
    # pip would compile one file after the other: half of the time.
    "$python" -m pip install --no-compile "${index[@]}" -e ".[$extras]"
    "$python" -m compileall -qq -j 0 "$venv/lib" || true # some packages hold templates that are no Python
    if [[ $device == cpu ]]; then
        # PyPI's builds of these are for CUDA: beside a CPU torch their import dies, and transformers and vLLM import them
        # wherever they are installed. vLLM lists them, and uses them for audio alone.
        local package
        for package in torchaudio torchcodec; do
            "$python" -c "import $package" || "$python" -m pip uninstall --yes "$package"
        done
    fi
}

say "installing visurf_ray[$extras] into .venv; the first time this takes some minutes (log: $log)"
start=$SECONDS
# A subshell of its own: `if install` would switch `set -e` off inside the function.
set +e
(set -e && install) >"$log" 2>&1
status=$?
set -e
if ((status != 0)); then
    say "the installation failed; the end of $log:"
    tail -n 20 "$log" >&2
    exit 1
fi
echo "$hash $extras" >"$stamp"
say "installed in $((SECONDS - start)) s"
