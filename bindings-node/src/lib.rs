//! Node.js face: converts types and holds handles. Everything that a second language would need lives in the core.
//!
//! * `js`: Node-API, wrapped once
//! * `state`: what one environment holds: its completion queue, its wake, its hooks into JavaScript
//! * `value`, `buffer`: values and bytes, both ways
//! * `pool`: submit, drain, cancel, close, stats
//! * `worker`: pools of JavaScript workers, on either side
//! * `process`: pools of worker processes, on either side
//! * `cluster`: clusters, and this process as a worker of one; `stack`: where its JavaScript stands
//! * `ring`: handles of rings, and the slow side of what `lib/lane.cjs` does itself
//! * `channel`: handles of channels and listeners
//! * `table`: errors and ops as tables, from which the JavaScript side makes its classes and wrappers

mod buffer;
mod channel;
mod cluster;
mod js;
mod pool;
mod process;
mod ring;
mod shared;
mod stack;
mod state;
mod table;
mod value;
mod worker;

use js::{Body, Call, Env, JsResult, Raw};
use napi::bindgen_prelude::{JsValue, Object};
use state::State;
use std::ffi::{CStr, OsString};

/// What `lib/native.cjs` exports.
const FUNCTIONS: &[(&CStr, Body)] = &[
    (c"hooks", state::hooks),
    (c"keepAlive", state::keep_alive),
    (c"forbidExternal", state::forbid_external),
    (c"version", table::version),
    (c"errorTable", table::errors),
    (c"nearest", table::nearest),
    (c"opTable", table::ops),
    (c"metrics", table::metrics),
    (c"roundTrip", value::round_trip),
    (c"encode", value::encode),
    (c"decode", value::decode),
    (c"poolNew", pool::new),
    (c"poolDefault", pool::default),
    (c"poolIntern", pool::intern),
    (c"poolSubmit", pool::submit),
    (c"poolSubmitEach", pool::submit_each),
    (c"poolParams", pool::params),
    (c"poolCheckOp", pool::check_op),
    (c"poolSubmitMany", pool::submit_many),
    (c"poolCancel", pool::cancel),
    (c"poolForget", pool::forget),
    (c"poolTrace", pool::trace),
    (c"poolDrain", pool::drain),
    (c"poolArm", pool::arm),
    (c"poolLoad", pool::load),
    (c"poolResize", pool::resize),
    (c"poolClose", pool::close),
    (c"poolCheck", pool::check),
    (c"poolLive", pool::live),
    (c"callCancel", pool::call_cancel),
    (c"callForget", pool::call_forget),
    (c"callTrace", pool::call_trace),
    (c"poolStats", pool::stats),
    (c"workersNew", worker::new),
    (c"workersEvents", worker::events),
    (c"workersExport", worker::export),
    (c"workersSubmitEach", worker::submit_each),
    (c"workersSubmit", worker::submit),
    (c"workerLost", worker::lost),
    (c"workerWasReady", worker::was_ready),
    (c"workerNotStarted", worker::not_started),
    (c"workerSit", worker::sit),
    (c"workerBoard", worker::board),
    (c"workerWords", worker::words),
    (c"workerExport", worker::export_name),
    (c"workerExchange", worker::exchange),
    (c"workerFinish", worker::finish),
    (c"workerBuffers", worker::buffers),
    (c"workerProgress", worker::progress),
    (c"workerRetire", worker::retire),
    (c"processNew", process::new),
    (c"processEvents", process::events),
    (c"processEncode", process::encode),
    (c"processSubmitEach", process::submit_each),
    (c"processSubmit", process::submit),
    (c"processAlloc", process::alloc),
    (c"processCall", process::common),
    (c"processClose", process::close),
    (c"processStarted", process::started),
    (c"processRelease", process::release),
    (c"processAttach", process::attach),
    (c"processSetup", process::setup),
    (c"processReady", process::ready),
    (c"processFail", process::fail),
    (c"processTake", process::take),
    (c"processFinish", process::finish),
    (c"processAnswer", process::reply_common),
    (c"processProgress", process::progress),
    (c"processOutcome", process::outcome),
    (c"processStreamed", process::streamed),
    (c"processFrame", process::send_frame),
    (c"streamNew", process::stream_new),
    (c"streamTake", process::stream_take),
    (c"streamStop", process::stream_stop),
    (c"processArm", process::arm),
    (c"processDraining", process::draining),
    (c"processDrained", process::drained),
    (c"stage", buffer::stage),
    (c"stageCopy", buffer::stage_copy),
    (c"bufferAlloc", buffer::alloc),
    (c"bufferFrom", buffer::from),
    (c"bufferLength", buffer::byte_length),
    (c"bufferFd", buffer::fd),
    (c"bufferView", buffer::open_view),
    (c"bufferWrite", buffer::write_back),
    (c"bufferSeparate", buffer::separate),
    (c"bufferTransfer", buffer::transfer),
    (c"bufferReceive", buffer::receive),
    (c"bufferAttach", buffer::attach),
    (c"detach", buffer::detach),
    (c"revokeToken", buffer::revoke),
    (c"ringLayout", ring::layout),
    (c"ringCreate", ring::create),
    (c"ringAttach", ring::attach),
    (c"ringOpen", ring::open),
    (c"ringRemove", ring::remove),
    (c"ringInspect", ring::inspect),
    (c"ringFds", ring::fds),
    (c"ringInfo", ring::info),
    (c"ringIsClosed", ring::is_closed),
    (c"ringClose", ring::close),
    (c"ringSettle", ring::settle),
    (c"ringMemory", ring::memory),
    (c"ringProducer", ring::new_producer),
    (c"ringConsumer", ring::new_consumer),
    (c"ringOwn", ring::own),
    (c"ringSeat", ring::seat),
    (c"ringWake", ring::wake),
    (c"ringLeave", ring::leave),
    (c"producerTryPush", ring::try_push),
    (c"producerPush", ring::push),
    (c"producerClaim", ring::claim),
    (c"producerCommit", ring::commit),
    (c"producerAbort", ring::abort),
    (c"producerFlush", ring::flush),
    (c"producerWait", ring::wait_room),
    (c"consumerFind", ring::find),
    (c"consumerWait", ring::wait_record),
    (c"consumerShow", ring::show),
    (c"consumerTake", ring::take),
    (c"consumerStage", ring::stage),
    (c"consumerPop", ring::pop),
    (c"consumerRead", ring::read),
    (c"consumerReadDone", ring::read_done),
    (c"consumerAck", ring::ack),
    (c"consumerNack", ring::nack),
    (c"consumerLost", ring::lost),
    (c"consumerRelease", ring::release),
    (c"channelPair", channel::pair),
    (c"channelAttach", channel::attach),
    (c"channelConnect", channel::connect),
    (c"channelTryOpen", channel::try_open),
    (c"channelSocket", channel::socket),
    (c"channelDetach", channel::detach),
    (c"channelPost", channel::post),
    (c"channelRequest", channel::request),
    (c"channelReply", channel::reply),
    (c"channelNext", channel::next),
    (c"channelOutcome", channel::outcome),
    (c"channelArm", channel::arm),
    (c"channelAbandon", channel::abandon),
    (c"channelClose", channel::close),
    (c"channelCloseNow", channel::close_now),
    (c"channelUnread", channel::unread),
    (c"channelLeave", channel::leave),
    (c"channelStats", channel::stats),
    (c"listenerNew", channel::listen),
    (c"listenerNext", channel::accept),
    (c"listenerArm", channel::arm_listener),
    (c"listenerClose", channel::close_listener),
    (c"clusterCheck", cluster::check),
    (c"clusterStart", cluster::start),
    (c"clusterEvents", cluster::events),
    (c"clusterLines", cluster::lines),
    (c"clusterReload", cluster::reload),
    (c"clusterFork", cluster::fork),
    (c"clusterScale", cluster::scale),
    (c"clusterStop", cluster::stop),
    (c"clusterKill", cluster::kill),
    (c"clusterSignal", cluster::signal),
    (c"clusterChannel", cluster::take_channel),
    (c"clusterStats", cluster::stats),
    (c"clusterLoad", cluster::load),
    (c"clusterMetricsAddress", cluster::where_metrics_are),
    (c"clusterAddresses", cluster::where_it_listens),
    (c"clusterRelease", cluster::release),
    (c"memberAttach", cluster::attach),
    (c"memberListen", cluster::listen),
    (c"memberChannel", cluster::member_channel),
    (c"memberIntake", cluster::intake),
    (c"intakeTake", cluster::take),
    (c"intakeLeave", cluster::leave),
    (c"memberClosed", cluster::closed),
    (c"memberBeat", cluster::beat),
    (c"memberServed", cluster::served),
    (c"memberReady", cluster::ready),
    (c"memberFail", cluster::fail),
    (c"memberDrained", cluster::drained),
    (c"memberDraining", cluster::draining),
    (c"memberPlace", cluster::place),
    (c"counterNew", shared::counter_new),
    (c"counterAdd", shared::counter_add),
    (c"counterGet", shared::counter_get),
    (c"counterSet", shared::counter_set),
    (c"limiterNew", shared::limiter_new),
    (c"limiterTake", shared::limiter_take),
    (c"cli", cli),
    (c"exec", exec),
];

