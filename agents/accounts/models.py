"""What goes into and comes out of the steps of the account saga. Amounts are whole cents."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", max_length=254)]


class Plan(StrEnum):
    FREE = "free"
    TEAM = "team"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class SignUp(_Model):
    """The workflow's input. `card` is a payment provider's token for a card, not a card's number."""

    email: Email
    name: str = Field(min_length=1, max_length=200)
    plan: Plan = Plan.FREE
    card: str | None = Field(default=None, max_length=100)


class User(_Model):
    """A user record, with the plan that was chosen or is the default."""

    user_id: str
    email: Email
    plan: Plan


class Mailbox(_Model):
    """A mailbox, and the part of the quota that it takes."""

    address: str
    quota_mib: int


class Subscription(_Model):
    """What is billed each month from now on."""

    subscription_id: str
    monthly_cents: int


class Welcome(_Model):
    """A message that was put into the outbox."""

    message_id: str
