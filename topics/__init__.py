"""The topics: what each holds and how it is kept (`specs`), how they are made and checked (`provision`), and the one port
through which everything reads and writes them (`log`), with its Kafka adapter (`kafka`).
"""
