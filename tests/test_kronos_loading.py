"""Model folders: what is written can be read, by us and by the hub library; what is damaged is refused with one helpful message."""

import json
import os
import resource
import shutil
import socket
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kronos import InputError, Kronos, KronosTokenizer, MissingFileError, fingerprint, hub, load_predictor, load_tokenizer, save_module
from kronos.published import PublishedModule

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "predictor", tmp_path / "predictor"))


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def message(name, load=load_predictor) -> str:
    with pytest.raises(InputError) as caught:
        load(name)
    text = str(caught.value)
    assert "\n" not in text.strip()
    return text


@pytest.mark.parametrize(("kind", "load"), [("predictor", load_predictor), ("tokenizer", load_tokenizer)])
def test_a_saved_model_loads_with_the_same_bits_and_files_as_published(tmp_path, kind, load):
    model = load(GOLDEN / kind)
    save_module(model, tmp_path / "copy")
    assert json.loads((tmp_path / "copy/config.json").read_text()) == json.loads((GOLDEN / kind / "config.json").read_text())
    published, ours = load_file(GOLDEN / kind / "model.safetensors"), load_file(tmp_path / "copy/model.safetensors")
    assert published.keys() == ours.keys()
    assert all(torch.equal(published[key], ours[key]) for key in ours)
    assert fingerprint(load(tmp_path / "copy")) == fingerprint(model)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors"]


def test_the_hub_librarys_own_code_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    model = load_predictor(GOLDEN / "predictor")
    save_module(model, tmp_path / "ours")
    theirs = super(PublishedModule, Kronos).from_pretrained(tmp_path / "ours")
    assert fingerprint(theirs) == fingerprint(model)
    model.save_pretrained(tmp_path / "hub")
    assert fingerprint(Kronos.from_pretrained(tmp_path / "hub")) == fingerprint(model)


def test_a_loaded_model_is_ready_for_evaluation_in_float32_and_trainable(folder):
    change_weights(folder, lambda state: state.update({key: value.half() for key, value in state.items() if value.is_floating_point()}))
    model = load_predictor(folder)
    assert not model.training
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in model.parameters())


def test_dropout_may_be_overridden_and_is_saved_with_the_model(folder, tmp_path):
    model = load_predictor(folder, resid_dropout_p=0.3)
    assert model.transformer[0].self_attn.resid_dropout.p == 0.3
    assert load_predictor(save_module(model, tmp_path / "again")).config["resid_dropout_p"] == 0.3
    with pytest.raises(InputError, match="d_model=64 cannot be given"):
        load_predictor(folder, d_model=64)


def test_the_fingerprint_follows_weights_and_configuration():
    model = load_predictor(GOLDEN / "predictor")
    before = fingerprint(model)
    assert fingerprint(load_predictor(GOLDEN / "predictor", resid_dropout_p=0.5)) != before
    with torch.no_grad():
        model.norm.weight[0] += 1e-6
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nowhere", "a/b/c", "", "a..b/c"])
def test_a_missing_folder_is_named_with_what_to_give(name):
    with pytest.raises(MissingFileError, match=r"folder|hub id"):
        load_predictor(name)


def test_a_file_in_place_of_a_folder_is_named():
    assert "is a file: give the folder" in message(GOLDEN / "golden.npz")


