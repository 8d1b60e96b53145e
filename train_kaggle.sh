#!/usr/bin/env bash
# Fine-tune Kronos on the competition "Predicting Stock Trends: Rise or Fall": tokenizer, then predictor. See --help.
# Everything about paths, devices and what is missing is asked of the project's own code (finetune_csv/launch.py), never read from the YAML here.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=$(printf '%q' "${BASH_SOURCE[0]}") # as it was called, ready to be pasted after `bash`
python=${PYTHON:-$(command -v python || command -v python3 || true)}
config=$root/configs/kaggle_config.yaml
dry_run=''
settings=()       # --set, for every program that reads the configuration
stages=()         # which stages, for both the check and the training
training=()       # flags that only the training knows
processes=()      # how many, and how they talk: asked of launch.py
child='' work='' stopped=''

usage() {
    cat <<HELP
usage: bash $program [options]

  --config FILE          configuration (default: configs/kaggle_config.yaml of this project)
  --multi-gpu [N]        as many processes, one per GPU (without N: all GPUs); where there is no GPU: N processes on the CPU
  --num-gpus N           the same
  --dist-backend NAME    gloo or nccl (default: nccl on GPUs, gloo elsewhere)
  --skip-tokenizer       train the predictor (base model) only
  --skip-basemodel       train the tokenizer only
  --skip-existing        leave out stages whose best model is there already
  --resume               go on from the last checkpoint
  --set KEY=VALUE ...    change keys of the configuration, e.g. --set training.batch_size=16 training.amp=bf16
  --dry-run              say how many windows, steps and hours it would be, measured on a few real steps; writes nothing
  --help                 this text

before:  python finetune_csv/kaggle_data_preprocess.py --train train.csv --test test.csv --out kaggle_data
after:   python finetune_csv/kaggle_inference.py --data kaggle_data --out predictions.csv
exit codes: 0 done; 2 something to mend in the input; 75 stopped (Ctrl-C, SIGTERM), everything saved, --resume goes on; else a fault
HELP
}

say() { printf '%s\n' "$*"; }

refuse() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

value_of() { # the value after flag $1, which is $2 if there is one ($3: how many arguments are left)
    [[ $3 -ge 2 && $2 != --* ]] || refuse "$1 needs a value; see $program --help"
    printf '%s' "$2"
}

