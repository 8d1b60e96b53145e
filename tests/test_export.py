"""Bundles: what is exported forecasts the same when loaded, in every format; what is foreign is left alone; what is damaged is refused."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from bars import make_frame
from safetensors.torch import load_file, save_file
from torch import nn

from kronos import InputError, MissingFileError, exporting, load_predictor, load_tokenizer, presets, programs
from kronos import export as command
from kronos.bundle import Bundle, load_bundle, write_folder, write_pth
from kronos.exporting import export_pair, measure_drift
from kronos.int8 import Int8Linear, exact_product, round_rows
from kronos.loading import save_module

CONTEXT = 48


def pair() -> Bundle:
    return Bundle(tiny.tokenizer().eval(), tiny.predictor().eval(), CONTEXT)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of the pair, as training leaves them."""
    folder = tmp_path_factory.mktemp("saved")
    bundle = pair()
    return save_module(bundle.tokenizer, folder / "tokenizer"), save_module(bundle.model, folder / "predictor")


def paths(bundle: Bundle, **how) -> np.ndarray:
    frame = make_frame(36)
    times = frame.pop("timestamps")
    options = {"sample_count": 3, "seed": 1, "verbose": False, "return_samples": True, **how}
    return bundle.forecaster("cpu").predict(frame[:30], times[:30], times[30:], 6, **options)


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("format", ["folder", "pth"])
def test_what_is_exported_forecasts_exactly_what_the_pair_forecasts(tmp_path, format, quantize):
    bundle = pair()
    out = tmp_path / ("pair.pth" if format == "pth" else "pair")
    done = export_pair(bundle, out, format=format, quantize=quantize)
    loaded = load_bundle(out)
    assert np.array_equal(paths(loaded), paths(bundle.quantized() if quantize else bundle))
    assert done.deviation == 0 and done.size > 10_000
    assert (loaded.max_context, loaded.clip, loaded.quantize) == (CONTEXT, 5.0, quantize)
    assert not loaded.model.training and not loaded.tokenizer.training
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_what_a_killed_export_left_does_not_hinder_a_process_of_the_same_number(tmp_path):
    export_pair(pair(), tmp_path / "pair")
    for what in ("tmp", "old"):
        left = tmp_path / f".pair.{os.getpid()}.{what}"
        left.mkdir()
        (left / "bundle.json").touch()
    export_pair(pair(), tmp_path / "pair")
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


def test_the_folders_of_a_float_bundle_are_in_the_published_format(tmp_path):
    bundle = pair()
    export_pair(bundle, tmp_path / "pair")
    assert tiny.same(load_tokenizer(tmp_path / "pair" / "tokenizer").state_dict(), bundle.tokenizer.state_dict())
    assert tiny.same(load_predictor(tmp_path / "pair" / "predictor").state_dict(), bundle.model.state_dict())


def test_a_pth_holds_plain_tensors_and_the_configuration(tmp_path):
    export_pair(pair(), tmp_path / "pair.pth", format="pth")
    content = torch.load(tmp_path / "pair.pth", weights_only=True)
    assert set(content) == {"tokenizer", "predictor", "config"}
    assert content["config"]["predictor"] == tiny.PREDICTOR and content["config"]["max_context"] == CONTEXT
    assert tiny.same(content["predictor"], pair().model.state_dict())


