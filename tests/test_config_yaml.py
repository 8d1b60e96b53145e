"""The strict YAML reader: what it takes for a number, what it refuses and with which place, and that it reads what it writes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.engine.yaml_text import YamlProblem, parse_value, read_yaml, to_yaml
from kronos.errors import InputError, MissingFileError


def read(tmp_path, text: str | bytes):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path)


def refused(tmp_path, text: str | bytes) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert "c.yaml" in message
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("+3", 3),
        ("1_000", 1000),
        ("0x1F", 31),
        ("true", True),
        ("null", None),
        ("~", None),
        ("off", "off"),
        ("no", "no"),
        ("000001", "000001"),
        ("9:35", "9:35"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        (".inf", float("inf")),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_words_become_what_a_person_means(tmp_path, text, value):
    assert read(tmp_path, f"a: {text}\n").tree == {"a": value}
    assert parse_value(text) == value


def test_quoted_numbers_stay_text_and_lines_are_known(tmp_path):
    document = read(tmp_path, "a:\n  b: '1'\n\n  c: [1, 2]\n")
    assert document.tree == {"a": {"b": "1", "c": [1, 2]}}
    assert document.lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 4}


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: 2\r\n").tree == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a:\n\tb: 1\n", "line 2, column 1: not valid YAML: while scanning for the next token found character '\\t'"),
        ("a:\n\tb: 1\n", "indent with spaces"),
        ("a: [1, 2\nb: 3\n", "line 2, column 2: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is given twice (first on line 1)"),
        ("x:\n  a: !!python/object:os.system {}\n", "line 2, column 6: the tag !!python/object:os.system is not accepted"),
        ("a: !!str 1\n", "the tag !!str is not accepted"),
        ("a: !mine 1\n", "the tag !mine is not accepted"),
        ("base: &b {x: 1}\na:\n  <<: *b\n", "line 3, column 3: merge keys (<<) are not accepted"),
        ("a: 1\n---\nb: 2\n", "one document per file"),
        ("? [a]\n: 1\n", "a key must be a word"),
        ("- 1\n- 2\n", "holds a list of 2 at its top"),
        ("just text\n", "holds text at its top"),
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("a: \x07\n", "line 1: special characters are not allowed"),
        (b"a: 1\nb: \xff\xfe\n", "line 2: not UTF-8"),
        ("a: *nobody\n", "undefined alias"),
        ("a: &x [*x]\n", "nested deeper than 30"),
        ("a: " + "[" * 5000, "nested deeper than 30"),
        ("a: " + "[" * 40 + "]" * 40, "line 1, column 34: nested deeper than 30"),
    ],
)
def test_what_is_not_acceptable_yaml_is_told_with_its_place(tmp_path, text, told):
    assert told in refused(tmp_path, text)


def test_a_repeated_secret_is_not_quoted_in_the_message(tmp_path):
    for text in ("api_key: hunter2\napi_key: hunter3\n", "api_key: [hunter2\n", "api_key: !!x hunter2\n", "\tapi_key: hunter2\n"):
        assert "hunter" not in refused(tmp_path, text)


def test_an_alias_bomb_is_refused_quickly(tmp_path):
    bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert "more than 50,000 values" in refused(tmp_path, bomb)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    assert "larger than 1 MB" in refused(tmp_path, b"#" * 1_000_001)


def test_a_missing_file_is_told_with_the_yaml_files_of_its_folder(tmp_path):
    (tmp_path / "demo.yaml").write_text("a: 1")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(MissingFileError, match=r"dmeo\.yaml does not exist; YAML files in .*: demo\.yaml$"):
        read_yaml(tmp_path / "dmeo.yaml")
    with pytest.raises(MissingFileError, match="nor does the folder"):
        read_yaml(tmp_path / "nowhere" / "demo.yaml")
    with pytest.raises(InputError, match=r"is a folder; give one YAML file; YAML files in .*: demo\.yaml$"):
        read_yaml(tmp_path)


def test_a_file_that_may_not_be_read_is_an_input_error(tmp_path, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read_yaml(tmp_path / "c.yaml")


def test_values_of_flags_are_plain_text_outside_of_brackets_and_quotes():
    assert parse_value("/data/a #1: b.csv") == "/data/a #1: b.csv"
    assert parse_value("[1e-3, a b, 'c, d']") == [1e-3, "a b", "c, d"]
    assert parse_value("{a: 1}") == {"a": 1}
    assert parse_value("'1'") == "1"
    assert parse_value("") == ""
    assert parse_value("!!python/none") == "!!python/none"
    for text in ("[1, 2", "'a", '"a" b', "[!!str 1]"):
        with pytest.raises(YamlProblem):
            parse_value(text)


tricky = st.sampled_from(["1e-4", "off", "007", "1_0", "~", "0x1F", "<<", "=", "2024-01-01"])
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | tricky
plain = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | words
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
keys = words.filter(lambda word: word and word != "<<")


@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_written_reads_back_equal(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(to_yaml(tree), encoding="utf-8", newline="")
    if tree:
        assert read_yaml(path).tree == tree
