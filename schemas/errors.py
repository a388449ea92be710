"""Errors that a caller of sagalog can meet: what was wrong, with which value, and what to do about it."""


class SagalogError(Exception):
    """The root of the project's errors. The message is one sentence with the cause and the remedy."""


class InvalidRecord(SagalogError):
    """A record or a value that breaks the contract. `field` names the place, as a path."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class InvalidDefinition(InvalidRecord):
    """A definition that cannot run. Raised when it is built or read, never in production."""
