"""What one process requests for, all hear at the same step."""

import pytest
import torch
from torch import Tensor

from hpm_video.runtime.distributed import World
from hpm_video.train.run import rank_requests
from hpm_video.train.run.rank_requests import RankRequests

CPU = torch.device("cpu")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the other one of two processes sends: a number and two requests."""
    theirs = [0.0, 0.0, 0.0]
    monkeypatch.setattr(
        rank_requests,
        "mean_over_processes",
        lambda values, world: (values + torch.tensor(theirs, device=values.device)) / 2,
    )
    return theirs


@pytest.mark.parametrize(("device", "delay"), [("cpu", 0), ("cuda", 1)])
def test_requests_are_heard_whoever_makes_them(
    others: list[float], device: str, delay: int
) -> None:
    """On a GPU one step later, so that nobody waits for it."""
    mine = [False, False]
    ours = RankRequests(World(1, 2, torch.device(device)), lambda: mine)
    heard = []
    for step in range(6):
        mine[0] = step in (1, 4)
        others[:] = [3.0, 0.0, float(step in (2, 4))]
        assert ours.exchange(torch.tensor(1.0)).item() == 2
        heard.append(tuple(ours.heard()))
    spoken = [(False, False), (True, False), (False, True), (False, False), (True, True)]
    assert heard[delay : delay + 5] == spoken
    assert heard[:delay] == [(False, False)] * delay


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_granted_is_not_heard_again(others: list[float], device: str) -> None:
    mine = [True]
    ours = RankRequests(World(0, 2, torch.device(device)), lambda: mine)
    others[:] = [0.0, 0.0]
    for _ in range(3):
        ours.exchange(torch.tensor(1.0))
    assert ours.heard() == [True]
    ours.forget()
    mine[0] = False
    for _ in range(3):
        assert ours.heard() == [False]
        ours.exchange(torch.tensor(1.0))


def test_a_number_that_is_none_spoils_no_request(others: list[float]) -> None:
    ours = RankRequests(World(0, 2, CPU), lambda: [True, False])
    assert ours.exchange(torch.tensor(torch.nan)).isnan()
    assert ours.heard() == [True, False]


def test_alone_one_hears_oneself_at_once() -> None:
    mine = [False]
    alone = RankRequests(World(0, 1, CPU), lambda: mine)
    number = torch.tensor(5.0)
    assert alone.exchange(number) is number
    mine[0] = True
    assert alone.heard() == [True]


@pytest.mark.gpu
def test_nobody_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    monkeypatch.setattr(rank_requests, "mean_over_processes", lambda values, world: values)
    mine = [True, False]
    ours = RankRequests(World(0, 2, torch.device("cuda")), lambda: mine)
    number = torch.ones((), device=gpu)

    def step() -> Tensor:
        return ours.exchange(number)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "__bool__", lambda tensor: pytest.fail("waits"))
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert ours.heard() == [True, False]
