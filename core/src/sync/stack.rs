//! A lock-free stack of shared nodes with a doorbell bit: the injector of a pool and the list of a completion queue.
//!
//! Treiber's stack (1986), without pop: a consumer takes the whole list by one swap, so there is no ABA problem. The
//! lowest bit of the head is the *armed* bit, which only an empty stack can carry: whoever pushes onto an armed stack has
//! taken the bit away in the same compare-and-swap, and so is the one that must ring. No wake-up can be lost between
//! "is it empty" and "wake me", because both are one word.
//!
//! | Word   | Written by                      | Ordering                                                             |
//! |--------|---------------------------------|----------------------------------------------------------------------|
//! | `head` | `push` (CAS), `take_all`, `arm` | AcqRel both: the node is whole; see `take_last` for the other way |
//! | `link` | `push`, before its CAS          | Relaxed: published by `head`                                          |

use crate::sync::modelled::{AtomicUsize, Ordering};
use std::marker::PhantomData;
use std::sync::Arc;

const ARMED: usize = 1;

/// The link inside a node. A node is in at most one stack by this link at a time.
#[derive(Debug, Default)]
pub(crate) struct Link(AtomicUsize);

impl Link {
    pub(crate) fn new() -> Link {
        Link(AtomicUsize::new(0))
    }
}

/// Says which link of a node a stack uses.
pub(crate) trait Linked<T> {
    fn link(node: &T) -> &Link;
}

/// Nodes are owned by the list although it holds addresses.
type Owns<T, L> = PhantomData<(Arc<T>, fn() -> L)>;

/// See the module's text.
pub(crate) struct Stack<T, L: Linked<T>> {
    head: AtomicUsize,
    _owns: Owns<T, L>,
}

/// What was taken, oldest first.
pub(crate) struct Taken<T, L: Linked<T>> {
    head: usize,
    _owns: Owns<T, L>,
}

impl<T, L: Linked<T>> Stack<T, L> {
    pub(crate) fn new() -> Stack<T, L> {
        // A node's address has a free lowest bit: `Arc` puts two counters before it.
        const { assert!(align_of::<T>() >= 2) };
        Stack { head: AtomicUsize::new(0), _owns: PhantomData }
    }

    /// Adds a node; true if the stack was armed, and the caller must ring.
    #[must_use]
    pub(crate) fn push(&self, node: Arc<T>) -> bool {
        let node = Arc::into_raw(node);
        self.push_chain(node, node)
    }

    /// Adds several nodes in their order with one compare-and-swap; true if the caller must ring.
    #[must_use]
    pub(crate) fn push_all(&self, nodes: impl Iterator<Item = Arc<T>>) -> bool {
        let mut first = std::ptr::null::<T>();
        let mut last = first;
        for node in nodes {
            let node = Arc::into_raw(node);
            if first.is_null() {
                first = node;
            } else {
                // SAFETY: `node` came from `Arc::into_raw` above and is not published yet.
                L::link(unsafe { &*node }).0.store(last as usize, Ordering::Relaxed);
            }
            last = node;
        }
        !first.is_null() && self.push_chain(first, last)
    }

    /// `oldest` is the end of a chain of links that begins at `newest`.
    fn push_chain(&self, oldest: *const T, newest: *const T) -> bool {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the node is owned by this call until the CAS below publishes it.
            L::link(unsafe { &*oldest }).0.store(head & !ARMED, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, newest as usize, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return head & ARMED != 0,
                Err(seen) => head = seen,
            }
        }
    }

    /// Takes everything, oldest first, and disarms.
    pub(crate) fn take_all(&self) -> Taken<T, L> {
        if self.head.load(Ordering::Relaxed) & !ARMED == 0 {
            return Taken { head: 0, _owns: PhantomData };
        }
        self.take_last()
    }

    /// As [`take_all`](Self::take_all), and whoever pushes after this sees what the caller wrote before: the Release of this
    /// swap pairs with the Acquire of `push`, on the same word.
    pub(crate) fn take_last(&self) -> Taken<T, L> {
        let mut node = self.head.swap(0, Ordering::AcqRel) & !ARMED;
        let mut reversed = 0;
        while node != 0 {
            // SAFETY: `node` was published by `push` (Release) and taken by the swap (Acquire); it is ours alone now.
            let link = L::link(unsafe { &*(node as *const T) });
            let next = link.0.load(Ordering::Relaxed);
            link.0.store(reversed, Ordering::Relaxed);
            reversed = node;
            node = next;
        }
        Taken { head: reversed, _owns: PhantomData }
    }

    /// Asks the next `push` to ring. False if there is something to take already.
    #[must_use]
    pub(crate) fn arm(&self) -> bool {
        match self.head.compare_exchange(0, ARMED, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(seen) => seen == ARMED,
        }
    }

    /// Nothing to take at this moment.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) & !ARMED == 0
    }
}

