"""The saga `account`: a user record first, mailbox and subscription side by side, then a welcome that may be missing.

Each step is undone by its agent's own compensation.
"""

from __future__ import annotations

from sagalog.agents.saga import CONTEXT, Saga, bind
from sagalog.schemas.definitions import Retry

from .agents import create_user, reserve_mailbox, send_welcome, subscribe
from .models import SignUp

_saga = Saga(
    "account",
    SignUp,
    description="Creates an account: user record, mailbox with its quota, subscription, welcome message.",
)
_user = _saga.step(create_user, input=_saga.input, name="user")
_mailbox = _saga.step(reserve_mailbox, input=_user.output, name="mailbox")
_billing = _saga.step(
    subscribe,
    input=bind(subscribe, user=_user.output, card=_saga.input.card, ctx=CONTEXT),
    name="billing",
    service="payments",
)
_welcome = _saga.step(
    send_welcome,
    input=bind(send_welcome, user=_user.output, name=_saga.input.name, ctx=CONTEXT),
    name="welcome",
    needs=[_mailbox, _billing],
    critical=False,
    retry=Retry(attempts=5),
)

account = _saga.build(
    output={
        "user": _user.output,
        "mailbox": _mailbox.output,
        "subscription": _billing.output,
        "welcome": _welcome.output,
    }
)
