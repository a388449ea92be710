"""The runtime: runs the fold over the partitions that Kafka hands out, sends what it asks for, and keeps checkpoints.

`engine` (one process: the consumer, its processors, what they share) - `processor` (one partition: take-over, hot path,
snapshots) - `workflows` and `circuits` (the two folds as a processor runs them) - `gate` (which command may go out now) -
`losses` (attempts that nobody answers) - `timers` - `outputs` (effects as records) - `limits` - `metrics`.
"""
