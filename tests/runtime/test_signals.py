"""Signals that end jobs."""

import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout

import pytest

from hpm_video.runtime.signals import stop_on_signal


@pytest.fixture(autouse=True)
def _own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("is_alone", [True, False])
def test_after_an_error_of_one_process_of_several_sigterm_stays_without_effect(
    is_alone: bool,
) -> None:
    with pytest.raises(ValueError, match="broken"), stop_on_signal(is_alone=is_alone):
        raise ValueError("broken")
    assert (signal.getsignal(signal.SIGTERM) == signal.SIG_IGN) == is_alone


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_signal_is_a_flag_and_its_handler_goes(is_alone: bool) -> None:
    with stop_on_signal(is_alone=is_alone) as flag:
        assert not flag
        signal.raise_signal(signal.SIGTERM)
        assert flag.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_the_first_signal_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Also where it interrupts a print; a run that fails does not claim to save."""
    with stop_on_signal(is_alone=True, says_so=True):
        signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().out == "SIGTERM: the run stops and saves after this step\n"
        signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().out == ""
    with stop_on_signal(is_alone=True), redirect_stdout(sys.stderr):
        signal.raise_signal(signal.SIGTERM)
    with stop_on_signal(is_alone=True, says_so=True), redirect_stdout(sys.stderr):
        signal.raise_signal(signal.SIGTERM)
    out, err = capfd.readouterr()  # as where stdout is for figures only
    assert out == "" and err.count("SIGTERM") == 1
    with pytest.raises(ValueError), stop_on_signal(is_alone=False, says_so=True):
        raise ValueError
    signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().out == ""
