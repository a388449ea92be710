"""The account saga, a reference: agents whose effects are real rows in SQLite, done and undone once by idempotency key.

`saga.account` is the definition, `agents.agents` are its agents. The file is named by ACCOUNTS_DATABASE.
"""
