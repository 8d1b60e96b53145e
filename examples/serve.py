"""A small HTTP service for forecasts, and a page that draws them.

    POST /predict        bars as JSON -> mean, quantiles and chance of a rise; concurrent requests are computed together
    POST /bars           a CSV as the body -> its bars as JSON, checked and cleaned, or what is wrong with it
    GET  /               drop a CSV, see its fan chart
    GET  /docs           every field with its limits; /openapi.json is the same for machines
    GET  /health         whether it is up, what it serves, how much it has done

It listens on this machine only, unless --host says otherwise, and has no accounts: put a proxy with a login in front of it before others
can reach it.
"""

import argparse
import asyncio
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from finetune.engine.command import command_parser, run_command
from kronos.batching import Batcher, Wish
from kronos.calendar import future_times
from kronos.distribution import Forecast as Distribution
from kronos.errors import InputError

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse
    from fastapi.staticfiles import StaticFiles
except ImportError as absent:
    print(f"error: {absent}; the service needs: pip install fastapi uvicorn", file=sys.stderr)
    raise SystemExit(2) from None

COLUMNS = ("open", "high", "low", "close", "volume", "amount")
PAGE = Path(__file__).parent / "serve_page"
MAX_ROWS, MAX_HORIZON, MAX_SAMPLES, MAX_STEPS = 4096, 512, 256, 16384  # steps: horizon x samples of one request
MAX_BODY = 4 << 20  # bytes: MAX_ROWS bars need a sixth of it
MAX_CONNECTIONS = 512
BODY_S = 20.0  # seconds for a request's body to arrive
_SLACK = 1e-5  # relative: adjusted prices are rounded one by one, so a close may pass its high by the last digit
_TOLD = 20  # so many problems of one request are named

Price = Annotated[float, Field(gt=0, le=1e38, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e38, allow_inf_nan=False)]


class Bar(BaseModel):
    """One bar. Volume and amount may be left out, in all bars alike."""

    model_config = ConfigDict(extra="forbid")
    timestamp: datetime = Field(description="the exchange's wall clock, e.g. 2024-06-18T09:35:00; an offset is kept but not converted")
    open: Price
    high: Price
    low: Price
    close: Price
    volume: Amount | None = None
    amount: Amount | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Bar":
        slack = _SLACK * self.high
        if self.high < self.low - slack:
            raise ValueError(f"high {self.high} is below low {self.low}")
        for name, value in (("open", self.open), ("close", self.close)):
            if not self.low - slack <= value <= self.high + slack:
                raise ValueError(f"{name} {value} is outside low {self.low} to high {self.high}")
        return self


class Question(BaseModel):
    """What to forecast, and how."""

    model_config = ConfigDict(extra="forbid")
    bars: list[Bar] = Field(min_length=2, max_length=MAX_ROWS, description="oldest first; no more are used than the context has room for")
    horizon: int = Field(ge=1, le=MAX_HORIZON, description="bars to forecast")
    calendar: str | None = Field(None, max_length=20, description="exchange (XSHG, XNYS, ...); null: a market that never closes")
    future: list[datetime] | None = Field(None, description="times of the bars to forecast, in place of those of the calendar")
    samples: int = Field(30, ge=1, le=MAX_SAMPLES, description=f"paths; horizon x samples is at most {MAX_STEPS}")
    temperature: float = Field(1.0, gt=0, le=10, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=1 << 20, description="0: no limit")
    top_p: float = Field(0.9, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=1 << 62, description="the same bars and seed give the same forecast, whoever else is asking")
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.05, 0.25, 0.5, 0.75, 0.95], max_length=20)
    return_samples: bool = Field(False, description="give every path as well")

    @field_validator("bars")
    @classmethod
    def _in_order(cls, bars: list[Bar]) -> list[Bar]:
        for name in ("volume", "amount"):
            known = [getattr(bar, name) is not None for bar in bars]
            if any(known) and not all(known):
                raise ValueError(f"row {known.index(False)} has no {name} though others have: give it in all bars or in none")
        _check_rising([bar.timestamp for bar in bars], "row")
        return bars

    @field_validator("future")
    @classmethod
    def _follows(cls, future: list[datetime] | None, info: ValidationInfo) -> list[datetime] | None:
        if future is not None and {"bars", "horizon"} <= info.data.keys():  # else those are told already
            if len(future) != info.data["horizon"]:
                raise ValueError(f"there are {len(future)} times for a horizon of {info.data['horizon']}: give one per bar to forecast")
            _check_rising([info.data["bars"][-1].timestamp, *future], "time")
        return future

    @field_validator("samples")
    @classmethod
    def _affordable(cls, samples: int, info: ValidationInfo) -> int:
        steps = samples * info.data.get("horizon", 1)
        if steps > MAX_STEPS:
            raise ValueError(f"horizon x samples is {steps:,}, the limit is {MAX_STEPS:,}: ask for fewer of either")
        return samples


