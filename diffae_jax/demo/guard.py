"""Refuses requests that do not come from the page itself, and uploads that are too large.

Any site that is open in a browser can send requests to this machine, also under a name of its own
that it points here.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

HOSTS = ("127.0.0.1", "localhost")
MOST_REQUEST_BYTES = 2**30  # of all files that are uploaded at once

App = Callable[[Mapping[str, Any], Callable, Callable], Awaitable[None]]  # as ASGI defines it


class Guard:
    """An ASGI application around another one.

    Args:
        app: the application that gets all other requests.
    """

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Callable, send: Callable) -> None:
        """Answers a request, or refuses it with a sentence."""
        refusal = _refusal(scope["headers"]) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, text = refusal
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


def _refusal(pairs: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
    """Returns the status and the sentence that refuse a request with these headers, or None."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
    host = headers.get("host", "")
    if host.partition(":")[0] not in HOSTS:
        return 403, f"This page is only served at {' and '.join(HOSTS)}."
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return 403, "Another site may not use this page."
    if "transfer-encoding" in headers:
        return 411, "A request must state its length."
    if int(headers.get("content-length", 0)) > MOST_REQUEST_BYTES:  # the server has checked that it is a number
        return 413, f"At most {MOST_REQUEST_BYTES / 2**30:g} GiB can be uploaded at once. Choose fewer files."
    return None
