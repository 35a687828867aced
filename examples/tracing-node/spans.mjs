// A span per task: `new WorkerPool(file, { trace: spanPerTask(tracer) })`.
import { SpanStatusCode } from '@opentelemetry/api'

/** The hook runs in the context of whoever submitted the task, so that the span which is active there is the parent. */
export const spanPerTask = (tracer) => (task) => {
  const { pool, name, submitted, queueTime, runTime, outcome, error } = task
  const end = submitted + queueTime + runTime
  const attributes = { 'offloop.pool': pool, 'offloop.outcome': outcome, 'offloop.queue_ms': queueTime, 'offloop.run_ms': runTime }
  const span = tracer.startSpan(name, { startTime: submitted, attributes })
  if (outcome !== 'completed') {
    span.recordException(error, end)
    span.setStatus({ code: SpanStatusCode.ERROR, message: error.message })
  }
  span.end(end)
}