def test_a_hub_id_offline_fails_at_once_and_says_how_to_use_a_local_folder(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    text = message("NeoQuasar/No-Such-Model")
    assert "HF_HUB_OFFLINE" in text and "give that folder's path" in text


@pytest.mark.parametrize("hangs", ["in the answer", "in the name look-up"])
def test_a_hub_that_never_answers_fails_within_seconds(monkeypatch, hangs):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_PROBE_S", 0.3)
    if hangs == "in the name look-up":
        monkeypatch.setattr(hub, "get_session", lambda: time.sleep(60))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert "cannot be reached" in message("NeoQuasar/No-Such-Model")
    assert time.monotonic() - began < 30


def test_a_cached_hub_model_needs_no_network(tmp_path, monkeypatch):
    def cached(repo, file, revision=None):
        return str(GOLDEN / "predictor" / file)

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    assert load_predictor("NeoQuasar/Kronos-mini").config["d_model"] == 32


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in message(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in message(folder)


CONFIGS = [
    ({"n_layers": None}, "lacks n_layers"),
    ({"n_layer": 2}, "has unknown n_layer"),
    ({"d_model": "wide"}, "config.json: d_model is 'wide'"),
    ({"d_model": 10**12}, "config.json: d_model is 1000000000000"),
    ({"n_heads": 5}, "config.json: d_model 32 with n_heads 5"),
]


@pytest.mark.parametrize(("change", "words"), CONFIGS)
def test_a_wrong_config_names_the_argument(folder, change, words):
    change_config(folder, **change)
    assert words in message(folder)


def test_a_config_that_is_not_json_or_not_an_object_is_named(folder):
    (folder / "config.json").write_text('{"d_model": 32,')
    assert "config.json is not valid JSON" in message(folder)
    (folder / "config.json").write_text("[1]")
    assert "holds a list" in message(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "config.json is not valid JSON" in message(folder)


def test_a_tokenizer_folder_given_as_predictor_says_so():
    assert "does not describe a Kronos" in message(GOLDEN / "tokenizer")
    assert "does not describe a KronosTokenizer" in message(GOLDEN / "predictor", load_tokenizer)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert "damaged or cut off" in message(folder)


HEADERS = {
    "longer than the file": (struct.pack("<Q", 2**63) + b"{}", "damaged or cut off"),
    "huge": (struct.pack("<Q", 9 << 20) + b" " * (9 << 20), "no model needs more"),
    "not JSON": (struct.pack("<Q", 4) + b"\x00\x01\x02\x03", "damaged or cut off"),
    "deeply nested": (struct.pack("<Q", 200_000) + b"[" * 200_000, "damaged or cut off"),
    "past the end": (
        struct.pack("<Q", 72) + b'{"norm.weight":{"dtype":"F32","shape":[32],"data_offsets":[0,99999999]}}',
        "damaged or cut off",
    ),
}


@pytest.mark.parametrize("header", HEADERS)
def test_hostile_headers_are_refused_at_once(folder, header):
    data, words = HEADERS[header]
    (folder / "model.safetensors").write_bytes(data)
    began = time.process_time()
    assert words in message(folder)
    assert time.process_time() - began < 2


def test_missing_unexpected_and_misshapen_tensors_are_named_with_both_shapes(folder):
    def change(state):
        del state["norm.weight"]
        state["surplus"] = torch.ones(2)
        state["head.proj_s1.bias"] = torch.ones(65)
        state["head.proj_s2.bias"] = torch.ones(65)

    change_weights(folder, change)
    text = message(folder)
    for words in ("norm.weight is missing", "surplus is not part", "head.proj_s1.bias is (65,), config.json implies (64,)", "1 more"):
        assert words in text


def test_weights_that_are_not_finite_are_refused(folder):
    change_weights(folder, lambda state: state["norm.weight"][3:5].fill_(float("nan")))
    assert "2 of 32 values of norm.weight are NaN" in message(folder)


def test_weights_of_the_wrong_kind_are_refused(folder):
    change_weights(folder, lambda state: state.update({"norm.weight": torch.ones(32, dtype=torch.int64)}))
    assert "norm.weight is of type torch.int64" in message(folder)


def test_when_the_disk_fills_while_saving_the_previous_weights_survive_and_nothing_is_left_over(folder):
    model, before = load_predictor(folder), (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.norm.weight += 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a write past this fails as on a full disk
    try:
        with pytest.raises(InputError, match=r"cannot write .*model\.safetensors"):
            save_module(model, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_killed_save_leaves_the_previous_weights_in_place(folder, monkeypatch):
    before = fingerprint(load_predictor(folder))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_module(Kronos(**load_predictor(folder).config), folder)
    assert fingerprint(load_predictor(folder)) == before


def test_saving_under_a_file_names_the_path(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*taken"):
        save_module(load_tokenizer(GOLDEN / "tokenizer"), tmp_path / "taken")


def test_a_module_built_from_its_config_is_the_same_class_of_model():
    tokenizer = load_tokenizer(GOLDEN / "tokenizer")
    assert KronosTokenizer(**tokenizer.config).state_dict().keys() == tokenizer.state_dict().keys()