impl<T, L: Linked<T>> Taken<T, L> {
    /// Nothing.
    pub(crate) const fn none() -> Taken<T, L> {
        Taken { head: 0, _owns: PhantomData }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == 0
    }
}

impl<T, L: Linked<T>> Iterator for Taken<T, L> {
    type Item = Arc<T>;

    fn next(&mut self) -> Option<Arc<T>> {
        if self.head == 0 {
            return None;
        }
        // SAFETY: every node in the list came from `Arc::into_raw`, and is turned back once, here.
        let node = unsafe { Arc::from_raw(self.head as *const T) };
        self.head = L::link(&node).0.load(Ordering::Relaxed);
        Some(node)
    }
}

impl<T, L: Linked<T>> Drop for Taken<T, L> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl<T, L: Linked<T>> Drop for Stack<T, L> {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Node(u32, Link);
    struct ByLink;
    impl Linked<Node> for ByLink {
        fn link(node: &Node) -> &Link {
            &node.1
        }
    }

    fn node(n: u32) -> Arc<Node> {
        Arc::new(Node(n, Link::new()))
    }

    #[test]
    fn takes_in_the_order_of_pushing() {
        let s = Stack::<Node, ByLink>::new();
        assert!(!s.push(node(1)));
        assert!(!s.push_all([2, 3, 4].into_iter().map(node)));
        assert!(!s.push(node(5)));
        assert_eq!(s.take_all().map(|n| n.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(s.is_empty());
    }

    #[test]
    fn only_the_first_push_after_arming_rings() {
        let s = Stack::<Node, ByLink>::new();
        assert!(s.arm());
        assert!(s.arm(), "arming twice is arming once");
        assert!(s.is_empty());
        assert!(s.push(node(1)));
        assert!(!s.push(node(2)));
        assert!(!s.arm(), "not while there is something to take");
        assert_eq!(s.take_all().count(), 2);
        assert!(!s.push(node(3)));
    }

    #[test]
    fn drops_what_nobody_took() {
        let n = node(1);
        let s = Stack::<Node, ByLink>::new();
        let _ = s.push(n.clone());
        drop(s);
        assert_eq!(Arc::strong_count(&n), 1);
        let s = Stack::<Node, ByLink>::new();
        let _ = s.push(n.clone());
        drop(s.take_all());
        assert_eq!(Arc::strong_count(&n), 1);
    }
}

/// `make loom`: every interleaving of two producers and a consumer that arms and goes to sleep.
#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;

    struct Node(u32, Link);
    struct ByLink;
    impl Linked<Node> for ByLink {
        fn link(node: &Node) -> &Link {
            &node.1
        }
    }

    struct Shared {
        stack: Stack<Node, ByLink>,
        /// The mutant's armed flag, a word of its own.
        armed: AtomicBool,
        rung: AtomicBool,
    }

    /// Every node is seen once, and a consumer that went to sleep before a push was rung.
    fn model(push: fn(&Shared, Arc<Node>) -> bool, arm: fn(&Shared) -> bool) {
        loom::model(move || {
            let shared = loom::sync::Arc::new(Shared { stack: Stack::new(), armed: AtomicBool::new(false), rung: AtomicBool::new(false) });
            let producers: Vec<_> = (0..2)
                .map(|n| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        if push(&shared, Arc::new(Node(n, Link::new()))) {
                            shared.rung.store(true, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            let mut seen: Vec<u32> = shared.stack.take_all().map(|n| n.0).collect();
            let asleep = arm(&shared);
            for p in producers {
                p.join().expect("producer");
            }
            if asleep && seen.len() < 2 {
                assert!(shared.rung.load(Ordering::SeqCst), "asleep, work is there, nobody rang");
            }
            seen.extend(shared.stack.take_all().map(|n| n.0));
            seen.sort_unstable();
            assert_eq!(seen, [0, 1]);
        });
    }

    #[test]
    fn stack_never_loses_a_wake_up() {
        model(|s, node| s.stack.push(node), |s| s.stack.arm());
    }

    /// The mutant: "is it empty" and "wake me" in two words, without a fence between them.
    #[test]
    #[should_panic(expected = "nobody rang")]
    fn stack_with_a_separate_armed_flag_loses_one() {
        model(
            |s, node| {
                let _ = s.stack.push(node);
                s.armed.swap(false, Ordering::AcqRel)
            },
            |s| {
                let empty = s.stack.is_empty();
                s.armed.store(true, Ordering::Release);
                empty
            },
        );
    }
}
