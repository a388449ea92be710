"""The agents that make an account: user record, mailbox, subscription, welcome message, and how each is taken back.

They are ordinary functions, because SQLite blocks: the host runs them in threads. Run them with
`sagalog agent sagalog.agents.accounts.agents:agents`.
"""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from typing import Any, Final

from sagalog.agents.agent import AnyAgent, Undo, agent
from sagalog.agents.context import Context
from sagalog.agents.errors import Terminal

from .models import Mailbox, Plan, SignUp, Subscription, User, Welcome
from .store import once, undo

QUOTA_MIB: Final = {Plan.FREE: 1_024, Plan.TEAM: 51_200}
QUOTA_TOTAL_MIB: Final = 1_048_576
"""What all mailboxes together may take."""
MONTHLY_CENTS: Final = {Plan.FREE: 0, Plan.TEAM: 1_900}
CARD_DECLINED: Final = "tok_declined"
"""The token by which the demonstration's payment provider declines."""


def _id(prefix: str, key: str) -> str:
    # From the key, not by chance: an attempt that is made again makes the same id.
    return f"{prefix}-{blake2b(key.encode(), digest_size=6).hexdigest()}"


@agent("account-users")
def create_user(sign_up: SignUp, ctx: Context) -> User:
    """Makes the user record. An address that is taken is refused for good."""

    def effect(connection: sqlite3.Connection) -> User:
        user = User(user_id=_id("user", ctx.idempotency_key), email=sign_up.email, plan=sign_up.plan)
        try:
            connection.execute("INSERT INTO user VALUES (?, ?, ?)", (user.user_id, user.email, sign_up.name))
        except sqlite3.IntegrityError:
            raise Terminal(f"{sign_up.email} has an account already", {"email": sign_up.email}) from None
        return user

    return once(ctx.idempotency_key, User, effect)


@create_user.compensation
def delete_user(request: Undo[SignUp, User], ctx: Context) -> None:
    def reverse(connection: sqlite3.Connection, user: User) -> None:
        connection.execute("DELETE FROM user WHERE user_id = ?", (user.user_id,))

    undo(ctx.idempotency_key, User, reverse)


@agent("account-mailboxes")
def reserve_mailbox(user: User, ctx: Context) -> Mailbox:
    """Reserves the mailbox and its part of the quota."""

    def effect(connection: sqlite3.Connection) -> Mailbox:
        mailbox = Mailbox(address=user.email, quota_mib=QUOTA_MIB[user.plan])
        (taken_mib,) = connection.execute("SELECT COALESCE(SUM(quota_mib), 0) FROM mailbox").fetchone()
        left_mib = QUOTA_TOTAL_MIB - taken_mib
        if mailbox.quota_mib > left_mib:
            raise Terminal(f"only {left_mib} MiB of mail quota are left and {mailbox.quota_mib} are needed")
        connection.execute("INSERT INTO mailbox VALUES (?, ?, ?)", (mailbox.address, user.user_id, mailbox.quota_mib))
        return mailbox

    return once(ctx.idempotency_key, Mailbox, effect)


@reserve_mailbox.compensation
def release_mailbox(request: Undo[User, Mailbox], ctx: Context) -> None:
    def reverse(connection: sqlite3.Connection, mailbox: Mailbox) -> None:
        connection.execute("DELETE FROM mailbox WHERE address = ?", (mailbox.address,))

    undo(ctx.idempotency_key, Mailbox, reverse)


@agent("account-billing")
def subscribe(user: User, ctx: Context, card: str | None = None) -> Subscription:
    """Sets up the monthly bill. A plan that costs something needs a card, and the card may be declined."""

    def effect(connection: sqlite3.Connection) -> Subscription:
        monthly_cents = MONTHLY_CENTS[user.plan]
        if monthly_cents and card is None:
            raise Terminal(f"plan {user.plan.value} costs {monthly_cents} cents a month; a card is needed")
        if monthly_cents and card == CARD_DECLINED:
            raise Terminal("the card was declined")
        subscription = Subscription(
            subscription_id=_id("subscription", ctx.idempotency_key), monthly_cents=monthly_cents
        )
        connection.execute(
            "INSERT INTO subscription VALUES (?, ?, ?)", (subscription.subscription_id, user.user_id, monthly_cents)
        )
        return subscription

    return once(ctx.idempotency_key, Subscription, effect)


@subscribe.compensation
def unsubscribe(request: Undo[Any, Subscription], ctx: Context) -> None:
    def reverse(connection: sqlite3.Connection, subscription: Subscription) -> None:
        connection.execute("DELETE FROM subscription WHERE subscription_id = ?", (subscription.subscription_id,))

    undo(ctx.idempotency_key, Subscription, reverse)


@agent("account-welcome")
def send_welcome(user: User, name: str, ctx: Context) -> Welcome:
    """Puts the welcome message into the outbox."""

    def effect(connection: sqlite3.Connection) -> Welcome:
        welcome = Welcome(message_id=_id("message", ctx.idempotency_key))
        body = f"Welcome, {name}. Your account {user.user_id} is ready."
        connection.execute("INSERT INTO outbox VALUES (?, ?, ?)", (welcome.message_id, user.email, body))
        return welcome

    return once(ctx.idempotency_key, Welcome, effect)


@send_welcome.compensation
def withdraw_welcome(request: Undo[Any, Welcome], ctx: Context) -> None:
    def reverse(connection: sqlite3.Connection, welcome: Welcome) -> None:
        connection.execute("DELETE FROM outbox WHERE message_id = ?", (welcome.message_id,))

    undo(ctx.idempotency_key, Welcome, reverse)


agents: tuple[AnyAgent, ...] = (create_user, reserve_mailbox, subscribe, send_welcome)
