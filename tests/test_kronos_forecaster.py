"""Forecasts for DataFrames: paths and means, batches, seeds, precisions, memory, and one message for each wrong input."""

import copy
import gc
import inspect
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from kronos import InputError, KronosPredictor, Sampling, fingerprint, load_predictor, load_tokenizer, save_module
from kronos.bars import COLUMNS
from kronos.cache import CachedPredictor, Plan
from kronos.forecaster import CONTEXTS, _Request
from kronos.inference import Inference
from kronos.int8 import quantized_predictor, quantized_tokenizer
from kronos.packed import PackedPredictor
from kronos.portions import portions

GOLDEN = Path(__file__).parent / "golden"
BARS = pd.read_csv(GOLDEN / "bars.csv", parse_dates=["timestamps"])
TIMES = BARS.pop("timestamps")


@pytest.fixture(scope="module")
def forecaster() -> KronosPredictor:
    return KronosPredictor(load_predictor(GOLDEN / "predictor"), load_tokenizer(GOLDEN / "tokenizer"), device="cpu", max_context=64)


def ask(forecaster, df=None, length=30, horizon=5, **options):
    df = BARS[:length] if df is None else df
    options = {"T": 1.0, "top_p": 1.0, "verbose": False, "seed": 0, **options}
    return forecaster.predict(df, TIMES[: len(df)], TIMES[40 : 40 + horizon], horizon, **options)


def test_predict_has_the_signature_of_the_public_code():
    public = ["self", "df", "x_timestamp", "y_timestamp", "pred_len", "T", "top_k", "top_p", "sample_count", "verbose"]
    parameters = inspect.signature(KronosPredictor.predict).parameters
    assert list(parameters)[: len(public)] == public
    assert [parameters[name].default for name in public[5:]] == [1.0, 0, 0.9, 1, True]
    assert list(inspect.signature(KronosPredictor.__init__).parameters)[1:6] == ["model", "tokenizer", "device", "max_context", "clip"]


def test_every_sample_path_is_there_and_the_frame_is_their_mean(forecaster):
    """Fault 14: the public code averages paths before the caller sees them."""
    paths = ask(forecaster, sample_count=7, return_samples=True)
    mean = ask(forecaster, sample_count=7)
    assert paths.shape == (7, 5, 6)
    assert len(np.unique(paths[:, -1, 3])) > 3
    np.testing.assert_allclose(mean.to_numpy(), paths.mean(0))
    assert list(mean.columns) == ["open", "high", "low", "close", "volume", "amount"]
    assert mean.index.tolist() == TIMES[40:45].tolist()


def test_the_first_paths_do_not_depend_on_how_many_are_drawn_or_computed_together(forecaster):
    many = ask(forecaster, sample_count=6, return_samples=True)
    np.testing.assert_allclose(ask(forecaster, sample_count=2, return_samples=True), many[:2], rtol=1e-5)
    narrow = KronosPredictor(forecaster.model, forecaster.tokenizer, "cpu", max_context=64, batch_tokens=40)
    np.testing.assert_allclose(ask(narrow, sample_count=6, return_samples=True), many, rtol=1e-5)


def test_the_same_seed_repeats_and_torchs_generator_decides_without_one(forecaster):
    assert ask(forecaster, seed=3).equals(ask(forecaster, seed=3))
    assert not ask(forecaster, seed=3).equals(ask(forecaster, seed=4))
    free = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        free.append(ask(forecaster, seed=None))
    assert free[0].equals(free[1]) and not free[0].equals(free[2])


def several():
    """Series of different lengths; the last two outgrow max_context."""
    frames = [BARS[:30], BARS[3:20], BARS[5:35], BARS[:62], BARS[10:72]]
    return frames, [TIMES.loc[frame.index] for frame in frames], [TIMES[70:75]] * len(frames)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_series_gets_the_same_paths_to_the_bit_alone_in_any_batch_and_in_any_order(forecaster, context, samples):
    frames, past, future = several()
    options = {"T": 1.0, "top_p": 1.0, "sample_count": samples, "seed": 1, "return_samples": True, "verbose": False, "context": context}
    alone = [forecaster.predict(df, x, y, 5, **options) for df, x, y in zip(frames, past, future, strict=True)]
    tight = KronosPredictor(forecaster.model, forecaster.tokenizer, "cpu", max_context=64, batch_tokens=140)
    for order, one in (([0, 1, 2, 3, 4], forecaster), ([4, 2, 0, 3, 1], forecaster), ([1, 0], forecaster), ([4, 3, 2, 1, 0, 0], tight)):
        batch = one.predict_batch([frames[i] for i in order], [past[i] for i in order], [future[i] for i in order], 5, **options)
        for i, paths in zip(order, batch, strict=True):
            assert np.array_equal(paths, alone[i])


