// Two orders at once, each a span; every call of the pool is a child of the span that made it. Prints what was exported.
import { context, SpanStatusCode, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { WorkerPool } from 'offloop'
import { spanPerTask } from './spans.mjs'

const exporter = new InMemorySpanExporter() // in a service: OTLPTraceExporter, behind a BatchSpanProcessor
context.setGlobalContextManager(new AsyncLocalStorageContextManager())
trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }))
const tracer = trace.getTracer('shop')
const pool = new WorkerPool(new URL('worker.mjs', import.meta.url), { maxWorkers: 2, cancelGrace: 10, trace: spanPerTask(tracer) })

const order = (name, items) =>
  tracer.startActiveSpan(`order ${name}`, async (span) => {
    const calls = items.map((item) => pool.options({ timeout: item === 'sofa' ? 100 : 10_000 }).exports.price(item))
    await Promise.allSettled(calls)
    span.end()
  })

await Promise.all([order('A', ['chair', 'lamp']), order('B', ['desk', 'sofa'])])
await pool.close()

const by = (key) => (a, b) => key(a).localeCompare(key(b))
const spans = exporter.getFinishedSpans()
const ms = ({ duration: [seconds, nanoseconds] }) => (seconds * 1e3 + nanoseconds / 1e6).toFixed(1)
const childrenOf = (id) => spans.filter(({ parentSpanContext }) => parentSpanContext?.spanId === id)
for (const parent of childrenOf(undefined).sort(by(({ name }) => name))) {
  console.log(`${parent.name}: ${ms(parent)} ms`)
  const outcome = ({ attributes }) => attributes['offloop.outcome']
  for (const span of childrenOf(parent.spanContext().spanId).sort(by(outcome))) {
    const { name, status } = span
    console.log(`  ${name}: ${outcome(span)}, ${status.code === SpanStatusCode.ERROR ? status.message : 'ok'}, ${ms(span)} ms`)
  }
}
