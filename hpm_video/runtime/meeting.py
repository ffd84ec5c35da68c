"""Authenticated rendezvous: rank 0 listens, the others connect, and both sides prove that they know
the job's secret. Only then does rank 0 tell the port of the job's store.

Anybody on the network may connect, and on a shared node anybody may listen. Peers without the
secret learn nothing and are disconnected after a few seconds.
"""

import asyncio
import hmac
import random
import secrets
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from hpm_video.runtime.job_secret import VARIABLE, secret_file
from hpm_video.runtime.rendezvous import LOOPBACK, CommunicationError, Place

# Below the range for outgoing connections, where few services listen. The first free port of these
# is used.
_PORTS = range(20000, 32000)
_NUM_PORTS = 16
_GREETING = b"hpm-video 2"
_PATIENCE_S = 5.0  # time limit for a peer to prove that it knows the secret
_PAUSE_S = 0.2  # before a port is tried again
_MOST_GUESTS = 256  # unauthenticated peers; beyond that the oldest is disconnected
_MOST_BYTES = 1000  # per line

# Errors that strangers and dead processes cause
_FAILURES = (OSError, EOFError, ValueError, asyncio.TimeoutError)


def meet(place: Place, secret: str, *, timeout_s: float, limit: str) -> Store:
    """The store through which the ranks of a job exchange addresses; rank 0 serves it.

    The other ranks look for rank 0 at ports derived from the secret and from the name of this start
    of the job, which no other job or earlier start shares. ``limit``: the user's name for
    ``timeout_s``. Raises CommunicationError.
    """
    key = _mac(secret.encode(), "job", place.name)
    timeout = timedelta(seconds=timeout_s)
    if place.rank == 0:
        store = asyncio.run(_gather(place, key, timeout, limit))
    else:
        address, port = asyncio.run(_join(place, key, timeout_s, limit))
        store = TCPStore(address, port, timeout=timeout)
    # A stranger who finds the store's port must still guess its keys
    return PrefixStore(_mac(key, "store").decode(), store)


def _mac(key: bytes, *words: object) -> bytes:
    """A MAC that proves knowledge of the key and covers the words (without line breaks)."""
    return hmac.new(key, "\n".join(map(str, words)).encode(), "sha256").hexdigest().encode()


