//! Lends idle workers to one op, so that a large input uses every core that would otherwise idle.
//!
//! rayon's threads do the work, on a pool that belongs to one `ThreadPool`. Permits keep the sum of busy workers and
//! lent threads at `max_workers` at most; a lent thread gives back as soon as other tasks wait.

use crate::ops::Splitter;
use crate::pool::inner::Inner;

impl Splitter for Inner {
    fn width(&self) -> usize {
        // The caller is one of the busy ones.
        1 + self.spare()
    }

    fn join(&self, helpers: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync)) {
        let permits = self.take_permits(helpers);
        let Some(rayon) = (permits > 0).then(|| self.rayon()).flatten() else {
            self.return_permits(permits);
            return body(&|| false);
        };
        rayon.in_place_scope(|scope| {
            for _ in 0..permits {
                scope.spawn(|_| {
                    // Given back even if `body` panics; the panic reaches the op through the scope.
                    let _back = Permit(self);
                    body(&|| self.has_waiting_work());
                });
            }
            body(&|| false);
        });
    }
}

struct Permit<'a>(&'a Inner);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.return_permits(1);
    }
}
