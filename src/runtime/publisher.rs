//! New policies into the control loop: weights or bundles become checked, warmed-up policies and are handed over.
//!
//! Runs on its own thread (in lockstep: between two ticks). It also drops what the loop has handed back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::event::Event;
use super::parts::Shared;
use super::socket::{Reply, Request};
use crate::clock;
use crate::config::PolicyConfig;
use crate::control::{Offer, PolicyHandover, SwapRequest, Unsent};
use crate::nn::weights::ActorWeights;
use crate::policy::{AnyBundle, PolicyError, Source, checks};
use crate::spaces::Spaces;

/// How long a policy may wait for the loop to take the one before.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answer to a request that the loop would not see.
const BUSY: &str = "the control loop does not take requests at present; the policy in use stays";

/// Builds, checks and hands over.
pub(super) struct Publisher {
    spaces: Spaces,
    config: PolicyConfig,
    handover: PolicyHandover,
    shared: Arc<Shared>,
    generation: u32,
    held: bool,
}

impl Publisher {
    pub(super) fn new(spaces: Spaces, config: PolicyConfig, handover: PolicyHandover, shared: Arc<Shared>) -> Self {
        Self { spaces, config, handover, shared, generation: 0, held: false }
    }

    /// The learner's actors. Skipped while an operator's choice is held.
    pub(super) fn publish(&mut self, actor: &ActorWeights) {
        self.handover.collect();
        if self.held {
            return;
        }
        match self.offer(Source::Ensemble(actor)) {
            Ok(Err(Unsent::Busy)) => {
                log::warn!("the control loop did not take the last policy in time; this one is skipped");
            }
            Ok(_) => {}
            Err(error) => {
                self.shared.tell(Event::Refused { reason: error.to_string() });
                self.shared.fail(format!("the learner's policy was refused, the one in use stays: {error}"));
            }
        }
    }

    /// Prepares and sends; the inner result says whether the loop will see it.
    fn offer(&mut self, policy: Source<'_>) -> Result<Result<(), Unsent>, PolicyError> {
        let begin = clock::monotonic();
        let prepared = policy.prepare(&self.spaces, &self.config)?;
        let prepare_ms = clock::monotonic().since(begin).as_secs_f64() * 1000.0;
        let offer = Offer { policy: prepared.backend, generation: self.generation + 1 };
        let sent = self.handover.send(SwapRequest::Offer(offer), PATIENCE);
        if sent.is_ok() {
            self.generation += 1;
            self.shared.tell(Event::Published { generation: self.generation, prepare_ms });
        }
        Ok(sent)
    }

    /// An operator's request; the loop runs on whatever the answer.
    pub(super) fn answer(&mut self, request: &Request) -> Reply {
        self.handover.collect();
        match request {
            Request::Swap { bundle } => match self.swap(bundle) {
                Ok(Err(_)) => Reply::refused(BUSY.into()),
                Ok(Ok(())) => {
                    self.held = true;
                    let generation = self.generation;
                    Reply::ok(format!(
                        "policy {} handed over as generation {generation}; the learner's policies are held back until `swap --follow`",
                        bundle.display()
                    ))
                }
                Err(error) => {
                    self.shared.tell(Event::Refused { reason: error.to_string() });
                    Reply::refused(format!("{}: {error}; the policy in use stays", bundle.display()))
                }
            },
            Request::RollBack => {
                self.held = true;
                match self.handover.send(SwapRequest::RollBack, PATIENCE) {
                    Ok(()) => Reply::ok(
                        "asked for the policy before; the learner's are held back until `swap --follow`".into(),
                    ),
                    Err(_) => Reply::refused(BUSY.into()),
                }
            }
            Request::Follow => {
                self.held = false;
                Reply::ok("the learner's next policy will be taken".into())
            }
            Request::Status | Request::Judge { .. } | Request::Stop => {
                Reply::refused("not a request for the publisher".into())
            }
        }
    }

    fn swap(&mut self, folder: &Path) -> Result<Result<(), Unsent>, PolicyError> {
        let bundle = AnyBundle::load(folder)?;
        checks::names(bundle.spaces(), &self.spaces)?;
        self.offer(bundle.source())
    }
}
