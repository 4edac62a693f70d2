#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share: _slurm_run.sh TOOL PARTITION JOB_NAME [arguments].
set -euo pipefail
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -ge "$per_node" ] || per_node=$gpus
# SRUN_ARGS holds several arguments, hence no quotes.
# shellcheck disable=SC2086
exec srun -p "$2" \
    --job-name="$3" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/$1" "${@:4}" --launcher slurm
