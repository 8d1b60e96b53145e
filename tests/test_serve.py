"""The HTTP service over HTTP: what it answers, what it refuses and how it says so, and that company changes nothing."""

import asyncio
import gzip
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pandas as pd
import pytest
import service
from bars import make_frame
from service import problems, question, rows, running

from kronos.batching import Batcher, Wish
from kronos.bundle import Bundle, write_folder
from kronos.errors import InputError

serve = service.load_serve()


@pytest.fixture(scope="module")
def model():
    return service.forecaster()


@pytest.fixture(scope="module")
def address(model):
    with running(serve.create_app(model, "tiny", wait_ms=30)) as url:
        yield url


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=30) as one:
        yield one


def test_a_forecast_is_that_of_the_library_with_times_quantiles_and_chances(client, model):
    asked = question(samples=9, seed=3, quantiles=[0.1, 0.9], return_samples=True)
    answer = client.post("/predict", json=asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    frame = pd.DataFrame(asked["bars"])
    past = pd.to_datetime(frame.pop("timestamp"))
    future = past.iloc[-1] + pd.to_timedelta(range(1, 5), "h")
    paths = model.predict(frame, past, future, 4, sample_count=9, seed=3, verbose=False, return_samples=True)
    np.testing.assert_allclose(found["samples"], paths, rtol=1e-9)
    np.testing.assert_allclose(found["mean"]["close"], paths.mean(0)[:, 3], rtol=1e-9)
    np.testing.assert_allclose(found["quantiles"]["0.9"]["high"], np.quantile(paths, 0.9, axis=0)[:, 1], rtol=1e-9)
    assert found["prob_up"] == (paths[:, :, 3] > frame["close"].iloc[-1]).mean(0).tolist()
    assert [pd.Timestamp(time) for time in found["timestamps"]] == list(future)
    assert found["lookback"] == 30 and found["seed"] == 3


def test_the_same_question_gets_the_same_answer_and_another_seed_another(client):
    first, again, other = (client.post("/predict", json=question(seed=seed)).json() for seed in (1, 1, 2))
    assert first == again
    assert first["mean"] != other["mean"]


def test_requests_at_the_same_time_are_computed_together_and_answered_as_if_alone(client, address):
    asked = [question(20 + number % 3, number, return_samples=True) for number in range(12)]
    alone = [client.post("/predict", json=one).json()["samples"] for one in asked]
    before = client.get("/health").json()
    start = threading.Barrier(len(asked))

    def ask(one):
        start.wait()
        return httpx.post(f"{address}/predict", json=one, timeout=30).json()["samples"]

    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(ask, asked))
    after = client.get("/health").json()
    assert after["series"] - before["series"] == 12
    assert after["batches"] - before["batches"] <= 6
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_questions_that_differ_in_how_they_are_drawn_each_get_their_own(client, address):
    asked = [question(seed=5, **how) for how in ({"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 2}, {"horizon": 2}, {"samples": 5}, {})]
    alone = [client.post("/predict", json=one).json() for one in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: httpx.post(f"{address}/predict", json=one, timeout=30).json(), asked))
    assert together == alone
    assert len({str(one["mean"]) for one in alone}) == len(asked)


def test_no_more_bars_are_used_than_the_context_has_room_for(client):
    long, cut = question(80), question(80)
    cut["bars"] = cut["bars"][-(service.CONTEXT - 4) :]
    found = client.post("/predict", json=long).json()
    assert found["lookback"] == service.CONTEXT - 4
    assert found == client.post("/predict", json=cut).json()


def test_volume_may_be_left_out_and_times_may_have_an_offset(client):
    bare = question()
    for bar in bare["bars"]:
        del bar["volume"], bar["amount"]
    assert client.post("/predict", json=bare).status_code == 200
    naive, zoned = question(), question()
    for bar in zoned["bars"]:
        bar["timestamp"] += "+08:00"
    answers = [client.post("/predict", json=one).json() for one in (naive, zoned)]
    assert answers[0]["mean"] == answers[1]["mean"]  # the wall clock counts
    assert answers[1]["timestamps"][0].endswith("+08:00")
    given = ["2020-01-02T09:30:00", "2020-01-02T10:30:00", "2020-01-02T11:30:00", "2020-01-03T09:30:00"]
    assert client.post("/predict", json=question(future=given)).json()["timestamps"] == given


def test_an_exchange_knows_when_the_next_bars_come(client):
    bars = rows(13)
    minutes = (
        [f"2024-06-17T{time}" for time in ("09:35", "09:40")]
        + [f"2024-06-17T14:{minute}" for minute in range(10, 60, 5)]
        + ["2024-06-17T15:00"]
    )
    for bar, minute in zip(bars, minutes, strict=True):
        bar["timestamp"] = minute
    found = client.post("/predict", json={"bars": bars, "horizon": 2, "calendar": "XSHG"}).json()
    assert found["timestamps"] == ["2024-06-18T09:35:00", "2024-06-18T09:40:00"]


def changed(row: int, **values):
    bars = rows()
    bars[row] |= values
    return {"bars": bars}


WRONG = {
    "no bars": ({"bars": []}, "bars", "at least 2"),
    "too many bars": ({"bars": rows(2) * 2049}, "bars", "at most 4096"),
    "bars that are no list": ({"bars": "x"}, "bars", "valid list"),
    "text for a price": (changed(3, close="abc"), "bars.3.close", "valid number"),
    "a price of nothing": (changed(3, close=None), "bars.3.close", "valid number"),
    "a price of 0": (changed(3, low=0), "bars.3.low", "greater than 0"),
    "negative volume": (changed(3, volume=-1), "bars.3.volume", "greater than or equal to 0"),
    "volume only here and there": (changed(3, volume=None), "bars", "row 3 has no volume"),
    "high below low": (changed(3, high=1, low=2), "bars.3", "high 1.0 is below low 2.0"),
    "close above high": (changed(3, close=1e6), "bars.3", "close 1000000.0 is outside"),
    "an unknown column": (changed(3, closing=1), "bars.3.closing", "not permitted"),
    "no time": (changed(3, timestamp="soon"), "bars.3.timestamp", "datetime"),
    "a time twice": (changed(3, timestamp=rows()[2]["timestamp"]), "bars", "row 3"),
    "an offset only here": (changed(3, timestamp="2020-01-01T03:00:00Z"), "bars", "row 3 has an offset"),
    "no horizon": ({"horizon": 0}, "horizon", "greater than or equal to 1"),
    "a horizon beyond the limit": ({"horizon": 513}, "horizon", "less than or equal to 512"),
    "a horizon beyond the context": ({"horizon": 63}, "horizon", "at most 62 bars"),
    "too many samples": ({"samples": 257}, "samples", "less than or equal to 256"),
    "too much of both": ({"horizon": 400, "samples": 50}, "samples", "20,000, the limit is 16,384"),
    "no temperature": ({"temperature": 0}, "temperature", "greater than 0"),
    "no top_p": ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
    "an impossible quantile": ({"quantiles": [0.5, 1]}, "quantiles.1", "less than 1"),
    "too few future times": ({"future": ["2030-01-01"]}, "future", "1 times for a horizon of 4"),
    "a future in the past": ({"future": ["2019-01-01", "2030-01-01", "2030-01-02", "2030-01-03"]}, "future", "time 1"),
    "an unknown exchange": ({"calendar": "XSHX"}, "calendar", "did you mean"),
    "a market that closes": ({"bars": [rows()[0], *rows()[9:]]}, "calendar", "this market closes; give future, or calendar, the exchange"),
    "a misspelt field": ({"sample": 3}, "sample", "not permitted"),
}


@pytest.mark.parametrize("change, field, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_a_422_with_the_field_and_a_message(client, change, field, message):
    answer = client.post("/predict", json=question() | change)
    assert answer.status_code == 422
    assert message in problems(answer)[field]


def test_numbers_that_json_does_not_have_and_text_that_is_not_json_are_refused(client):
    bars = '[{"timestamp":"2020-01-01","open":NaN,"high":Infinity,"low":1,"close":1},{"timestamp":"2020-01-02"}]'
    headers = {"content-type": "application/json"}
    answer = client.post("/predict", content=f'{{"horizon":1,"bars":{bars}}}', headers=headers)
    assert answer.status_code == 422
    assert "finite" in problems(answer)["bars.0.open"]
    assert client.post("/predict", content="{", headers=headers).status_code == 422
    assert client.post("/predict", content=b"\xff\xfe", headers=headers).status_code in (400, 422)


def test_of_a_thousand_problems_a_few_are_told_and_the_rest_is_a_count(client):
    bars = [bar | {"close": -1} for bar in rows(1000)]
    answer = client.post("/predict", json=question(bars=bars))
    assert len(answer.json()["detail"]) == 21
    assert problems(answer)[""] == "and 980 more"


def test_a_body_that_is_too_large_is_refused_with_413_also_when_its_length_is_not_told(client):
    size = serve.MAX_BODY + 1
    assert client.post("/bars", content=b"x" * size).status_code == 413
    streamed = client.post("/bars", content=(b"x" * (1 << 20) for _ in range(size // (1 << 20) + 1)))
    assert streamed.status_code == 413
    assert "larger than" in problems(streamed)["body"]
    assert client.get("/health").status_code == 200


def test_a_body_that_never_comes_is_given_up(address, monkeypatch):
    monkeypatch.setattr(serve, "BODY_S", 0.2)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in connection.recv(4096)


class Slow:
    """A forecaster that takes its time, or fails for some bars."""

    max_context, device = 64, "cpu"

    def __init__(self, model, wait_s=0.0):
        self.model, self.wait_s, self.calls = model, wait_s, []

    def predict_batch(self, frames, *rest, **options):
        self.calls.append(len(frames))
        time.sleep(self.wait_s)
        for frame in frames:
            if frame["open"].iloc[0] == 13.0:
                raise InputError("column open is unlucky")
            if frame["open"].iloc[0] == 17.0:
                raise RuntimeError("a fault of ours")
        return self.model.predict_batch(frames, *rest, **options)


def unlucky(number: float):
    return question(bars=[{"timestamp": f"2020-01-0{day}", "open": number, "high": 20, "low": 10, "close": 15} for day in (1, 2, 3)])


def test_what_takes_too_long_is_given_up_with_504_and_the_next_is_served(model):
    slow = Slow(model, 0.6)
    with running(serve.create_app(slow, timeout_s=0.2)) as url:
        late = httpx.post(f"{url}/predict", json=question())
        assert late.status_code == 504
        assert "0.2 s" in problems(late)[""]
        slow.wait_s = 0.0
        time.sleep(0.5)
        assert httpx.post(f"{url}/predict", json=question()).status_code == 200


def test_one_bad_series_in_a_batch_does_not_harm_the_others(model):
    asked = [question(seed=1), unlucky(13.0) | {"seed": 1}, question(20, 2, seed=1), unlucky(17.0) | {"seed": 1}]
    with running(serve.create_app(Slow(model), wait_ms=200)) as url, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: httpx.post(f"{url}/predict", json=one, timeout=30), asked))
    assert [answer.status_code for answer in answers] == [200, 422, 200, 500]
    assert problems(answers[1]) == {"bars": "column open is unlucky"}
    assert "fault of ours" not in answers[3].text


def test_when_too_many_wait_further_ones_are_turned_away(model):
    async def crowd():
        batcher = Batcher(Slow(model, 0.3), wait_s=0.0, most=1, waiting=2)
        worker = asyncio.create_task(batcher.work())
        frame = make_frame(10)
        times = list(frame.pop("timestamps"))
        ask = [asyncio.create_task(batcher.ask(frame, times[:10], times[:1], Wish(1))) for _ in range(5)]
        done = await asyncio.gather(*ask, return_exceptions=True)
        worker.cancel()
        return done

    done = asyncio.run(crowd())
    assert sum(isinstance(one, asyncio.QueueFull) for one in done) >= 2
    assert any(isinstance(one, np.ndarray) for one in done)


def test_what_nobody_waits_for_any_more_is_not_computed(model):
    async def impatient():
        slow = Slow(model, 0.2)
        batcher = Batcher(slow, wait_s=0.0, most=1)
        worker = asyncio.create_task(batcher.work())
        frame = make_frame(10)
        times = list(frame.pop("timestamps"))
        first, second, third = (asyncio.create_task(batcher.ask(frame, times[:10], times[:1], Wish(1, seed=n))) for n in range(3))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(first, third)
        worker.cancel()
        return slow.calls

    assert asyncio.run(impatient()) == [1, 1]


def csv(frame: pd.DataFrame | None = None, **options) -> bytes:
    return (make_frame(12) if frame is None else frame).to_csv(index=False).encode(**options)


def test_a_csv_comes_back_as_bars_that_can_be_forecast(client):
    answer = client.post("/bars", params={"name": "SH 600977.csv"}, content=csv())
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["name"], found["rows"], len(found["bars"])) == ("SH_600977", 12, 12)
    assert found["bars"][0]["close"] == pytest.approx(make_frame(12)["close"][0], rel=1e-6)
    assert client.post("/predict", json={"bars": found["bars"], "horizon": 2}).status_code == 200


def test_a_chinese_csv_in_gbk_is_read(client):
    names = {"timestamps": "日期", "open": "开盘", "high": "最高", "low": "最低", "close": "收盘", "volume": "成交量", "amount": "成交额"}
    found = client.post("/bars", content=csv(make_frame(12).rename(columns=names), encoding="gbk")).json()
    assert found["rows"] == 12
    assert any("GBK" in note for note in found["notes"])


def test_a_wrong_csv_is_refused_by_row_and_column_and_tells_nothing_of_this_machine(client):
    frame = make_frame(12)
    frame["low"] = frame["low"].astype(object)
    frame.loc[4, "low"] = "x"
    answer = client.post("/bars", params={"name": "../mine.csv"}, content=csv(frame))
    assert answer.status_code == 422
    message = problems(answer)["csv"]
    assert message.startswith("mine.csv, row 6, column 'low': 'x' is not a number")
    assert "tmp" not in message
    holes = make_frame(12)
    holes.loc[4, "low"] = np.nan
    assert "empty" in problems(client.post("/bars", content=csv(holes)))["csv"]
    left = client.post("/bars", params={"missing": "drop"}, content=csv(holes)).json()
    assert len(left["bars"]) == 11 and any("dropped" in note for note in left["notes"])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not text"),
        (b"a,b\n1,2\n", "none for timestamps"),
        (gzip.compress(csv()), "compressed"),
        (csv(pd.concat([make_frame(5).assign(symbol=name) for name in "AB"])), "2 series"),
    ],
    ids=["empty", "picture", "other columns", "gzip", "two stocks"],
)
def test_what_is_not_a_csv_of_one_series_is_refused(client, content, message):
    answer = client.post("/bars", content=content)
    assert answer.status_code == 422
    assert message in problems(answer)["csv"]


def test_the_pages_ask_no_other_host_for_anything(client):
    files = sorted(serve.PAGE.iterdir())
    assert {file.suffix for file in files} == {".html", ".js", ".css"}
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|url\(", text), file
        assert client.get(f"/static/{file.name}").status_code == 200
        assert text.count("\n") <= 400
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.status_code == 200 and "<main>" in answer.text
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]


def test_the_machine_readable_description_names_every_limit(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["Question"]["properties"]
    assert fields["bars"]["maxItems"] == serve.MAX_ROWS and fields["horizon"]["maximum"] == serve.MAX_HORIZON
    assert fields["samples"]["maximum"] == client.get("/health").json()["limits"]["samples"]
    assert set(schemas["Problem"]["properties"]) == {"field", "message"}


def test_the_command_serves_a_bundle_on_this_machine_only_and_ends_with_ctrl_c(model, tmp_path):
    write_folder(Bundle(model.tokenizer, model.model, service.CONTEXT), tmp_path / "pair")
    command = [sys.executable, str(service.ROOT / "examples" / "serve.py"), "--bundle", str(tmp_path / "pair"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path) as process:
        try:
            line = process.stdout.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert url, line
            health = httpx.get(f"{url[0]}/health").json()
            assert (health["model"], health["context"]) == ("pair", service.CONTEXT)
            assert httpx.post(f"{url[0]}/predict", json=question(), timeout=30).status_code == 200
            process.send_signal(2)
            assert process.wait(20) in (0, 130)
        finally:
            process.kill()


def test_wrong_arguments_are_one_message(tmp_path, model):
    with pytest.raises(InputError, match="give --bundle, or --tokenizer and --predictor"):
        serve.main([])
    with pytest.raises(InputError, match="give --bundle, or --tokenizer and --predictor"):
        serve.main(["--tokenizer", "x"])
    with pytest.raises(InputError, match="there is no bundle"):
        serve.main(["--bundle", str(tmp_path / "nothing")])
    write_folder(Bundle(model.tokenizer, model.model, service.CONTEXT), tmp_path / "pair")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another --port"):
        serve.main(["--bundle", str(tmp_path / "pair"), "--port", str(taken.getsockname()[1])])
