#!/usr/bin/env bash
# Train on several GPUs, or in several processes where there is no GPU.
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: on each, with its own NODE_RANK,
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.1.1.1 PORT=29500 tools/dist_train.sh CONFIG 8
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/_dist_run.sh" train.py "$2" "$1" "${@:3}"
