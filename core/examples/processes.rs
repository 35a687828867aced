//! Functions in worker processes: `cargo run --release --example processes`. One call kills its worker; nothing else is lost.

#![allow(clippy::print_stdout, reason = "an example reports")]

use offloop::pool::call::{Call, decode_reply};
use offloop::pool::{PoolOptions, ProcessPool, Running, SubmitOptions, Worker, serve};
use offloop::sys::process::Spec;
use offloop::value::ErrorValue;
use offloop::{Task, Value};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // The same program is host and worker.
    match Worker::attach()? {
        Some(worker) => Ok(serve(&worker, &mut function)?),
        None => host(),
    }
}

/// What the workers offer. An error of a function reaches whoever called it; what ends the process is an error of the pool.
#[expect(clippy::disallowed_methods, reason = "the process that ends is this example's worker")]
fn function(call: Call, _running: &Running<'_>) -> Result<Value, Box<ErrorValue>> {
    let number = call.args.first().and_then(Value::as_int).unwrap_or(0);
    match call.name.as_str() {
        "primes" => Ok(Value::Int((2..number).filter(|n| (2..).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count() as i64)),
        "crash" => std::process::abort(),
        name => Err(Box::new(ErrorValue::new("NotFound", format!("no function {name}")))),
    }
}

fn host() -> Result<(), Failure> {
    let program = std::env::current_exe()?;
    let pool = ProcessPool::builder()
        .options(PoolOptions { max_workers: Some(2), name: "primes".to_owned(), ..PoolOptions::default() })
        .build(move |_| Ok(Spec::new(program.clone())))?;
    let before: Vec<Task> = (1..=4).map(|n| submit(&pool, "primes", n * 10_000)).collect::<Result<_, Failure>>()?;
    let crash = submit(&pool, "crash", 0)?;
    let after = submit(&pool, "primes", 50_000)?;
    for task in before.iter().chain([&after]) {
        println!("{} primes", outcome(task)?);
    }
    println!("crash: {}", outcome(&crash).expect_err("its process ends"));
    println!("nothing: {}", outcome(&submit(&pool, "nothing", 0)?).expect_err("there is no such function"));
    let stats = pool.pool().stats();
    println!("{} completed, {} failed, {} lost", stats.completed, stats.failed, stats.lost);
    pool.shutdown(None)?;
    Ok(())
}

fn submit(pool: &ProcessPool, name: &str, number: i64) -> Result<Task, Failure> {
    let call = Call { name: name.to_owned(), args: vec![Value::Int(number)], named: Vec::new() };
    let request = pool.request(&[&call.encode()?])?;
    Ok(pool.submit(request, SubmitOptions::default()).map_err(|refused| refused.error)?)
}

/// The result, an error of the function, or an error of the pool.
fn outcome(task: &Task) -> Result<i64, Failure> {
    let reply = match task.wait(None)? {
        // Memory that the worker may still write: copied before it is read.
        Value::Buffer(buffer) => buffer.to_vec()?,
        short => short.into_bytes()?.into_vec(),
    };
    let result = decode_reply(&reply)?.map_err(|e| format!("{}: {}", e.name, e.message))?;
    Ok(result.as_int().unwrap_or(-1))
}