def test_context_fit_is_the_forecast_of_the_shorter_lookback(forecaster):
    frames, past, future = several()
    fit = forecaster.predict(frames[3], past[3], future[3], 5, seed=1, verbose=False, context="fit")
    short = forecaster.predict(frames[3][-59:], past[3][-59:], future[3], 5, seed=1, verbose=False)
    assert fit.equals(short)
    assert not fit.equals(forecaster.predict(frames[3], past[3], future[3], 5, seed=1, verbose=False))


def test_contexts_are_the_same_where_everything_fits(forecaster):
    exact, fit, rolling = (ask(forecaster, sample_count=2, context=context) for context in CONTEXTS)
    assert exact.equals(fit) and exact.equals(rolling)


def test_portions_hold_every_series_and_sample_once_within_the_budget_and_cut_samples_by_length_alone():
    lengths = [30, 17, 30, 62, 62, 5, 30, 100]
    for budget, max_context in ((200, None), (200, 64), (90, 64), (10, 64), (10_000, 64)):
        seen = [
            (i, sample)
            for parts in portions(lengths, 10, 7, budget, max_context)
            for part in parts
            for i in part.members
            for sample in range(part.first, part.last)
        ]
        assert sorted(seen) == [(i, sample) for i in range(len(lengths)) for sample in range(7)]
        for parts in portions(lengths, 10, 7, budget, max_context):
            for part in parts:
                members = part.members
                assert len(members) == 1 or sum(lengths[i] for i in members) + 10 * len(members) * (part.last - part.first) <= budget
                if max_context and any(lengths[i] + 10 > max_context for i in members):
                    assert len({lengths[i] for i in members}) == 1
                (alone,) = portions([lengths[members[0]]], 10, 7, budget, max_context)
                assert (part.first, part.last) in [(one.first, one.last) for one in alone]


def test_a_batch_gives_frames_in_the_order_asked(forecaster):
    frames = forecaster.predict_batch([BARS[:20], BARS[:10]], [TIMES[:20], TIMES[:10]], [TIMES[20:23], TIMES[10:13]], 3, verbose=False)
    assert [frame.index[0] for frame in frames] == [TIMES[20], TIMES[10]]
    assert forecaster.predict_batch([], [], [], 3, verbose=False) == []


def test_a_forecast_depends_on_nothing_but_the_bars_given(forecaster):
    before = BARS.copy()
    ask(forecaster)
    pd.testing.assert_frame_equal(BARS, before)
    assert ask(forecaster, BARS[:30][BARS.columns[::-1]]).equals(ask(forecaster))


def test_missing_volume_is_zero_and_missing_amount_is_volume_times_mean_price(forecaster):
    prices = BARS[["open", "high", "low", "close"]][:30]
    zeros = prices.assign(volume=0.0, amount=0.0)
    assert ask(forecaster, prices).equals(ask(forecaster, zeros))
    volume = prices.assign(volume=BARS["volume"])
    assert ask(forecaster, volume).equals(ask(forecaster, volume.assign(amount=volume["volume"] * prices.mean(axis=1))))


def test_a_seed_of_numpy_is_a_seed(forecaster):
    assert ask(forecaster, seed=np.int64(3)).equals(ask(forecaster, seed=3))


def test_weights_that_another_thread_packs_meanwhile_are_packed_once_more(forecaster):
    class Shared(Inference):
        """As seen by a thread: what it read is gone when it looks again."""

        @property
        def _packed(self):
            found, self._seen = self._seen, None
            return found

        @_packed.setter
        def _packed(self, value):
            self._seen = value

    shared = Shared(forecaster.model, forecaster.tokenizer)
    assert isinstance(shared.packed()[0], PackedPredictor)
    shared._packed = ([], None)  # of former weights
    assert isinstance(shared.packed()[0], PackedPredictor)


