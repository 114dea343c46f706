"""The settings: the one place that reads the environment."""

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from backend.notify import WrongAddressError, read_addresses

PROJECT_FOLDER = Path(__file__).resolve().parent.parent

Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class SettingsError(Exception):
    """A setting makes no sense; the message is one line that names the variable."""


class Settings(BaseSettings):
    """Everything that the environment decides, read once and handed down.

    Each field is read from the variable `SIGNALBOX_<FIELD>`; an empty variable counts as unset.
    """

    model_config = SettingsConfigDict(env_prefix="SIGNALBOX_", env_ignore_empty=True, frozen=True)

    data: Path = Field(
        default=PROJECT_FOLDER / "data", description="folder of the database and the run folders"
    )
    workers: Annotated[int, Field(ge=1, le=256)] | None = Field(
        default=None, description="jobs that run at once; unset: the number of GPUs, or 1"
    )
    timeout_minutes: Annotated[float, Field(gt=0, le=525_600, allow_inf_nan=False)] = Field(
        default=10, description="minutes without progress that end a job"
    )
    poll_seconds: Annotated[float, Field(ge=0.01, le=60, allow_inf_nan=False)] = Field(
        default=0.25, description="seconds between two looks of a supervisor"
    )
    cancel_grace_seconds: Seconds = Field(
        default=10, description="seconds from asking to killing, on cancel"
    )
    stall_grace_seconds: Seconds = Field(
        default=5, description="seconds from asking to killing, after a timeout"
    )
    pause_grace_seconds: Seconds = Field(
        default=120, description="seconds from asking to giving up, on pause"
    )
    token: SecretStr | None = Field(
        default=None, description="what pages and API ask for; as Authorization: Bearer, by the API"
    )

    notify: SecretStr | None = Field(
        default=None, description="Apprise addresses that are told of jobs that end or hang"
    )

    @field_validator("data")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @field_validator("token")
    @classmethod
    def _fit_for_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token and not re.fullmatch("[!-~]+", token.get_secret_value()):
            raise PydanticCustomError(
                "token", "it must be of ASCII letters, digits and signs, without blanks"
            )
        return token

    @field_validator("notify")
    @classmethod
    def _understood(cls, notify: SecretStr | None) -> SecretStr | None:
        try:
            if notify:
                read_addresses(notify.get_secret_value())
        except WrongAddressError as error:
            raise PydanticCustomError("notify", "{wrong}", {"wrong": str(error)}) from None
        return notify

    @property
    def timeout_seconds(self) -> float:
        """The default timeout of a job, in seconds."""
        return round(self.timeout_minutes * 60, 3)


def read_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: a variable makes no sense; the message names it and says why.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"SIGNALBOX_{first['loc'][0]}".upper()
        value = _SECRETS.get(variable) or repr(first["input"])
        sentence = _SENTENCES.get(first["type"])
        wrong = sentence.format(**first.get("ctx", {})) if sentence else f"{first['msg']}."
        raise SettingsError(f"{variable} is {value}, but {wrong}") from None


_SECRETS: Final = {"SIGNALBOX_TOKEN": "a secret", "SIGNALBOX_NOTIFY": "set"}
"""What is said in place of values that are never told."""

_SENTENCES: Final = {
    "greater_than": "it must be more than {gt:g}.",
    "greater_than_equal": "it must be at least {ge:g}.",
    "less_than_equal": "it must be at most {le:g}.",
    "int_parsing": "it must be a whole number.",
    "float_parsing": "it must be a number.",
    "finite_number": "it must be a finite number.",
}
