"""Serves the page, from this machine's own files only."""

import errno
import logging
import signal
import socket
from typing import TYPE_CHECKING

from dab_detr.errors import InputError, one_line

if TYPE_CHECKING:
    import fastapi
    import gradio

MAX_FILE_SIZE = 100 * 2**20
# The browser refuses whatever the page or gradio's scripts would load from other hosts. The scripts
# are inline in part, and compile functions.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:"
)
_FONTS = ("system-ui", "sans-serif")
_MONOSPACE = ("ui-monospace", "monospace")


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    Args:
        host: address or name of this machine.
        port: 0 for any that is free.

    Raises:
        InputError: if it is in use, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"Port {port} of {host} is in use: choose another with --port."
            ) from error
        raise InputError(
            f"The page cannot be served at {host}, port {port} "
            f"({one_line(error, with_type=False)}): choose another --host or --port."
        ) from error


def address(listening: socket.socket) -> str:
    """The page's address in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def create_app(page: "gradio.Blocks") -> "fastapi.FastAPI":
    """The page as an ASGI application, whose browsers ask no other host for anything."""
    import fastapi
    import gradio as gr

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnHostOnly)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=gr.themes.Default(font=_FONTS, font_mono=_MONOSPACE),
        max_file_size=MAX_FILE_SIZE,
        footer_links=["gradio"],
        # what was uploaded is nobody's business after the session
        run_history=False,
        # neither Node nor other services, whatever the environment says
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
    )


class OwnHostOnly:
    """Adds a content security policy to every response."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_policy(message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)


def serve(app: "fastapi.FastAPI", listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM; returns then."""
    import uvicorn

    # open pages keep a connection, so the server does not wait for the end of all
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    # that it breaks them off in the end is no error
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    # uvicorn repeats the signal that ended it
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
