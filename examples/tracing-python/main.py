"""Two orders at once, each a span; every call of the pool is a child of the span that made it. Prints what was exported."""

import asyncio
import time

from offloop import ProcessPool
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from spans import span_per_task

PRICES = {"chair": 40, "desk": 120}


def price(item):
    time.sleep(60 if item == "sofa" else 0.03)
    if item not in PRICES:
        raise LookupError(f"no price for {item}")
    return PRICES[item]


async def order(pool, name, items):
    with trace.get_tracer("shop").start_as_current_span(f"order {name}"):
        calls = [pool.options(timeout=0.5 if item == "sofa" else 10).run(price, item) for item in items]
        await asyncio.gather(*calls, return_exceptions=True)


async def main():
    exporter = InMemorySpanExporter()  # in a service: OTLPSpanExporter, behind a BatchSpanProcessor
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    async with ProcessPool(2, cancel_grace=0.01, trace=span_per_task(trace.get_tracer("shop"))) as pool:
        await asyncio.gather(order(pool, "A", ["chair", "lamp"]), order(pool, "B", ["desk", "sofa"]))
    spans = sorted(exporter.get_finished_spans(), key=lambda span: (span.name, span.attributes.get("offloop.outcome", "")))

    def ms(span):
        return f"{(span.end_time - span.start_time) / 1e6:.1f} ms"

    for parent in [span for span in spans if span.parent is None]:
        print(f"{parent.name}: {ms(parent)}")
        for span in spans:
            if span.parent is not None and span.parent.span_id == parent.context.span_id:
                print(f"  {span.name}: {span.attributes['offloop.outcome']}, {span.status.description or 'ok'}, {ms(span)}")


if __name__ == "__main__":
    asyncio.run(main())
