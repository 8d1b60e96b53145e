"""The door for other hosts: passes on what SuperNodes need and nothing else.

    python -m federated.gate --listen HOST:PORT --superlink 127.0.0.1:PORT --certificates FOLDER

Flower 1.41 serves three interfaces at one port: Fleet for SuperNodes (each request signed by a registered key), Control for starting
runs, and Runtime for the server's app. The last two have no authentication outside of Flower's commercial edition: who reaches that port
can send code to every node. So the SuperLink listens on this host alone, and the network meets this gate, with the same certificate.
"""

from __future__ import annotations

import argparse
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from federated.certificates import ServerFiles

OPEN = ("/v1/fleet/activate-node", "/v1/fleet/deactivate-node", "/v1/fleet/send-node-heartbeat", "/v1/fleet/pull-messages")
OPEN += ("/v1/fleet/push-messages", "/v1/fleet/get-run", "/v1/fleet/get-fab", "/v1/fleet/push-object", "/v1/fleet/pull-object")
OPEN += ("/v1/fleet/confirm-message-received",)
_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host", "proxy-authorization", "proxy-authenticate"}


def build(superlink: str, authority: Path) -> Starlette:
    """The gate as an application. superlink: host:port behind it. authority: CA certificate of the SuperLink."""
    client = httpx.AsyncClient(base_url=f"https://{superlink}", verify=ssl.create_default_context(cafile=str(authority)), timeout=60.0)

    async def forward(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
        outgoing = client.build_request("POST", request.url.path, headers=headers, content=request.stream())
        answer = await client.send(outgoing, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        return StreamingResponse(body(), answer.status_code, {k: v for k, v in answer.headers.items() if k.lower() not in _HOP})

    return Starlette(routes=[Route(path, forward, methods=["POST"]) for path in OPEN])


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--certificates", type=Path, required=True)
    options = parser.parse_args()
    files = ServerFiles.of(options.certificates)
    host, port = options.listen.rsplit(":", 1)
    app = build(options.superlink, files.authority)
    uvicorn.run(app, host=host, port=int(port), ssl_certfile=str(files.certificate), ssl_keyfile=str(files.key), log_level="warning")


if __name__ == "__main__":
    main()
