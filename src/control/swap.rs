//! The hand-over of policies between publisher and control loop.
//!
//! The loop never builds or drops a policy: a new one comes in through a channel of one, the one before stays
//! loaded for a roll-back, and the one before that goes back through a channel to be dropped by the publisher.

use std::time::Duration;

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};

use crate::policy::{PolicyBackend, PolicyOutput};

/// A checked and warmed-up policy.
pub struct Offer {
    /// The policy.
    pub policy: Box<dyn PolicyBackend>,
    /// Its generation; 0 is what the run started with.
    pub generation: u32,
}

/// What the publisher asks of the loop.
pub enum SwapRequest {
    /// Take this policy.
    Offer(Offer),
    /// Go back to the policy before.
    RollBack,
}

/// What the loop did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// A new policy is in use.
    Taken,
    /// The policy before is in use again.
    RolledBack,
    /// The offer failed its run on the present observation, or there is nothing to go back to.
    Refused,
}

/// The loop's end: the policy in use and the one before.
pub struct PolicySlot {
    current: Offer,
    previous: Option<Offer>,
    requests: Receiver<SwapRequest>,
    retired: Sender<Offer>,
}

/// Why a request did not reach the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// An earlier request still waits.
    Busy,
    /// The loop has ended.
    Ended,
}

/// The publisher's end.
pub struct PolicyHandover {
    requests: Sender<SwapRequest>,
    retired: Receiver<Offer>,
}

/// Both ends, with `first` in use.
pub fn policy_slot(first: Offer) -> (PolicySlot, PolicyHandover) {
    let (request_sender, requests) = bounded(1);
    // At most one policy leaves per request and `send` empties this first: it cannot fill up.
    let (retired, retired_receiver) = bounded(4);
    let slot = PolicySlot { current: first, previous: None, requests, retired };
    (slot, PolicyHandover { requests: request_sender, retired: retired_receiver })
}

impl PolicySlot {
    /// The policy in use.
    pub fn policy(&mut self) -> &mut dyn PolicyBackend {
        self.current.policy.as_mut()
    }

    /// Generation of the policy in use.
    pub fn generation(&self) -> u32 {
        self.current.generation
    }

    /// Between two ticks: takes a waiting request. A new policy is run once on `observation` first, which also
    /// brings its weights into this core's cache.
    pub fn poll(&mut self, observation: &[f32], scratch: &mut PolicyOutput) -> Option<Swapped> {
        if self.retired.is_full() {
            return None;
        }
        match self.requests.try_recv().ok()? {
            SwapRequest::RollBack => {
                let Some(mut previous) = self.previous.take() else {
                    return Some(Swapped::Refused);
                };
                std::mem::swap(&mut previous, &mut self.current);
                self.previous = Some(previous);
                Some(Swapped::RolledBack)
            }
            SwapRequest::Offer(mut offer) => {
                let usable = offer.policy.infer(observation, scratch).is_ok()
                    && scratch.mean[..scratch.action_dim].iter().all(|m| m.is_finite());
                if !usable {
                    self.retire(offer);
                    return Some(Swapped::Refused);
                }
                let old = std::mem::replace(&mut self.current, offer);
                if let Some(oldest) = self.previous.replace(old) {
                    self.retire(oldest);
                }
                Some(Swapped::Taken)
            }
        }
    }

    /// Hands a policy back for dropping; `poll` has seen that there is room.
    fn retire(&self, offer: Offer) {
        if let Err(error) = self.retired.try_send(offer) {
            // Dropping would free memory on this thread; with room checked and one sender this is not reached.
            std::mem::forget(error.into_inner());
        }
    }
}

impl PolicyHandover {
    /// Drops what the loop has handed back.
    pub fn collect(&self) {
        while self.retired.try_recv().is_ok() {}
    }

    /// Puts a request in front of the loop, waiting at most `patience` for an earlier one to be taken. A request
    /// that cannot be put there is dropped here, on the publisher's thread.
    ///
    /// # Errors
    /// When the loop did not take the earlier one in time, or has ended.
    pub fn send(&self, request: SwapRequest, patience: Duration) -> Result<(), Unsent> {
        self.collect();
        self.requests.send_timeout(request, patience).map_err(|error| match error {
            SendTimeoutError::Timeout(_) => Unsent::Busy,
            SendTimeoutError::Disconnected(_) => Unsent::Ended,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyError;

    struct Constant(f32);

    impl PolicyBackend for Constant {
        fn infer(&mut self, _observation: &[f32], out: &mut PolicyOutput) -> Result<(), PolicyError> {
            out.action_dim = 1;
            out.mean[0] = self.0;
            Ok(())
        }

        fn engine(&self) -> &'static str {
            "constant"
        }

        fn observation_dim(&self) -> usize {
            1
        }

        fn action_dim(&self) -> usize {
            1
        }
    }

    fn offer(generation: u32, value: f32) -> Offer {
        Offer { policy: Box::new(Constant(value)), generation }
    }

    fn send(handover: &PolicyHandover, request: SwapRequest) {
        assert!(handover.send(request, Duration::ZERO).is_ok());
    }

    #[test]
    fn swaps_roll_back_and_never_mix_generations() {
        let (mut slot, handover) = policy_slot(offer(0, 0.0));
        let mut out = PolicyOutput::default();
        assert_eq!(slot.poll(&[0.0], &mut out), None);
        for generation in 1..100 {
            send(&handover, SwapRequest::Offer(offer(generation, generation as f32)));
            assert_eq!(slot.poll(&[0.0], &mut out), Some(Swapped::Taken));
            assert!(slot.policy().infer(&[0.0], &mut out).is_ok());
            assert_eq!((slot.generation(), out.mean[0]), (generation, generation as f32));
        }
        send(&handover, SwapRequest::RollBack);
        assert_eq!(slot.poll(&[0.0], &mut out), Some(Swapped::RolledBack));
        assert_eq!(slot.generation(), 98);
        send(&handover, SwapRequest::RollBack);
        assert_eq!(slot.poll(&[0.0], &mut out), Some(Swapped::RolledBack));
        assert_eq!(slot.generation(), 99);
    }

    #[test]
    fn a_policy_that_answers_nan_is_handed_back() {
        let (mut slot, handover) = policy_slot(offer(0, 0.0));
        send(&handover, SwapRequest::Offer(offer(1, f32::NAN)));
        assert_eq!(slot.poll(&[0.0], &mut PolicyOutput::default()), Some(Swapped::Refused));
        assert_eq!(slot.generation(), 0);
        send(&handover, SwapRequest::RollBack);
        assert_eq!(slot.poll(&[0.0], &mut PolicyOutput::default()), Some(Swapped::Refused));
    }
}
