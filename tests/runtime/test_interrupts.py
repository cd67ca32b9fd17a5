"""Signals to a command: it ends soon, says what is kept, and leaves other handlers alone."""

import signal
import subprocess
import sys
import time

from tests.environment import ROOT, environment

BUSY = """
import jax
from diffae_jax.runtime.interrupts import Interruptible, if_interrupted
with Interruptible("not this"), if_interrupted(lambda: "outer"), if_interrupted(lambda: "2 of 3 parts are kept."):
    print("started", flush=True)
    jax.jit(lambda i: jax.lax.while_loop(lambda i: i >= 0, lambda i: (i + 1) % 7, i))(0).block_until_ready()
"""
TWICE = """
import sys, time
from diffae_jax.runtime.interrupts import Interruptible
with Interruptible("removed all."):
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        time.sleep(1)
        print("cleaned up")
"""
AROUND = """
import signal, threading
from diffae_jax.runtime.interrupts import Interruptible
signal.signal(signal.SIGINT, signal.SIG_IGN)
before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
print("started", flush=True)
with Interruptible("not this"):
    signal.raise_signal(signal.SIGINT)
assert signal.getsignal(signal.SIGTERM) == before and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
assert signal.set_wakeup_fd(-1) == -1 and threading.active_count() == threads
def in_a_thread():
    with Interruptible("not this"):
        assert signal.getsignal(signal.SIGTERM) == before
thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
"""


def started(program):
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    return process


def end_of(process):
    try:
        output = process.communicate(timeout=10)
    finally:
        process.kill()
    return process.returncode, *output


def test_process_whose_devices_never_finish_ends_within_10_s_and_says_what_is_kept():
    process = started(BUSY)
    time.sleep(1)  # compilation
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (143, "", "\nSIGTERM: 2 of 3 parts are kept.\n")


def test_second_signal_does_not_interrupt_what_the_first_began():
    process = started(TWICE)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (143, "cleaned up\n", "\nSIGTERM: removed all.\n")


def test_ignored_signals_stay_ignored_and_handlers_are_restored():
    assert end_of(started(AROUND)) == (0, "", "")
