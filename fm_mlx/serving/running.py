"""How the server runs, and how it stops."""

from __future__ import annotations

from types import FrameType

import uvicorn
from starlette.applications import Starlette

from fm_mlx.serving.engine import Engine

# Seconds that answers have left when the server is told to stop, and those after which
# connections that still are there are closed.
_GRACE = 10
_CLOSING = 15


class _Server(uvicorn.Server):
    """A server that lets the engine know of SIGINT and SIGTERM: its requests end in answers."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._engine.end_within(_GRACE)
        super().handle_exit(sig, frame)


def serve(app: Starlette, engine: Engine, host: str, port: int, log_level: str) -> None:
    """Serve until the process gets SIGINT or SIGTERM.

    Args:
        app: the application, from `application`.
        engine: the engine that it starts and stops.
        host, port: the address.
        log_level: that of uvicorn.

    Raises:
        KeyboardInterrupt: it got SIGINT.
        SystemExit: it cannot listen at the address; uvicorn has said why.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level=log_level, timeout_graceful_shutdown=_CLOSING
    )
    _Server(config, engine).run()