def _check_rising(times: Sequence[datetime], what: str) -> None:
    """Raises ValueError unless every time is later than the one before, and all or none have an offset."""
    aware = [time.tzinfo is not None for time in times]
    if len(set(aware)) > 1:
        raise ValueError(
            f"{what} {aware.index(not aware[0])} {'lacks' if aware[0] else 'has'} an offset, unlike the first: write all alike"
        )
    for number, (before, time) in enumerate(pairwise(times), 1):
        if not before < time:
            raise ValueError(f"{what} {number} ({time}) is not later than the one before ({before}): sort them, and give each once")


class Forecast(BaseModel):
    """Values in the units of the bars, one per forecast bar; quantiles by level, then column."""

    timestamps: list[datetime]
    mean: dict[str, list[float]]
    quantiles: dict[str, dict[str, list[float]]]
    prob_up: list[float] = Field(description="share of paths whose close is above the last close given; ties count half")
    samples: list[list[list[float]]] | None = Field(None, description="[path][bar][open, high, low, close, volume, amount]")
    lookback: int = Field(description="bars that were used")
    seed: int


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    field: str
    message: str


class Problems(BaseModel):
    """Why a request was refused."""

    detail: list[Problem]


# --- the app


class Intake:
    """ASGI middleware: reads a request's body before the app sees it, up to MAX_BODY and for BODY_S at most."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(BODY_S):
                while more and size <= 8 * MAX_BODY:  # a little too much is read to its end, so that the client hears why it was refused
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    size += len(chunk)
                    if size <= MAX_BODY:
                        body += chunk
        except TimeoutError:
            await _refusal(408, f"the request's body did not arrive within {BODY_S:.0f} s")(scope, receive, send)
            return
        if size > MAX_BODY:
            await _refusal(413, f"the request is larger than {MAX_BODY:,} bytes: send fewer bars")(scope, receive, send)
            return
        given = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replay() -> dict:
            return next(given, None) or await receive()

        await self.app(scope, replay, send)


def _refusal(status: int, message: str, name: str = "body") -> JSONResponse:
    return JSONResponse({"detail": [{"field": name, "message": message}]}, status)


def create_app(forecaster: Any, name: str = "", *, wait_ms: float = 5, max_batch: int = 16, timeout_s: float = 60) -> FastAPI:
    """The service around a KronosPredictor. wait_ms: silence that closes a batch; timeout_s: until it is given up with 504."""
    batcher = Batcher(forecaster, wait_s=wait_ms / 1000, most=max_batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.work())
        yield
        worker.cancel()

    app = FastAPI(title="Kronos forecasts", version="1", description=__doc__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Intake)
    app.add_exception_handler(RequestValidationError, _explain)
    app.mount("/static", StaticFiles(directory=PAGE))
    refusals = {422: {"model": Problems, "description": "What is wrong, by field"}}

    @app.post("/predict", responses={**refusals, 503: {"model": Problems}, 504: {"model": Problems}})
    async def predict(question: Question) -> Forecast:
        """Forecast the bars that follow."""
        room = forecaster.max_context - question.horizon
        if room < 2:
            most = forecaster.max_context - 2
            raise RequestValidationError([{"loc": ("body", "horizon"), "msg": f"this model's context leaves room for at most {most} bars"}])
        try:
            async with asyncio.timeout(timeout_s):
                return await _forecast(batcher, question, question.bars[-room:])
        except TimeoutError:
            raise HTTPException(504, [{"field": "", "message": f"not done within {timeout_s:g} s: ask for less, or again later"}]) from None
        except asyncio.QueueFull:
            raise HTTPException(503, [{"field": "", "message": "too many requests are waiting: ask again later"}]) from None
        except InputError as error:
            raise RequestValidationError([{"loc": ("body", "bars"), "msg": str(error)}]) from error

    @app.post("/bars", responses=refusals)
    async def bars(request: Request, name: str = "bars.csv", missing: Literal["error", "drop", "ffill"] = "error") -> dict[str, Any]:
        """Read a CSV (the body). missing: refuse bars that cannot be used, drop them, or fill empty cells from the bar before."""
        try:
            return await asyncio.to_thread(read_csv, await request.body(), name, missing)
        except InputError as error:
            raise RequestValidationError([{"loc": ("body", "csv"), "msg": str(error)}]) from error

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether it is up, and the limits of a request."""
        limits = {"rows": MAX_ROWS, "horizon": min(MAX_HORIZON, forecaster.max_context - 2), "samples": MAX_SAMPLES, "steps": MAX_STEPS}
        state = {"waiting": batcher.queue.qsize(), "batches": batcher.done["batches"], "series": batcher.done["series"]}
        facts = {"model": name, "device": str(forecaster.device), "context": forecaster.max_context}
        return {"status": "ok", **facts, "limits": limits, **state}

    for path, file in (("/", "index.html"), ("/docs", "docs.html")):
        app.add_api_route(path, _page(file), include_in_schema=False)
    return app


