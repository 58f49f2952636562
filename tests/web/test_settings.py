"""The table of settings: what is taken, what is refused and in which words; and that ini and README say the same."""

from __future__ import annotations

import configparser
import dataclasses
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pushdemo.demo import main
from pushdemo.web.settings import PREFIX, Settings, SettingsError
from tests.readers import TRANSPORTS, pushing
from tests.support import ROOT, wait_until

ROWS = [row for row in dataclasses.fields(Settings) if row.metadata]
DURATIONS = [row for row in ROWS if isinstance(row.default, float)]
COUNTS = [row for row in ROWS if type(row.default) is int]
KEYS = [row.metadata["key"] for row in ROWS]


def as_ini(value: Any) -> str:
    """A default as an ini or a table has it."""
    if isinstance(value, tuple):
        return " ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def refused(ini: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.from_ini(ini)
    return str(caught.value)


def test_nothing_set_gives_the_defaults() -> None:
    settings = Settings.from_ini({})
    assert (settings.interval, settings.memorize_duration, settings.max_clients) == (5.0, 15.0, 10_000)


def test_other_applications_keys_are_left_alone() -> None:
    assert Settings.from_ini({"pyramid.reload_templates": "true", "pushdemonstration": "x"}) == Settings()


def test_values_are_read_by_their_type() -> None:
    ini = {
        "pushdemo.interval": "0.25",
        "pushdemo.history": " 7 ",
        "pushdemo.memorize.duration": "0",
        "pushdemo.cors_origins": "https://a.example  http://[::1]:8080",
    }
    settings = Settings.from_ini(ini)
    assert (settings.interval, settings.history, settings.memorize_duration) == (0.25, 7, 0.0)
    assert settings.cors_origins == ("https://a.example", "http://[::1]:8080")


def test_numbers_of_python_are_taken_as_an_ini_has_them() -> None:
    assert Settings.from_ini({"pushdemo.interval": 2, "pushdemo.history": 3}) == Settings(interval=2.0, history=3)


def test_a_value_may_be_in_the_environment_or_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "redis"
    secret.write_text("redis://:swordfish@example.org/0\n")
    monkeypatch.setenv("PUSH_HISTORY", "7")
    monkeypatch.setenv("PUSH_PRICE_DURATION", " 2.5 ")
    settings = Settings.from_ini(
        {
            "pushdemo.redis_url": f"file:{secret}",
            "pushdemo.history": "env:PUSH_HISTORY",
            "pushdemo.memorize.price.duration": "env:PUSH_PRICE_DURATION",
        }
    )
    assert settings.redis_url == "redis://:swordfish@example.org/0"
    assert (settings.history, settings.memorize_durations) == (7, {"price": 2.5})


def test_a_secret_that_is_missing_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert refused({"pushdemo.redis_url": "env:REDIS_URL"}) == (
        "pushdemo.redis_url = env:REDIS_URL: the environment variable REDIS_URL is not set"
    )
    missing = tmp_path / "redis"
    assert refused({"pushdemo.redis_url": f"file:{missing}"}) == (
        f"pushdemo.redis_url = file:{missing}: the file cannot be read: No such file or directory"
    )
    missing.write_bytes(b"\xff")
    assert "it is not text in UTF-8" in refused({"pushdemo.redis_url": f"file:{missing}"})


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "swordfish")
    monkeypatch.setenv("HISTORY", "swordfish")
    assert "swordfish" not in refused({"pushdemo.redis_url": "env:REDIS_URL"})
    said = refused({"pushdemo.history": "env:HISTORY"})
    assert said.startswith("pushdemo.history = env:HISTORY: must be")


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().interval = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("pushdemo.intervall", "pushdemo.interval"),
        ("pushdemo.memorise.duration", "pushdemo.memorize.duration"),
        ("pushdemo.memorize_duration", "pushdemo.memorize.duration"),
        ("pushdemo.maxclients", "pushdemo.max_clients"),
        ("pushdemo.Interval", "pushdemo.interval"),
        ("pushdemo.generator.limit", "pushdemo.generators.limit"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, nearest: str) -> None:
    message = refused({key: "3"})
    assert f"{key} = 3" in message
    assert f"did you mean {nearest}?" in message


def test_an_unknown_key_far_from_all_others_is_told_which_there_are() -> None:
    message = refused({"pushdemo.zzz": "on"})
    assert "pushdemo.zzz = on" in message
    assert all(key in message for key in KEYS)


@pytest.mark.parametrize("key", [row.metadata["key"] for row in DURATIONS])
@pytest.mark.parametrize("value", ["soon", "-1", "", "nan", "inf", "5 s", "0x10", "1,5"])
def test_a_duration_is_a_number_of_seconds(key: str, value: str) -> None:
    message = refused({key: value})
    assert f"{key} = {value}: must be a number of seconds" in message
    assert re.search(r"such as \d+$", message)


# Those for which 0 is another word for "not at all".
ZERO = {"pushdemo.drain", "pushdemo.streams.expire", *(key for key in KEYS if key.startswith("pushdemo.memorize."))}


@pytest.mark.parametrize("key", [row.metadata["key"] for row in DURATIONS if row.metadata["key"] not in ZERO])
def test_a_duration_of_nothing_is_refused_where_it_means_nothing(key: str) -> None:
    assert f"{key} = 0: must be a number of seconds above 0" in refused({key: "0"})


