"""What `scripts/demo` runs: the invoice saga on real documents, and what sagalog does when things break.

    arguments, cli   what is asked for, the run, an end in order
    system    the embedded stack, the project's processes as children, a client
    scenes    what is shown, in this order; `crash` holds the longest
    agents    the saga's real agents behind faults that the scenes switch on and off (`faults`)
    screen    lines for people, and progress; `report` the JSON and the tables

Rule: a scene states what it expects and checks it where it happened (results, ledger, rows); nothing is assumed to hold.
"""
