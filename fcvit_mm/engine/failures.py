"""Say in one sentence what ended a training or a test from outside."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.dist import get_rank

from ..utils.errors import ConfigError, DeadWorkerError
from . import resume

# What the system says when nothing more can be written: no space, quota, largest file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn PyTorch's RuntimeError into a DeadWorkerError: which loader process died, of what."""
    try:
        yield
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
            "'Segmentation fault' mostly a damaged image or annotation: num_workers=0 and "
            "persistent_workers=False show where. Then --resume from the last checkpoint"
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
