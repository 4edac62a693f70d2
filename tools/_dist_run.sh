#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: _dist_run.sh TOOL GPUS [arguments of the tool].
set -euo pipefail
tool=$1 gpus=$2
if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS must be a positive number of processes on this machine, not '$gpus'" >&2
    exit 2
fi
if ! [[ ${TIMEOUT:-600} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: TIMEOUT must be a positive number of seconds, not '$TIMEOUT'" >&2
    exit 2
fi
if [[ $3 != fcvit_mm::* && ! -e $3 ]]; then
    echo "error: $3: there is no such config; see configs/ for those there are" >&2
    exit 2
fi
# torchrun would print stack traces of C++ where machines do not find each other
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-FATAL}"
exec "${PYTHON:-python}" -m fcvit_mm.engine.launch \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --rdzv_conf="timeout=${TIMEOUT:-600}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/$tool" "${@:3}" --launcher pytorch