def test_a_callers_autocast_changes_nothing(forecaster):
    fresh = KronosPredictor(forecaster.model, forecaster.tokenizer, "cpu", max_context=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ask(fresh).equals(ask(forecaster))


def test_arrays_give_the_paths_of_frames_however_they_lie_in_memory(forecaster):
    times = pd.DatetimeIndex(pd.concat([TIMES[:30], TIMES[40:45]]))
    stamps = np.stack([times.minute, times.hour, times.weekday, times.day, times.month], 1)[None]
    values = BARS[:30][list(COLUMNS)].to_numpy()[None]
    how = dict(T=1.0, top_p=1.0, seed=0, sample_count=3)
    frames = ask(forecaster, sample_count=3, return_samples=True)
    for order in "CF":
        assert np.array_equal(forecaster.predict_arrays(np.asarray(values, order=order), stamps, 5, **how)[0], frames)
    with pytest.raises(InputError, match=r"stamps are from -1 to .*minute, hour, weekday"):
        forecaster.predict_arrays(values, np.where(stamps == stamps.max(), -1, stamps), 5)


def test_scaling_all_prices_scales_the_forecast(forecaster):
    bars = BARS[["open", "high", "low", "close"]][:30]
    one, thousand = ask(forecaster, bars), ask(forecaster, bars * 1000)
    np.testing.assert_allclose(thousand["close"], one["close"] * 1000, rtol=1e-3)


def test_stamps_are_those_of_the_wall_clock_and_a_plain_list_will_do(forecaster):
    zoned = TIMES.dt.tz_localize("Asia/Shanghai")
    local = forecaster.predict(BARS[:30], zoned[:30], zoned[40:45], 5, seed=0, verbose=False)
    plain = forecaster.predict(BARS[:30], list(TIMES[:30]), pd.DatetimeIndex(TIMES[40:45]), 5, seed=0, verbose=False)
    assert np.array_equal(local.to_numpy(), plain.to_numpy())


def test_a_model_in_training_mode_forecasts_without_dropout_and_goes_on_training(forecaster):
    model = load_predictor(GOLDEN / "predictor", resid_dropout_p=0.5, ffn_dropout_p=0.5)
    training = KronosPredictor(model.train(), forecaster.tokenizer, "cpu", max_context=64)
    np.testing.assert_allclose(ask(training).to_numpy(), ask(forecaster).to_numpy(), rtol=1e-6)
    assert model.training


def test_nan_prices_text_and_wrong_lengths_are_named_with_row_and_column(forecaster):
    holes = BARS[:30].copy()
    holes.loc[7, "close"] = np.nan
    wrong = [
        (lambda: ask(forecaster, holes), "column close is nan in row 7"),
        (lambda: ask(forecaster, BARS[:30].assign(high="x")), "column high holds something that is not a number"),
        (lambda: ask(forecaster, BARS[:30].drop(columns="low")), "df has no column low"),
        (lambda: ask(forecaster, BARS[:0]), "df has no rows"),
        (lambda: ask(forecaster, [1, 2]), "df is a list"),
        (lambda: ask(forecaster, horizon=0), "pred_len is 0"),
        (lambda: ask(forecaster, sample_count=0), "sample_count is 0"),
        (lambda: ask(forecaster, T=0.0), "temperature T is 0.0"),
        (lambda: ask(forecaster, top_p="0.9"), "top_p is '0.9': it must be a number"),
        (lambda: ask(forecaster, seed=1.5), "seed is 1.5"),
        (lambda: ask(forecaster, BARS[:30].assign(volume=np.finfo(float).max)), r"column volume is 1.79\d+e\+308 in row 0"),
        (lambda: forecaster.predict(BARS[:9], BARS.index[:9], TIMES[9:12], 3), "x_timestamp holds numbers, such as 0"),
        (lambda: forecaster.predict(BARS[:9], TIMES[8::-1], TIMES[9:12], 3), "x_timestamp goes back from .*oldest first"),
        (lambda: ask(forecaster, horizon=50), "y_timestamp has 40 entries, pred_len is 50"),
        (lambda: forecaster.predict(BARS[:9], TIMES[:8], TIMES[9:12], 3), "x_timestamp has 8 entries for 9 bars"),
        (lambda: forecaster.predict(BARS[:9], TIMES[:9], ["a", "b", "c"], 3), "y_timestamp cannot be read as times"),
        (lambda: forecaster.predict(BARS[:9], TIMES[:9], [TIMES[1], pd.NaT], 2), "y_timestamp has no time at entry 1"),
        (lambda: forecaster.predict_batch([BARS[:9]], [], [], 3), "have 1, 0 and 0 entries"),
        (lambda: forecaster.predict_batch([BARS[:9], holes], [TIMES[:9], TIMES[:30]], [TIMES[:3]] * 2, 3), "series 1: column close"),
    ]
    for call, words in wrong:
        with pytest.raises(InputError, match=words):
            call()


def test_a_horizon_beyond_max_context_is_named(forecaster):
    short = KronosPredictor(forecaster.model, forecaster.tokenizer, "cpu", max_context=4)
    with pytest.raises(InputError, match="pred_len 5 exceeds max_context 4"):
        ask(short)


def test_a_tokenizer_of_another_model_is_refused(forecaster):
    other = load_tokenizer(GOLDEN / "tokenizer")
    other = type(other)(**(other.config | {"s1_bits": 8, "s2_bits": 4}))
    with pytest.raises(InputError, match=r"\(8, 4\).*\(6, 6\)"):
        KronosPredictor(forecaster.model, other)


def test_weights_that_change_are_used_at_the_next_call(forecaster):
    model, other = load_predictor(GOLDEN / "predictor"), load_predictor(GOLDEN / "predictor")
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    mine = KronosPredictor(model, forecaster.tokenizer, "cpu", max_context=64)
    before = ask(mine)
    model.load_state_dict(other.state_dict())
    after = ask(mine)
    assert not after.equals(before)
    assert after.equals(ask(KronosPredictor(other, forecaster.tokenizer, "cpu", max_context=64)))
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 0.01)
    for fused in (False, True):  # a fused step does not count as a write in place
        torch.optim.SGD(model.parameters(), lr=1.0, fused=fused).step()
        fresh = KronosPredictor(copy.deepcopy(model), forecaster.tokenizer, "cpu", max_context=64)
        assert ask(mine).equals(ask(fresh)) and not ask(mine).equals(after)