/// `cli(args)`: the `offloop` command, which writes to this process's output itself; gives its exit status.
fn cli(call: &Call<'_>) -> JsResult<Raw> {
    let (env, args) = (call.env, call.arg(0));
    let given = (0..env.len(args)?).map(|i| Ok(env.text(env.at(args, i)?).unwrap_or_default().into()));
    let command: Vec<OsString> = std::iter::once(Ok("offloop".into())).chain(given).collect::<JsResult<_>>()?;
    let status = offloop::cli::run(command, &mut std::io::stdout().lock(), &mut std::io::stderr());
    env.number(status.into())
}

/// `exec(file, args, env)`: this process becomes that program, with `env` (names and values by turns) beside its variables. Comes back only when it cannot: with the reason.
fn exec(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let texts = |list: Raw| {
        (0..env.len(list)?).map(|i| Ok(env.text(env.at(list, i)?).unwrap_or_default().into())).collect::<JsResult<Vec<OsString>>>()
    };
    let file = env.text(call.arg(0)).unwrap_or_default();
    let variables = texts(call.arg(2))?.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect::<Vec<_>>();
    env.string(&offloop::sys::process::replace(file.as_ref(), &texts(call.arg(1))?, &variables).to_string())
}

/// Runs once per environment.
#[napi_derive::napi(module_exports)]
fn init(exports: Object<'_>, env: napi::Env) -> napi::Result<()> {
    offloop::pool::silence_panics();
    let env = Env(env.raw());
    State::install(env).map_err(|e| napi::Error::from_reason(e.to_string()))?;
    for (name, body) in FUNCTIONS {
        let made = env.function(name, *body).and_then(|f| env.set_named(exports.raw(), name, f));
        made.map_err(|_| napi::Error::from_reason("the runtime refused to make a function"))?;
    }
    Ok(())
}
