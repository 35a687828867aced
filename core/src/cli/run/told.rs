//! What a cluster tells, as JSON for programs and as text for people.

use crate::cluster::Event;
use crate::error::Error;
use crate::supervisor::{self, Cause, WorkerId};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// Milliseconds, with three digits after the point.
pub(super) fn ms(d: Duration) -> Value {
    json!((d.as_secs_f64() * 1e6).round() / 1e3)
}

fn error(e: &Error) -> Value {
    json!({"code": e.kind().row().code, "text": e.to_string()})
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_secs_f64() * 1e3).round() / 1e3
}

/// `{"event": …, "time": …, …}`; `None` for what nobody asks about.
pub(super) fn as_json(event: &Event) -> Option<Value> {
    use supervisor::Event as E;
    let of = |name: &str, worker: WorkerId, more: Value| {
        let mut line =
            json!({"event": name, "time": now(), "slot": worker.slot, "generation": worker.generation, "incarnation": worker.incarnation});
        if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        Some(line)
    };
    let whole = |name: &str, more: Value| {
        let mut line = json!({"event": name, "time": now()});
        if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        Some(line)
    };
    let event = match event {
        Event::Listening { worker, address } => return of("listening", *worker, json!({"address": address.to_string()})),
        Event::Warning(e) => return whole("warning", json!({"error": error(e)})),
        Event::Worker(event) => event,
    };
    match event {
        E::Spawned { worker, pid } => of("spawned", *worker, json!({"pid": pid})),
        E::SpawnFailed { worker, error: e } => of("spawn_failed", *worker, json!({"error": error(e)})),
        E::Starting { worker } => of("starting", *worker, json!({})),
        E::Ready { worker, after } => of("ready", *worker, json!({"after_ms": ms(*after)})),
        E::Spare { worker, after } => of("spare", *worker, json!({"after_ms": ms(*after)})),
        E::Activated { spare, worker } => of("activated", *worker, json!({"spare": spare.slot, "spare_incarnation": spare.incarnation})),
        E::Suspect { worker, cause, stack } => of("unresponsive", *worker, json!({"cause": cause.name(), "stack": stack})),
        E::Resumed { worker } => of("responsive", *worker, json!({})),
        E::Expired { worker, why } => of("expired", *worker, json!({"reason": why.name()})),
        E::Draining { worker, cause } => of("draining", *worker, json!({"cause": cause.name()})),
        E::Signalled { worker, signal, cause } => of("signalled", *worker, json!({"signal": signal, "cause": cause.name()})),
        E::Exited { worker, cause, ended, forced, text, uptime } => of(
            "exit",
            *worker,
            json!({
                "cause": cause.name(), "exit_code": ended.exit.code, "signal": ended.exit.signal, "oom": ended.oom,
                "forced": forced, "text": text, "uptime_ms": uptime.map(ms),
            }),
        ),
        E::BackOff { slot, delay } => whole("back_off", json!({"slot": slot, "delay_ms": ms(*delay)})),
        E::Reloading { generation } => whole("reloading", json!({"generation": generation})),
        E::Reloaded(report) => whole("reloaded", reloaded(report)),
        E::RollingBack { generation, error: e } => whole("rolling_back", json!({"generation": generation, "error": error(e)})),
        E::ReloadFailed { generation, error: e, .. } => whole("reload_failed", json!({"generation": generation, "error": error(e)})),
        E::StartFailed { error: e } => whole("start_failed", json!({"error": error(e)})),
        E::Degraded { failures, window } => whole("degraded", json!({"failures": failures, "window_ms": ms(*window)})),
        E::Recovered => whole("recovered", json!({})),
        E::Skipped { late } => whole("skipped", json!({"late_ms": ms(*late)})),
        E::Stopped => whole("stopped", json!({})),
        _ => None,
    }
}

/// What a reload has done.
pub(super) fn reloaded(report: &supervisor::Reloaded) -> Value {
    json!({"generation": report.generation, "replaced": report.replaced, "forced": report.forced, "took_ms": ms(report.took)})
}

/// A line for whoever looks on, and those of a stack below it; `None` for what goes well.
pub(super) fn as_text(event: &Event) -> Option<String> {
    use supervisor::Event as E;
    let event = match event {
        Event::Worker(event) => event,
        Event::Warning(e) => return Some(format!("warning: {e}")),
        Event::Listening { .. } => return None,
    };
    Some(match event {
        E::Activated { worker, .. } => format!("a spare takes the place of worker {}", worker.slot),
        E::SpawnFailed { worker, error } => format!("worker {} could not be started: {error}", worker.slot),
        E::Suspect { worker, cause, stack } => {
            let how = if *cause == Cause::Blocked { "its event loop stands still" } else { "its process stands still" };
            let lines: String = stack.iter().flat_map(|stack| stack.lines()).map(|line| format!("\n    {line}")).collect();
            format!("worker {} does not respond: {how}{lines}", worker.slot)
        }
        E::Resumed { worker } => format!("worker {} responds again", worker.slot),
        E::Expired { worker, why } => format!("worker {} is to be replaced: {}", worker.slot, why.name()),
        E::Exited { worker, cause, ended, forced, .. } if !cause.is_asked() || *forced => {
            let how = match (ended.exit.code, ended.exit.signal) {
                (Some(code), _) => format!("exit code {code}"),
                (_, Some(signal)) => format!("signal {signal}{}", if ended.oom { ", out of memory" } else { "" }),
                _ => "exit unknown".to_owned(),
            };
            let why = match cause {
                Cause::Crash => "ended by itself",
                Cause::Boot => "ended before it was ready",
                Cause::BootTimeout => "was not ready in time",
                Cause::Blocked | Cause::Frozen => "did not respond",
                _ if *forced => "did not finish in time",
                _ => "was ended",
            };
            format!("worker {} {why}: {how}", worker.slot)
        }
        E::BackOff { slot, delay } if !delay.is_zero() => format!("worker {slot} starts again in {:.1} s", delay.as_secs_f64()),
        E::Reloading { generation } => format!("reload to generation {generation} begins"),
        E::Reloaded(r) => {
            let forced = if r.forced > 0 { format!(", {} did not finish in time", r.forced) } else { String::new() };
            format!("reload to generation {} is done: {} replaced in {:.1} s{forced}", r.generation, r.replaced, r.took.as_secs_f64())
        }
        E::RollingBack { error, .. } => format!("reload goes back: {error}"),
        E::ReloadFailed { error, .. } => format!("reload failed, the old version goes on: {error}"),
        E::Degraded { failures, window } => {
            format!(
                "degraded: {failures} workers failed within {} s; one is tried from time to time, a reload to a version that works cures it",
                window.as_secs()
            )
        }
        E::Recovered => "recovered".to_owned(),
        _ => return None,
    })
}
