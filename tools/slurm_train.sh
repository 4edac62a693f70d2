#!/usr/bin/env bash
# Train on a Slurm cluster.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/_slurm_run.sh" train.py "$@"
