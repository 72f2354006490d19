//! Promise: whatever the order of events, the control loop runs a whole policy with its own generation, drops none,
//! and no policy is lost on the way back. What it reads of a person's command is one whole command, the newest or the
//! one before.
//!
//! The code under test is `src/control/swap.rs` itself, compiled a second time with loom's primitives in place of
//! heapless's queue; `src/control/person_slot.rs` likewise with loom's atomics. What is taken as given is that
//! heapless's queue behaves as the one below: a bounded queue whose operations happen one after the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use loom::thread;
use person_slot::PersonSlot;
use policy::{PolicyBackend, PolicyError, PolicyOutput};
use swap::{Offer, PolicySlot, SwapRequest, Swapped, policy_slot};

#[allow(dead_code, unreachable_pub, reason = "the same file as in the library, of which this uses a part")]
#[path = "../src/control/swap.rs"]
mod swap;

#[allow(dead_code, unreachable_pub, reason = "the same file as in the library, of which this uses a part")]
#[path = "../src/control/person_slot.rs"]
mod person_slot;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
}

mod clock {
    /// No time passes in the model.
    pub(crate) fn precise() -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

mod policy {
    pub(crate) use fieldtune::policy::{PolicyBackend, PolicyError, PolicyOutput};
}

/// The queue of heapless as far as `swap.rs` uses it.
mod channel {
    use std::collections::VecDeque;

    use loom::sync::Mutex;

    pub(crate) struct Queue<T, const SLOTS: usize>(Mutex<VecDeque<T>>);
    pub(crate) struct Producer<'a, T>(&'a Mutex<VecDeque<T>>, usize);
    pub(crate) struct Consumer<'a, T>(&'a Mutex<VecDeque<T>>);

    impl<T, const SLOTS: usize> Queue<T, SLOTS> {
        pub(crate) fn new() -> Self {
            Self(Mutex::new(VecDeque::new()))
        }

        pub(crate) fn split(&mut self) -> (Producer<'_, T>, Consumer<'_, T>) {
            (Producer(&self.0, SLOTS - 1), Consumer(&self.0))
        }
    }

    impl<T> Producer<'_, T> {
        pub(crate) fn enqueue(&mut self, item: T) -> Result<(), T> {
            let mut items = self.0.lock().unwrap();
            if items.len() == self.1 {
                assert!(self.1 == 1, "a policy found no way back and would be leaked");
                return Err(item);
            }
            items.push_back(item);
            Ok(())
        }

        pub(crate) fn ready(&self) -> bool {
            self.0.lock().unwrap().len() < self.1
        }
    }

    impl<T> Consumer<'_, T> {
        pub(crate) fn dequeue(&mut self) -> Option<T> {
            self.0.lock().unwrap().pop_front()
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
    fn infer(&mut self, _observation: &[f32], _image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
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
        slot.policy().infer(&[0.0], &[], &mut out).unwrap();
        assert_eq!(out.mean[0], slot.generation() as f32, "the action and its generation belong together");
        generations.push(slot.generation());
        swaps.extend(slot.poll(&[0.0], &[], &mut out, false).map(|(swapped, _)| swapped));
        thread::yield_now();
    }
    ON_CONTROL_THREAD.with(|here| here.set(false));
    (generations, swaps)
}

fn model(requests: fn() -> Vec<SwapRequest>, ticks: usize, check: fn(&[u32], &[Swapped])) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let (mut slot, mut handover) = policy_slot(offer(0));
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

#[test]
fn a_command_of_a_person_is_read_whole_or_not_at_all() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let slot = loom::sync::Arc::new(PersonSlot::<1>::default());
        let writer = {
            let slot = loom::sync::Arc::clone(&slot);
            thread::spawn(move || (slot.command(&[1.0], 1).is_ok(), slot.command(&[2.0], 2).is_ok()))
        };
        if let Some(command) = slot.read() {
            assert_eq!(command.action, [command.at_us as f32], "one command, not two");
            assert_eq!(command.len > 0, command.at_us > 0);
        }
        assert_eq!(writer.join().unwrap(), (true, true));
        assert_eq!(slot.read().map(|command| command.at_us), Some(2), "whole again, and the newest");
    });
}

#[test]
fn of_two_people_at_the_same_time_one_is_refused() {
    loom::model(|| {
        let slot = loom::sync::Arc::new(PersonSlot::<1>::default());
        let other = {
            let slot = loom::sync::Arc::clone(&slot);
            thread::spawn(move || slot.command(&[1.0], 1).is_ok())
        };
        let here = slot.command(&[2.0], 2).is_ok();
        assert!(other.join().unwrap() || here);
        assert!(slot.read().is_some_and(|command| command.action == [command.at_us as f32] && command.len == 1));
    });
}
