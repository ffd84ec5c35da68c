"""How the processes of a job meet, among strangers who listen, connect, talk and keep silent."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta

import pytest
from processes import until
from torch.distributed import Store, TCPStore

from hpm_video.runtime import meeting
from hpm_video.runtime.meeting import meet
from hpm_video.runtime.rendezvous import CommunicationError, Place

SECRET = "of this job" * 4
Join = Callable[..., "Future[Store]"]


def _key(name: str) -> bytes:
    return meeting._mac(SECRET.encode(), "job", name)


def _are_free(ports: list[int]) -> bool:
    with contextlib.ExitStack() as stack:
        try:
            for port in ports:
                stack.enter_context(socket.create_server(("", port)))
        except OSError:
            return False
    return True


@pytest.fixture
def name() -> str:
    """The name of a job the first six of whose ports are free here."""
    names = (f"job {os.getpid()} {number}" for number in range(1000))
    return next(name for name in names if _are_free(meeting._ports(_key(name))[:6]))


@pytest.fixture
def free(name: str) -> list[int]:
    return meeting._ports(_key(name))


@pytest.fixture
def join(name: str) -> Iterator[Join]:
    """A function (rank, size, settings) that lets a rank meet the others, in a thread."""
    with ThreadPoolExecutor() as threads:

        def join(rank: int, size: int = 2, *, secret: str = SECRET, host: str = "127.0.0.1",
                 timeout_s: float = 60) -> "Future[Store]":  # fmt: skip
            place = Place(rank, size, rank, host, name)
            return threads.submit(meet, place, secret, timeout_s=timeout_s, limit="a moment")

        yield join


def _reach(port: int) -> socket.socket:
    """A stranger's connection, once somebody listens."""
    opened: list[socket.socket] = []

    def is_open() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        return bool(opened)

    assert until(is_open)
    return opened[0]


def _rest(connection: socket.socket) -> bytes:
    """What is still said until the other side hangs up."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while some := connection.recv(1000):
            said += some
    return said


def _listen(port: int, answer: Callable[[socket.socket], object]) -> None:
    """A stranger that listens as long as this process lives."""
    listener = socket.create_server(("", port))

    def serve() -> None:
        while True:
            guest, _ = listener.accept()
            threading.Thread(target=talk, args=(guest,), daemon=True).start()

    def talk(guest: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            answer(guest)

    threading.Thread(target=serve, daemon=True).start()


def _keep_silent(guest: socket.socket) -> None:
    _rest(guest)


def _say_rubbish(guest: socket.socket) -> None:
    guest.sendall(b"\xff" * 5000)
    guest.close()


def _pretend(guest: socket.socket) -> None:
    """Say what rank 0 says, as far as that can be known."""
    guest.sendall(meeting._GREETING + b" " + b"0" * 64 + b"\n")
    guest.recv(1000)
    guest.sendall(b"0" * 64 + b"\n127.0.0.1 9 " + b"0" * 64 + b"\n")
    _rest(guest)


def _hand_on(guest: socket.socket, port: int) -> None:
    """Be rank 0 by handing on what it says, except for its last line."""
    with _reach(port) as leader:
        guest.sendall(leader.recv(1000))
        leader.sendall(guest.recv(1000))
        if proof := leader.recv(1000):
            guest.sendall(proof.partition(b"\n")[0] + b"\n")
            _rest(guest)


def test_processes_meet_though_strangers_listen_at_their_ports(free: list[int], join: Join) -> None:
    """A program that never says a word, one of another kind, and two that pretend to be rank 0."""
    _listen(free[0], _keep_silent)
    _listen(free[1], _say_rubbish)
    _listen(free[2], _pretend)
    _listen(free[3], lambda guest: _hand_on(guest, free[4]))
    early = join(1, 3)  # before there is anybody to meet
    main, late = join(0, 3), join(2, 3)
    main.result().set("word", "yes")
    for found in (early.result(), late.result()):
        assert found.get("word") == b"yes"
        assert found.timeout == timedelta(seconds=60)


def test_strangers_who_connect_hold_up_nobody(
    free: list[int], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than are listened to, none of which is left for keeping silent too long."""
    monkeypatch.setattr(meeting, "_PATIENCE_S", 1000.0)
    main = join(0)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(_reach(free[0])) for _ in range(meeting._MOST_GUESTS + 50)]
        crowd[-1].sendall(b"\0" * 100_000)
        crowd[-2].sendall(b"1 ")
        other = join(1)
        main.result().set("word", "yes")
        assert other.result().get("word") == b"yes"


