"""The benches behind `scripts/bench`: what the engine costs beside a bare client loop, and how soon it is back after a crash.

`cli` (arguments, the embedded broker) - `pipeline` (floor and engine in pairs) - `load` (starts workflows, watches offsets) -
`recovery` (kill -9) - `overload` (ten times what can be sustained) - `report` (figures as JSON or as a table) - `peers` (the same
saga on other engines). Each measured program runs in a process of its own: `children` (this side) - `child` (that side) with `raw`
(the floor) and `system` (the real engine and agent host).

Rules: floor and engine differ in the two measured processes and in nothing else (broker, topics, partitions, payloads, load
generator, how many workflows are in flight), and a ratio is taken within a pair of runs that followed each other.
"""
