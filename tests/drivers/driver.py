"""The Python driver of the conformance runner: PROTOCOL.md through the public API of the package."""

import os
import pathlib
import queue
import sys
import threading

import offloop
import worker
from offloop import ProcessPool, ThreadPool, TransferBuffer, _native

LOCK = threading.Lock()
POOLS: dict[str, ThreadPool | ProcessPool] = {}
TASKS: dict[str, "Outcome"] = {}
BUFFERS: dict[str, TransferBuffer] = {}
RINGS: dict[str, object] = {}
PRODUCERS: dict[str, object] = {}
CONSUMERS: dict[str, object] = {}
DELIVERIES: dict[str | None, object] = {}
CHANNELS: dict[str, object] = {}
LISTENERS: dict[str, object] = {}
REQUESTS: dict[str | None, object] = {}
STREAMS: dict[str, object] = {}
CLUSTERS: dict[str, object] = {}
EVENTS: dict[str, dict[str, queue.SimpleQueue]] = {}  # of each cluster, by kind
ELSEWHERE: set[str] = set()  # pools whose workers know functions by their names alone
ORDER: list[str] = []
WAITING: list[ThreadPool] = []  # pools whose submit may block


class Driver(Exception):
    """A scenario asked for what it has not made."""


class Outcome:
    """A task's one outcome, as the text of a reply."""

    def __init__(self):
        self.future = None
        self.came = threading.Event()
        self.reply = ""

    def set(self, reply):
        self.reply = reply
        self.came.set()


def say(number, reply):
    with LOCK:
        sys.stdout.write(f"{number} {reply}".rstrip() + "\n")
        sys.stdout.flush()


def show_error(error):
    if isinstance(error, Driver):
        return f"err kind=Driver status=0 message={str(error).encode().hex()}"
    if isinstance(error, offloop.OffloopError):
        kind = type(error).__name__.removesuffix("Error")
        return f"err kind={kind} status={error.status} message={str(error).encode().hex()}"
    message = f"{type(error).__name__}: {error}".encode().hex()
    return f"err kind=Foreign status=0 message={message}"


def show(value):
    if isinstance(value, (bytes, bytearray, memoryview, TransferBuffer)):
        return f"ok bytes={bytes(value).hex()}"
    if isinstance(value, bool):
        return f"ok bool={str(value).lower()}"
    if isinstance(value, int):
        return f"ok int={value}"
    if isinstance(value, str):
        return f"ok text={value.encode().hex()}"
    return "ok other=1"


def outcome_of(call):
    try:
        return show(call())
    except BaseException as error:  # noqa: BLE001  every outcome is a reply
        return show_error(error)


def param(text):
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("x:"):
        return bytes.fromhex(text[2:])
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text) if "." in text else text
    except ValueError:
        return text


def params(args):
    return {key[2:]: param(value) for key, value in args.items() if key.startswith("p.")}


def need(table, args, key):
    try:
        return table[args[key]]
    except KeyError:
        raise Driver(f"no {key} {args.get(key)}") from None


def view(pool, args):
    options = {}
    if "retries" in args:
        options["retries"] = int(args["retries"])
    for key in ("timeout", "queue_timeout"):
        if key in args:
            options[key] = float(args[key]) / 1e3
    if "priority" in args:
        options["priority"] = int(args["priority"])
    if "key" in args:
        options["key"] = args["key"]
    return pool.options(**options) if options else pool


def inputs(args):
    if "buffer" in args:
        return [need(BUFFERS, args, "buffer")]
    return [bytes.fromhex(args["input"])] if "input" in args else []


def call_of(pool, args, items):
    """The function of a call, and its arguments: an op with its input, or a function of worker.py with one dict."""
    if isinstance(pool, ThreadPool):
        return args["op"], items, params(args)
    call = params(args)
    if items:
        call["input"] = items[0]
    return getattr(worker, args["op"]), [call], {}


def track(name, outcome, future):
    outcome.future = future

    def done(future):
        with LOCK:
            ORDER.append(name)
        outcome.set(outcome_of(future.result))

    future.add_done_callback(done)


