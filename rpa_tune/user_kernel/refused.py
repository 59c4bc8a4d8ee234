"""How a worker says that a person's input is wrong: an error that becomes a `Refusal`."""

from rpa_tune.user_kernel.answer import Refusal


class RefusedError(Exception):
    """Ends the task; the parent raises its refusal as a UsageError."""

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        """Keeps the parts apart."""
        super().__init__(message)
        self.refusal = Refusal(message=message, where=where, hint=hint)
