"""Say in one sentence what ended a training or a test from outside."""

import errno
import os
import re
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.dist import get_dist_info, get_rank, is_distributed
from torch.distributed.distributed_c10d import _get_default_store

from ..utils.errors import ConfigError, DeadWorkerError, SampleError, first_line
from . import resume

# What the system says when nothing more can be written: no space, quota, largest file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Seconds in which all processes notice that one is missing.
GRACE = 10


@contextmanager
def naming_sample() -> Iterator[None]:
    """Turn what OpenMMLab's loading transforms raise into a SampleError: which file, and why."""
    try:
        yield
    except Exception as error:  # decoders raise errors of many classes
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        loading = [frame for frame in frames if frame.f_code.co_filename.endswith("loading.py")]
        sample = loading[0].f_locals.get("results") if loading else None
        if not isinstance(sample, dict) or "img_path" not in sample:
            raise
        what = sample["img_path"]
        if "img" in sample:  # what fails comes after the image
            what = sample.get("seg_map_path") or f"the annotation of {what}"
        raise SampleError(
            f"{what} can't be loaded ({first_line(error)}); replace it. fcvit check_data --decode "
            "lists all such files. Then --resume from the last checkpoint"
        ) from error


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn PyTorch's RuntimeError into a DeadWorkerError: which loader process died, of what.

    And a loader process's SampleError into the bare sentence, where PyTorch adds its traceback.
    """
    try:
        yield
    except SampleError as error:
        raise SampleError(str(error).rpartition("SampleError: ")[2].strip()) from error
    except RuntimeError as error:
        # the signal is in the error before the last
        said = [str(one) for one in (error.__cause__, error) if "DataLoader worker (" in str(one)]
        if not said:
            raise
        which, _, how = said[0].partition("is killed by signal: ")
        (pid,) = re.findall(r"\(pid\S* ([\d, ]+)\)", which)
        how = f"was killed by the signal '{how.split('.')[0]}'" if how else "ended by itself"
        raise DeadWorkerError(
            f"the process {pid}, a DataLoader worker of rank {get_rank()}, {how}. 'Killed' mostly "
            "means that memory ran out (see dmesg): set fewer workers, such as --cfg-options "
            "train_dataloader.num_workers=1, or smaller batches; 'Bus error' that /dev/shm is "
            "full: enlarge it, with Docker by --shm-size; "
            "'Segmentation fault' mostly a damaged image or annotation: fcvit check_data --decode "
            "names most, num_workers=0 and persistent_workers=False show where. Then --resume from "
            "the last checkpoint"
        ) from error


@contextmanager
def naming_full_disk(cfg: Config) -> Iterator[None]:
    """Turn the OSError of a full disk into a ConfigError: which file, which checkpoint is whole."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        whole = resume.checkpoints(cfg)
        kept = f"{whole[0]} is whole" if whole else "there is no earlier checkpoint"
        raise ConfigError(
            f"{error.filename or f'the log in {cfg.work_dir}'} can't be written: {error.strerror}; "
            f"{kept}. Make room, then go on with --resume"
        ) from error


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turn Gloo's RuntimeError into a DeadWorkerError: which process the others wait for.

    Gloo names an address. So those that have waited in vain sign in the store by which all found
    each other; who doesn't is meant, and the first that did says so.
    """
    if not is_distributed():
        yield
        return
    rank, processes = get_dist_info()
    store = _get_default_store()
    store.set(f"process/{rank}", f"rank {rank}, process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        store.set(f"waited/{rank}", "")
        time.sleep(GRACE)
        waited = [one for one in range(processes) if store.check([f"waited/{one}"])]
        lost = [one for one in range(processes) if one not in waited]
        if not lost:
            raise
        if rank != waited[0]:
            time.sleep(GRACE)  # torchrun ends all with the first: let that be the one that says
        names = "; ".join(store.get(f"process/{one}").decode() for one in lost)
        raise DeadWorkerError(
            f"the other processes have waited in vain for: {names}. It hangs or has ended; see its "
            "output, or py-spy dump --pid. Then --resume from the last checkpoint. How many "
            "seconds they wait is set by --cfg-options env_cfg.dist_cfg.timeout=600"
        ) from error