def submit(number, args):
    name = args["task"]
    outcome = TASKS[name] = Outcome()
    pool = need(POOLS, args, "pool")

    def go():
        try:
            fn, items, named = call_of(pool, args, inputs(args))
            future = view(pool, args).submit(fn, *items, **named)
            if "unwatched" in args:
                outcome.future = future
            else:
                track(name, outcome, future)
        except BaseException as error:  # noqa: BLE001  a refusal is the task's outcome
            outcome.set(show_error(error))
        say(number, "ok")

    # A full queue may block the call: another thread waits, so that the driver goes on reading.
    if any(pool is one for one in WAITING):
        threading.Thread(target=go, daemon=True).start()
    else:
        go()


def submit_many(args):
    names = args["tasks"].split(",")
    items = [bytes.fromhex(text) for text in args["inputs"].split(",")]
    for name in names:
        TASKS[name] = Outcome()
    try:
        pool = need(POOLS, args, "pool")
        if isinstance(pool, ProcessPool):
            futures = view(pool, args).submit_many(getattr(worker, args["op"]), [call_of(pool, args, [item])[1][0] for item in items])
        else:
            futures = view(pool, args).submit_many(args["op"], items, **params(args))
    except BaseException as error:  # noqa: BLE001  a refusal is every task's outcome
        for name in names:
            TASKS[name].set(show_error(error))
        return ""
    for name, future in zip(names, futures, strict=True):
        track(name, TASKS[name], future)
    return ""


def pool_new(args):
    options = {key: int(args[key]) for key in ("max_workers", "max_queue", "max_overdue") if key in args}
    options["on_full"] = args.get("on_full", "wait")
    if args.get("worker") == "process":
        if "max_tasks_per_worker" in args:
            options["max_tasks_per_child"] = int(args["max_tasks_per_worker"])
        if "cancel_grace" in args:
            options["cancel_grace"] = float(args["cancel_grace"]) / 1e3
        if "command" in args:
            options["command"] = args["command"].split(",")
            ELSEWHERE.add(args["pool"])
        if "broken" in args:
            options["initializer"] = worker.start_fails
        pool = ProcessPool(**options)
    else:
        pool = ThreadPool(**options)
    POOLS[args["pool"]] = pool
    if args.get("on_full") == "wait":
        WAITING.append(pool)
    return ""


def pool_map(args):
    pool = need(POOLS, args, "pool")
    calls = [call_of(pool, args, [bytes.fromhex(text)])[1][0] for text in args["inputs"].split(",")]
    return "results=" + ",".join(fields(result) for result in pool.map(getattr(worker, args["op"]), calls))


def stream_open(args):
    pool = need(POOLS, args, "pool")
    fn = args["op"] if args["pool"] in ELSEWHERE else getattr(worker, args["op"])
    STREAMS[args["stream"]] = view(pool, args).stream(fn, params(args))
    return ""


def stream_next(args):
    stream = need(STREAMS, args, "stream")
    try:
        return f"ok {fields(next(stream))}"
    except StopIteration:
        return "ok end=1"
    except BaseException as error:  # noqa: BLE001  every outcome is a reply
        return show_error(error)


def stream_close(args):
    need(STREAMS, args, "stream").close()
    return ""


def pool_call(args):
    value = _native._decode_value(bytes.fromhex(args["message"]))
    try:
        result = need(POOLS, args, "pool").submit(args["op"], value).result()
    except BaseException as error:  # noqa: BLE001  every outcome is a reply
        return f"{show_error(error)} {error_fields(error)}"
    return f"ok message={_native._encode_value(result).hex()}"


def task_error(outcome):
    outcome.came.wait()
    error = outcome.future.exception()
    return f"ok {'' if error is None else error_fields(error)}"


def error_fields(error):
    """Class, message, stack, code and cause of an error, each empty where it has none."""
    said = {
        "name": getattr(error, "name", None) or type(error).__name__,
        "text": getattr(error, "message", None) or str(error),
        "stack": getattr(error, "stack", None) or str(error.__cause__ or ""),
        "code": str(getattr(error, "code", "")),
        "cause": str(getattr(error.__cause__, "message", None) or error.__cause__ or ""),
    }
    return " ".join(f"{key}={value.encode().hex()}" for key, value in said.items())