def _check(found: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(found, expected):
        raise ValueError("the other side does not know the secret")


def _ports(key: bytes) -> list[int]:
    return random.Random(_mac(key, "ports")).sample(_PORTS, _NUM_PORTS)


@contextmanager
def _patience(writer: StreamWriter) -> Iterator[None]:
    """Disconnect a peer that takes too long. (`asyncio.wait_for` may lose a cancellation up to
    Python 3.11.)"""
    timer = asyncio.get_running_loop().call_later(_PATIENCE_S, writer.transport.abort)
    try:
        yield
    finally:
        timer.cancel()


# ---------------------------------------------------------------- rank 0


class _Guests:
    """Peers connected to rank 0, and the ranks identified among them."""

    def __init__(self, place: Place, key: bytes) -> None:
        self._size, self._key = place.size, key
        self._unknown: dict[StreamWriter, None] = {}  # oldest first
        self.ranks: dict[int, tuple[StreamWriter, list[object]]] = {}
        self.are_complete = asyncio.Event()

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(1, self._size) if rank not in self.ranks]

    async def welcome(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve a peer until it disconnects."""
        if len(self._unknown) >= _MOST_GUESTS:  # the oldest is a stranger: ours need milliseconds
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            oldest.transport.abort()
        self._unknown[writer] = None
        with suppress(*_FAILURES, asyncio.CancelledError):
            try:
                with _patience(writer):
                    rank, words = await self._examine(reader, writer)
            finally:
                self._unknown.pop(writer, None)
            self.ranks[rank] = writer, words
            if not self.missing:
                self.are_complete.set()
            with suppress(*_FAILURES):
                await reader.read(1)  # returns when it disconnects; it may connect again
            if self.ranks.get(rank, (None,))[0] is writer and not self.are_complete.is_set():
                del self.ranks[rank]
        if not self.are_complete.is_set():
            writer.transport.abort()

    async def _examine(
        self, reader: StreamReader, writer: StreamWriter
    ) -> tuple[int, list[object]]:
        """The rank of a peer, and a nonce from both sides."""
        ours = secrets.token_hex(32)
        writer.write(_GREETING + f" {ours}\n".encode())
        number, theirs, mac = (await reader.readline()).split()
        rank = int(number)
        # Includes the port, so that a stranger at another port cannot relay the exchange
        words = [writer.get_extra_info("sockname")[1], rank, ours, theirs.decode()]
        _check(mac, _mac(self._key, "follower", *words))
        if not 0 < rank < self._size:
            raise ValueError("no rank of this job")
        writer.write(_mac(self._key, "leader", *words) + b"\n")
        return rank, words


async def _gather(place: Place, key: bytes, timeout: timedelta, limit: str) -> Store:
    """Wait for all other ranks and tell them the address of the store that this process serves."""
    guests = _Guests(place, key)
    backlog = place.size + _MOST_GUESTS
    server = await asyncio.start_server(
        guests.welcome, sock=_listen(place, _ports(key)), backlog=backlog, limit=_MOST_BYTES
    )
    try:
        await asyncio.wait_for(guests.are_complete.wait(), timeout.total_seconds())
    except asyncio.TimeoutError as error:
        ranks = ", ".join(map(str, guests.missing))
        raise CommunicationError(
            f"rank 0 on {socket.gethostname()} was not reached within {limit} by rank {ranks}: "
            f"see the logs of these ranks{_same_secret()}"
        ) from error
    finally:
        server.close()
    # Listen only on the address at which the others reached this process
    own = {rank: _own_address(writer) for rank, (writer, _) in guests.ranks.items()}
    reached = {address for address in own.values() if not address.startswith("127.")}
    here = LOOPBACK if not reached else reached.pop() if len(reached) == 1 else ""
    opened = socket.create_server((here, 0), backlog=backlog)
    port = opened.getsockname()[1]
    store = TCPStore(
        here or LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=opened.detach(),
    )
    for rank, (writer, words) in guests.ranks.items():
        told = f"{here or own[rank]} {port}"
        writer.write(told.encode() + b" " + _mac(key, "store is at", *words, told) + b"\n")
        writer.close()  # the message is small enough to be sent at once
    return store


def _listen(place: Place, ports: Iterable[int]) -> socket.socket:
    here = LOOPBACK if place.host == LOOPBACK else ""  # any address: unknown which one is reachable
    for port in ports:
        with suppress(OSError):  # the port is taken
            return socket.create_server((here, port))
    raise CommunicationError(f"none of the ports {sorted(ports)} is free on {place.host}")


def _own_address(writer: StreamWriter) -> str:
    address: str = writer.get_extra_info("sockname")[0]
    return address


# ---------------------------------------------------------------- the other ranks


async def _join(place: Place, key: bytes, timeout_s: float, limit: str) -> tuple[str, int]:
    """Address and port of the store, from rank 0."""
    try:
        return await asyncio.wait_for(_search(place, key), timeout_s)
    except asyncio.TimeoutError as error:
        raise CommunicationError(
            f"rank {place.rank} on {socket.gethostname()} did not reach rank 0 on {place.host} "
            f"within {limit}: see the log of rank 0{_same_secret()}"
        ) from error


async def _search(place: Place, key: bytes) -> tuple[str, int]:
    while not (addresses := await _addresses(place)):
        await asyncio.sleep(_PAUSE_S)
    # Ask all ports at once, so that silent listeners cause no delay
    asking = [
        asyncio.create_task(_keep_asking(place, key, address, port))
        for address in addresses
        for port in _ports(key)
    ]
    try:
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in asking:
            task.cancel()


async def _addresses(place: Place) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(place.host, None, family=socket.AF_INET)
    except OSError:  # may be temporary
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _keep_asking(place: Place, key: bytes, address: str, port: int) -> tuple[str, int]:
    while (found := await _ask(place, key, address, port)) is None:
        await asyncio.sleep(_PAUSE_S)
    return found


async def _ask(place: Place, key: bytes, address: str, port: int) -> tuple[str, int] | None:
    """The store's address, once rank 0 has all ranks; None if the peer is not rank 0."""
    with suppress(*_FAILURES):
        reader, writer = await asyncio.open_connection(address, port, limit=_MOST_BYTES)
        try:
            with _patience(writer):
                words = await _examine_leader(key, [port, place.rank], reader, writer)
            where, number, mac = (await reader.readline()).decode().split()
            _check(mac.encode(), _mac(key, "store is at", *words, f"{where} {number}"))
            return where, int(number)
        finally:
            writer.transport.abort()
    return None


async def _examine_leader(
    key: bytes, words: list[object], reader: StreamReader, writer: StreamWriter
) -> list[object]:
    """The text to authenticate: port, rank, and a nonce from both sides."""
    greeting, _, nonce = (await reader.readline()).strip().rpartition(b" ")
    if greeting != _GREETING:
        raise ValueError("another program")
    ours = secrets.token_hex(32)
    rank = words[1]
    words = [*words, nonce.decode(), ours]
    writer.write(f"{rank} {ours} ".encode() + _mac(key, "follower", *words) + b"\n")
    _check((await reader.readline()).strip(), _mac(key, "leader", *words))
    return words


def _same_secret() -> str:
    return f"; all ranks need the same {VARIABLE} or {secret_file()}"
