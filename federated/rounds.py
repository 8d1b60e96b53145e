"""The server's loop: rounds of training and evaluation until they are done, their budget is spent, or a signal stops them.

Everything that decides the next global weights is a function of (seed, round, who answered), and `checkpoints/last-...` holds all that a
round leaves behind: weights, the strategy's moments, the privacy spent. So a run resumed after round k equals one that was never stopped.
(With noise nothing repeats: `privacy.SystemNoise`.)
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from textwrap import shorten
from typing import Any

from flwr.serverapp import Grid

from federated import strategies
from federated.client_app import MODELS
from federated.exchange import Answers, Arrays, Exchange, model_bytes, moved
from federated.privacy import Accountant, Mechanism, SystemNoise, clipped
from federated.records import Records, RoundRecord
from federated.robust import Rules, enough_clients, noise_bound
from federated.roster import Client, Roster, grouped, partitions_of
from federated.secure.errors import SecureAggregationHalted
from federated.secure.server import SecureRound
from federated.secure.settings import MIN_CLIENTS, SecureSettings
from federated.settings import Settings, run_config
from federated.task import PIECES, Weights
from federated.update import ARRAYS, MALFORMED, from_record
from finetune.engine import checkpoint
from finetune.engine.errors import Interrupted
from finetune.engine.files import read_json, write_json
from finetune.engine.places import newest_last
from finetune.engine.signals import StopRequest
from finetune.engine.tracking import Run
from kronos.errors import InputError

NAME = "federation"
_TOLD = 200  # characters of an error
SPENT = "privacy.json"  # noise multipliers of all rounds that clients were asked to train in, also of those that came to nothing
# what a resumed run may have otherwise: how long it goes on, where it is, how patient it is
_MAY_DIFFER = {"num-server-rounds", "run-folder", "resume", "round-timeout-s", "checkpoint-every-rounds", "num-workers"}


def federate(grid: Grid, settings: Settings) -> Path:
    """A whole run over `grid`; returns its folder. Raises InputError (a halted secure round too) or Interrupted; status.json says why."""
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it would tell of one sampled node in every round: who is asked is ours to say
    with (
        Run.create(settings.folder, config=run_config(settings), is_main=True, resume=settings.resume, name=NAME) as run,
        StopRequest() as stop,
    ):
        federation = Federation(grid, settings, run, stop)
        try:
            federation.run_rounds()
        except SecureAggregationHalted as error:
            raise InputError(
                f"round {federation.done + 1}: {error}; rounds before it are kept: go on with resume=true once the clients are back, "
                "or lower secure-threshold"
            ) from error
        federation.finish()
    return settings.folder


class Federation:
    """One run: roster, model, strategy, and where it stands."""

    def __init__(self, grid: Grid, settings: Settings, run: Run, stop: StopRequest):
        self.grid, self.settings, self.run, self.stop = grid, settings, run, stop
        self.model = MODELS[settings.model]
        self.model.check(settings)
        self.roster = Roster(grid, settings, run.say, self.model.heard)
        self.roster.call()
        clients = [self.roster.clients[p] for p in sorted(self.roster.clients)]
        if any(client.told.get(PIECES) for client in clients):
            run.say(
                "warning: series are cut in time between clients, and each piece has a validation of its own: training bars of one piece "
                "may be later than validation bars of another, so validation can look better than the future will be, and thresholds of "
                "targets may be of later bars than a piece trains on; deal out whole series to have neither"
            )
        enough_clients(settings.strategy, len(clients), self.malicious, secure=settings.secure)
        self.facts = self.model.facts(settings, [client.told for client in clients])
        self.exchange = Exchange(grid, settings, self.facts)
        self.weights = self._described(clients)
        self.strategy = strategies.make_strategy(settings)
        self.mechanism = Mechanism(settings.dp_max_norm, settings.dp_sigma, settings.dp_mode) if settings.private else None
        self.done, self.best, self.best_round = 0, float("inf"), 0
        self.accountant: Accountant | None = None
        if settings.resume:
            self._load()
        else:
            checkpoint.set_aside(run.checkpoints)
        if settings.private:
            spent = (read_json(run.folder / SPENT) if settings.resume else None) or {"multipliers": []}
            self.accountant = Accountant(settings.dp_sigma, settings.dp_delta, settings.dp_epsilon, list(spent["multipliers"]))
        self.records = Records(run, self.done)
        self.arrays = self.weights.arrays()

    @property
    def malicious(self) -> int:
        return self.settings.malicious_clients if self.settings.strategy == "krum" else 0

    def _described(self, clients: list[Client]) -> Weights:
        """The model. Where only clients can describe it (see `client_app.describe`): of the first whose description is one."""
        if not hasattr(self.model, "describe"):
            return self.model.weights(self.settings, self.facts)
        reasons: dict[int, str] = {}
        for client in clients:
            told, why = self.exchange.describe(client)
            try:
                if told is not None:
                    return self.model.weights(self.settings, self.facts | told)
            except (*MALFORMED, AssertionError, MemoryError, RuntimeError) as error:  # what building from a stranger's numbers can raise
                why = f"what it describes is no model ({type(error).__name__}: {shorten(str(error), _TOLD)})"
            self.run.say(f"partition {client.partition} cannot describe the model: {why}")
            reasons[client.partition] = why
        raise InputError(f"no client could describe the model: {grouped(reasons)}")

    # ------------------------------------------------------------------ the loop

    def run_rounds(self) -> None:
        """Rounds from where the run stands."""
        s = self.settings
        self.run.say(
            f"{len(self.roster.clients)} clients, {s.num_server_rounds} rounds of {s.strategy}, "
            f"{sum(a.size for a in self.arrays.values()):,} weights ({model_bytes(self.arrays) / 1e6:.2f} MB)"
            + (", secure aggregation" if s.secure else "")
            + (f", noise {s.dp_sigma:g} × {s.dp_max_norm:g} by the {s.dp_mode}" if s.private else "")
        )
        while self.done < s.num_server_rounds:
            if self.stop.requested:
                raise Interrupted(f"stopped by {self.stop.name} after round {self.done}; the same command with --resume goes on from there")
            if self.accountant and not self.accountant.allows_next():
                self.run.say(
                    f"stopped before round {self.done + 1}: it would spend ε = {self.accountant.epsilon_with(s.dp_sigma):.3f}, "
                    f"more than dp-epsilon {s.dp_epsilon:g}"
                )
                return
            self._round(self.done + 1)

    def _round(self, number: int) -> None:
        begin = time.perf_counter()
        asked = self.roster.choose(number, self.settings.fraction_fit, self.settings.min_fit_clients)
        if not asked:
            raise InputError(f"round {number}: no client is there; start the nodes again, and go on with resume=true")
        answers = self._train(number, asked)
        new = self._aggregate(number, answers)
        epsilon = self._spend(len(asked), len(answers.survivors))
        judged = self._evaluate(number, new)
        record = RoundRecord(
            round=number,
            asked=partitions_of(asked),
            answered=answers.survivors,
            failed=dict(sorted(answers.failed.items())),
            samples={p: u.examples for p, u in answers.updates.items()},
            samples_total=answers.examples,
            model_bytes=model_bytes(new),
            bytes_down=answers.bytes_down + (judged.bytes_down if judged else 0),
            bytes_up=answers.bytes_up + (judged.bytes_up if judged else 0),
            seconds=time.perf_counter() - begin,
            train={**answers.metrics, "moved": moved(new, self.arrays)},
            train_loss={p: u.metrics["train_loss"] for p, u in answers.updates.items()},
            score=_scores(judged),
            loss={p: u.metrics["val_loss"] for p, u in judged.updates.items()} if judged else {},
            evaluated=judged.survivors if judged else [],
            stages=answers.stages,
            epsilon=epsilon,
        )
        self._keep(number, new, record)

    def _train(self, number: int, asked: list[Client]) -> Answers:
        """One exchange of training. Raises InputError if nobody's update is left."""
        secure = self._secure(asked) if self.settings.secure else None
        minimum = secure.settings.quorum(len(asked)) if secure else 1
        share = self.mechanism.noise_share(secure=self.settings.secure, minimum_survivors=minimum) if self.mechanism else 1.0
        messages = self.exchange.requests("train", asked, self.arrays, number, share)
        if self.accountant:  # what leaves the clients is spent, whatever becomes of the round
            write_json(self.run.folder / SPENT, {"multipliers": [*self.accountant.multipliers, self.accountant.sigma]})
        if secure:
            return self.exchange.hidden(secure, asked, messages, number)
        answers = self.exchange.in_clear(asked, messages, self.arrays, self._rules(share))
        if not answers.survivors:
            raise InputError(f"round {number}: none of the {len(asked)} clients gave a valid update ({grouped(answers.failed)})")
        return answers

    def _aggregate(self, number: int, answers: Answers) -> Arrays:
        """The next global weights."""
        strategies.begin(self.strategy, number, self.arrays)
        contents = [answers.contents[p] for p in sorted(answers.contents)]
        if not strategies.takes_mean(self.settings):
            return strategies.step(self.strategy, number, contents)
        mean = answers.mean.arrays if answers.mean else strategies.mean_of([self._bounded(content) for content in contents])
        if self.mechanism:
            mean = self.mechanism.on_server(mean, len(answers.survivors), SystemNoise())
        return strategies.step(self.strategy, number, [strategies.as_reply(mean)])

    def _bounded(self, content: Any) -> Any:
        """With the server's noise in clear, a client that did not clip must not count for more: the server clips again."""
        if not (self.mechanism and self.settings.dp_mode == "server"):
            return content
        arrays = clipped(from_record(content[ARRAYS]), self.arrays, self.settings.dp_max_norm)
        return strategies.as_reply(arrays)

    def _evaluate(self, number: int, arrays: Arrays) -> Answers | None:
        """The new weights on the clients' validation windows. None: nobody is asked; failures leave an evaluation without them."""
        s = self.settings
        if s.fraction_evaluate == 0:
            return None
        asked = self.roster.choose(number, s.fraction_evaluate, s.min_evaluate_clients, evaluate=True)
        if s.secure and len(asked) < MIN_CLIENTS:
            self.run.say(f"round {number} is not evaluated: {len(asked)} clients are there, and a sum of so few would show")
            return None
        messages = self.exchange.requests("evaluate", asked, arrays, number)
        if s.secure:
            try:
                return self.exchange.hidden(self._secure(asked, evaluate=True), asked, messages, number)
            except SecureAggregationHalted as error:  # what was trained is worth keeping all the same
                self.run.say(f"round {number} is not evaluated: {error}")
                return None
        return self.exchange.in_clear(asked, messages, None, Rules())

    def _spend(self, asked: int, survivors: int) -> float | None:
        if not (self.accountant and self.mechanism):
            return None
        minimum = self._secure_settings().quorum(asked) if self.settings.secure else 1
        z = self.mechanism.noise_multiplier(secure=self.settings.secure, minimum_survivors=minimum, survivors=survivors)
        epsilon = self.accountant.spend(z)
        write_json(self.run.folder / SPENT, {"multipliers": self.accountant.multipliers})
        rounds = len(self.accountant.multipliers)
        self.run.say(f"privacy: ε = {epsilon:.3f} at δ = {self.settings.dp_delta:g} for each client, rounds so far: {rounds}")
        return epsilon

    def _rules(self, share: float) -> Rules:
        s = self.settings
        limit = s.max_update_norm or None
        if self.mechanism:
            noise = s.dp_sigma * s.dp_max_norm * share if s.dp_mode == "client" else 0.0
            limit = 1.001 * noise_bound(s.dp_max_norm, noise, sum(a.size for a in self.arrays.values()))  # float32 rounds
        return Rules(max_norm=limit)

    def _secure(self, asked: list[Client], evaluate: bool = False) -> SecureRound:
        name = "val" if evaluate else "train"
        return SecureRound(self._secure_settings(max(int(client.told[name]) for client in asked), evaluate))

    def _secure_settings(self, most: int = 1, evaluate: bool = False) -> SecureSettings:
        s = self.settings
        return SecureSettings(
            threshold=s.secure_threshold,
            clip_range=1.0 if evaluate else (s.clip_range or self._noisy_range()),
            weights="equal" if s.private else "examples",
            max_weight=None if s.private else most,
        )

    def _noisy_range(self) -> float | None:
        """With the clients' noise: what clipping leaves of a change, and the noise but for once in 10¹⁵. None: from the global weights."""
        s = self.settings
        return s.dp_max_norm * (1 + 8 * s.dp_sigma) if self.mechanism and s.dp_mode == "client" else None

    # ------------------------------------------------------------------ what is kept

    def _keep(self, number: int, new: Arrays, record: RoundRecord) -> None:
        """The round counts from here on: records, checkpoints, the table's line."""
        s, run = self.settings, self.run
        self.arrays, self.done = new, number
        self.weights.load(new)
        score = record.score.get("val_loss", float("nan")) if s.fraction_evaluate else record.train["train_loss"]
        facts = {"round": number, "val_loss": score}
        better = score < self.best or not self.weights.comparable  # the newest, where losses are of different tokens
        if better:
            self.best, self.best_round = score, number
            checkpoint.save_best(run.best, self.weights, facts)  # type: ignore[arg-type]
        if s.checkpoint_every_rounds and number % s.checkpoint_every_rounds == 0:
            checkpoint.save_best(run.checkpoints / f"round-{number:04d}", self.weights, facts)  # type: ignore[arg-type]
        state = {
            "round": number,
            "best": self.best,
            "best round": self.best_round,
            "identity": self.identity(),
            "moments": strategies.moments(self.strategy),
        }
        self.records.add(record)
        checkpoint.save_last(run.checkpoints, number, self.weights, state)  # type: ignore[arg-type]
        run.status("running", round=number)
        run.say(_line(record, better))

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        settings = {name: value for name, value in run_config(self.settings).items() if name not in _MAY_DIFFER}
        return {
            **settings,
            "facts": repr(self.facts),
            "model": repr(self.weights.identity),
            "model's sizes": {n: list(a.shape) for n, a in self.weights.arrays().items()},
        }

    def _load(self) -> None:
        """Go on from the newest checkpoint, if there is one yet."""
        path = newest_last(self.run.checkpoints)
        if path is None:
            return
        weights, saved = checkpoint.load_last(path)
        checkpoint.check_identity(path, saved["identity"], self.identity())
        self.weights.load({name: tensor.numpy() for name, tensor in weights.items()})
        strategies.restore(self.strategy, saved["moments"])
        self.done, self.best, self.best_round = saved["round"], saved["best"], saved["best round"]
        self.run.say(f"resumed from {path}: round {self.done} is done")

    def finish(self) -> None:
        """Table, picture, summary."""
        from federated.pictures import draw_run

        run = self.run
        run.say(self.records.table())
        self.records.write_table()
        draw_run(run.folder / "federation.png", self.records.all)
        last = self.records.all[-1]
        run.finish(
            {
                "rounds": self.done,
                "best_round": self.best_round,
                "best_val_loss": self.best,
                "last": last.plain(),
                "clients": {p: c.told for p, c in sorted(self.roster.clients.items())},
                "left_out": dict(self.roster.left_out),
                "bytes_up": sum(r.bytes_up for r in self.records.all),
                "bytes_down": sum(r.bytes_down for r in self.records.all),
            },
            round=self.done,
        )
        print(f"done: everything is in {run.folder}", flush=True)


def _scores(judged: Answers | None) -> dict[str, float]:
    """Means over those who evaluated; a metric that some lack is the mean over those who have it (see `task._known`)."""
    values = judged.metrics if judged else {}
    scores = {}
    for name, value in values.items():
        if name.endswith("_known"):
            continue
        known = values.get(f"{name}_known", 1.0)
        if known > 0:
            scores[name] = value / known
    return scores


def _line(record: RoundRecord, better: bool) -> str:
    failed = "".join(f"\n  partition {p}: {why}" for p, why in record.failed.items())
    score = f", val loss {record.score['val_loss']:.5f}" if "val_loss" in record.score else ""
    return (
        f"round {record.round}: {len(record.answered)} of {len(record.asked)} clients, train loss {record.train['train_loss']:.5f}{score}"
        f"{' (best so far)' if better else ''}, {record.bytes_up / 1e6:.2f} MB up, {record.seconds:.1f} s{failed}"
    )