def pool_stats(args):
    s = need(POOLS, args, "pool").stats
    names = "queued running workers overdue submitted completed failed timed_out cancelled lost retried recycled".split()
    names = [name for name in names if hasattr(s, name)]
    fields = [f"{name}={getattr(s, name)}" for name in names]
    return " ".join([*fields, f"wait_count={s.wait.count}", f"run_count={s.run.count}"])


def pool_resize(args):
    options = {key: int(args[key]) for key in ("min_workers", "max_workers") if key in args}
    need(POOLS, args, "pool").resize(**options)
    return ""


def task_cancel(args):
    future = need(TASKS, args, "task").future
    if future is not None:
        future.kill()
    return ""


def order_take(_args):
    with LOCK:
        taken = ",".join(ORDER)
        ORDER.clear()
    return f"tasks={taken}"


def buffer_new(args):
    BUFFERS[args["buf"]] = TransferBuffer(int(args["len"]), shared=args.get("shared") == "1")
    return ""


def buffer_from(args):
    BUFFERS[args["buf"]] = TransferBuffer.from_bytes(bytes.fromhex(args["data"]))
    return ""


def buffer_info(args):
    b = need(BUFFERS, args, "buf")
    fd = "none" if b.detached or b.fd is None else f"{os.getpid()}:{b.fd}"
    return f"len={b.nbytes} detached={int(b.detached)} fd={fd}"


def buffer_write(args):
    data, at = bytes.fromhex(args["data"]), int(args["at"])
    with memoryview(need(BUFFERS, args, "buf")) as whole:
        whole[at : at + len(data)] = data
    return ""


def buffer_read(args):
    with memoryview(need(BUFFERS, args, "buf")) as whole:
        at = int(args.get("at", 0))
        end = at + int(args["len"]) if "len" in args else len(whole)
        return f"data={bytes(whole[at:end]).hex()}"


def buffer_attach(args):
    pid, fd = args["from"].split(":")
    opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
    try:
        BUFFERS[args["buf"]] = TransferBuffer.attach(opened)
    finally:
        os.close(opened)
    return ""


def buffer_receive(args):
    BUFFERS[args["buf"]] = TransferBuffer.receive(args["token"])
    return ""


def buffer_revoke(args):
    offloop.revoke_token(args["token"])
    return ""


def buffer_free(args):
    BUFFERS.pop(args["buf"], None)
    return ""


def record(args):
    return bytes(int(args["len"])) if "len" in args else bytes.fromhex(args["data"])


def within(args):
    return float(args["timeout"]) / 1e3 if "timeout" in args else None


def ring_create(args):
    options = {}
    if "capacity" in args:
        options["capacity"] = int(args["capacity"])
    if "slot_size" in args:
        options["slot_size"] = int(args["slot_size"])
    if "max_participants" in args:
        options["max_participants"] = int(args["max_participants"])
    options.update({key: args[key] for key in ("on_full", "path") if key in args})
    RINGS[args["ring"]] = offloop.RingBuffer.create(args.get("kind", "spsc"), **options)
    return ""


def ring_attach(args):
    RINGS[args["ring"]] = offloop.RingBuffer.attach(args["path"] if "path" in args else [int(n) for n in args["fds"].split(",")])
    return ""


def ring_inspect(args):
    stat = offloop.RingBuffer.inspect(args["path"])
    return f"kind={stat['kind']} capacity={stat['capacity']} participants={len(stat['participants'])}"


def ring_close(args):
    need(RINGS, args, "ring").close()
    return ""


def ring_producer(args):
    PRODUCERS[args["producer"]] = need(RINGS, args, "ring").producer(batch=args.get("batch") == "1")
    return ""


def ring_push(args):
    need(PRODUCERS, args, "producer").push(record(args), timeout=within(args))
    return ""


def ring_claim(args):
    data = record(args)
    with need(PRODUCERS, args, "producer").claim(len(data)) as view:
        view[:] = data
    return "pushed=1"


def ring_flush(args):
    need(PRODUCERS, args, "producer").flush()
    return ""


def ring_consumer(args):
    CONSUMERS[args["consumer"]] = need(RINGS, args, "ring").consumer(ack=args.get("ack", "auto"))
    return ""


