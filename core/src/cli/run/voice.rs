//! What the command says itself, to its error output: by a thread of its own, so that a terminal that is held, or a pipe that nobody reads, holds up no cluster.

use crate::error::Result;
use crate::sync::lock;
use crate::sys::thread;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Lines that wait to be taken; further ones are counted, and dropped.
const WAITING: usize = 1000;
/// How long the command waits at its end for what it has said to be taken.
const LAST: Duration = Duration::from_millis(500);

pub(super) struct Voice {
    lines: Option<SyncSender<String>>,
    lost: u64,
    done: Arc<(Mutex<bool>, Condvar)>,
}

impl Voice {
    pub(super) fn new(out: impl Write + Send + 'static) -> Result<Voice> {
        let (lines, said) = sync_channel(WAITING);
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let own = Arc::clone(&done);
        let options = thread::Options { name: "offloop-voice".to_owned(), stack_size: Some(256 << 10), nice: 0 };
        drop(thread::spawn(&options, move || write(&said, out, &own))?);
        Ok(Voice { lines: Some(lines), lost: 0, done })
    }

    /// A line, which is written soon; false if it never is.
    pub(super) fn say(&mut self, line: String) -> bool {
        let Some(lines) = &self.lines else { return false };
        if self.lost > 0 && lines.try_send(format!("offloop: {} lines were not taken, and are lost", self.lost)).is_ok() {
            self.lost = 0;
        }
        match lines.try_send(line) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost += 1;
                false
            }
        }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        drop(self.lines.take());
        let (done, changed) = &*self.done;
        drop(changed.wait_timeout_while(lock(done), LAST, |done| !*done));
    }
}

fn write(said: &Receiver<String>, mut out: impl Write, (done, changed): &(Mutex<bool>, Condvar)) {
    for line in said {
        // Whoever does not read it is gone.
        let _ = writeln!(out, "{line}");
    }
    *lock(done) = true;
    changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Read};

    #[test]
    fn who_does_not_read_holds_up_nobody_and_hears_what_is_lost() {
        let (mut read, write) = io::pipe().expect("pipe");
        let mut voice = Voice::new(write).expect("voice");
        // A pipe has room for 64 KiB, the queue for 1,000.
        let taken = (0..5000).filter(|n| voice.say(format!("{n:100}"))).count();
        assert!((1000..3000).contains(&taken), "{taken}");
        let lost = 5000 - taken;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            read.read_to_string(&mut text).expect("text");
            text
        });
        while !voice.say("at last".to_owned()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(voice);
        let text = reader.join().expect("no panic");
        assert_eq!(text.lines().last(), Some("at last"));
        let (told, said): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("offloop: "));
        assert_eq!(said.len(), taken + 1);
        let told: usize = told.iter().map(|line| line.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).expect("a number")).sum();
        assert!(told >= lost, "{told} of {lost}");
    }
}
