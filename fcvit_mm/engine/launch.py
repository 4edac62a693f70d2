"""torchrun that ends as its processes did: python -m fcvit_mm.engine.launch ARGUMENTS_OF_TORCHRUN.

torchrun itself buries what a process said under a traceback, with status 1, and opens the store by
which processes find each other, without authentication, to the whole network.
"""

import os
import socket
import sys
from ipaddress import ip_address
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous
from torch.distributed.run import main


def open_store(
    address: str, port: int, world_size: int, is_master: bool, *rest: Any, **options: Any
) -> TCPStore:
    """PyTorch's TCPStore, which for a loopback address listens there alone."""
    if is_master and ip_address(socket.gethostbyname(address)).is_loopback:
        try:
            options["master_listen_fd"] = socket.create_server((address, port)).detach()
        except OSError as error:
            print(f"error: port {port} can't be used ({error.strerror}); set PORT to another one",
                  file=sys.stderr)  # fmt: skip
            sys.exit(2)
        # Gloo otherwise listens where the name of this machine leads
        (loopback, *_) = (name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return TCPStore(address, port, world_size, is_master, *rest, **options)


if __name__ == "__main__":
    static_tcp_rendezvous.TCPStore = open_store  # type: ignore[assignment,misc]
    try:
        main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode != 2:
            raise
        sys.exit(2)
