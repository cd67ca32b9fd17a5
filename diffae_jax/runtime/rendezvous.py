"""The meeting of all processes at the start of a cluster, before JAX connects them.

JAX aborts a process whose peers do not come in time, and does not name them.
"""

import contextlib
import json
import os
import selectors
import socket
import time

from diffae_jax.runtime.errors import ClusterError, UserError, shown

RETRY_SECONDS = 0.2


def meet(coordinator: str, num_processes: int, process_id: int, timeout: int | float) -> None:
    """Waits until all processes have started. Process 0 listens at the address of the coordinator.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: The number of processes.
        process_id: The number of this process.
        timeout: Seconds to wait.

    Raises:
        ClusterError: Processes are missing. The message has their numbers.
        UserError: The address or the numbers are invalid, or the port is in use.
    """
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={shown(coordinator)} is not an address: use HOST:PORT of process 0.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} with --num_processes={num_processes}: number the processes from 0 to "
            f"{num_processes - 1}."
        )
    if num_processes == 1:
        return
    deadline = time.monotonic() + timeout
    if process_id == 0:
        missing = _gather(int(port), num_processes, deadline)
    else:
        missing = _report(host.strip("[]"), int(port), num_processes, process_id, deadline)
    if missing:
        only_main = missing == [0]
        fix = (
            f"that process 0 runs, and that this machine can reach {shown(coordinator)}"
            if only_main
            else f"that all run, with --coordinator={shown(coordinator)} and --num_processes={num_processes}"
        )
        raise ClusterError(
            f"{name_processes(missing)} of {num_processes} did not come within {timeout:g} s: check {fix}, or set a "
            f"longer --cluster_timeout."
        )


def name_processes(numbers: list[int]) -> str:
    """Formats numbers of processes: "Process 1", "Processes 1, 2 and 3"."""
    if len(numbers) == 1:
        return f"Process {numbers[0]}"
    first, last = (numbers[:-1], str(numbers[-1])) if len(numbers) < 8 else (numbers[:6], f"{len(numbers) - 6} more")
    return f"Processes {', '.join(map(str, first))} and {last}"


def _gather(port: int, num_processes: int, deadline: float) -> list[int]:
    """Waits for all other processes. Tells each of them who is missing, whenever that changes."""
    present: dict[socket.socket, int | None] = {}  # None: has not sent its number yet

    def missing() -> list[int]:
        return sorted(set(range(1, num_processes)) - set(present.values()))

    def tell(*, waiting: bool) -> None:
        for connection, number in present.items():
            if number is not None:
                with contextlib.suppress(OSError):  # it has just ended, which select will report
                    connection.sendall(json.dumps({"missing": missing(), "waiting": waiting}).encode() + b"\n")

    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_listen(port))
        except OSError as error:
            raise UserError(
                f"Port {port} cannot be used ({os.strerror(error.errno)}): end the process that uses it, or set a "
                f"different port in --coordinator of all processes."
            ) from error
        server.setblocking(False)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        while missing() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is server:
                    with contextlib.suppress(OSError):  # it has already gone
                        connection = stack.enter_context(server.accept()[0])
                        connection.setblocking(False)
                        selector.register(connection, selectors.EVENT_READ)
                        present[connection] = None
                elif not _receive_number(key.fileobj, num_processes, present):
                    selector.unregister(key.fileobj)
                    del present[key.fileobj]
                tell(waiting=True)
        tell(waiting=False)
        return missing()


def _listen(port: int) -> socket.socket:
    """Listens on all addresses of this machine, as the coordinator of JAX will do."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # of a machine without IPv6
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _receive_number(connection: socket.socket, num_processes: int, present: dict[socket.socket, int | None]) -> bool:
    """Records the number that a process sends. Returns whether the connection is of use."""
    try:
        sent = json.loads(connection.recv(64))
    except (OSError, ValueError):  # closed, or not one of the processes
        return False
    if not (isinstance(sent, list) and len(sent) == 2 and sent[1] == num_processes and sent[0] in range(num_processes)):
        return False
    present[connection] = sent[0]
    return True


def _report(host: str, port: int, num_processes: int, process_id: int, deadline: float) -> list[int]:
    """Sends the number of this process to process 0, and waits until none is missing."""
    missing = [0]
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps([process_id, num_processes]).encode())
                with connection.makefile() as lines:
                    while True:
                        connection.settimeout(max(0.001, deadline - time.monotonic()))
                        news = json.loads(lines.readline())  # raises ValueError if process 0 has ended
                        missing = news["missing"]
                        if not news["waiting"]:
                            return missing
        except TimeoutError:
            return missing
        except (OSError, ValueError):  # process 0 has not started yet, or is started again
            missing = [0]
        time.sleep(RETRY_SECONDS)
    return missing
