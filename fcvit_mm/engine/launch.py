"""Start a tool in several processes, by torchrun: python -m fcvit_mm.engine.launch ARGUMENTS.

The arguments are torchrun's. What the tool would refuse, it refuses here, before any process is
started; and where torchrun buries under a traceback what a process said, this ends as the process
did.
"""

import logging
import os
import runpy
import sys
from collections.abc import Sequence

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from ..checkpoint.mmengine_backends import ALREADY_READ
from ..utils.cli import run_tool
from ..utils.errors import ConfigError, first_line

# Statuses of a process that has said why it ends: bad input, Ctrl-C, SIGTERM.
SAID = (2, 130, 143)


def check_gpus(processes: int) -> None:
    """Refuse more processes than there are GPUs, or CPU processes that nobody insists on."""
    gpus = torch.cuda.device_count()
    if processes <= max(gpus, 1) or (not gpus and os.environ.get("ON_CPU") == "1"):
        return
    if gpus:
        raise ConfigError(f"GPUS={processes}, and this machine has {gpus}")
    raise ConfigError(
        f"PyTorch finds no GPU here; {processes} processes would share the CPUs. Use fcvit train "
        "or fcvit test, or insist with ON_CPU=1 in front of the command"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check what the tool needs, once, then run it in all processes."""
    args = parse_args(argv)
    check_gpus(int(args.nproc_per_node))
    runpy.run_path(args.training_script)["main"]([*args.training_script_args, "--check"])
    ALREADY_READ.clear()  # this process needs no checkpoint
    args.training_script_args.append("--checked")
    # what a process said shall be the last line
    logging.disable()
    if os.environ.get("TORCH_CPP_LOG_LEVEL") == "FATAL":
        del os.environ["TORCH_CPP_LOG_LEVEL"]  # tools/_dist_run.sh means this process alone
    try:
        run(args)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode not in SAID:
            raise
        sys.exit(failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except DistError as error:
        if "EADDRINUSE" in str(error):
            raise ConfigError(f"port {args.master_port} is in use; set PORT to another") from error
        raise ConfigError(
            f"the {args.nnodes} machines did not find each other at {args.master_addr}, port "
            f"{args.master_port}: {first_line(error).rstrip('.')}. On each, start the same command "
            "with its own NODE_RANK; PORT is another port, TIMEOUT the seconds to wait"
        ) from error


if __name__ == "__main__":
    sys.exit(run_tool(main))
