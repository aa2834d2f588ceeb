"""The requests of a run, from a trace or a profile, as often as they are needed.

Called by the command line, `plan.py` and the benches. It must not know policies.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torpor.simulator.trace import Trace, read_trace, span_s
from torpor.simulator.workload import Profile, Request, arrivals


@dataclass(frozen=True, slots=True)
class Load:
    """Where requests come from; every call of `requests` gives the same ones."""

    source: Trace | Profile
    seed: int = 0

    def requests(self) -> Iterator[Request]:
        """The requests from the first to the last."""
        if isinstance(self.source, Trace):
            return read_trace(self.source)
        return arrivals(self.source, self.seed)

    @property
    def span_s(self) -> float:
        """How long the load lasts."""
        if isinstance(self.source, Trace):
            return span_s(self.source)
        return self.source.duration_s

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        if isinstance(self.source, Trace):
            kept = "" if self.source.share == 1 else f", 1 in {self.source.share}"
            drawn = "" if self.source.share == 1 else f" (seed {self.source.seed})"
            return f"trace {self.source.path.name}{kept}{drawn}"
        profile = self.source
        rates = f"{profile.base_per_s:g} to {profile.peak_per_s:g} requests/s"
        return f"profile {profile.kind}, {rates}, {profile.duration_s:.0f} s (seed {self.seed})"