def test_a_pth_that_would_run_code_is_refused_unrun(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    for name, save in (
        ("a.pth", lambda file: torch.save({"config": Evil()}, file)),
        ("b.pth", lambda file: pickle.dump(Evil(), file, protocol=2)),
    ):
        with (tmp_path / name).open("wb") as file:
            save(file)
        with pytest.raises(InputError, match="not a bundle of plain tensors"):
            load_bundle(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_int8_is_the_product_of_the_rounded_numbers_and_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    linear = nn.Linear(48, 24)
    quantized = Int8Linear(linear)
    x = torch.randn(5, 7, 48)
    rows, scale = round_rows(x.flatten(0, 1))
    assert rows.dtype == torch.int8 and int(rows.abs().max()) == 127
    assert ((rows * scale - x.flatten(0, 1)).abs() <= scale / 2 * 1.0001).all()
    weight = quantized.weight.double() * quantized.weight_scale.double()[:, None]
    expected = (rows.double() * scale.double()) @ weight.t() + linear.bias.double()
    torch.testing.assert_close(quantized(x).double().flatten(0, 1), expected, rtol=1e-5, atol=1e-5)
    assert (quantized(x) - linear(x)).abs().max() < 0.05
    assert torch.equal(quantized(x)[3, 4], quantized(x[3:4, 4:5])[0, 0])
    assert torch.equal(quantized(torch.zeros(1, 48)), linear.bias[None].detach())
    big = torch.full((1, 4096), 127, dtype=torch.int8)
    assert exact_product(big, big).item() == 127 * 127 * 4096


def test_int8_makes_the_linears_small_and_leaves_the_ids_of_the_bars_alone(tmp_path):
    bundle = pair()
    quantized = bundle.quantized()
    bars = torch.randn(4, 20, 6)
    assert all(torch.equal(a, b) for a, b in zip(bundle.tokenizer.encode(bars), quantized.tokenizer.encode(bars), strict=True))
    assert not [name for name, module in quantized.model.named_modules() if type(module) is nn.Linear]
    assert all(type(module) is not Int8Linear for module in bundle.model.modules())  # the pair itself stays as it was
    drift = measure_drift(bundle, quantized)
    assert 0 < drift.nats < exporting.INT8_NATS
    export_pair(bundle, tmp_path / "plain")
    export_pair(bundle, tmp_path / "small", quantize="int8")
    assert not (tmp_path / "small" / "predictor" / "model.safetensors").exists()  # nothing may take int8 for float weights
    with pytest.raises(MissingFileError, match=r"model\.safetensors is missing"):
        load_predictor(tmp_path / "small" / "predictor")
    sizes = [(tmp_path / name / "predictor").rglob("*.safetensors") for name in ("plain", "small")]
    plain, small = (sum(file.stat().st_size for file in files) for files in sizes)
    assert small < 0.75 * plain  # embeddings, which stay, are most of a tiny model


def test_int8_that_changes_the_model_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "INT8_NATS", 1e-9)
    with pytest.raises(InputError, match=r"int8 changes this model too much.*without --quantize"):
        export_pair(pair(), tmp_path / "pair", quantize="int8")
    assert list(tmp_path.iterdir()) == []


def test_programs_forecast_what_the_pair_forecasts_at_any_batch_and_length(tmp_path):
    bundle = pair()
    done = export_pair(bundle, tmp_path / "programs", format="pt2")
    assert done.deviation < 1e-4
    with pytest.raises(InputError, match="trust=True"):
        programs.load_programs(tmp_path / "programs")
    with pytest.raises(InputError, match=r"kronos\.programs\.load_programs"):
        load_bundle(tmp_path / "programs")
    loaded = programs.load_programs(tmp_path / "programs", trust=True)
    frame = make_frame(62)
    times = frame.pop("timestamps")
    with pytest.raises(InputError, match="the lookback has 60 bars, these programs take 48"):
        loaded.predict(frame[:60], times[:60], times[60:], 2)
    for first, size in ((10, 40), (25, 12)):  # 40 + 12 bars outgrow the context of 48
        given = (frame[first : first + size], times[first : first + size], times[50:62], 12)
        expected = bundle.forecaster("cpu").predict(*given, sample_count=3, seed=2, verbose=False, return_samples=True, consistent=False)
        np.testing.assert_allclose(loaded.predict(*given, sample_count=3, seed=2), expected, rtol=1e-4, atol=1e-4)
    s1, s2 = loaded.encode(torch.randn(5, 9, 6))
    assert s1.shape == s2.shape == (5, 9)
    assert loaded.decode(s1[:1], s2[:1]).shape == (1, 9, 6)
    (tmp_path / "programs" / "programs" / "decode.pt2").unlink()
    with pytest.raises(MissingFileError, match=r"decode\.pt2 is missing"):
        programs.load_programs(tmp_path / "programs", trust=True)


def test_what_does_not_pass_the_comparison_is_not_exported_and_what_was_there_stays(tmp_path, monkeypatch):
    export_pair(pair(), tmp_path / "pair")
    export_pair(pair(), tmp_path / "pair.pth", format="pth")
    other = Bundle(tiny.tokenizer(7).eval(), tiny.predictor(8).eval(), CONTEXT)
    monkeypatch.setattr(exporting, "load_bundle", lambda path: other)
    for format, name in (("folder", "pair"), ("pth", "pair.pth"), ("folder", "new"), ("pth", "new.pth")):
        with pytest.raises(InputError, match=r"the pair forecasts something else.*nothing was exported"):
            export_pair(pair(), tmp_path / name, format=format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair", "pair.pth"]
    for name in ("pair", "pair.pth"):
        assert np.array_equal(paths(load_bundle(tmp_path / name)), paths(pair()))


def test_an_earlier_export_is_replaced_whole(tmp_path):
    export_pair(pair(), tmp_path / "pair", quantize="int8", card=exporting.CARD_MARK)
    export_pair(pair(), tmp_path / "pair")
    found = sorted(path.relative_to(tmp_path / "pair").as_posix() for path in (tmp_path / "pair").rglob("*") if path.is_file())
    assert found == [
        "bundle.json",
        *(f"{name}/{file}" for name in ("predictor", "tokenizer") for file in ("config.json", "model.safetensors")),
    ]


def test_nothing_foreign_is_overwritten(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt, which is not part of an export"):
        export_pair(pair(), notes)
    export_pair(pair(), tmp_path / "pair")
    (tmp_path / "pair" / "mine.csv").write_text("1")
    with pytest.raises(InputError, match=r"mine\.csv"):
        export_pair(pair(), tmp_path / "pair")
    with pytest.raises(InputError, match="is a file"):
        export_pair(pair(), notes / "thesis.txt")
    (tmp_path / "x.pth").write_text("not a bundle")
    with pytest.raises(InputError, match="is there already and is not a bundle"):
        export_pair(pair(), tmp_path / "x.pth", format="pth")
    with pytest.raises(InputError, match=r"ends with \.pth"):
        export_pair(pair(), tmp_path / "model.bin", format="pth")
    (tmp_path / "y.md").write_text("# mine")
    with pytest.raises(InputError, match=r"y\.md is there already and is not a card"):
        export_pair(pair(), tmp_path / "y.pth", format="pth", card=exporting.CARD_MARK)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "bundle.json").write_text("{}")
    with pytest.raises(InputError, match="not empty and is not an earlier export"):
        export_pair(pair(), tmp_path / "half")
    assert (notes / "thesis.txt").read_text() == "years of work" and (tmp_path / "y.md").read_text() == "# mine"


def test_a_damaged_bundle_is_one_message_with_the_file(tmp_path):
    def change(**values):
        def edit(folder):
            manifest = json.loads((folder / "bundle.json").read_text())
            (folder / "bundle.json").write_text(json.dumps(manifest | values))

        return edit

    def weights(**values):
        def edit(folder):
            file = folder / "predictor" / "model.int8.safetensors"
            state = load_file(file) | values
            save_file({name: tensor for name, tensor in state.items() if tensor is not None}, file)

        return edit

    name = "head.proj_s1.weight"
    damages = [
        (lambda folder: (folder / "bundle.json").unlink(), "is not a bundle"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "not valid JSON"),
        (change(format="zip"), "is not a Kronos bundle"),
        (change(version=99), "version 99"),
        (change(max_context=0), "max_context is 0"),
        (change(quantize="int3"), "quantize is 'int3'"),
        (change(fingerprints={}), "fingerprint differs"),
        (lambda folder: (folder / "predictor" / "model.int8.safetensors").unlink(), "int8.safetensors is missing"),
        (lambda folder: (folder / "predictor" / "model.int8.safetensors").write_bytes(b"x" * 100), "damaged"),
        (weights(**{name: None}), f"{name} is missing"),
        (weights(**{name: torch.zeros(3, 3, dtype=torch.int8)}), f"{name} is \\(3, 3\\) instead of"),
        (weights(**{name: torch.zeros(16, 16)}), "torch.float32 instead of torch.int8"),
        (weights(**{f"{name}_scale": torch.full((16,), float("nan"))}), "not finite"),
        (weights(surplus=torch.zeros(1)), "surplus is not part of it"),
        (lambda folder: (folder / "predictor" / "config.json").write_text("{}"), "config.json lacks"),
    ]
    for number, (damage, message) in enumerate(damages):
        folder = tmp_path / str(number)
        write_folder(pair().quantized(), folder)
        damage(folder)
        with pytest.raises(InputError, match=message):
            load_bundle(folder)


def test_a_damaged_pth_is_one_message_with_the_file(tmp_path):
    file = tmp_path / "pair.pth"
    write_pth(pair(), file)
    whole, content = file.read_bytes(), torch.load(file, weights_only=True)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"pair\.pth is not a bundle of plain tensors, or is damaged"):
        load_bundle(file)
    for value, message in (
        ([1], "holds a list"),
        ({"tokenizer": {}}, "is not a Kronos bundle"),
        (content | {"predictor": 1}, "not a dictionary"),
    ):
        torch.save(value, file)
        with pytest.raises(InputError, match=message):
            load_bundle(file)
    with pytest.raises(MissingFileError, match="there is no bundle"):
        load_bundle(tmp_path / "nothing.pth")


def test_the_command_prints_the_deviation_and_its_tolerance(saved, tmp_path, capsys):
    tokenizer, predictor = map(str, saved)
    with pytest.raises(SystemExit) as end:
        command.run(["--tokenizer", tokenizer, "--predictor", predictor, "--out", str(tmp_path / "out"), "--quantize", "int8", "--card"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "int8: the next token's distribution moves by" in said
    assert "loaded again: the forecast deviates by at most 0 standard deviations of the lookback (tolerance 1e-06)" in said
    assert load_bundle(tmp_path / "out").quantize == "int8"
    assert exporting.CARD_MARK in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--format", "torchscript"], "its successor is torch.export, so use --format pt2"),
        (["--format", "onnx"], "--format is 'onnx': choose folder or pth or pt2"),
        (["--quantize", "int4"], "--quantize is 'int4': choose int8"),
        (["--format", "pt2", "--quantize", "int8"], "programs (pt2) are float32"),
        (["--max-context", "0"], "max_context is 0"),
        (["--clip", "0"], "--clip is 0.0"),
        (["--predictor", "nowhere"], "there is no folder 'nowhere'"),
        (["--outt", "x"], "unrecognized arguments: --outt x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_message_and_exit_code_2(saved, tmp_path, capsys, change, message):
    tokenizer, predictor = map(str, saved)
    with pytest.raises(SystemExit) as end:
        command.run(["--tokenizer", tokenizer, "--predictor", predictor, "--out", str(tmp_path / "out"), *change])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_help_and_typos_need_not_wait_for_torch():
    code = "import sys, kronos.export as e; sys.argv[1:] = ['--help']\ntry: e.main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--quantize int8" in done.stdout, done.stderr


def test_the_context_of_a_published_size_is_known():
    sizes = {name: command._context_of(presets.predictor_arguments(name)) for name in presets.PREDICTORS}
    assert sizes == presets.MAX_CONTEXT
    assert command._context_of(tiny.PREDICTOR) == 512
