//! Promise: whatever the order of events, the control loop runs a whole policy with its own generation, drops none,
//! and no policy is lost on the way back.
//!
//! The code under test is `src/control/swap.rs` itself, compiled a second time with loom's primitives in place of
//! crossbeam's channel. What is taken as given is that crossbeam's channel behaves as the one below: a bounded queue
//! whose operations happen one after the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use loom::thread;
use policy::{PolicyBackend, PolicyError, PolicyOutput};
use swap::{Offer, PolicySlot, SwapRequest, Swapped, policy_slot};

#[allow(dead_code, unreachable_pub, reason = "the same file as in the library, of which this uses a part")]
#[path = "../src/control/swap.rs"]
mod swap;

mod clock {
    /// No time passes in the model.
    pub(crate) fn precise() -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

mod policy {
    pub(crate) use fieldtune::policy::{PolicyBackend, PolicyError, PolicyOutput};
}

/// Crossbeam's bounded channel as far as `swap.rs` uses it.
mod channel {
    use std::collections::VecDeque;
    use std::time::Duration;

    use loom::sync::{Arc, Mutex};

    struct Queue<T> {
        items: Mutex<VecDeque<T>>,
        room: usize,
    }

    pub(crate) struct Sender<T>(Arc<Queue<T>>);
    pub(crate) struct Receiver<T>(Arc<Queue<T>>);
    pub(crate) struct Full<T>(T);

    pub(crate) enum SendTimeoutError<T> {
        Timeout(T),
        #[expect(dead_code, reason = "both ends live as long as the model")]
        Disconnected(T),
    }

    pub(crate) fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
        let queue = Arc::new(Queue { items: Mutex::new(VecDeque::new()), room });
        (Sender(Arc::clone(&queue)), Receiver(queue))
    }

    impl<T> Sender<T> {
        pub(crate) fn try_send(&self, item: T) -> Result<(), Full<T>> {
            let mut items = self.0.items.lock().unwrap();
            if items.len() == self.0.room {
                return Err(Full(item));
            }
            items.push_back(item);
            Ok(())
        }

        pub(crate) fn send_timeout(&self, item: T, _patience: Duration) -> Result<(), SendTimeoutError<T>> {
            self.try_send(item).map_err(|full| SendTimeoutError::Timeout(full.0))
        }

        pub(crate) fn is_full(&self) -> bool {
            self.0.items.lock().unwrap().len() == self.0.room
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn try_recv(&self) -> Result<T, ()> {
            self.0.items.lock().unwrap().pop_front().ok_or(())
        }
    }

    impl<T> Full<T> {
        pub(crate) fn into_inner(self) -> T {
            assert!(std::thread::panicking(), "a policy found no way back and would have been leaked");
            self.0
        }
    }
}

loom::thread_local! {
    static ON_CONTROL_THREAD: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// A policy whose answer is its generation, in two places that only one whole policy writes alike.
struct Numbered {
    generation: u32,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        ON_CONTROL_THREAD.with(|here| assert!(!here.get(), "generation {} dropped by the loop", self.generation));
    }
}

impl PolicyBackend for Numbered {
    fn infer(&mut self, _observation: &[f32], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        out.action_dim = 1;
        out.mean[0] = self.generation as f32;
        Ok(())
    }

    fn engine(&self) -> &'static str {
        "numbered"
    }

    fn observation_dim(&self) -> usize {
        1
    }

    fn action_dim(&self) -> usize {
        1
    }
}

fn offer(generation: u32) -> Offer {
    Offer { policy: Box::new(Numbered { generation }), generation }
}

/// `ticks` ticks of the control thread: act, then look for a request.
fn tick(slot: &mut PolicySlot, ticks: usize) -> (Vec<u32>, Vec<Swapped>) {
    let (mut generations, mut swaps) = (Vec::new(), Vec::new());
    let mut out = PolicyOutput::default();
    ON_CONTROL_THREAD.with(|here| here.set(true));
    for _ in 0..ticks {
        slot.policy().infer(&[0.0], &mut out).unwrap();
        assert_eq!(out.mean[0], slot.generation() as f32, "the action and its generation belong together");
        generations.push(slot.generation());
        swaps.extend(slot.poll(&[0.0], &mut out, false).map(|(swapped, _)| swapped));
        thread::yield_now();
    }
    ON_CONTROL_THREAD.with(|here| here.set(false));
    (generations, swaps)
}

fn model(requests: fn() -> Vec<SwapRequest>, ticks: usize, check: fn(&[u32], &[Swapped])) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let (mut slot, handover) = policy_slot(offer(0));
        let publisher = thread::spawn(move || {
            let mut sent = 0;
            for request in requests() {
                // As the publisher does: what the loop does not take in time is dropped here.
                sent += usize::from(handover.send(request, Duration::ZERO).is_ok());
                thread::yield_now();
            }
            handover.collect();
            (handover, sent)
        });
        let (generations, swaps) = tick(&mut slot, ticks);
        let (_handover, sent) = publisher.join().unwrap();
        // At most one request still waits; the publisher has emptied the way back.
        let (_, rest) = tick(&mut slot, 1);
        assert_eq!(swaps.len() + rest.len(), sent, "every request that was sent is answered once");
        check(&generations, &swaps);
    });
}

#[test]
fn generations_only_grow_while_policies_are_offered() {
    model(
        || (1..=3).map(|generation| SwapRequest::Offer(offer(generation))).collect(),
        4,
        |generations, swaps| {
            assert!(generations.is_sorted(), "{generations:?}");
            assert!(swaps.iter().all(|s| *s == Swapped::Taken));
        },
    );
}

#[test]
fn a_roll_back_takes_one_tick_from_any_state() {
    model(
        || vec![SwapRequest::Offer(offer(1)), SwapRequest::RollBack, SwapRequest::Offer(offer(2))],
        4,
        |generations, swaps| {
            for (tick, pair) in generations.windows(2).enumerate() {
                assert!(pair[1] >= pair[0] || pair == [1, 0], "tick {tick}: {generations:?}");
            }
            // Without a policy before there is nothing to go back to, and nothing else is ever refused.
            let refused = swaps.iter().filter(|s| **s == Swapped::Refused).count();
            assert!(refused == 0 || swaps[0] == Swapped::Refused && refused == 1, "{swaps:?}");
        },
    );
}
