//! What a torture loop reports: a row, which is one line of JSON. A row with fewer trials than its figure fails, as does one with failures.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

/// A loop that has begun. Dropped without an end, it has failed.
#[derive(Debug)]
pub struct Row {
    name: String,
    /// How many trials there are to be.
    pub figure: u64,
    /// What the choices follow from.
    pub seed: u64,
    from: Instant,
    /// What was done.
    pub trials: u64,
    more: String,
    ended: bool,
}

impl Row {
    /// A loop that is to have `figure` trials, whose choices follow from `seed`.
    #[must_use]
    pub fn begin(name: impl Into<String>, figure: u64, seed: u64) -> Row {
        Row { name: name.into(), figure, seed, from: Instant::now(), trials: 0, more: String::new(), ended: false }
    }

    /// Something else that was counted.
    pub fn count(&mut self, name: &str, value: u64) {
        write!(self.more, r#","{name}":{value}"#).expect("a string takes it");
    }

    /// Prints the row. Why it fails, if it does.
    ///
    /// # Errors
    /// `result`'s, or that there were too few trials.
    pub fn end(mut self, result: Result<(), String>) -> Result<(), String> {
        let result = match result {
            Ok(()) if self.trials < self.figure => Err(format!("{} trials are fewer than the figure, {}", self.trials, self.figure)),
            other => other,
        };
        self.print(result.is_err());
        result
    }

    /// Prints the row of a test whose failures are panics.
    ///
    /// # Panics
    /// When there were too few trials.
    pub fn holds(self) {
        let name = self.name.clone();
        if let Err(why) = self.end(Ok(())) {
            panic!("{name}: {why}");
        }
    }

    fn print(&mut self, failed: bool) {
        self.ended = true;
        let Row { name, figure, seed, trials, more, .. } = self;
        let (failures, seconds) = (u8::from(failed), self.from.elapsed().as_secs_f64());
        // Not `println!`, which a test's harness keeps to itself.
        let line = format!(
            r#"{{"row":"{name}","trials":{trials},"figure":{figure},"failures":{failures},"seed":{seed},"seconds":{seconds:.1}{more}}}"#
        );
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if !self.ended {
            self.print(true);
        }
    }
}