def _page(file: str) -> Any:
    async def page() -> FileResponse:
        rules = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'"
        headers = {"Content-Security-Policy": f"{rules}; form-action 'none'; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff"}
        return FileResponse(PAGE / file, headers=headers)

    return page


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """422: each wrong field and why, without the input's own values (there may be thousands, or NaN)."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    told = [
        {"field": ".".join(str(part) for part in one["loc"][1:]) or "body", "message": one["msg"].removeprefix("Value error, ")}
        for one in found[:_TOLD]
    ]
    if len(found) > _TOLD:
        told.append({"field": "", "message": f"and {len(found) - _TOLD} more"})
    return JSONResponse({"detail": told}, 422)


async def _forecast(batcher: Batcher, asked: Question, bars: Sequence[Bar]) -> Forecast:
    past = [bar.timestamp for bar in bars]
    future = await _times(asked, past)
    given = [name for name in COLUMNS if getattr(bars[0], name) is not None]
    frame = pd.DataFrame({name: [getattr(bar, name) for bar in bars] for name in given})
    wish = Wish(asked.horizon, asked.samples, asked.temperature, asked.top_k, asked.top_p, asked.seed)
    clock = [[time.replace(tzinfo=None) for time in times] for times in (past, future)]  # the wall clock, as written
    paths = await batcher.ask(frame, *clock, wish)
    found = Distribution(paths, pd.DatetimeIndex(clock[1]), frame.iloc[-1].reindex(COLUMNS, fill_value=np.nan).to_numpy())
    levels = np.quantile(paths, asked.quantiles, axis=0)  # [Q, horizon, 6]

    def columns(values: np.ndarray) -> dict[str, list[float]]:
        return {name: values[:, place].tolist() for place, name in enumerate(COLUMNS)}

    return Forecast(
        timestamps=future,
        mean=columns(found.mean().to_numpy()),
        quantiles={f"{level:g}": columns(values) for level, values in zip(asked.quantiles, levels, strict=True)},
        prob_up=found.prob_up().tolist(),
        samples=paths.tolist() if asked.return_samples else None,
        lookback=len(bars),
        seed=asked.seed,
    )


async def _times(asked: Question, past: Sequence[datetime]) -> list[datetime]:
    """The times of the bars to come. Raises RequestValidationError where they cannot be told."""
    if asked.future is not None:
        return asked.future
    try:
        found = await asyncio.to_thread(future_times, past, asked.horizon, asked.calendar)  # a calendar takes a second to load
    except InputError as error:
        message = str(error).replace("y_timestamp", "future").replace("x_timestamp", "bars").replace("calendar= ", "calendar, ")
        raise RequestValidationError([{"loc": ("body", "calendar"), "msg": message}]) from error
    return list(found.to_pydatetime())


def read_csv(data: bytes, name: str, missing: str) -> dict[str, Any]:
    """The newest MAX_ROWS bars of a CSV of one series. Raises InputError with everything that is wrong with it, by row and column."""
    from finetune.data.cleaning import Policy, clean
    from finetune.data.csv_bars import read_table

    if data[:2] == b"\x1f\x8b" or data[:4] == b"PAR1":
        raise InputError(f"{name}: is compressed or parquet; give the CSV itself")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / (re.sub(r"[^\w.-]", "_", Path(name).name)[-100:].lstrip(".") or "bars.csv")
        file.write_bytes(data)
        try:
            found = clean(read_table(file), file.stem, policy=Policy(missing))
        except InputError as error:
            raise InputError(str(error).replace(f"{folder}/", "")) from error
    if len(found.names) != 1:
        raise InputError(f"{name}: holds {len(found.names)} series ({', '.join(found.names[:5])}); give a file with one")
    rows = slice(-MAX_ROWS, None)
    times = np.datetime_as_string(found.wall[rows].astype("datetime64[ns]"), unit="s")
    values = [[float(str(value)) for value in row] for row in found.features[rows]]  # as written: 11.27, not 11.270000457763672
    bars = [{"timestamp": str(time), **dict(zip(COLUMNS, row, strict=True))} for time, row in zip(times, values, strict=True)]
    dropped = [f"{what}: {sum(counts.values()):,}" for what, counts in found.counts.items()]
    notes = [note.replace(f"{folder}/", "") for note in found.notes] + dropped
    return {"name": found.names[0], "rows": len(found.wall), "bars": bars, "notes": notes}


# --- the command


def _load(args: argparse.Namespace) -> tuple[Any, str]:
    """(forecaster, what to call it)."""
    import torch

    from kronos.bundle import Bundle, load_bundle
    from kronos.loading import load_predictor, load_tokenizer

    for flag in ("wait_ms", "max_batch", "timeout_s", "threads"):
        value = getattr(args, flag)
        if value is not None and not value >= (0 if flag == "wait_ms" else 0.001):
            raise InputError(f"--{flag.replace('_', '-')} is {value:g}: it must be above 0")
    if args.threads:
        torch.set_num_threads(args.threads)
    if bool(args.bundle) == bool(args.tokenizer or args.predictor) or bool(args.tokenizer) != bool(args.predictor):
        raise InputError("give --bundle, or --tokenizer and --predictor (make a bundle with python -m kronos.export)")
    if args.bundle:
        return load_bundle(args.bundle).forecaster(args.device), Path(args.bundle).name
    pair = Bundle(load_tokenizer(args.tokenizer), load_predictor(args.predictor), args.max_context)
    return pair.forecaster(args.device), Path(args.predictor).name


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, listen until Ctrl-C."""
    parser = command_parser(
        __doc__, ["python examples/serve.py --bundle my_bundle", "python examples/serve.py --tokenizer T --predictor P"]
    )
    parser.add_argument("--bundle", metavar="PATH", help="what python -m kronos.export wrote (folder or pth)")
    parser.add_argument("--tokenizer", metavar="DIR", help="folder or hub id")
    parser.add_argument("--predictor", metavar="DIR", help="folder or hub id")
    parser.add_argument("--max-context", metavar="N", type=int, default=512, help="of --predictor; a bundle knows its own (default: 512)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first of these that is there)")
    parser.add_argument("--wait-ms", type=float, default=5, help="silence after which what has come is computed (default: 5)")
    parser.add_argument("--max-batch", type=int, default=16, help="requests computed together; 1: one at a time (default: 16)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the model (default: torch's own choice)")
    parser.add_argument("--timeout-s", type=float, default=60, help="until a request is given up (default: 60)")
    args = parser.parse_args(argv)
    forecaster, name = _load(args)
    try:
        listener = socket.create_server((args.host, args.port), family=socket.AF_INET6 if ":" in args.host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen at {args.host}, port {args.port} ({error}): choose another --port or --host") from error
    app = create_app(forecaster, name, wait_ms=args.wait_ms, max_batch=args.max_batch, timeout_s=args.timeout_s)
    print(f"{name}: http://{args.host}:{listener.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(app, log_level="warning", limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    run_command(main)
