//! Counters and rate limiters that processes share. lib/shared.cjs is the other side.

use crate::buffer::{self, Handle};
use crate::js::{Call, JsResult, Raw};
use crate::pool::{bad, shown, whole};
use offloop::Error;
use offloop::cluster::{self, Cluster};
use offloop::shared::{Counter, Limit, RateLimiter};

fn name(call: &Call<'_>) -> JsResult<String> {
    call.env.text(call.arg(1)).ok_or_else(|| bad("name", shown(call.env, call.arg(1)), "text"))
}

/// The cluster that is the first argument; `None` where that is nothing.
fn of(call: &Call<'_>) -> JsResult<Option<Cluster>> {
    if call.env.is_nullish(call.arg(0)) { Ok(None) } else { crate::cluster::cluster(call).map(Some) }
}

/// `counterNew(cluster, name)`.
pub(crate) fn counter_new(call: &Call<'_>) -> JsResult<Raw> {
    let name = name(call)?;
    let counter = match of(call)? {
        Some(cluster) => cluster.ledger().counter(&name)?,
        None => cluster::counter(&name)?,
    };
    buffer::external(call.env, call.state, Handle::Counter(counter))
}

fn counter<'a>(call: &'a Call<'_>) -> JsResult<&'a Counter> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Counter(counter) => Ok(counter),
        _ => Err(Error::invalid("handle is no counter").into()),
    }
}

/// `counterAdd(counter, n)`: what it is then.
pub(crate) fn counter_add(call: &Call<'_>) -> JsResult<Raw> {
    let n = whole(call.env, call.arg(1), "n")?;
    call.env.number(counter(call)?.add(n) as f64)
}

/// `counterGet(counter)`.
pub(crate) fn counter_get(call: &Call<'_>) -> JsResult<Raw> {
    call.env.number(counter(call)?.get() as f64)
}

/// `counterSet(counter, value)`: what it was.
pub(crate) fn counter_set(call: &Call<'_>) -> JsResult<Raw> {
    let value = whole(call.env, call.arg(1), "value")?;
    call.env.number(counter(call)?.set(value) as f64)
}

/// `limiterNew(cluster, name, rate, burst, keys)`: the last two may be absent.
pub(crate) fn limiter_new(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let name = name(call)?;
    let rate = env.f64(call.arg(2)).ok_or_else(|| bad("rate", shown(env, call.arg(2)), "tokens per second"))?;
    let number = |i: usize, name, otherwise: u32| {
        if env.is_nullish(call.arg(i)) {
            return Ok(otherwise);
        }
        // What is beyond a u32 is beyond the option's range, which the core names.
        Ok::<_, crate::js::Fail>(u32::try_from(whole(env, call.arg(i), name)?.max(0)).unwrap_or(u32::MAX))
    };
    let limit = Limit::per_second(rate);
    let limit = Limit { burst: number(3, "burst", limit.burst)?, keys: number(4, "keys", limit.keys)?, ..limit };
    let limiter = match of(call)? {
        Some(cluster) => cluster.ledger().limiter(&name, limit)?,
        None => cluster::limiter(&name, limit)?,
    };
    buffer::external(env, call.state, Handle::Limiter(limiter))
}

fn limiter<'a>(call: &'a Call<'_>) -> JsResult<&'a RateLimiter> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Limiter(limiter) => Ok(limiter),
        _ => Err(Error::invalid("handle is no rate limiter").into()),
    }
}

/// `limiterTake(limiter, key, cost)`: `[whether the tokens were there, how many are now, ms until they are]`.
pub(crate) fn limiter_take(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let key = env.text(call.arg(1)).ok_or_else(|| bad("key", shown(env, call.arg(1)), "text"))?;
    let cost = u32::try_from(whole(env, call.arg(2), "cost")?);
    let cost = cost.map_err(|_| bad("cost", shown(env, call.arg(2)), "a whole number from 0"))?;
    let taken = limiter(call)?.take(key.as_bytes(), cost)?;
    let out = env.array(3)?;
    env.set_at(out, 0, env.boolean(taken.allowed)?)?;
    env.set_at(out, 1, env.number(taken.remaining.into())?)?;
    env.set_at(out, 2, env.number(taken.retry_after.as_secs_f64() * 1e3)?)?;
    Ok(out)
}
