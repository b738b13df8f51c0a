"""The network interface of process groups. Imports nothing heavy: actors call it before they import PyTorch."""

import ipaddress
import os

import psutil


def use_interface(address: str) -> None:
    """Have gloo listen on the interface that has this address, in this process and in those that it starts.

    Otherwise gloo listens on the address that the machine's name resolves to, which is often the loopback's: then no
    other machine reaches it. An address that no interface has, as behind a translation of addresses, changes nothing.

    If it is the loopback's, all of the run is on this machine, and NCCL and vLLM listen there too. By themselves they
    take another interface if there is one (NCCL's user guide on NCCL_SOCKET_IFNAME; `get_ip` in vLLM). NCCL takes the
    name after `=` as a whole, not as a prefix.

    Variables that are set already stay as they are.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if address in (found.address for found in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            if ipaddress.ip_address(address).is_loopback:
                os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
                os.environ.setdefault("VLLM_HOST_IP", address)
