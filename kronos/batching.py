"""Forecasts asked for one at a time, computed together: for services, where many clients each want one series.

batcher = Batcher(forecaster)
worker = asyncio.create_task(batcher.work())
paths = await batcher.ask(frame, past, future, Wish(horizon=24, samples=30))
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from kronos.forecaster import KronosPredictor

_MOST_WAITS = 4  # times wait_s that the first of a batch waits at most


@dataclass(frozen=True)
class Wish:
    """What is wanted of a forecast. Only equal wishes can be computed together."""

    horizon: int
    samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class _Job:
    """One request on its way to the model."""

    frame: pd.DataFrame
    past: Sequence[datetime]
    future: Sequence[datetime]
    wish: Wish
    answer: "asyncio.Future[np.ndarray]"


class Batcher:
    """Requests that follow each other closely, or come while the model is busy, become one call of predict_batch in one thread.

    A series' random numbers depend on its bars and the seed alone, so its paths are the same in any company.
    done: how many "batches" were computed, and of how many "series".
    """

    def __init__(self, forecaster: KronosPredictor, *, wait_s: float = 0.005, most: int = 16, waiting: int = 256) -> None:
        """wait_s: so much silence closes a batch (a lone request waits that long, the first of many at most four times that).
        most: requests taken together. waiting: requests that may wait; more are turned away.
        """
        self.forecaster, self.wait_s, self.most = forecaster, wait_s, most
        self.queue: asyncio.Queue[_Job] = asyncio.Queue(waiting)
        self.done: Counter[str] = Counter()
        self.thread = ThreadPoolExecutor(1, "forecast")

    async def ask(self, frame: pd.DataFrame, past: Sequence[datetime], future: Sequence[datetime], wish: Wish) -> np.ndarray:
        """Paths [samples, horizon, 6] of one series. Raises asyncio.QueueFull when too many wait, and what predict_batch raises."""
        job = _Job(frame, past, future, wish, asyncio.get_running_loop().create_future())
        self.queue.put_nowait(job)
        return await job.answer  # a caller that gives up cancels it, and its job is passed over

    async def work(self) -> None:
        """Serve the queue until cancelled; one task of it must run."""
        try:
            while True:
                groups = defaultdict(list)
                for job in await self._gather():
                    groups[job.wish].append(job)
                for wish, jobs in groups.items():
                    await self._answer(wish, jobs)
        finally:
            self.thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> list[_Job]:
        """The first job that comes, and those that follow each other closely."""
        jobs = [await self.queue.get()]
        latest = asyncio.get_running_loop().time() + _MOST_WAITS * self.wait_s
        while len(jobs) < self.most:
            try:
                async with asyncio.timeout_at(min(latest, asyncio.get_running_loop().time() + self.wait_s)):
                    jobs.append(await self.queue.get())
            except TimeoutError:
                break
        return jobs

    async def _answer(self, wish: Wish, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if not job.answer.done()]
        if not jobs:
            return
        try:
            paths = await asyncio.get_running_loop().run_in_executor(self.thread, self._predict, wish, jobs)
        except Exception as error:
            if len(jobs) > 1:  # one's fault is not the others'
                for job in jobs:
                    await self._answer(wish, [job])
            elif not jobs[0].answer.done():
                jobs[0].answer.set_exception(error)
            return
        self.done.update(batches=1, series=len(jobs))
        for job, one in zip(jobs, paths, strict=True):
            if not job.answer.done():
                job.answer.set_result(one)

    def _predict(self, wish: Wish, jobs: list[_Job]) -> list[np.ndarray]:
        series = ([job.frame for job in jobs], [job.past for job in jobs], [job.future for job in jobs])
        how = (wish.horizon, wish.temperature, wish.top_k, wish.top_p, wish.samples, False)
        return self.forecaster.predict_batch(*series, *how, seed=wish.seed, return_samples=True)
