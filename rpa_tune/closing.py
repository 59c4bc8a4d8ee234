"""`with` for whatever has a `close`."""

from typing import Self


class Closing:
    """Base of what is closed at the end of its `with` block."""

    def close(self) -> None:
        """Gives back what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """The object itself; `close` follows."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes, whatever happened."""
        self.close()
