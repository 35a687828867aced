"""A span per task: `ProcessPool(trace=span_per_task(tracer))`."""

from opentelemetry.trace import StatusCode


def span_per_task(tracer):
    def on_task(task):
        # With the context of whoever submitted the task: the span that was current there is the parent.
        end = task.submitted + task.queue_time + task.run_time
        attributes = {"offloop.pool": task.pool, "offloop.outcome": task.outcome, "offloop.queue_s": task.queue_time, "offloop.run_s": task.run_time}
        span = tracer.start_span(task.name, start_time=int(task.submitted * 1e9), attributes=attributes)
        if task.error is not None:
            span.record_exception(task.error, timestamp=int(end * 1e9))
            span.set_status(StatusCode.ERROR, str(task.error))
        span.end(int(end * 1e9))

    return on_task
