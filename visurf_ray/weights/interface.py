"""The network interface of process groups. Imports nothing heavy: actors call it before they import PyTorch."""

import os

import psutil


def use_interface(address: str) -> None:
    """Have gloo listen on the interface that has this address, in this process and in those that it starts.

    Otherwise gloo listens on the address that the machine's name resolves to, which is often the loopback's: then no
    other machine reaches it. A GLOO_SOCKET_IFNAME that is set already, or an address that no interface has, as behind a
    translation of addresses, changes nothing.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if address in (found.address for found in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