@pytest.mark.parametrize("key", [row.metadata["key"] for row in COUNTS if row.default])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", ""])
def test_a_count_is_a_whole_number_from_1_on(key: str, value: str) -> None:
    assert f"{key} = {value}: must be a whole number, 1 or more, such as " in refused({key: value})


@pytest.mark.parametrize("key", [row.metadata["key"] for row in COUNTS if not row.default])
@pytest.mark.parametrize("value", ["-3", "1.5", "many", ""])
def test_a_limit_that_is_none_by_default_is_a_whole_number_from_0_on(key: str, value: str) -> None:
    assert f"{key} = {value}: must be a whole number, 0 or more, such as 0" in refused({key: value})


@pytest.mark.parametrize(
    "value",
    ["example.org", "https://", "https://a.example/", "https://a.example, *", "https://A.example", "https://a:b", "-"],
)
def test_an_origin_is_scheme_and_host_alone(value: str) -> None:
    message = refused({"pushdemo.cors_origins": value})
    assert f"pushdemo.cors_origins = {value}: must be" in message
    assert "scheme://host[:port]" in message


def test_each_row_says_what_it_means_and_in_which_unit() -> None:
    for row in ROWS:
        assert row.metadata["meaning"], row.name
    for row in DURATIONS:
        assert row.metadata["meaning"].startswith("seconds"), row.name


def test_the_development_ini_shows_every_key_with_its_default() -> None:
    ini = configparser.RawConfigParser(delimiters="=")
    ini.read(ROOT / "development.ini")
    shown = {key: value for key, value in ini["app:main"].items() if key.startswith(PREFIX)}
    assert shown == {row.metadata["key"]: as_ini(row.default) for row in ROWS}


def test_the_development_ini_gives_the_units() -> None:
    text = (ROOT / "development.ini").read_text()
    before = text[: text.index(f"\n{PREFIX}")]
    comments = [line for line in before.splitlines() if line.startswith((";", "#"))]
    assert any("seconds" in comment for comment in comments), "no comment in front of the settings gives their unit"


def test_the_readme_shows_every_key_with_its_default_and_meaning() -> None:
    rows = [(row.metadata["key"], as_ini(row.default), row.metadata["meaning"]) for row in ROWS]
    expected = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in rows]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^##+ Settings\n(.*?)(?=^#|\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no heading Settings with the table:\n" + "\n".join(
        ["| key | default | meaning |", "| --- | --- | --- |", *expected]
    )
    lines = [line.strip("|") for line in section[1].splitlines() if "|" in line]
    cells = [[cell.strip(" `") for cell in line.split("|")] for line in lines]
    assert cells[0] == ["key", "default", "meaning"]
    assert [tuple(row) for row in cells[2:]] == rows, "\n".join(expected)


def test_a_function_may_have_a_duration_of_its_own() -> None:
    settings = Settings.from_ini({"pushdemo.memorize.shop.prices.duration": "2.5"})
    assert settings.memorize_durations == {"shop.prices": 2.5}
    message = refused({"pushdemo.memorize.shop.prices.duration": "soon"})
    assert "pushdemo.memorize.shop.prices.duration = soon: must be a number of seconds, 0 or more" in message


def test_a_duration_for_no_function_stops_the_application_and_names_those_that_are() -> None:
    with pytest.raises(
        SettingsError,
        match=r"^pushdemo\.memorize\.nowhere\.duration = 1: .*nowhere.*datetime_string",
    ):
        main({}, **{"pushdemo.memorize.nowhere.duration": "1"})


def test_a_duration_for_a_function_of_the_application_is_taken() -> None:
    app = main({}, **{"pushdemo.memorize.datetime_string.duration": "1"})
    assert app.registry["pushdemo.settings"].memorize_durations


def test_an_error_says_what_would_do_when_python_has_no_docstrings() -> None:
    script = """
from pushdemo.web.settings import Settings, SettingsError
wrong = {"interval": "soon", "memorize.stale": "-1", "history": "0", "cors_origins": "x", "redis_url": "x"}
for key, text in wrong.items():
    try:
        Settings.from_ini({"pushdemo." + key: text})
    except SettingsError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-OO", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    said = [line.partition("must be ")[2].partition(", such as")[0] for line in run.stdout.splitlines()]
    assert said == [
        "a number of seconds above 0",
        "a number of seconds, 0 or more",
        "a whole number, 1 or more",
        "* or origins (scheme://host[:port], in lower case) separated by spaces",
        "a redis://, rediss://, unix:// or redis[s]+sentinel:// URL, or nothing",
    ]


def test_a_duration_may_be_longer_than_the_system_can_wait() -> None:
    long = {row.metadata["key"].removeprefix(PREFIX): 9_999_999_999 for row in DURATIONS}
    with pushing(long | {"drain": 0}, news={"source": lambda: "a"}) as site, ExitStack() as stack:
        readers = [stack.enter_context(site.reader(name)) for name in TRANSPORTS]
        assert [reader.contents(1) for reader in readers] == [["a"]] * len(TRANSPORTS)
        for reader in readers:
            if reader.transport == "longpoll":
                reader.start()
        wait_until(lambda: site.topics["news"].clients == len(readers), what="all of them")
        site.topics["news"].publish("b")
        assert [reader.contents(1) for reader in readers] == [["b"]] * len(TRANSPORTS)
