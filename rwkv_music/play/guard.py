"""Security checks of all requests, and security headers of all responses.

- The Host header must name this server. This prevents attacks with another host name that resolves to this server (DNS
  rebinding).
- A request from a page of another site is refused (Origin, Sec-Fetch-Site). Links to this page from another site still
  work, because following a link is a navigation without an Origin header.
- The size of a request's body, and the time in which it must arrive, are limited.
- Response headers forbid inline scripts, resources of other sites, frames, and guessing the type of a response.
"""

import ipaddress
import json
from collections.abc import Collection

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
BODY_S = 60  # the time in which the body of a request must arrive
# A body that exceeds its limit by at most this many bytes is received and discarded before the server responds.
# Otherwise the server would close the connection while the client still sends, and the client could miss the response.
DISCARDED_BYTES = 1 << 20
OTHER_SITE = "The request comes from a page of another site: open the address that the server printed."
LOCAL = ("127.0.0.1", "localhost", "::1")
WILDCARDS = ("0.0.0.0", "::")


class Refused(Exception):
    """The refusal of a request, with the HTTP status and the message of the response."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """ASGI middleware that checks requests before they reach the application, and adds HEADERS to all responses.

    `host` is the address on which the server listens.
    """

    def __init__(self, app: ASGIApp, host: str):
        self._app = app
        self._names: Collection[str] = {*LOCAL, host.casefold()} - set(WILDCARDS)
        self._any_address = host in WILDCARDS  # if so, every IP address is accepted as a host too

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(Headers(scope=scope))
        except Refused as refused:
            body = json.dumps({"error": refused.sentence}).encode()
            start = {"type": "http.response.start", "status": refused.status}
            start["headers"] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send_guarded(start)
            return await send({"type": "http.response.body", "body": body})
        await self._app(scope, receive, send_guarded)

    def _check(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not (name in self._names or (self._any_address and _is_address(name))):
            raise Refused(403, "The Host header does not name this server: open the address that the server printed.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != hosts[0]:
            raise Refused(403, OTHER_SITE)
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and (
            headers.get("sec-fetch-mode") != "navigate"
        ):
            raise Refused(403, OTHER_SITE)


def _host_name(host: str) -> str | None:
    """Return the name in a Host header, without port and brackets. Return None if the header is invalid."""
    name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "")
    if port and not port.isascii():
        return None
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    return name.casefold() or None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request.

    Raises Refused if the body has more than `limit` bytes, takes longer than BODY_S or is incomplete, or if its
    Content-Length is invalid.
    """
    too_large = Refused(413, f"The request has more than {limit:,} bytes, the maximum: choose a smaller file.")
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise Refused(400, "The Content-Length of the request is not a number: send the length of the body in bytes.")
    if len(declared) > 15 or int(declared) > limit + DISCARDED_BYTES:
        raise too_large
    body, size = bytearray(), 0
    try:
        with anyio.fail_after(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                elif size > limit + DISCARDED_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"The request took more than {BODY_S} seconds to arrive: send it again.") from None
    except ClientDisconnect:
        raise Refused(400, "The request ended before all of it was sent: send it again.") from None
    if size > limit:
        raise too_large
    return bytes(body)
