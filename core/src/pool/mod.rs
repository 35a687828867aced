//! Pools: one scheduler, several kinds of workers.

/// Delivers finished tasks.
#[derive(Debug)]
pub struct CompletionQueue;
/// One submitted call.
#[derive(Debug)]
pub struct Task;
/// Native threads that run ops.
#[derive(Debug)]
pub struct ThreadPool;
