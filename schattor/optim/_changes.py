"""Values of groups that changed since a step took them: checked before the next one does."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

from schattor.optim._settings import REQUIREMENTS, Group, check, check_group

__all__ = ["Changes"]

# What schedulers, or steps themselves, write at every step, and what needs no look at other keys.
_ALONE = frozenset(("lr", "momentum", "weight_decay", "auto_taken"))


class Changes:
    """Looks at what is another object than before, and so at nothing in most steps."""

    def __init__(self, who: str) -> None:
        """``who`` is the optimizer's name in errors."""
        self._who = who
        self._seen: list[Group] = []

    def check(self, groups: Sequence[Group]) -> None:
        """Raise TypeError or ValueError, as the constructor would, for what groups hold now."""
        if len(self._seen) != len(groups):
            self._seen = [{} for _ in groups]
        for index, (group, seen) in enumerate(zip(groups, self._seen, strict=True)):
            if len(group) == len(seen) and all(map(is_, group.values(), seen.values())):
                continue
            changed = [
                key
                for key, value in group.items()
                if (key not in seen or value is not seen[key]) and key in REQUIREMENTS
            ]
            if _ALONE.issuperset(changed):
                for key in changed:
                    check(self._who, key, group[key])
            else:
                check_group(self._who, group)
            self._seen[index] = {**group}
