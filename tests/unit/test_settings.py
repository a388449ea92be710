"""Settings: where they come from, which wins, and that nothing wrong passes without a sentence that names it."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from sagalog.infra.errors import DirectoryError, DiskFullError, PortTakenError, SettingsError, os_errors_below
from sagalog.infra.settings import ENV_PREFIX, Settings, load_settings


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a file, and an environment without our variables."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_are_an_embedded_stack() -> None:
    settings = load_settings()

    assert settings.model_dump() == {
        "bootstrap": None,
        "postgres": None,
        "prefix": "sagalog",
        "partitions": 8,
        "replication": 1,
        "min_insync_replicas": None,
        "data_dir": None,
        "cache_dir": None,
        "maven_url": None,
        "snapshot_interval_ms": 200,
        "metrics_port": None,
        "log_level": "INFO",
        "session_timeout_ms": 6_000,
        "standbys": 1,
        "rack": None,
        "start_lag_records_max": 50_000,
        "start_wait_ms_max": 0,
        "tenant_weights": None,
        "security_protocol": "PLAINTEXT",
        "sasl_mechanism": None,
        "sasl_username": None,
        "sasl_password": None,
        "ssl_cafile": None,
    }


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_code_wins_over_the_environment_over_the_file(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "sagalog.toml").write_text('prefix = "file"\npartitions = 3\nreplication = 2\n')
    monkeypatch.setenv("SAGALOG_PREFIX", "env")
    monkeypatch.setenv("SAGALOG_PARTITIONS", "4")

    settings = load_settings(prefix="code")

    assert (settings.prefix, settings.partitions, settings.replication) == ("code", 4, 2)


def test_the_file_can_be_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "sagalog.toml").write_text('prefix = "not-this"\n')
    (nowhere / "other.toml").write_text('prefix = "this"\n')
    monkeypatch.setenv("SAGALOG_CONFIG", str(nowhere / "other.toml"))

    assert load_settings().prefix == "this"


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGALOG_METRICS_PORT", "")

    assert load_settings().metrics_port is None


def test_reserved_variables_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGALOG_PYTHON", "python3.11")

    assert load_settings().prefix == "sagalog"


def test_an_unknown_variable_is_named_with_its_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGALOG_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    monkeypatch.setenv("SAGALOG_PREFFIX", "x")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value).splitlines() == [
        "The environment variable SAGALOG_BOOTSTRAP_SERVERS is not a setting: "
        "the nearest known one is SAGALOG_BOOTSTRAP.",
        "The environment variable SAGALOG_PREFFIX is not a setting: the nearest known one is SAGALOG_PREFIX.",
    ]


def test_an_unknown_variable_is_an_error_for_settings_made_directly_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGALOG_TYPO", "1")

    with pytest.raises(SettingsError, match="SAGALOG_TYPO"):
        Settings()


def test_an_unknown_key_of_the_file_is_named_with_its_nearest(nowhere: Path) -> None:
    (nowhere / "sagalog.toml").write_text("snapshot_interval = 100\n")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value) == (
        "snapshot_interval is not a setting (in sagalog.toml, or passed by the code): "
        "the nearest known one is snapshot_interval_ms."
    )


def test_a_file_that_is_no_toml(nowhere: Path) -> None:
    (nowhere / "sagalog.toml").write_text("prefix = \n")

    with pytest.raises(SettingsError, match=r"sagalog\.toml is not valid TOML .*line 1"):
        load_settings()


def test_a_named_file_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGALOG_CONFIG", "missing.toml")

    with pytest.raises(SettingsError, match=r"SAGALOG_CONFIG names missing\.toml, which is not a file"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("prefix", "a/b", "only letters, digits"),
        ("prefix", "", "at least 1 character"),
        ("prefix", "p" * 61, "at most 60 characters"),
        ("prefix", ".hidden", "may not start with"),
        ("partitions", 0, "greater than or equal to 1"),
        ("replication", 0, "greater than or equal to 1"),
        ("snapshot_interval_ms", 9, "greater than or equal to 10"),
        ("metrics_port", 65_536, "less than or equal to 65535"),
        ("metrics_port", -1, "greater than or equal to 0"),
        ("log_level", "LOUD", "'DEBUG', 'INFO'"),
        ("session_timeout_ms", 999, "greater than or equal to 1000"),
        ("bootstrap", "localhost", "'localhost' is not host:port"),
        ("bootstrap", "a:1,b:70000", "'b:70000' is not host:port"),
        ("postgres", "mysql://x", "does not start with postgresql://"),
    ],
)
def test_a_value_out_of_bounds_is_one_sentence_with_the_value(name: str, value: object, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**{name: value})

    message = str(caught.value)
    assert message.startswith(f"The setting {name} (SAGALOG_{name.upper()}) cannot be ")
    assert why in message
    assert (repr(value) in message) == (name != "postgres")
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prefix", "p" * 60),
        ("metrics_port", 0),
        ("bootstrap", "[::1]:9092,kafka-0.kafka:9093"),
    ],
)
def test_values_at_the_bounds_pass(name: str, value: object) -> None:
    assert getattr(load_settings(**{name: value}), name) == value


def test_two_wrong_settings_are_two_sentences() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(partitions=0, replication=0)

    assert len(str(caught.value).splitlines()) == 2


def test_no_more_replicas_must_be_in_sync_than_there_are() -> None:
    with pytest.raises(SettingsError, match="min_insync_replicas 3 is more than replication 2"):
        load_settings(replication=2, min_insync_replicas=3)

    assert load_settings(replication=3, min_insync_replicas=2).min_insync_replicas == 2


def test_sasl_is_whole_or_absent() -> None:
    with pytest.raises(SettingsError, match="needs sasl_mechanism, sasl_username and sasl_password"):
        load_settings(security_protocol="SASL_SSL", sasl_username="u")
    with pytest.raises(SettingsError, match="have no effect with security_protocol PLAINTEXT"):
        load_settings(sasl_mechanism="PLAIN", sasl_username="u", sasl_password="p")


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="u", sasl_password="hunter2"
    )
    assert settings.sasl_password is not None
    assert settings.sasl_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)

    monkeypatch.setenv("SAGALOG_POSTGRES", "mysql://u:hunter2@h/d")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(caught.value.__cause__)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().prefix = "other"  # type: ignore[misc]


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=r"No space left on device.*free some space"), os_errors_below(tmp_path):
        Path("/dev/full").write_text("x")


def test_other_refusals_to_write_name_the_directory(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=str(tmp_path)), os_errors_below(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))


def test_errors_survive_pickling() -> None:
    error = PortTakenError.of("Kafka", 9092)

    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), str(copy)) == (PortTakenError, str(error))


def test_weights_of_tenants_are_read_from_one_line() -> None:
    assert load_settings(tenant_weights="acme=3, a=b=1,").weights == {"acme": 3, "a=b": 1}
    assert load_settings().weights == {}


@pytest.mark.parametrize("text", ["acme", "acme=0", "=1", "acme=101", "acme=x"])
def test_weights_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="tenant=weight"):
        load_settings(tenant_weights=text)