parse() {
    while [[ $# -gt 0 ]]; do
        case $1 in
        --multi-gpu | --num-gpus)
            if [[ $# -ge 2 && $2 != --* ]]; then
                [[ $2 =~ ^[1-9][0-9]{0,3}$ ]] || refuse "$1 $2 is not a number of GPUs; give 1 or more"
                processes+=(--processes "$2")
                shift
            else
                [[ $1 == --multi-gpu ]] || refuse "$1 needs a number; see $program --help"
                processes+=(--processes all)
            fi
            ;;
        --dist-backend)
            backend=$(value_of "$1" "${2-}" $#)
            [[ $backend == gloo || $backend == nccl ]] || refuse "--dist-backend $backend is not known; choose gloo or nccl"
            processes+=(--dist-backend "$backend")
            shift
            ;;
        --config)
            config=$(value_of "$1" "${2-}" $#)
            shift
            ;;
        --set)
            [[ $# -ge 2 && $2 != --* ]] || refuse "--set needs KEY=VALUE, e.g. --set training.batch_size=16"
            while [[ $# -ge 2 && $2 != --* ]]; do
                settings+=(--set "$2")
                shift
            done
            ;;
        --skip-tokenizer | --skip-basemodel) stages+=("$1") ;;
        --skip-existing | --resume) training+=("$1") ;;
        --dry-run) dry_run=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) refuse "unknown flag $1; see $program --help" ;;
        esac
        shift
    done
    if [[ ! -e $config && $config != /* ]]; then # from another folder the project's own files are still found by the names in the guide
        for place in "$root/$config" "$root/configs/$config"; do
            if [[ -e $place ]]; then
                config=$place
                break
            fi
        done
    fi
}

check_environment() {
    [[ -n $python ]] || refuse "there is no python here; install Python 3.11 or later, or name one: PYTHON=/path/to/python bash $program"
    local missing
    missing=$("$python" -c '
import importlib.util, sys
if sys.version_info < (3, 11):
    print("Python 3.11 (this is %d.%d)" % sys.version_info[:2])
for name in ("torch", "pydantic", "kronos", "finetune_csv"):
    if importlib.util.find_spec(name) is None:
        print(name)
') || refuse "$python does not run; name another one: PYTHON=/path/to/python bash $program"
    [[ -z $missing ]] || refuse "$python lacks ${missing//$'\n'/, }; run: $python -m pip install -r $root/requirements.txt (in that folder)"
}

launch() { "$python" "$root/finetune_csv/launch.py" --config "$config" ${settings[@]+"${settings[@]}"} "$@"; }

# What launch.py says about this run: how many processes, where logs and models go. Each line is KEY=VALUE; a key may come again.
read_plan() {
    local plan line
    plan=$(launch ${stages[@]+"${stages[@]}"} ${processes[@]+"${processes[@]}"})
    count=1 logs='' statuses=() torchrun=() outcome=()
    while IFS= read -r line; do
        case $line in
        processes=*) count=${line#*=} ;;
        logs=*) logs=${line#*=} ;;
        status=*) statuses+=(--status "${line#*=}") ;;
        torchrun=*) torchrun+=("${line#*=}") ;;
        set=*) settings+=(--set "${line#*=}") ;;
        done=*) outcome+=("${line#*=}") ;;
        say=*) say "${line#*=}" ;;
        esac
    done <<<"$plan"
}

# shellcheck disable=SC2317,SC2329  # by a trap
stop() { # pass a signal on to the training, which saves and ends
    stopped=$1
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

# shellcheck disable=SC2317,SC2329  # by a trap
clean_up() { [[ -z $work ]] || rm -rf "$work"; }

train() { # runs the command given with its output on the screen and in $log; the result is its true exit code
    work=$(mktemp -d)
    trap clean_up EXIT
    mkfifo "$work/output"
    : >"$work/began"
    set -m # groups of their own: Ctrl-C reaches this script alone, which passes it on once
    tee -i "$log" <"$work/output" &
    local writer=$! status=0 code=0
    trap 'stop INT' INT
    trap 'stop TERM' TERM
    trap 'stop HUP' HUP
    "$@" >"$work/output" 2>&1 </dev/null &
    child=$!
    [[ -z $stopped ]] || stop "$stopped" # it came before there was anyone to pass it to
    while :; do
        stopped=''
        status=0
        wait "$child" || status=$?
        [[ $status -eq 127 ]] || code=$status # 127: it was waited for already, and a signal came in between
        [[ -n $stopped && $status -ne 127 ]] || break
    done
    child=''
    wait "$writer" || true
    if [[ $code -ne 0 && $count -gt 1 ]]; then # torchrun says 1 whatever happened to its workers
        code=$("$python" "$root/finetune_csv/launch.py" --ended "$code" --since "$work/began" --log "$log" ${statuses[@]+"${statuses[@]}"})
    fi
    return "$code"
}

report() { # what exit code $1 means, and what to do
    case $1 in
    0)
        say ''
        printf '%s\n' "${outcome[@]}"
        ;;
    75) say "stopped; everything is saved (exit code 75). Go on with: bash $program --resume and the same flags. Log: $log" >&2 ;;
    2) say "the input needs mending: see the message above (exit code 2). Log: $log" >&2 ;;
    *) say "training failed: exit code $1. To go on from the last checkpoint: bash $program --resume and the same flags. Log: $log" >&2 ;;
    esac
}

main() {
    parse "$@"
    check_environment
    if [[ -n $dry_run ]]; then
        launch ${stages[@]+"${stages[@]}"} ${processes[@]+"${processes[@]}"} ${training[@]+"${training[@]}"} --dry-run
        exit 0
    fi
    read_plan
    mkdir -p "$logs" 2>/dev/null || refuse "cannot make the folder $logs; choose another model_paths.base_path"
    log=$logs/train_$(date +%Y%m%d_%H%M%S).log
    local command=("$python")
    if [[ $count -gt 1 ]]; then
        command+=(-m torch.distributed.run --standalone "--nproc_per_node=$count" ${torchrun[@]+"${torchrun[@]}"})
    fi
    command+=("$root/train_sequential.py" --config "$config" ${settings[@]+"${settings[@]}"} ${stages[@]+"${stages[@]}"} ${training[@]+"${training[@]}"})
    say "log: $log"
    local code=0
    train "${command[@]}" || code=$?
    report "$code"
    exit "$code"
}

main "$@"
