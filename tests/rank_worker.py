"""What test_distributed.py runs on each rank: python rank_worker.py WHAT OUT. Writes OUT/<what>-<world>-<rank>.pt."""

import sys
from pathlib import Path

import tiny
import torch

from finetune.engine.distributed import World, world
from finetune.engine.errors import Interrupted
from finetune.engine.signals import StopRequest
from finetune.engine.tokens import with_cached_tokens
from finetune.engine.tracking import Run
from finetune.engine.trainer import fit


def equality(here: World, task, **changes) -> dict:
    """20 steps; 8 windows per micro-batch, 16 per step, whatever the world."""
    accumulation = 2 // here.size
    fit(task, tiny.windows(3, 80), tiny.settings(epochs=20, accumulation_steps=accumulation, **changes), world=here, max_steps=20)
    return tiny.weights(task.trained())


def remainder(here: World) -> dict:
    """Epochs that end in a step with 6 windows for 4 per micro-batch, so that rank 1 has a short one, and 2 where it has none."""
    out = {}
    for rows in (51, 55):
        task = tiny.predictor_task()
        result = fit(task, tiny.windows(1, rows), tiny.settings(epochs=2, batch_size=4, accumulation_steps=2 // here.size), world=here)
        out |= {f"{rows}.{k}": v for k, v in tiny.weights(task.trained()).items()} | {f"{rows}.val": torch.tensor(result.best_score)}
    return out


def stopped(here: World, out: Path) -> dict:
    """Only rank 1 gets the signal; both must stop at the same step."""
    stop = tiny.StopAfter(4) if here.rank == 1 else StopRequest()
    run = Run.create(out / "run", config={}, is_main=here.is_main, resume=False, name="test")
    try:
        fit(tiny.predictor_task(), tiny.windows(), tiny.settings(epochs=50), run, world=here, stop=stop)
    except Exception as error:
        return {"error": str(error), "kind": type(error).__name__}
    return {}


def cached(here: World, out: Path) -> dict:
    """Two ranks fill one cache of three chunks; training from it equals training that encodes as it goes."""
    weights = {}
    for mode in ("on", "off"):
        task = tiny.predictor_task()
        settings = tiny.settings(epochs=2)
        stop = StopRequest()
        windows = with_cached_tokens(
            tiny.windows(3, 350), task.tokenizer, out / "cache", settings, here, stop, mode=mode, say=lambda _: None
        )
        fit(task, windows, settings, world=here)
        weights |= {f"{mode}.{k}": v for k, v in tiny.weights(task.trained()).items()}
    return weights


def moved(here: World, out: Path) -> dict:
    """A run begun on one rank with accumulation 2, stopped, and continued on as many ranks as there are here."""
    folder = out / f"moved-{here.size}"
    for stop, ranks in ((tiny.StopAfter(5), World()), (StopRequest(), here)):
        if ranks is not here and not here.is_main:
            continue
        task = tiny.predictor_task()
        try:
            with Run.create(folder, config={}, is_main=here.is_main, resume=ranks is here, name="test") as run:
                settings = tiny.settings(accumulation_steps=2 // ranks.size)
                fit(task, tiny.windows(), settings, run, world=ranks, stop=stop, resume=ranks is here)
        except Interrupted:
            here.barrier()  # the other rank waits below until the checkpoint is there
    return tiny.weights(task.trained())


def main(what: str, out: Path) -> None:
    torch.set_num_threads(1)
    with world(timeout_s=60) as here:
        if what == "predictor":
            result = equality(here, tiny.predictor_task())
        elif what == "tokenizer":
            result = equality(here, tiny.tokenizer_task().double())
        elif what == "remainder":
            result = remainder(here)
        elif what == "moved":
            if not here.is_main:
                here.barrier()
            result = moved(here, out)
        elif what == "stopped":
            result = stopped(here, out)
        else:
            result = cached(here, out)
    torch.save(result, out / f"{what}-{here.size}-{here.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
