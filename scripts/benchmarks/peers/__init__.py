"""`bench peers`: the same four-step saga on other engines, for real, beside sagalog and on this machine.

`bench` (turns, ratios, report) - `settings` - `subjects` (what is measured, and the two ways to drive it) - one module a peer,
which starts it: `ours`, `dbos`, `faust`, `restate`, `temporal`. `..install` gets a peer's packages, outside of the repository.
`inside` is what runs in a peer's own environment: its saga, its client, and `serving` (the other side of `subjects`).

Rules: a peer differs in nothing that it does not bring itself (steps, payload, workflows in flight, rate, window, machine); each
is run as its documentation says one should; durable as it is by default or better; and a peer that cannot be had is said to
be not available, with the reason, instead of a figure.
"""