def test_who_does_not_know_the_secret_learns_nothing(
    free: list[int], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = join(0)
    for line in (
        b"1 " + b"0" * 64 + b" " + b"0" * 64 + b"\n",
        b"1 x \xff\n",
        b"-1\n",
        b"\n" * 5000,
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with _reach(free[0]) as stranger:
            greeting = stranger.recv(1000)
            assert greeting.startswith(meeting._GREETING + b" ")
            stranger.sendall(line)
            assert _rest(stranger) == b""
    monkeypatch.setattr(meeting, "_ports", lambda key: free)
    with pytest.raises(CommunicationError, match="all ranks need the same HPM_VIDEO_JOB_SECRET"):
        join(1, secret="another" * 9, timeout_s=1).result()
    assert not main.done()
    join(1).result()
    main.result()


def test_a_slow_talker_is_left(
    free: list[int], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_PATIENCE_S", 0.5)
    main = join(0)
    with _reach(free[0]) as stranger:
        stranger.settimeout(0.1)

        def is_left() -> bool:
            try:
                stranger.sendall(b"1")
                return not stranger.recv(1)
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        stranger.recv(1000)
        assert until(is_left)
    join(1).result()
    main.result()


def test_a_process_that_dies_and_comes_again_is_met(free: list[int], join: Join, name: str) -> None:
    """Rank 0 waits for the living."""
    main = join(0, 3)
    with _reach(free[0]) as dying:
        nonce = dying.recv(1000).split()[-1].decode()
        mac = meeting._mac(_key(name), "follower", free[0], 1, nonce, "x")
        dying.sendall(b"1 x " + mac + b"\n")
        assert len(dying.recv(1000)) == 65  # it is known
    join(2, 3)
    assert not wait([main], timeout=1).done
    join(1, 3).result()
    main.result()


def test_strangers_who_find_the_store_do_not_know_its_keys(join: Join) -> None:
    main, other = join(0), join(1)
    stranger = TCPStore("127.0.0.1", _port(main.result()), timeout=timedelta(seconds=60))
    stranger.set("word", "lie")
    stranger.set("done", "")
    assert not other.result().check(["done"])
    main.result().set("word", "yes")
    assert other.result().get("word") == b"yes"


def _port(store: Store) -> int:
    found: int = store.underlying_store.port
    return found


def test_only_this_machine_can_connect_where_all_processes_are_on_it(
    free: list[int], join: Join
) -> None:
    """127.0.0.2 stands for any other address of this machine."""
    main = join(0)
    _reach(free[0]).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", free[0]))
    join(1).result()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", _port(main.result())))


def test_the_store_listens_where_the_others_reach_rank_0(join: Join) -> None:
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        pytest.skip("this machine does not know its own name")
    main, other = join(0, host=host), join(1, host=host)
    main.result().set("word", "yes")
    assert other.result().get("word") == b"yes"
    with pytest.raises(ConnectionRefusedError):
        there = "127.0.0.2" if address.startswith("127.") else "127.0.0.1"
        socket.create_connection((there, _port(main.result())))


def test_nobody_listens_once_all_have_met(free: list[int], join: Join) -> None:
    main, other = join(0), join(1)
    main.result(), other.result()
    for port in free:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_nobody_to_meet_is_said(join: Join) -> None:
    said = r"rank 1 on .* did not reach rank 0 on 127\.0\.0\.1 within a moment: "
    with pytest.raises(CommunicationError, match=said):
        join(1, timeout_s=0.5).result()
    with pytest.raises(CommunicationError, match="was not reached within a moment by rank 1, 2"):
        join(0, 3, timeout_s=0.5).result()


TWICE = """
import numpy as np
from hpm_video.runtime.distributed import gather_objects, gather_to_main, join_world

for number in range(2):
    with join_world("cpu", timeout_s=60) as world:
        print(gather_objects((number, world.rank), world), flush=True)
        print(gather_to_main(np.arange(3**world.rank), world), flush=True)
"""


def test_one_process_may_join_worlds_one_after_another() -> None:
    """With processes that nothing but submitit's numbers tell of each other."""
    of_job = {
        **{name: value for name, value in os.environ.items() if name != "RANK"},
        **{"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2"},
        "SUBMITIT_LOCAL_JOB_ID": str(os.getpid()),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWICE],
            env={
                **of_job,
                **{"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)},
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    arrays = ["[array([0]), array([0, 1, 2])]", "[]"]
    for process, array in zip(processes, arrays, strict=True):
        said, _ = process.communicate(timeout=180)
        assert said.splitlines() == [
            line for number in range(2) for line in (f"[({number}, 0), ({number}, 1)]", array)
        ]
