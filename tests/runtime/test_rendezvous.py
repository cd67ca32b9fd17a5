"""The meeting of processes at the start, with threads in place of processes."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from diffae_jax.runtime.errors import ClusterError, UserError
from diffae_jax.runtime.rendezvous import meet
from tests.messages import assert_is_one_sentence
from tests.runs import free_address


def results(*calls):
    """Meets in a thread for each (process, number of processes, seconds to wait, delay)."""
    address = free_address()

    def call(number, of, timeout, delay):
        time.sleep(delay)
        try:
            return meet(address, of, number, timeout)
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, *zip(*calls, strict=True)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_meet_in_any_order(order):
    began = time.monotonic()
    assert results(*((number, 3, 20, 0.3 * place) for place, number in enumerate(order))) == [None] * 3
    assert time.monotonic() - began < 3


def test_each_process_names_those_that_are_missing():
    errors = results((0, 4, 2, 0), (2, 4, 2, 0.5))
    for error in errors:
        assert isinstance(error, ClusterError)
        assert str(error).startswith("Processes 1 and 3 of 4 did not come within 2 s")
        assert_is_one_sentence(error)


def test_process_that_gives_up_is_missing_again():
    gone, error = results((1, 3, 0.5, 0.1), (0, 3, 2, 0))
    assert str(gone).startswith("Process 2 of 3 did not come within 0.5 s")
    assert str(error).startswith("Processes 1 and 2 of 3")


def test_another_number_of_processes_does_not_meet():
    errors = results((0, 2, 1, 0), (1, 3, 1, 0))
    assert str(errors[0]).startswith("Process 1 of 2")
    assert str(errors[1]).startswith("Process 0 of 3")


@pytest.mark.parametrize("coordinator", ["host", "host:", ":7", "host:0", "host:65536", "host:x", ""])
def test_invalid_address_is_refused(coordinator):
    with pytest.raises(UserError, match="is not an address: use HOST:PORT"):
        meet(coordinator, 2, 1, 1)


def test_port_in_use_and_number_too_large_are_refused():
    in_use = pytest.raises(UserError, match=r"Port \d+ cannot be used \(Address already in use\)")
    with socket.create_server(("", 0)) as server, in_use:
        meet(f"localhost:{server.getsockname()[1]}", 2, 0, 1)
    with pytest.raises(UserError, match="--process_id=2 with --num_processes=2: number the processes from 0 to 1"):
        meet(free_address(), 2, 2, 1)