def ring_leave(args):
    need(CONSUMERS, args, "consumer").close()
    return ""


def taken(record, args):
    """A record as a reply. One that is in flight is kept under its name."""
    if isinstance(record, bytes):
        return f"data={record.hex()}"
    DELIVERIES[args.get("as")] = record
    return f"data={record.bytes.hex()} redelivered={int(record.redelivered)}"


def ring_pop(args):
    return taken(need(CONSUMERS, args, "consumer").pop(timeout=within(args)), args)


def ring_try_pop(args):
    record = need(CONSUMERS, args, "consumer").try_pop()
    return "empty=1" if record is None else taken(record, args)


def ring_ack(args):
    need(DELIVERIES, args, "delivery").ack()
    return ""


def ring_nack(args):
    need(DELIVERIES, args, "delivery").nack()
    return ""


def ring_read(args):
    records = []
    need(CONSUMERS, args, "consumer").read(int(args["max"]), lambda view: records.append(bytes(view).hex()))
    return f"data={','.join(records)}"


def message(args):
    return need(BUFFERS, args, "buffer") if "buffer" in args else param(args["value"])


def fields(value):
    return show(value).removeprefix("ok ")


def sizes(args):
    return {"max_queued": int(args["max_queued"])} if "max_queued" in args else {}


def channel_pair(args):
    CHANNELS[args["channel"]], CHANNELS[args["other"]] = offloop.Channel.pair()
    return ""


def channel_listen(args):
    LISTENERS[args["listener"]] = offloop.Channel.listen(args["path"], **sizes(args))
    return ""


def channel_accept(args):
    CHANNELS[args["channel"]] = need(LISTENERS, args, "listener").accept()
    return ""


def channel_connect(args):
    CHANNELS[args["channel"]] = offloop.Channel.connect(args["path"], **sizes(args))
    return ""


def channel_send(args):
    need(CHANNELS, args, "channel").send(message(args))
    return ""


def channel_recv(args):
    came = need(CHANNELS, args, "channel").recv()
    if came.is_request:
        REQUESTS[args.get("as")] = came
    return f"{fields(came.value)} request={int(came.is_request)}"


def channel_request(args):
    return fields(need(CHANNELS, args, "channel").request(message(args), timeout=within(args)))


def channel_reply(args):
    need(REQUESTS, args, "request").reply(message(args))
    return ""


def channel_close(args):
    need(CHANNELS, args, "channel").close(**({"grace": int(args["grace"]) / 1e3} if "grace" in args else {}))
    return ""


def member_of(args):
    """What workers of a cluster run: member.py, or a program of another language, and what they are to do."""
    words = [args.get("mode", "serves"), args.get("version", "one"), args.get("at", "")]
    if "command" in args and args["of"] != "python":
        return {"exec": [*args["command"].split(","), *words]}
    return {"exec": pathlib.Path(__file__).with_name("member.py"), "args": words}


def worker_fields(worker):
    return f"slot={worker.slot} generation={worker.generation} pid={worker.pid}"


def exit_fields(worker, how):
    code, signal = ("none" if n is None else n for n in (how.exit_code, how.signal))
    ended = f"cause={how.cause} exit_code={code} signal={signal} forced={int(how.forced)}"
    return f"{worker_fields(worker)} {ended} text={(how.text or '').encode().hex()}"


def error_text(error):
    return f"message={str(error).encode().hex()}"


# What an event is in a reply.
TOLD = {
    "ready": worker_fields,
    "spare": worker_fields,
    "unresponsive": lambda worker, cause, _stack: f"{worker_fields(worker)} cause={cause}",
    "draining": lambda worker, cause: f"{worker_fields(worker)} cause={cause}",
    "exit": exit_fields,
    "expired": lambda worker, reason: f"{worker_fields(worker)} reason={reason}",
    "listening": lambda worker, address: f"{worker_fields(worker)} address={address}",
    "reload": lambda report: f"generation={report.generation}",
    "reload_failed": lambda generation, error: f"generation={generation} {error_text(error)}",
    "log": lambda worker, stream, line: f"{worker_fields(worker)} stream={stream} text={line.encode().hex()}",
    "warning": error_text,
    "degraded": lambda _failures: "",
    "recovered": lambda: "",
    "stopped": lambda: "",
}


