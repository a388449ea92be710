"""The fold: `(definitions, state, event) -> state, effects`. Pure and deterministic: no clock, no I/O, no logger, no chance.

Theory of operation
-------------------
A partition of the events topic is a sequence of records. `Partition.apply` folds one record after the other into the states
of the partition's workflows and appends *effects* to a list: commands to send, results, dead letters, reviews. Folding the
same records always gives the same states and the same effects with the same ids, so an effect may be lost or sent twice,
a checkpoint may be missing, and a second engine may fold along: the log decides.

- Time comes from the record (the broker's LogAppendTime), clamped per workflow so that it never steps back. Jitter is a hash.
- What the engine decides from outside the log (a timer is due, an attempt is lost, a circuit is open) comes in as an event
  of its own that carries the owner's epoch; one of an older epoch is ignored.
- The fold never raises on a record. What does not fit the state is ignored with a reason; what cannot be read, or breaks the
  fold, becomes a Quarantine effect and stops its workflow.
- The fold owns the state that it is given and changes it in place.

Where things are
----------------
`state` (statuses, their tables, checkpoints) - `plan` (a compiled definition) - `effects` - then a module per family of events:
`starts`, `forks` (starts that keep what another workflow did), `attempts` (with `late`: results that come after all),
`timers`, `people` (signals, decisions), `control` (cancel, pause, resume, terminate), `rewind` (back to a step), `runs` (several
under one id), `migration` (to another definition), `children` (workflows that do a step of another one) - `progress` (what follows:
next steps, compensation) with `waits` (steps without an agent), `items` (steps that map), `reconcile` (did an attempt happen?),
`fallbacks` and `budgets` - `closing` (what is written down when something ends) - `partition` (the records of one partition:
ownership, definitions, quarantine) - `schedules` (what starts workflows by the clock) - `circuits` (the other fold: call
outcomes to circuit states, with `leases`: who may use how much of a limit) - `invariants` (what holds of every state, for tests
and the simulation).

To add an event kind: a dataclass in `schemas.events`, a function in the module of its family, a `case` in `partition`. To
add a policy: a field of `schemas.definitions.Step`, and one function in `attempts` or `progress` that reads it.
"""

from .circuits import CircuitPartition
from .effects import Effect
from .partition import Partition
from .plan import Plan, compile_plan
from .record import Record
from .state import WorkflowState, dump, restore

__all__ = [
    "CircuitPartition",
    "Effect",
    "Partition",
    "Plan",
    "Record",
    "WorkflowState",
    "compile_plan",
    "dump",
    "restore",
]
