//! Pools of worker processes: this program is the worker, too.

use crate::{Args, later, missing, say, show, unhex};
use offloop::codec;
use offloop::ops::Control;
use offloop::pool::call::{Call, decode_reply};
use offloop::pool::{Deliver, PoolOptions, ProcessPool, Running, Streamed, SubmitOptions, Worker, serve};
use offloop::sys::process::Spec;
use offloop::value::ErrorValue;
use offloop::{Error, ErrorKind, Value};
use std::ffi::OsString;
use std::time::Duration;

/// The word that makes this program a worker, and one that has no functions to offer.
pub(crate) const WORKER: &str = "worker";
const BROKEN: &str = "broken";

pub(crate) fn pool(args: &Args) -> Result<ProcessPool, Error> {
    let os = |e: std::io::Error| Error::os("current_exe", e.raw_os_error().unwrap_or(0));
    let mut command: Vec<OsString> = match args.get("command") {
        Some(parts) => parts.split(',').map(Into::into).collect(),
        None => vec![std::env::current_exe().map_err(os)?.into(), if args.get("broken").is_some() { BROKEN } else { WORKER }.into()],
    };
    let defaults = PoolOptions::default();
    let options = PoolOptions {
        max_workers: args.number("max_workers"),
        max_queue: args.number("max_queue").unwrap_or(defaults.max_queue),
        max_tasks_per_worker: args.number("max_tasks_per_worker").map(|n| n as u64),
        ..defaults
    };
    let mut builder = ProcessPool::builder().options(options);
    if let Some(grace) = args.ms("cancel_grace") {
        builder = builder.cancel_grace(grace);
    }
    let spec = Spec { args: command.split_off(1), ..Spec::new(command.remove(0)) };
    builder.build(move |_| Ok(spec.clone()))
}

/// A call of a function with one argument.
pub(crate) fn request(pool: &ProcessPool, name: &str, argument: Value) -> Result<offloop::pool::Request, Error> {
    let call = Call { name: name.to_owned(), args: vec![argument], named: Vec::new() };
    pool.request(&[&call.encode()?])
}

/// The argument of a function that scenarios name: the options, with the input.
pub(crate) fn argument(args: &Args, input: Option<&str>) -> Value {
    let mut pairs = match args.params() {
        Value::Map(pairs) => pairs,
        _ => Vec::new(),
    };
    pairs.extend(input.map(|hex| (Value::str("input"), Value::Bytes(unhex(hex).into()))));
    Value::Map(pairs)
}

/// What became of a call: its result, the error of its function, or the pool's.
pub(crate) type Outcome = Result<Result<Value, Box<ErrorValue>>, Error>;

pub(crate) fn outcome(result: Result<Value, Error>) -> Outcome {
    let reply = match result? {
        // Memory that the worker may still write: copied before it is read.
        Value::Buffer(buffer) => buffer.to_vec()?,
        short => short.into_bytes()?.into_vec(),
    };
    decode_reply(&reply)
}

/// A function's own error has the kind that its code names; one that is the user's has none.
pub(crate) fn show_outcome(outcome: Outcome) -> String {
    match outcome {
        Ok(Ok(value)) => show(Ok(value)),
        Ok(Err(error)) => show_function(&error),
        Err(error) => show(Err(error)),
    }
}

fn show_function(error: &ErrorValue) -> String {
    let (kind, status) = error.kind().map_or(("Foreign", 0), |kind| (kind.row().name, kind.row().status));
    let text = if error.kind().is_some() { error.message.clone() } else { format!("{}: {}", error.name, error.message) };
    format!("err kind={kind} status={status} message={}", crate::hex(text.as_bytes()))
}

/// Class, message, stack, code and cause of an error, each empty where it has none.
fn fields(error: &ErrorValue) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let cause = match &error.cause {
        Some(Value::Error(cause)) => cause.message.clone(),
        other => text(other.as_ref()),
    };
    let code = text(error.property("code"));
    let parts = [("name", &error.name), ("text", &error.message), ("stack", &error.stack), ("code", &code), ("cause", &cause)];
    parts.map(|(key, part)| format!("{key}={}", crate::hex(part.as_bytes()))).join(" ")
}

/// What `task.error` says.
pub(crate) fn error_fields(outcome: &Outcome) -> String {
    match outcome {
        Ok(Err(error)) => fields(error),
        Err(error) => fields(&offloop::pool::call::error_value(error)),
        Ok(Ok(_)) => String::new(),
    }
}

/// `stream.next`.
pub(crate) fn next(stream: &Streamed) -> String {
    match stream.next(None, decode_reply) {
        Ok(Some(value)) => show_outcome(value),
        // The task has ended: with an error, which comes after its values.
        Ok(None) => match stream.task().try_take().map(outcome) {
            None | Some(Ok(Ok(_))) => "ok end=1".to_owned(),
            Some(failure) => show_outcome(failure),
        },
        Err(error) => show(Err(error)),
    }
}

