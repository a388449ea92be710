"""Settings of every process of the project: defaults, then the file, then the environment, then what the code passes.

The file is `sagalog.toml` in the working directory, or the one named in SAGALOG_CONFIG; the variables are the fields'
names with SAGALOG_ before them. An empty variable counts as not set.

Rule: an unknown key is an error, in the file and in the environment, because a misspelt setting that is silently
ignored is found in production. Use `load_settings`, which turns what is wrong into one sentence per setting.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from sagalog.infra.errors import SettingsError

ENV_PREFIX = "SAGALOG_"
ENV_RESERVED = frozenset({"SAGALOG_CONFIG", "SAGALOG_PYTHON"})  # read by others than Settings
FILE_DEFAULT = "sagalog.toml"
FILE_BYTES_MAX = 1 << 20

KIB = 1024
# Kafka allows 249 characters in a topic's name; what comes after the prefix (".commands.<agent>") needs its share.
PREFIX_LENGTH_MAX = 60
TOPIC_LEGAL = re.compile(r"[A-Za-z0-9._-]+")
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
PORT_MAX = 65_535
TENANT_WEIGHT_MAX = 100

Port = Annotated[int, Field(ge=0, le=PORT_MAX)]


class Settings(BaseSettings):
    """One process's settings; immutable."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    bootstrap: str | None = Field(
        None, description="Kafka's address, host:port, several separated by commas; none: run an embedded Kafka"
    )
    postgres: str | None = Field(
        None,
        description="PostgreSQL's address, postgresql://user:password@host:port/database; none: run an embedded one",
    )
    prefix: str = Field(
        "sagalog",
        min_length=1,
        max_length=PREFIX_LENGTH_MAX,
        description="First part of the names of all topics, groups and transactional ids; separates systems on one Kafka",
    )
    partitions: int = Field(
        8, ge=1, le=1_000, description="Partitions of a topic that is made; cannot be changed later"
    )
    replication: int = Field(1, ge=1, le=9, description="Replicas of a topic that is made; 3 in production")
    min_insync_replicas: int | None = Field(
        None,
        ge=1,
        le=9,
        description="Replicas that must have a record before it counts as written, of a topic that is made; 2 where "
        "replication is 3; none: the cluster's default",
    )
    data_dir: Path | None = Field(None, description="Directory of the embedded servers' data; none: a temporary one")
    cache_dir: Path | None = Field(None, description="Directory of Kafka's jars; none: the user's cache directory")
    maven_url: str | None = Field(None, description="Maven repository to fetch Kafka's jars from; none: the public one")
    snapshot_interval_ms: int = Field(
        200,
        ge=10,
        le=60_000,
        description="Milliseconds between two snapshots of a partition; more means a longer take-over",
    )
    metrics_port: Port | None = Field(
        None, description="Port that serves Prometheus' metrics; 0: a free one; none: no metrics are served"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="Least severity of what is logged"
    )
    session_timeout_ms: int = Field(
        6_000,
        ge=1_000,
        le=300_000,
        description="Milliseconds without a sign of life after which a member's work is reassigned",
    )
    standbys: int = Field(
        1, ge=0, le=8, description="How many engines stand by for each partition, to take it over within milliseconds"
    )
    rack: str | None = Field(
        None, min_length=1, max_length=200, description="Where this engine runs; standbys are put elsewhere than owners"
    )
    start_lag_records_max: int = Field(
        50_000,
        ge=0,
        le=1_000_000_000,
        description="Records by which the engine may be behind on a partition before a client refuses to start workflows in it; "
        "0: it never does",
    )
    start_wait_ms_max: int = Field(
        0,
        ge=0,
        le=3_600_000,
        description="Milliseconds that a record may wait for the engine on a partition before a client refuses to start workflows "
        "in it; 0: not limited",
    )
    tenant_weights: str | None = Field(
        None,
        description="How many commands in a row a tenant's turn is worth where tenants wait for the same, as name=weight, "
        "separated by commas; who is not named has 1",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to Kafka"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="How to prove to Kafka who we are; needs a SASL_ security_protocol"
    )
    sasl_username: str | None = Field(None, min_length=1, description="User name for sasl_mechanism")
    sasl_password: SecretStr | None = Field(None, description="Password for sasl_mechanism; never printed")
    ssl_cafile: Path | None = Field(None, description="File with the certificates of the authorities that sign Kafka's")

    @field_validator("bootstrap")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        if value is None:
            return None
        addresses = [address.strip() for address in value.split(",")]
        for address in addresses:
            match = ADDRESS.fullmatch(address)
            if match is None or not 1 <= int(match["port"]) <= PORT_MAX:
                raise ValueError(f"{address!r} is not host:port")
        return ",".join(addresses)

    @field_validator("postgres")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            # The value is not repeated: it may hold a password.
            raise ValueError("it does not start with postgresql://")
        return value

    @field_validator("prefix")
    @classmethod
    def _topic_legal(cls, value: str) -> str:
        if TOPIC_LEGAL.fullmatch(value) is None:
            raise ValueError("only letters, digits, '.', '_' and '-' may be in the name of a topic")
        if value.startswith("."):
            raise ValueError("it may not start with '.'")
        return value

    @field_validator("tenant_weights")
    @classmethod
    def _weights(cls, value: str | None) -> str | None:
        if value is not None:
            parse_weights(value)
        return value

    @property
    def weights(self) -> dict[str, int]:
        """Tenant to weight."""
        return parse_weights(self.tenant_weights) if self.tenant_weights is not None else {}

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _replicas_suffice(self) -> Settings:
        if self.min_insync_replicas is not None and self.min_insync_replicas > self.replication:
            raise ValueError(
                f"min_insync_replicas {self.min_insync_replicas} is more than replication {self.replication}: "
                "nothing could ever be written"
            )
        return self

    @model_validator(mode="after")
    def _security_is_whole(self) -> Settings:
        uses_sasl = self.security_protocol.startswith("SASL_")
        given = [self.sasl_mechanism, self.sasl_username, self.sasl_password]
        if uses_sasl and None in given:
            raise ValueError(
                f"security_protocol {self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password"
            )
        if not uses_sasl and given != [None, None, None]:
            raise ValueError(
                f"sasl_mechanism, sasl_username and sasl_password have no effect with security_protocol "
                f"{self.security_protocol}: use SASL_SSL, or leave them out"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        _require_known_variables(os.environ)
        return init_settings, env_settings, _file_source(settings_cls)


def parse_weights(text: str) -> dict[str, int]:
    """`acme=3,small=1` as a dict. Raises ValueError with the part that does not fit."""
    weights: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        tenant, _, weight = part.rpartition("=")
        if not tenant or not weight.isdecimal() or not 1 <= int(weight) <= TENANT_WEIGHT_MAX:
            raise ValueError(f"{part!r} is not tenant=weight with a weight of 1 to {TENANT_WEIGHT_MAX}")
        weights[tenant] = int(weight)
    return weights


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process; `overrides` win over everything. Raises SettingsError."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(dict(problem)) for problem in error.errors())) from error


def _require_known_variables(environment: Mapping[str, str]) -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | ENV_RESERVED
    unknown = sorted(name for name in environment if name.startswith(ENV_PREFIX) and name not in known)
    if unknown:
        raise SettingsError(
            "\n".join(f"The environment variable {name} is not a setting: {_nearest(name, known)}." for name in unknown)
        )


def _file_source(settings_cls: type[BaseSettings]) -> TomlConfigSettingsSource:
    named = os.environ.get("SAGALOG_CONFIG")
    file = Path(named or FILE_DEFAULT)
    if named and not file.is_file():
        raise SettingsError(f"SAGALOG_CONFIG names {named}, which is not a file: correct it, or unset it.")
    if file.is_file() and file.stat().st_size > FILE_BYTES_MAX:
        raise SettingsError(f"{file} has more than {FILE_BYTES_MAX} bytes and so is no file of settings: name another.")
    try:
        return TomlConfigSettingsSource(settings_cls, file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid TOML ({error}): correct it.") from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}): correct that, or name another file.") from error


def _sentence(problem: Mapping[str, Any]) -> str:
    """One sentence for one of pydantic's problems."""
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        file = os.environ.get("SAGALOG_CONFIG") or FILE_DEFAULT
        return f"{name} is not a setting (in {file}, or passed by the code): {_nearest(name, Settings.model_fields)}."
    why = str(problem["msg"]).removeprefix("Value error, ")
    if not name:
        return f"The settings do not fit together: {why}."
    field = Settings.model_fields.get(name)
    about = f"{field.description}" if field is not None else "see the documentation"
    return (
        f"The setting {name} ({ENV_PREFIX}{name.upper()}) cannot be {_shown(name, problem['input'])}: {why} ({about})."
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return f"the nearest known one is {near}"


SECRET = frozenset({"postgres", "sasl_password"})


def _shown(name: str, value: object) -> str:
    return "what it is set to" if name in SECRET else repr(value)