def cluster_new(args):
    options = {key: int(args[key]) for key in ("workers", "spares", "max_requests") if key in args}
    for key in ("ready_timeout", "min_ready", "drain_timeout", "kill_grace", "max_age"):
        if key in args:
            options[key] = float(args[key]) / 1e3
    if "beat" in args:
        options["heartbeat"] = (float(args["beat"]) / 1e3, float(args["hang_timeout"]) / 1e3)
    if "listen" in args:
        options["listen"] = args["listen"].split(",")
    if "balance" in args:
        options["balance"] = args["balance"]
    cluster = offloop.Cluster(**member_of(args), **options)
    CLUSTERS[args["cluster"]] = cluster
    lines = EVENTS[args["cluster"]] = {kind: queue.SimpleQueue() for kind in (*TOLD, "message")}
    for kind, show in TOLD.items():
        cluster.on(kind, lambda *told, line=lines[kind], show=show: line.put(show(*told)))
    cluster.on("message", lambda *said: lines["message"].put(said))
    return ""


def cluster_start(args):
    need(CLUSTERS, args, "cluster").start(timeout=within(args))
    return ""


def cluster_reload(args):
    report = need(CLUSTERS, args, "cluster").reload(**(member_of(args) if "version" in args else {}))
    return f"generation={report.generation} replaced={report.replaced} forced={report.forced}"


def cluster_scale(args):
    need(CLUSTERS, args, "cluster").scale(int(args["workers"]))
    return ""


def cluster_stop(args):
    need(CLUSTERS, args, "cluster").stop(float(args["grace"]) / 1e3 if "grace" in args else None)
    return ""


def cluster_kill(args):
    need(CLUSTERS, args, "cluster").kill(int(args["slot"]))
    return ""


def cluster_stats(args):
    stats = need(CLUSTERS, args, "cluster").stats
    names = "generation wanted live ready spares degraded spawned crashed forced expired reloads reloads_failed served".split()
    return " ".join(f"{name}={int(getattr(stats, name))}" for name in names)


def cluster_event(args):
    return need(EVENTS, args, "cluster")[args["of"]].get()


def cluster_send(args):
    need(CLUSTERS, args, "cluster").send(int(args["slot"]), param(args["value"]))
    return ""


def cluster_broadcast(args):
    return f"missed={len(need(CLUSTERS, args, 'cluster').broadcast(param(args['value'])))}"


def cluster_request(args):
    return fields(need(CLUSTERS, args, "cluster").request(int(args["slot"]), param(args["value"]), timeout=within(args)))


def cluster_recv(args):
    worker, came = need(EVENTS, args, "cluster")["message"].get()
    if came.is_request:
        REQUESTS[args.get("as")] = came
    return f"slot={worker.slot} {fields(came.value)} request={int(came.is_request)}"


def cluster_count(args):
    counter = offloop.Counter(args["counter"], cluster=need(CLUSTERS, args, "cluster"))
    return f"int={counter.add(int(args.get('add', 0)))}"


def cluster_take(args):
    burst = int(args.get("burst", 3))
    limiter = offloop.RateLimiter(args["limiter"], rate=1e-6, burst=burst, keys=64, cluster=need(CLUSTERS, args, "cluster"))
    return f"allowed={int(limiter.take().allowed)}"


# What waits, each on a thread of its own.
WAITS = {
    "pool.map": pool_map,
    "ring.push": ring_push,
    "ring.pop": ring_pop,
    "channel.accept": channel_accept,
    "channel.connect": channel_connect,
    "channel.send": channel_send,
    "channel.recv": channel_recv,
    "channel.request": channel_request,
    "cluster.start": cluster_start,
    "cluster.reload": cluster_reload,
    "cluster.scale": cluster_scale,
    "cluster.stop": cluster_stop,
    "cluster.event": cluster_event,
    "cluster.request": cluster_request,
    "cluster.recv": cluster_recv,
}

