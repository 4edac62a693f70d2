#!/usr/bin/env bash
# Test on several GPUs, or in several processes where there is no GPU.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
#   tools/dist_test.sh WORK_DIR GPUS [options of tools/test.py]
# Several machines: as tools/dist_train.sh.
set -euo pipefail
if [[ -d ${1:-} && ${2:-} =~ ^[0-9]+$ ]]; then
    exec "$(dirname "$0")/_dist_run.sh" test.py "$2" "$1" "${@:3}"
fi
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/_dist_run.sh" test.py "$3" "$1" "$2" "${@:4}"
