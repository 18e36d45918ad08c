"""`python -m bench hops`: what the network costs a token, from the traces, over TLS and over iroh."""

from __future__ import annotations

import statistics
from typing import Any

from bench.report import report
from shoal.local_cluster import LocalCluster
from shoal.model.weights.model_source import demo_model_path

PROMPT = "The history of the sea begins with"


def run(tokens: int) -> dict[str, Any]:
    """Milliseconds of a token that are not computing: links, hand-overs, queues; the median of `tokens` tokens."""
    tls, iroh = measure("tls", tokens), measure("iroh", tokens)
    return report(
        "hops",
        "ms",
        tls["total"],
        "iroh",
        iroh["total"],
        iroh_value=iroh["total"],
        links_ms=tls["links"],
        tokens=tokens,
    )


def measure(transport: str, tokens: int) -> dict[str, Any]:
    """The median network share over one transport, and by link."""
    from shoal.client.sync import connect

    with (
        LocalCluster(str(demo_model_path()), 3, transport=transport) as swarm,
        connect(peers=[swarm.ticket], transport=transport) as model,
    ):
        traces = model.generate(PROMPT, max_tokens=tokens + 1, ignore_eos=True).traces
    hops = range(len(traces[0].hops))
    links = [1e3 * statistics.median(trace.hops[hop].network_s for trace in traces) for hop in hops]
    links.append(1e3 * statistics.median(trace.return_s for trace in traces))
    return {"total": 1e3 * statistics.median(trace.network_s for trace in traces), "links": links}
