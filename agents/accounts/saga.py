"""The saga `account`: a user record first, mailbox and subscription side by side, then a welcome that may be missing."""

from __future__ import annotations

from sagalog.schemas.definitions import Compensation, Definition, Retry, Step, fields, from_input, from_step

from .agents import create_user, reserve_mailbox, send_welcome, subscribe
from .models import SignUp

_UNDO = Compensation()


account = Definition(
    name="account",
    description="Creates an account: user record, mailbox with its quota, subscription, welcome message.",
    input_schema=SignUp.model_json_schema(),
    steps=(
        Step(
            name="user",
            agent=create_user.name,
            compensate=_UNDO,
            output_schema=create_user.output_schema,
        ),
        Step(
            name="mailbox",
            agent=reserve_mailbox.name,
            needs=("user",),
            input=from_step("user"),
            compensate=_UNDO,
            output_schema=reserve_mailbox.output_schema,
        ),
        Step(
            name="billing",
            agent=subscribe.name,
            needs=("user",),
            input=fields(user=from_step("user"), card=from_input("card")),
            compensate=_UNDO,
            service="payments",
            output_schema=subscribe.output_schema,
        ),
        Step(
            name="welcome",
            agent=send_welcome.name,
            needs=("mailbox", "billing"),
            input=fields(user=from_step("user"), name=from_input("name")),
            critical=False,
            retry=Retry(attempts=5),
            compensate=_UNDO,
            output_schema=send_welcome.output_schema,
        ),
    ),
    output=fields(
        user=from_step("user"),
        mailbox=from_step("mailbox"),
        subscription=from_step("billing"),
        welcome=from_step("welcome"),
    ),
)
