"""torchrun that ends as its processes did: `python -m fcvit_mm.launch` takes torchrun's arguments.

torchrun itself ends with a traceback and status 1 whatever the processes said, which would bury the
sentence of a tool that was given a wrong path.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode != 2:
            raise
        sys.exit(2)
