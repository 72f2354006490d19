//! The hand-over of policies between publisher and control loop.
//!
//! The loop never builds or drops a policy: a new one comes in through a queue of one, the one before stays
//! loaded for a roll-back, and the one before that goes back through a queue to be dropped by the publisher. The
//! queues wake nobody: who waits looks again, so that a waiting publisher costs the loop neither a lock nor a system
//! call.

use std::time::Duration;

use super::atomic::AtomicBool;
use super::atomic::Ordering::{Acquire, Release};
use super::channel::{Consumer, Producer, Queue};
use crate::clock::precise;
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
    /// Take this policy when the episode under way is over.
    OfferBetweenEpisodes(Offer),
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
    /// The offer failed its run on the present observation or gave way to a newer request while it waited for the end
    /// of the episode, or there is nothing to go back to.
    Refused,
}

/// Time that a request took on the control thread.
#[derive(Clone, Copy, Debug)]
pub struct SwapCost {
    /// Taking it out of the channel, exchanging pointers, handing back the oldest policy.
    pub exchange: Duration,
    /// The first run of a new policy on the present observation.
    pub first_run: Duration,
}

/// The loop's end: the policy in use and the one before.
pub struct PolicySlot {
    current: Offer,
    previous: Option<Offer>,
    /// The request to be answered next, perhaps at the end of the episode.
    waiting: Option<SwapRequest>,
    requests: Consumer<'static, SwapRequest>,
    retired: Producer<'static, Offer>,
    ended: &'static AtomicBool,
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
    requests: Producer<'static, SwapRequest>,
    retired: Consumer<'static, Offer>,
    ended: &'static AtomicBool,
}

/// What both ends share; a queue holds one less than its slots.
struct Ways {
    requests: Queue<SwapRequest, 2>,
    // At most one policy leaves per request and `send` empties this first: it cannot fill up.
    retired: Queue<Offer, 4>,
    ended: AtomicBool,
}

/// How long `send` waits before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Both ends, with `first` in use. The queues' few hundred bytes are kept until the process ends, so that neither end
/// can outlive them.
pub fn policy_slot(first: Offer) -> (PolicySlot, PolicyHandover) {
    let ways = Ways { requests: Queue::new(), retired: Queue::new(), ended: AtomicBool::new(false) };
    let Ways { requests, retired, ended } = Box::leak(Box::new(ways));
    let (asking, requests) = requests.split();
    let (retired, collecting) = retired.split();
    let ended: &'static AtomicBool = ended;
    let slot = PolicySlot { current: first, previous: None, waiting: None, requests, retired, ended };
    (slot, PolicyHandover { requests: asking, retired: collecting, ended })
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

    /// Between two ticks: takes a waiting request, and says what it cost this thread. A new policy is run once on
    /// `observation` and `image` first, which also brings its weights into this core's cache; one of another shape, or whose
    /// answer is not finite, is handed back. `between_episodes`: whether no episode is under way.
    ///
    /// A request that comes while an offer waits for the end of the episode takes its place; a roll-back only withdraws
    /// it.
    pub fn poll(
        &mut self,
        observation: &[f32],
        image: &[u8],
        scratch: &mut PolicyOutput,
        between_episodes: bool,
    ) -> Option<(Swapped, SwapCost)> {
        if !self.retired.ready() {
            return None;
        }
        let begin = precise();
        if let Some(newer) = self.requests.dequeue()
            && let Some(withdrawn) = self.withdraw(newer)
        {
            let exchange = precise().saturating_sub(begin);
            return Some((withdrawn, SwapCost { exchange, first_run: Duration::ZERO }));
        }
        let due =
            |request: &mut SwapRequest| between_episodes || !matches!(request, SwapRequest::OfferBetweenEpisodes(_));
        let request = self.waiting.take_if(due)?;
        let taken = precise();
        let (usable, tried) = match request {
            SwapRequest::RollBack => (None, taken),
            SwapRequest::Offer(offer) | SwapRequest::OfferBetweenEpisodes(offer) => {
                (Some(self.try_out(offer, observation, image, scratch)), precise())
            }
        };
        let swapped = match usable {
            None => self.roll_back(),
            Some(Ok(offer)) => self.take_over(offer),
            Some(Err(offer)) => {
                self.retire(offer);
                Swapped::Refused
            }
        };
        Some((
            swapped,
            SwapCost {
                exchange: precise().saturating_sub(tried) + taken.saturating_sub(begin),
                first_run: tried.saturating_sub(taken),
            },
        ))
    }

    /// Puts a request in its place; an offer that waited there goes back. What became of that one, if there was one.
    fn withdraw(&mut self, newer: SwapRequest) -> Option<Swapped> {
        let Some(SwapRequest::Offer(old) | SwapRequest::OfferBetweenEpisodes(old)) = self.waiting.take() else {
            self.waiting = Some(newer);
            return None;
        };
        self.retire(old);
        if matches!(newer, SwapRequest::RollBack) {
            return Some(Swapped::RolledBack);
        }
        self.waiting = Some(newer);
        Some(Swapped::Refused)
    }

    fn roll_back(&mut self) -> Swapped {
        let Some(mut previous) = self.previous.take() else {
            return Swapped::Refused;
        };
        std::mem::swap(&mut previous, &mut self.current);
        self.previous = Some(previous);
        Swapped::RolledBack
    }

    fn take_over(&mut self, offer: Offer) -> Swapped {
        let old = std::mem::replace(&mut self.current, offer);
        if let Some(oldest) = self.previous.replace(old) {
            self.retire(oldest);
        }
        Swapped::Taken
    }

    /// The offer back, as usable or not.
    fn try_out(
        &self,
        mut offer: Offer,
        observation: &[f32],
        image: &[u8],
        scratch: &mut PolicyOutput,
    ) -> Result<Offer, Offer> {
        let fits = offer.policy.action_dim() == self.current.policy.action_dim();
        let answers = fits && offer.policy.infer(observation, image, scratch).is_ok();
        if answers && scratch.mean().iter().chain(scratch.std()).all(|value| value.is_finite()) {
            Ok(offer)
        } else {
            Err(offer)
        }
    }

    /// Hands a policy back for dropping; `poll` has seen that there is room.
    fn retire(&mut self, offer: Offer) {
        if let Err(offer) = self.retired.enqueue(offer) {
            // Dropping would free memory on this thread; with room checked and one sender this is not reached.
            std::mem::forget(offer);
        }
    }
}

impl Drop for PolicySlot {
    /// After the loop's last tick: nobody else would drop what still waits.
    fn drop(&mut self) {
        self.ended.store(true, Release);
        while self.requests.dequeue().is_some() {}
    }
}

impl PolicyHandover {
    /// Drops what the loop has handed back.
    pub fn collect(&mut self) {
        while self.retired.dequeue().is_some() {}
    }

    /// Puts a request in front of the loop, waiting at most `patience` for an earlier one to be taken. A request
    /// that cannot be put there is dropped here, on the publisher's thread.
    ///
    /// # Errors
    /// When the loop did not take the earlier one in time, or has ended.
    pub fn send(&mut self, mut request: SwapRequest, patience: Duration) -> Result<(), Unsent> {
        let until = precise() + patience;
        loop {
            self.collect();
            if self.ended.load(Acquire) {
                return Err(Unsent::Ended);
            }
            match self.requests.enqueue(request) {
                Ok(()) => return Ok(()),
                Err(back) if precise() < until => request = back,
                Err(_) => return Err(Unsent::Busy),
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for PolicyHandover {
    fn drop(&mut self) {
        self.collect();
    }
}
