"""Deterministic simulation of the real engine, agent hosts and clients: `scripts/test simulate --help`.

One seed is one run: a cluster on a simulated Kafka, workflows, faults, a healing, an end, and then the checkers.

`plan` (what a seed means) - `definitions` (workloads) - `world` (the services that agents act on) - `person` (who decides)
- `rogue` (what other writers put into the topics) - `postgres` (the server, which is real) - `database` (the simulated way to it) -
`cluster` (the processes, and how they are broken) - `spy` (who sent what) - `trace` - `checkers`, `projection` (what must hold at
the end) - `harness` (one run) - `shrink` - `planted`, `planted_projection` (bugs that must be found) - `known`
(bugs of the product that are not mended yet) - `commands` (many runs).
"""
