"""An object of JSON in a file, of which nothing is read past."""

from pathlib import Path
from typing import Any, Self

from jaxllm.errors import InputError
from jaxllm.files import read_json


class JsonObject:
    """An object of JSON in a file. At the end of `with`, a key that nobody asked for is refused,
    unless its value says that there is nothing.
    """

    def __init__(self, file: Path, *, optional: bool = False):
        self.file = file
        self._content: dict[str, Any] = {}
        if file.is_file() or not optional:
            self._content = read_json(file, dict, "what wrote the model")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        for key, value in self._content.items():
            if kind is None and value not in (None, False, "", [], {}):
                raise InputError(
                    f"{self.file}: found {key}: {value!r}, which is not implemented; give a model "
                    "without it"
                )

    def take(self, key: str, kind: Any) -> Any:
        """The value, None where there is none; InputError where it is of another type."""
        value = self._content.pop(key, None)
        if value is not None and not isinstance(value, kind):
            expected = getattr(kind, "__name__", kind)
            raise InputError(f"{self.file}: {key}: found {value!r}, expected {expected}")
        return value

    def size(self, key: str) -> int | None:
        """A number from 1 on, None where there is none."""
        value = self.take(key, int)
        if value is not None and (value is True or value < 1):
            raise InputError(f"{self.file}: {key}: found {value!r}, expected at least 1")
        return value

    def expect(self, key: str, value: Any) -> None:
        """Takes the key where it has this value; another is refused at the end."""
        if self._content.get(key) == value:
            del self._content[key]

    def ignore(self, *keys: str) -> None:
        """Takes keys that change nothing."""
        for key in keys:
            self._content.pop(key, None)
