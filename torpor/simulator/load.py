"""The requests of a run, from a trace or a profile, as often as they are needed.

Called by the command line, `plan.py` and the benches. It must not know policies.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torpor.simulator.measure import StoodIn
from torpor.simulator.trace import Trace, read_trace, span_s
from torpor.simulator.workload import Profile, Request, arrivals


@dataclass(frozen=True, slots=True)
class Load:
    """Where requests come from; every call of `requests` gives the same ones."""

    source: Trace | Profile
    seed: int = 0
    cache_ttl_s: float = 0.0  #: of an exact cache, which answers what was asked before; 0 for none
    most_prompt_tokens: int | None = None  #: a longer prompt goes to another tier

    def requests(self) -> Iterator[Request]:
        """The requests that a predictor answers, from the first to the last."""
        source = self.source
        every = read_trace(source) if isinstance(source, Trace) else arrivals(source, self.seed)
        if self.cache_ttl_s:
            every = _generated(every, self.cache_ttl_s)
        longest = self.most_prompt_tokens
        return every if longest is None else (r for r in every if r.prompt_tokens <= longest)

    def beyond(self, most_prompt_tokens: int) -> StoodIn:
        """What goes to another tier, whose prompts are longer than so many tokens."""
        count = prompt = output = 0
        for request in replace(self, most_prompt_tokens=None).requests():
            if request.prompt_tokens > most_prompt_tokens:
                count, prompt = count + 1, prompt + request.prompt_tokens
                output += request.output_tokens
        return StoodIn(count, prompt, output)

    def prompt_quantiles(self, shares: Sequence[float]) -> list[int]:
        """Lengths of prompts, in tokens, below which these shares of the requests are; each once."""
        lengths = sorted(request.prompt_tokens for request in self.requests())
        if not lengths:
            return []
        return sorted(
            {lengths[min(int(share * len(lengths)), len(lengths) - 1)] for share in shares}
        )

    def savings(self, ttl_s: float) -> "CacheSavings | None":
        """What an exact cache would save; None when the load does not say which requests are equal."""
        every = replace(self, cache_ttl_s=0.0).requests()
        known, totals, kept = False, [0, 0], [0, 0]
        for request in _counted(every, totals):
            known = known or bool(request.same_as)
        if not known:
            return None
        for _ in _counted(replace(self, cache_ttl_s=ttl_s).requests(), kept):
            pass
        return CacheSavings(totals[0], totals[0] - kept[0], totals[1], totals[1] - kept[1])

    def cached_prefixes(self) -> tuple[int, int] | None:
        """Prompt tokens in blocks that began an earlier prompt as well, and all; None without hashes of blocks. A hash
        is of its block and all before it, as Mooncake's are.
        """
        seen: set[int] = set()
        cached = every = 0
        for request in replace(self, cache_ttl_s=0.0).requests():
            blocks, every = request.blocks, every + request.prompt_tokens
            known = next((n for n, block in enumerate(blocks) if block not in seen), len(blocks))
            if blocks:
                cached += request.prompt_tokens * known // len(blocks)
                seen.update(blocks)
        return (cached, every) if seen else None

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


@dataclass(frozen=True, slots=True)
class CacheSavings:
    """How many requests, and output tokens, there are, and how many an exact cache answers."""

    requests: int
    hits: int
    output_tokens: int
    saved_tokens: int

    @property
    def text(self) -> str:
        """The same in a line."""
        share = 100 * self.hits / max(self.requests, 1)
        tokens = 100 * self.saved_tokens / max(self.output_tokens, 1)
        return (
            f"an exact cache answers {self.hits:,} of {self.requests:,} requests ({share:.1f} %) and saves "
            f"{self.saved_tokens:,} output tokens ({tokens:.1f} %)"
        )


def _generated(requests: Iterable[Request], ttl_s: float) -> Iterator[Request]:
    """Those that no earlier equal one answers. An answer is as old as its request here: one that still runs is
    followed, too.
    """
    asked: dict[str, float] = {}
    for request in requests:
        before = asked.get(request.same_as)
        if request.same_as and before is not None and request.at - before < ttl_s:
            continue
        asked[request.same_as] = request.at
        yield request


def _counted(requests: Iterable[Request], totals: list[int]) -> Iterator[Request]:
    """The requests, while their number and output tokens are added to `totals`."""
    for request in requests:
        totals[0] += 1
        totals[1] += request.output_tokens
        yield request