/// `pool.call`: argument and result are messages.
pub(crate) fn call(id: &str, pool: &ProcessPool, args: &Args) -> Result<String, Error> {
    let argument = codec::decode(&unhex(args.text("message")?), &mut [], &codec::Options::default())?;
    let request = request(pool, args.text("op")?, argument)?;
    let answer = id.to_owned();
    let deliver = Deliver::Callback(Box::new(move |result| {
        let outcome = outcome(result);
        let details = error_fields(&outcome);
        match outcome {
            Ok(Ok(value)) => {
                let mut message = Vec::new();
                match codec::encode(&value, &codec::Options::default(), &mut message) {
                    Ok(_) => say(&answer, &format!("ok message={}", crate::hex(&message))),
                    Err(error) => say(&answer, &show(Err(error))),
                }
            }
            Ok(Err(error)) => say(&answer, &format!("{} {details}", show_function(&error))),
            Err(error) => say(&answer, &format!("{} {details}", show(Err(error)))),
        }
    }));
    pool.submit(request, SubmitOptions { deliver, ..SubmitOptions::default() }).map_err(|refused| refused.error)?;
    Ok("later".into())
}

pub(crate) fn close(id: &str, pool: &ProcessPool, grace: Option<Duration>) -> Result<String, Error> {
    let pool = pool.clone();
    later(id, move || pool.shutdown(grace).map(|()| String::new()))
}

/// The worker's part.
pub(crate) fn worker(how: &str) -> Result<(), Error> {
    let worker = Worker::attach()?.ok_or_else(|| missing("worker", how))?;
    if how == BROKEN {
        worker.fail("no model");
        return Err(missing("model", how));
    }
    serve(&worker, &mut function)
}

#[expect(clippy::disallowed_methods, reason = "the process that ends is this driver's worker")]
fn function(call: Call, running: &Running<'_>) -> Result<Value, Box<ErrorValue>> {
    let argument = call.args.into_iter().next().unwrap_or_default();
    let whole = |key: &str| argument.get(key).and_then(Value::as_int).unwrap_or(0);
    let text = |key: &str| argument.get(key).and_then(Value::as_str).map(str::to_owned);
    let error = |e: &Error| Box::new(offloop::pool::call::error_value(e));
    match call.name.as_str() {
        "noop" => {
            for _ in 0..whole("sleep_ms") {
                running.check().map_err(|e| error(&e))?;
                std::thread::sleep(Duration::from_millis(1));
            }
            let Value::Map(pairs) = argument else { return Ok(Value::Nil) };
            Ok(pairs.into_iter().find(|(key, _)| key.as_str() == Some("input")).map(|(_, input)| input).unwrap_or_default())
        }
        "length" => match argument.get("input") {
            Some(Value::Bytes(bytes)) => Ok(Value::Int(bytes.len() as i64)),
            _ => Err(error(&missing("input", "length"))),
        },
        "exit" => std::process::exit(whole("code") as i32),
        "kill" => {
            // SAFETY: ends this process, which is this driver's worker.
            unsafe { libc::kill(libc::getpid(), whole("signal") as i32) };
            // SAFETY: a plain call.
            unsafe { libc::pause() };
            Ok(Value::Nil)
        }
        "fault" => {
            // SAFETY: none: it is to fault.
            unsafe { std::ptr::write_volatile(std::ptr::without_provenance_mut::<u8>(8), 1) };
            Ok(Value::Nil)
        }
        "eat" => {
            let mut kept = Vec::new();
            loop {
                kept.push(std::hint::black_box(vec![1_u8; 1 << 24]));
            }
        }
        "spin" => loop {
            std::hint::black_box(0);
        },
        "fail" => {
            let mut failure = ErrorValue::new("TypeError", text("text").unwrap_or_default());
            if let Some(code) = text("code") {
                failure.set_property("code", Value::str(code));
            }
            failure.cause = text("cause").map(|cause| Value::Error(Box::new(ErrorValue::new("Error", cause))));
            Err(Box::new(failure))
        }
        "count" => {
            let n = whole("n");
            let mut i = 0;
            while i != n {
                std::thread::sleep(Duration::from_millis(whole("sleep_ms") as u64));
                if !running.give(&Value::Int(i)).map_err(|e| error(&e))? {
                    return Ok(Value::Nil);
                }
                i += 1;
            }
            if argument.get("code").is_some() {
                std::process::exit(whole("code") as i32)
            }
            match text("text") {
                Some(text) => Err(Box::new(ErrorValue::new("TypeError", text))),
                None => Ok(Value::Nil),
            }
        }
        "echo" => Ok(argument),
        "what" => Ok(Value::str(argument.type_name())),
        name => Err(error(&Error::new(ErrorKind::NotFound, "worker has no function of that name").with("name", name))),
    }
}
