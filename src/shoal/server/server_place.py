"""The key and the port that a server keeps from one start to the next, so that its ticket stays good.

::

    $SHOAL_HOME/servers/WHAT-HASH/N/    default ~/.local/state/shoal/servers/…
        node.key                        its identity, unless it has another
        port                            where it listened last
        lock                            held while it runs

One folder for each model and choice of blocks on this machine; servers of the same that run at once have numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from pathlib import Path
from types import TracebackType

import msgspec
from filelock import FileLock, Timeout

from shoal.errors import UsageError
from shoal.files import replace_file
from shoal.server.serve_options import ServeOptions
from shoal.swarm.identity import Identity
from shoal.transport.address import host_port, join_host_port
from shoal.types import PeerId

MAX_AT_ONCE = 64
"""Servers of one model and choice of blocks that run on one machine."""

SHOWN_CHARACTERS = 32


class ServerPlace:
    """What one server keeps, held while it runs. Use with `with`; raises UsageError where nothing can be kept.

    A server with a key of its own (`identity`, or a private swarm's) has one place: it cannot run twice at once, since
    others would take the two for one.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._lock: FileLock | None = None
        self.path = Path()

    @property
    def _own_key(self) -> bool:
        return self._options.identity is not None or self._options.private is not None

    @property
    def options(self) -> ServeOptions:
        """The server's options with the key and the port that were kept."""
        options = self._options
        host, port = host_port(options.listen)
        if port == 0:
            port = self._port(host)
        identity = options.identity if self._own_key else self.path / "node.key"
        return msgspec.structs.replace(options, listen=join_host_port(host, port), identity=identity)

    def _port(self, host: str) -> int:
        """The last one, if it is free; else 0."""
        with contextlib.suppress(OSError, ValueError, UnicodeError):
            port = int((self.path / "port").read_text("ascii"))
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
            return port
        return 0

    def keep_port(self, addresses: tuple[str, ...]) -> None:
        """Note where the server listens now."""
        with contextlib.suppress(UsageError, OSError):
            port = next((host_port(one, "tls")[1] for one in addresses if one.startswith("tls://")), 0)
            replace_file(self.path / "port", str(port).encode())

    def __enter__(self) -> ServerPlace:
        folder = _folder(self._options)
        for number in range(1 if self._own_key else MAX_AT_ONCE):
            self.path = folder / str(number)
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = FileLock(self.path / "lock", timeout=0, mode=0o600)
                lock.acquire()
            except Timeout:
                continue
            except OSError as error:
                raise UsageError(
                    f"nothing can be kept in {self.path}: {error.strerror} (--temporary keeps nothing)"
                ) from error
            self._lock = lock
            return self
        if self._own_key:
            raise UsageError("a server with this key runs on this machine already: one key is one server")
        raise UsageError(f"{MAX_AT_ONCE} servers of this model run on this machine already")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()


def kept_key(peer: PeerId) -> Path | None:
    """The key file of a server of this machine by its node id, where it was started without one of its own."""
    for path in sorted((state_home() / "servers").glob("*/*/node.key")):
        with contextlib.suppress(UsageError):
            if Identity.load(path).peer == peer:
                return path
    return None


def state_home() -> Path:
    """$SHOAL_HOME, or the folder for what the user's programs keep from run to run."""
    if home := os.environ.get("SHOAL_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "shoal"


def _folder(options: ServeOptions) -> Path:
    """Of this model and choice of blocks, or of this key."""
    model = Path(options.model).expanduser()
    where = str(model.resolve()) if model.exists() else options.model
    span = str(options.blocks or options.num_blocks or "any")
    what = [where, span]
    if options.identity is not None:
        what = ["identity", str(options.identity.expanduser().resolve())]
    elif options.private is not None:
        what = ["swarm", options.private.name or options.private.invite]
    digest = hashlib.sha256("\0".join(what).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(what[0] if options.identity is None else what[1]).name)
    return state_home() / "servers" / f"{readable[:SHOWN_CHARACTERS]}-{digest}"