VERBS = {
    "hello": lambda _args: "lang=python abi=1 wire=1 caps=back,ordered,zero,processes,map,unsendable,classes,streams" + (",counts" if "retried" in offloop.PoolStats.__annotations__ else "") + (",rings" if hasattr(offloop, "RingBuffer") else "") + (",channels" if hasattr(offloop, "Channel") else "") + (",clusters" if hasattr(offloop, "Cluster") else ""),
    "pool.new": pool_new,
    "pool.submit_many": submit_many,
    "pool.stats": pool_stats,
    "pool.resize": pool_resize,
    "stream.open": stream_open,
    "stream.close": stream_close,
    "task.cancel": task_cancel,
    "order.take": order_take,
    "buffer.new": buffer_new,
    "buffer.from": buffer_from,
    "buffer.info": buffer_info,
    "buffer.write": buffer_write,
    "buffer.read": buffer_read,
    "buffer.transfer": lambda args: f"token={need(BUFFERS, args, 'buf').transfer()}",
    "buffer.receive": buffer_receive,
    "buffer.revoke": buffer_revoke,
    "buffer.attach": buffer_attach,
    "buffer.free": buffer_free,
    "ring.create": ring_create,
    "ring.attach": ring_attach,
    "ring.inspect": ring_inspect,
    "ring.close": ring_close,
    "ring.producer": ring_producer,
    "ring.try_push": lambda args: f"pushed={int(need(PRODUCERS, args, 'producer').try_push(record(args)))}",
    "ring.claim": ring_claim,
    "ring.flush": ring_flush,
    "ring.consumer": ring_consumer,
    "ring.leave": ring_leave,
    "ring.try_pop": ring_try_pop,
    "ring.ack": ring_ack,
    "ring.nack": ring_nack,
    "ring.read": ring_read,
    "channel.pair": channel_pair,
    "channel.listen": channel_listen,
    "channel.reply": channel_reply,
    "channel.close": channel_close,
    "cluster.new": cluster_new,
    "cluster.addresses": lambda args: f"addresses={','.join(need(CLUSTERS, args, 'cluster').addresses)}",
    "cluster.kill": cluster_kill,
    "cluster.stats": cluster_stats,
    "cluster.send": cluster_send,
    "cluster.broadcast": cluster_broadcast,
    "cluster.count": cluster_count,
    "cluster.take": cluster_take,
}


def later(number, call):
    """Answers from a thread of its own, so that the driver goes on reading."""
    threading.Thread(target=lambda: say(number, call()), daemon=True).start()


def reply_of(call):
    try:
        return f"ok {call()}"
    except BaseException as error:  # noqa: BLE001  every outcome is a reply
        return show_error(error)


def task_wait(outcome):
    outcome.came.wait()
    return outcome.reply


def closed(pool):
    reply = outcome_of(lambda: pool.shutdown(wait=True))
    return reply.replace("ok other=1", "ok")


def handle(number, verb, args):
    if verb == "pool.submit":
        submit(number, args)
    elif verb == "task.wait":
        outcome = need(TASKS, args, "task")
        later(number, lambda: task_wait(outcome))
    elif verb == "pool.call":
        later(number, lambda: pool_call(args))
    elif verb == "stream.next":
        later(number, lambda: stream_next(args))
    elif verb == "task.error":
        outcome = need(TASKS, args, "task")
        later(number, lambda: task_error(outcome))
    elif verb == "pool.close":
        pool = need(POOLS, args, "pool")
        later(number, lambda: closed(pool))
    elif verb == "op.run":
        later(number, lambda: outcome_of(lambda: offloop.default_pool().submit(args["op"], *inputs(args), **params(args)).result()))
    elif verb in WAITS:
        later(number, lambda: reply_of(lambda: WAITS[verb](args)))
    elif verb in VERBS:
        say(number, f"ok {VERBS[verb](args)}")
    else:
        raise Driver(f"unknown verb {verb}")


def main():
    for line in sys.stdin:
        number, verb, *tokens = line.rstrip("\n").split(" ")
        args = dict(token.split("=", 1) for token in tokens)
        try:
            handle(number, verb, args)
        except BaseException as error:  # noqa: BLE001  every outcome is a reply
            say(number, show_error(error))


if __name__ == "__main__":
    main()
