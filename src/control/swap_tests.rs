//! The hand-over on one thread; `tests/handover_model.rs` checks it on two.

use std::time::Duration;

use super::swap::{Offer, PolicyHandover, SwapRequest, Swapped, Unsent, policy_slot};
use crate::policy::{PolicyBackend, PolicyError, PolicyOutput};

struct Constant {
    value: f32,
    actions: usize,
}

impl PolicyBackend for Constant {
    fn infer(&mut self, _observation: &[f32], _image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        out.action_dim = self.actions;
        out.mean[0] = self.value;
        Ok(())
    }

    fn engine(&self) -> &'static str {
        "constant"
    }

    fn observation_dim(&self) -> usize {
        1
    }

    fn action_dim(&self) -> usize {
        self.actions
    }
}

fn offer(generation: u32, value: f32) -> Offer {
    Offer { policy: Box::new(Constant { value, actions: 1 }), generation }
}

fn send(handover: &mut PolicyHandover, request: SwapRequest) {
    assert!(handover.send(request, Duration::ZERO).is_ok());
}

#[test]
fn swaps_roll_back_and_never_mix_generations() {
    let (mut slot, mut handover) = policy_slot(offer(0, 0.0));
    let mut out = PolicyOutput::default();
    assert!(slot.poll(&[0.0], &[], &mut out, false).is_none());
    for generation in 1..100 {
        send(&mut handover, SwapRequest::Offer(offer(generation, generation as f32)));
        assert_eq!(slot.poll(&[0.0], &[], &mut out, false).map(|s| s.0), Some(Swapped::Taken));
        assert!(slot.policy().infer(&[0.0], &[], &mut out).is_ok());
        assert_eq!((slot.generation(), out.mean[0]), (generation, generation as f32));
    }
    send(&mut handover, SwapRequest::RollBack);
    assert_eq!(slot.poll(&[0.0], &[], &mut out, false).map(|s| s.0), Some(Swapped::RolledBack));
    assert_eq!(slot.generation(), 98);
    send(&mut handover, SwapRequest::RollBack);
    assert_eq!(slot.poll(&[0.0], &[], &mut out, false).map(|s| s.0), Some(Swapped::RolledBack));
    assert_eq!(slot.generation(), 99);
}

#[test]
fn a_policy_that_answers_nan_is_handed_back() {
    let (mut slot, mut handover) = policy_slot(offer(0, 0.0));
    send(&mut handover, SwapRequest::Offer(offer(1, f32::NAN)));
    assert_eq!(slot.poll(&[0.0], &[], &mut PolicyOutput::default(), false).map(|s| s.0), Some(Swapped::Refused));
    assert_eq!(slot.generation(), 0);
    send(&mut handover, SwapRequest::RollBack);
    assert_eq!(slot.poll(&[0.0], &[], &mut PolicyOutput::default(), false).map(|s| s.0), Some(Swapped::Refused));
}

#[test]
fn a_policy_of_another_shape_is_handed_back() {
    let (mut slot, mut handover) = policy_slot(offer(0, 0.0));
    let wide = Offer { policy: Box::new(Constant { value: 0.0, actions: 2 }), generation: 1 };
    send(&mut handover, SwapRequest::Offer(wide));
    assert_eq!(slot.poll(&[0.0], &[], &mut PolicyOutput::default(), false).map(|s| s.0), Some(Swapped::Refused));
    assert_eq!(slot.generation(), 0);
}

#[test]
fn a_loop_that_has_ended_takes_nothing_and_keeps_nothing() {
    let (slot, mut handover) = policy_slot(offer(0, 0.0));
    let request = |generation| SwapRequest::Offer(offer(generation, 0.0));
    assert_eq!(handover.send(request(1), Duration::ZERO), Ok(()));
    assert_eq!(handover.send(request(2), Duration::ZERO), Err(Unsent::Busy));
    drop(slot);
    assert_eq!(handover.send(request(3), Duration::from_mins(1)), Err(Unsent::Ended));
}

#[test]
fn an_offer_for_the_end_of_the_episode_waits_for_it() {
    let (mut slot, mut handover) = policy_slot(offer(0, 0.0));
    let mut out = PolicyOutput::default();
    let at_end = |generation| SwapRequest::OfferBetweenEpisodes(offer(generation, 0.0));
    let mut poll = |slot: &mut super::swap::PolicySlot, between| {
        let swapped = slot.poll(&[0.0], &[], &mut out, between).map(|s| s.0);
        (swapped, slot.generation())
    };
    send(&mut handover, at_end(1));
    for _ in 0..3 {
        assert_eq!(poll(&mut slot, false), (None, 0));
    }
    assert_eq!(poll(&mut slot, true), (Some(Swapped::Taken), 1));
    // A newer offer takes the place of one that waits.
    send(&mut handover, at_end(2));
    assert_eq!(poll(&mut slot, false), (None, 1));
    send(&mut handover, SwapRequest::Offer(offer(3, 0.0)));
    assert_eq!(poll(&mut slot, false), (Some(Swapped::Refused), 1));
    assert_eq!(poll(&mut slot, false), (Some(Swapped::Taken), 3));
    // A roll-back withdraws it and leaves the policy in use.
    send(&mut handover, at_end(4));
    assert_eq!(poll(&mut slot, false), (None, 3));
    send(&mut handover, SwapRequest::RollBack);
    assert_eq!(poll(&mut slot, false), (Some(Swapped::RolledBack), 3));
    assert_eq!(poll(&mut slot, true), (None, 3));
    send(&mut handover, SwapRequest::RollBack);
    assert_eq!(poll(&mut slot, true), (Some(Swapped::RolledBack), 1));
}