def test_a_forecaster_can_be_copied_after_use(forecaster):
    before = ask(forecaster)
    assert ask(copy.deepcopy(forecaster)).equals(before)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_lower_precision_moves_next_token_distributions_little(forecaster, precision):
    rough = KronosPredictor(forecaster.model, forecaster.tokenizer, "cpu", max_context=64, precision=precision)
    tokens, clock = torch.randint(64, (2, 1, 30)), forecaster.inference.packed()[0].clock(torch.ones(1, 30, 5, dtype=torch.int64))
    logits = []
    for one in (forecaster, rough):
        with torch.inference_mode():
            state = CachedPredictor(one.inference.packed()[0], Plan(1, 0))
            state.prefill(*tokens, clock)
            logits.append(torch.stack((state.coarse_logits(), state.fine_logits(torch.tensor([3])))))
    error = (logits[1] - logits[0]).std() / logits[0].std()
    assert 0 < error < (0.02 if precision == "bfloat16" else 0.05)
    assert ask(rough).shape == (5, 6)


def test_int8_linears_forecast_as_the_precision_int8_does_up_to_rounding(forecaster):
    """A bundle holds int8 weights; the switch rounds float ones, after folding the norms' weights in."""
    quantised = KronosPredictor(quantized_predictor(forecaster.model), quantized_tokenizer(forecaster.tokenizer), "cpu", max_context=64)
    plain, stored = ask(forecaster, sample_count=8), ask(quantised, sample_count=8)
    assert not stored.equals(plain)
    np.testing.assert_allclose(stored["close"], plain["close"], rtol=0.05)


def test_a_precision_that_is_not_there_is_named(forecaster):
    with pytest.raises(InputError, match="precision is 'int4': it must be one of None, 'bfloat16', 'int8'"):
        KronosPredictor(forecaster.model, forecaster.tokenizer, precision="int4")


def test_two_hundred_forecasts_leave_memory_flat(forecaster):
    """K#403: the public code hangs after 20 to 40 calls."""
    process = psutil.Process()
    used = []
    for call in range(200):
        ask(forecaster, length=20 + call % 10, horizon=2, sample_count=1 + call % 3, seed=None)
        if call in (40, 199):
            gc.collect()
            used.append(process.memory_info().rss)
    assert used[1] - used[0] < 4 << 20


def test_only_what_is_asked_for_stays_in_memory(forecaster):
    """Frames of many series: the paths of one portion at a time."""
    narrow = KronosPredictor(forecaster.model, forecaster.tokenizer, "cpu", max_context=64, batch_tokens=64)
    request = _Request(3, 2, Sampling(), "exact", True, 0, False)
    paths: list[weakref.ref] = []

    def most_alive(forecast) -> int:
        paths.append(weakref.ref(forecast.paths))
        return sum(one() is not None for one in paths)

    frames = [BARS[i : i + 20] for i in range(12)]
    found = narrow._forecasts(frames, [TIMES[:20]] * 12, [TIMES[20:23]] * 12, None, request, most_alive)
    assert max(count for _, count in found) <= 3


def test_compiled_blocks_give_the_same_forecast(forecaster):
    compiled = KronosPredictor(forecaster.model, forecaster.tokenizer, "cpu", max_context=64, compile="eager")
    np.testing.assert_allclose(ask(compiled, sample_count=3), ask(forecaster, sample_count=3), rtol=1e-4)


def test_a_compiled_model_is_saved_under_its_own_names(tmp_path):
    model = load_predictor(GOLDEN / "predictor")
    compiled = torch.compile(model)
    assert fingerprint(compiled) == fingerprint(model) == fingerprint(load_predictor(save_module(compiled, tmp_path)))
