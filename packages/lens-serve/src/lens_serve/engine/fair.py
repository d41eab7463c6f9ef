"""Fair shares: keys that compete get seconds in proportion to their weights, by deficit round robin.

In every round a key is credited with a quantum times its weight, and what its work takes is charged to it. While a key
has credit its jobs go before those of keys that have none, and among keys with credit nobody is preferred: so the order
of the jobs is disturbed only when a key has used up its part of a round while others have not. The next round begins
as soon as none of the keys that have work has credit.

Nobody saves up: a key that has nothing to do is credited like the others, but to one quantum at most, and when there is
nothing to do at all, everything is forgotten. Nor is what others leave over held against a key for more than a quantum.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FairShares"]


@dataclass
class _Account:
    weight: float
    credit: float
    jobs: int = 0


class FairShares:
    """The accounts of all keys that have work, or had some a moment ago.

    Attributes:
        quantum: seconds per round of a key of weight 1. It should be longer than a job, so that keys take turns by jobs
            rather than by steps, which would end all of them late.
    """

    def __init__(self) -> None:
        self.quantum = 0.0
        self._accounts: dict[str, _Account] = {}

    def join(self, key: str, weight: float, quantum: float) -> None:
        """A job of this key arrives.

        Args:
            key: whose account counts.
            weight: of the key from now on. Raises ValueError unless it is positive and finite.
            quantum: what the present one is raised to, if it is less.
        """
        if not 0 < weight < float("inf"):
            raise ValueError(f"key {key!r} has weight {weight}; a weight is a positive number")
        self.quantum = max(self.quantum, quantum)
        account = self._accounts.setdefault(key, _Account(weight, self.quantum * weight))
        account.weight = weight
        account.jobs += 1

    def leave(self, key: str) -> None:
        """A job of this key is gone."""
        self._accounts[key].jobs -= 1
        if not any(account.jobs for account in self._accounts.values()):
            self._accounts.clear()
            self.quantum = 0.0

    def charge(self, key: str, seconds: float) -> None:
        """A job of this key took so long; it may have left meanwhile.

        A key that had no credit took what others left over, and comes to owe a quantum by that at most.
        """
        if account := self._accounts.get(key):
            least = float("-inf") if account.credit > 0 else min(account.credit, -self.quantum * account.weight)
            account.credit = max(account.credit - seconds, least)

    def credit(self, key: str) -> float:
        """Seconds that are left of this key's part of the round."""
        account = self._accounts.get(key)
        return account.credit if account else 0.0

    def spent(self) -> set[str]:
        """Keys that have work but no credit."""
        return {key for key, account in self._accounts.items() if account.jobs and account.credit <= 0}

    def settle(self, quantum: float) -> None:
        """Begin the next round if this one is over; as many as it takes until a key that has work has credit.

        Args:
            quantum: of rounds from now on, positive.
        """
        busy = [account for account in self._accounts.values() if account.jobs]
        if not busy or any(account.credit > 0 for account in busy):
            return
        self.quantum = quantum
        rounds = min(int(-account.credit // (quantum * account.weight)) + 1 for account in busy)
        for key, account in list(self._accounts.items()):
            part = quantum * account.weight
            account.credit = min(account.credit + rounds * part, part)
            if not account.jobs and account.credit == part:
                del self._accounts[key]
