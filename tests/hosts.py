"""Hosts with networks of their own on one machine: network namespaces of Linux, each with a cable
to a switch.

A host has an address, a loopback and nothing else; the files are those of the machine, as on a
cluster with a shared file system. Needs root and iproute2.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

FILES = Path("/etc/netns")  # `ip netns exec` puts the files of /etc/netns/NAME over those of /etc
SWITCH = "switch"


def ip(*words):
    """Run iproute2; what it printed."""
    command = ["ip", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Network:
    """Hosts by name with their addresses; use as a context manager, it removes everything at the end."""

    def __init__(self, **addresses):
        self.addresses = addresses
        self.spaces = {name: f"nercrf-{os.getpid()}-{name}" for name in (SWITCH, *addresses)}

    def __enter__(self):
        try:
            ip("netns", "add", self.spaces[SWITCH])
        except (FileNotFoundError, AssertionError) as error:
            pytest.skip(f"cannot make network namespaces here (needs root and iproute2): {error}")
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self):
        switch = self.spaces[SWITCH]
        ip("-n", switch, "link", "add", "bridge", "type", "bridge", "forward_delay", 0)
        ip("-n", switch, "link", "set", "dev", "bridge", "up")
        for name, address in self.addresses.items():
            space = self.spaces[name]
            ip("netns", "add", space)
            self._write_names(FILES / space)
            ip(
                "link",
                "add",
                "eth0",
                "netns",
                space,
                "type",
                "veth",
                "peer",
                "name",
                name,
                "netns",
                switch,
            )
            ip("-n", switch, "link", "set", "dev", name, "master", "bridge", "up")
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "dev", "eth0", "up")
            ip("-n", space, "link", "set", "dev", "lo", "up")

    def _write_names(self, folder):
        """All names are known and no server is asked, which would cost half a minute each time."""
        folder.mkdir(parents=True)
        lines = [f"{address} {name}\n" for name, address in self.addresses.items()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        (folder / "resolv.conf").write_text("")

    def __exit__(self, *_):
        for space in self.spaces.values():
            with suppress(AssertionError):  # it was never made
                for number in ip("netns", "pids", space).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(number), signal.SIGKILL)
                ip("netns", "delete", space)
            shutil.rmtree(FILES / space, ignore_errors=True)
        with suppress(OSError):  # others are there, too
            FILES.rmdir()

    def run_on(self, name):
        """What to put before a command so that it runs on a host."""
        return ["ip", "netns", "exec", self.spaces[name]]

    def cut(self, name):
        """Pull the host's cable out of the switch: what is sent is lost, and nobody is told."""
        ip("-n", self.spaces[SWITCH], "link", "set", "dev", name, "down")

    def plug_in(self, name):
        """Put the cable back."""
        ip("-n", self.spaces[SWITCH], "link", "set", "dev", name, "up")

    def set_kernel(self, name, setting):
        """Change a setting of the host's network, `name=value`."""
        subprocess.run([*self.run_on(name), "sysctl", "-qw", setting], check=True)
