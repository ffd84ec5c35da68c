"""Collects all faults of a list and reports them at once, in one line."""

MOST_KINDS, MOST_LINES = 5, 4


class Faults:
    """The faults of one or more lists: the first row of each kind, and the number of others."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, list[str]]] = {}  # kind -> first message, other places
        self._counts: dict[str, int] = {}

    def add(self, kind: str, where: str, text: str) -> None:
        """Record a fault. ``where``: "file:line" or a file; ``kind``: groups similar faults."""
        if self._counts.setdefault(kind, 0) == 0:
            self._kinds[kind] = (f"{where}: {text}", [])
        elif len(places := self._kinds[kind][1]) < MOST_LINES:
            line = where.rpartition(":")[2]
            places.append(f"line {line}" if line.isdecimal() and not places else line)
        self._counts[kind] += 1

    def has(self, kind: str) -> bool:
        """Whether there is a fault of a kind."""
        return kind in self._kinds

    def check(self) -> None:
        """Raise ValueError if there are any faults."""
        if not self._kinds:
            return
        said = []
        for kind, (message, places) in list(self._kinds.items())[:MOST_KINDS]:
            others = self._counts[kind] - 1
            more = ", ..." if others > len(places) else ""
            also = f" (and {others} more: {', '.join(places)}{more})" if others else ""
            said.append(message + also)
        if (unsaid := len(self._kinds) - MOST_KINDS) > 0:
            said.append(f"and {unsaid} other faults")
        raise ValueError("; ".join(said))
