"""Settings come from the environment, and nonsense is told in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from backend.settings import PROJECT_FOLDER, Settings, SettingsError, read_settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SIGNALBOX_{name.upper()}", raising=False)


def test_defaults_are_those_of_the_readme() -> None:
    settings = read_settings()
    assert settings.data == PROJECT_FOLDER / "data"
    assert settings.workers is None
    assert settings.timeout_seconds == 600
    assert settings.poll_seconds == 0.25
    assert settings.cancel_grace_seconds == 10
    assert settings.stall_grace_seconds == 5
    assert settings.pause_grace_seconds == 120
    assert settings.token is None


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    readme = (PROJECT_FOLDER / "README.md").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert f"| `SIGNALBOX_{name.upper()}` |" in readme


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIGNALBOX_DATA", str(tmp_path))
    monkeypatch.setenv("SIGNALBOX_WORKERS", "3")
    monkeypatch.setenv("SIGNALBOX_TIMEOUT_MINUTES", "0.5")
    settings = read_settings()
    assert (settings.data, settings.workers, settings.timeout_seconds) == (tmp_path, 3, 30)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBOX_WORKERS", "")
    assert read_settings().workers is None


def test_a_relative_data_folder_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBOX_DATA", "here")
    assert read_settings().data == Path.cwd() / "here"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIGNALBOX_WORKERS", "0"),
        ("SIGNALBOX_WORKERS", "many"),
        ("SIGNALBOX_TIMEOUT_MINUTES", "-1"),
        ("SIGNALBOX_TIMEOUT_MINUTES", "nan"),
        ("SIGNALBOX_POLL_SECONDS", "0"),
        ("SIGNALBOX_CANCEL_GRACE_SECONDS", "inf"),
    ],
)
def test_nonsense_is_refused_in_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    message = str(caught.value)
    assert name in message
    assert repr(value) in message
    assert "\n" not in message


@pytest.mark.parametrize("token", ["two words", "tab\t", "schlüssel", "line\n"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_told(
    monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("SIGNALBOX_TOKEN", token)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value).startswith("SIGNALBOX_TOKEN is a secret, but it must be of ASCII")
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("notify", "wrong"),
    [
        ("json://127.0.0.1 foo://s3cr3t", "address 2 in it is none that Apprise understands."),
        ("s3cr3t", "address 1 in it is none that Apprise understands."),
        (",", "it names no address."),
    ],
)
def test_an_address_that_apprise_does_not_understand_stops_the_start_and_is_not_told(
    monkeypatch: pytest.MonkeyPatch, notify: str, wrong: str
) -> None:
    pytest.importorskip("apprise")
    monkeypatch.setenv("SIGNALBOX_NOTIFY", notify)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value) == f"SIGNALBOX_NOTIFY is set, but {wrong}"


def test_addresses_without_apprise_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    monkeypatch.setenv("SIGNALBOX_NOTIFY", "json://127.0.0.1")
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert str(caught.value) == (
        "SIGNALBOX_NOTIFY is set, but it needs Apprise, which is not installed: "
        "python -m pip install apprise."
    )


def test_apprise_is_not_loaded_where_nobody_is_to_be_told() -> None:
    source = "import sys, backend.runtime; sys.exit('apprise' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], cwd=PROJECT_FOLDER, check=True)
