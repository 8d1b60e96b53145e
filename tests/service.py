"""The HTTP service of examples/serve.py in a thread of the test, with the smallest models that have every part."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import tiny
import uvicorn
from bars import make_frame

from kronos.bundle import Bundle
from kronos.forecaster import KronosPredictor

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 64


def load_serve() -> Any:
    """examples/serve.py as a module: the folder is no package, and its name is free for other things."""
    if "serve_example" not in sys.modules:
        spec = importlib.util.spec_from_file_location("serve_example", ROOT / "examples" / "serve.py")
        sys.modules["serve_example"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["serve_example"])
    return sys.modules["serve_example"]


def forecaster() -> KronosPredictor:
    return Bundle(tiny.tokenizer().eval(), tiny.predictor().eval(), CONTEXT).forecaster("cpu")


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The app under uvicorn at a free port of this machine; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the service did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the service did not end"


def rows(n: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    """n valid bars as JSON."""
    frame = make_frame(n, seed).rename(columns={"timestamps": "timestamp"})
    frame["timestamp"] = frame["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    return frame.to_dict("records")


def question(n: int = 30, number: int = 0, **changes: Any) -> dict[str, Any]:
    """A request about series `number`."""
    return {"bars": rows(n, number), "horizon": 4, "samples": 3, **changes}


def problems(answer: httpx.Response) -> dict[str, str]:
    """field -> message of a refusal."""
    return {one["field"]: one["message"] for one in answer.json()["detail"]}
