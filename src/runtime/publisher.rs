//! New policies into the control loop: weights or bundles become checked, warmed-up policies and are handed over.
//!
//! Runs on its own thread (in lockstep: between two ticks). It also drops what the loop has handed back. A policy from
//! outside is tried in shadow first and on trial afterwards: one that collapses goes back by itself.

use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::event::Event;
use super::parts::{Shared, lock};
use super::remote::remove;
use super::shadow::{self, Kept, Shadow};
use super::socket::{Reply, Request};
use super::trial::{Counted, Trial, Verdict};
use crate::clock::{self, Stamp};
use crate::config::{PolicyConfig, SwapAt, SwapConfig};
use crate::control::{Offer, PolicyHandover, SwapRequest, Unsent};
use crate::nn::weights::{ActorWeights, EnsembleWeights};
use crate::policy::manifest::Residual;
use crate::policy::{AnyBundle, PolicyError, Prepared, Source, checks};
use crate::replay::Replay;
use crate::spaces::{FrameShape, Spaces};

/// How long a policy may wait for the loop to take the one before.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answer to a request that the loop would not see.
const BUSY: &str = "the control loop does not take requests at present; the policy in use stays";

/// Builds, checks and hands over.
#[cfg_attr(test, expect(clippy::struct_excessive_bools, reason = "one is a fault that the tests inject"))]
pub(super) struct Publisher {
    spaces: Spaces,
    config: PolicyConfig,
    /// On what the learner's actors stand, if they are a residual.
    residual: Option<Residual>,
    swap: SwapConfig,
    /// Size of the cameras' images.
    camera: Option<FrameShape>,
    handover: PolicyHandover,
    shared: Arc<Shared>,
    generation: u32,
    /// The learner's policies are held back.
    held: bool,
    /// Whether there is a learner.
    learns: bool,
    /// Where the newest observations are.
    replay: Option<Arc<Mutex<Replay>>>,
    /// What the loop has, and had before.
    kept: [Option<Kept>; 2],
    trial: Option<OnTrial>,
    /// The learner goes on from the last swap, and its policies are taken again when it does.
    adopting: bool,
    /// Injected by the fault matrix.
    #[cfg(test)]
    pub panics: bool,
}

/// A policy from outside that may have to go back.
struct OnTrial {
    trial: Trial,
    /// Whether the learner's policies were held back before.
    held_before: bool,
    /// Policies that the loop had refused before.
    refused_before: u64,
    /// What the learner goes on from when the policy passes.
    adopt: Option<Box<EnsembleWeights>>,
}

impl Publisher {
    pub(super) fn new(spaces: Spaces, config: PolicyConfig, handover: PolicyHandover, shared: Arc<Shared>) -> Self {
        Self {
            spaces,
            config,
            residual: None,
            swap: SwapConfig::default(),
            camera: None,
            handover,
            shared,
            generation: 0,
            held: false,
            learns: false,
            replay: None,
            kept: [None, None],
            trial: None,
            adopting: false,
            #[cfg(test)]
            panics: false,
        }
    }

    /// What swaps from outside need: rules, observations, the policy that the loop has, whether there is a learner.
    pub(super) fn with_swaps(
        mut self,
        swap: &SwapConfig,
        replay: Arc<Mutex<Replay>>,
        in_use: Option<Kept>,
        learns: bool,
    ) -> Self {
        (self.swap, self.replay, self.kept[0], self.learns) = (swap.clone(), Some(replay), in_use, learns);
        self
    }

    /// The learner's actors are a residual.
    pub(super) fn on_base(mut self, residual: Option<&Residual>) -> Self {
        self.residual = residual.cloned();
        self
    }

    /// Policies that look at other images than these are refused.
    pub(super) fn with_camera(mut self, shape: Option<FrameShape>) -> Self {
        self.camera = shape;
        self
    }

    /// The learner's actors. Skipped while an operator's choice is held.
    pub(super) fn publish(&mut self, actor: &ActorWeights) {
        #[cfg(test)]
        assert!(!self.panics, "injected");
        self.handover.collect();
        if self.held {
            return;
        }
        let begin = clock::monotonic();
        let residual = self.residual.clone();
        let source = Source::Ensemble(actor, residual.as_ref());
        let prepared = source.prepare(&self.spaces, &self.config);
        match prepared.map(|prepared| self.hand_over(prepared, source, SwapAt::Tick, begin)) {
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

    fn hand_over(&mut self, policy: Prepared, source: Source<'_>, at: SwapAt, begin: Stamp) -> Result<(), Unsent> {
        let prepare_ms = clock::monotonic().since(begin).as_secs_f64() * 1000.0;
        let offer = Offer { policy: policy.backend, generation: self.generation + 1 };
        let request = match at {
            SwapAt::Tick => SwapRequest::Offer(offer),
            SwapAt::Episode => SwapRequest::OfferBetweenEpisodes(offer),
        };
        self.handover.send(request, PATIENCE)?;
        self.generation += 1;
        self.kept.swap(0, 1);
        self.kept[0] = Some(source.into());
        self.shared.tell(Event::Published { generation: self.generation, prepare_ms });
        Ok(())
    }

    /// An operator's request; the loop runs on whatever the answer.
    pub(super) fn answer(&mut self, request: &Request) -> Reply {
        self.handover.collect();
        match request {
            Request::Swap { bundle, at, adopt, try_only } => self
                .swap(bundle, at.unwrap_or(self.swap.at), *adopt, *try_only)
                .map_or_else(|refused| self.refuse(bundle, &refused), Reply::ok),
            Request::RollBack => match self.roll_back() {
                Ok(()) => {
                    self.held = true;
                    Reply::ok("asked for the policy before; the learner's are held back until `swap --follow`".into())
                }
                Err(_) => Reply::refused(BUSY.into()),
            },
            Request::Follow => {
                (self.held, self.trial) = (false, None);
                Reply::ok("the learner's next policy will be taken".into())
            }
            Request::Status | Request::Label { .. } | Request::Stop => {
                Reply::refused("not a request for the publisher".into())
            }
        }
    }

    fn refuse(&self, bundle: &Path, reason: &str) -> Reply {
        self.shared.tell(Event::Refused { reason: reason.to_owned() });
        Reply::refused(format!("{}: {reason}; the policy in use stays", bundle.display()))
    }

    /// Verifies, tries in shadow, hands over; what was done or why not, in words.
    fn swap(&mut self, folder: &Path, at: SwapAt, adopt: bool, try_only: bool) -> Result<String, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let begin = clock::monotonic();
        let bundle = AnyBundle::load(folder).map_err(|e| words(&e))?;
        checks::names(bundle.spaces(), &self.spaces).map_err(|e| words(&e))?;
        let adopted = match (adopt, self.learns) {
            (false, _) => None,
            (true, false) => return Err("this process does not learn: swap without --learner adopt".into()),
            (true, true) if bundle.residual() != self.residual.as_ref() => {
                return Err(
                    "the learner's actors stand on another base, or on none: swap without --learner adopt".into()
                );
            }
            (true, true) => Some(Box::new(bundle.ensemble().map_err(|e| words(&e))?.weights().clone())),
        };
        let mut prepared = bundle.source().prepare(&self.spaces, &self.config).map_err(|e| words(&e))?;
        checks::frame(prepared.report.frame, self.camera).map_err(|e| words(&e))?;
        let shadow = self.shadow(&mut prepared).map_err(|e| words(&e))?;
        if shadow.mean > self.swap.shadow_gate {
            return Err(format!("{shadow}, allowed are {} (swap.shadow_gate)", self.swap.shadow_gate));
        }
        if try_only {
            return Ok(format!("policy {} was only tried: {shadow}", folder.display()));
        }
        let held_before = self.trial.as_ref().map_or(self.held, |on_trial| on_trial.held_before);
        let refused_before = self.shared.counters.refused_policies.load(Relaxed);
        self.hand_over(prepared, bundle.source(), at, begin).map_err(|_| BUSY.to_owned())?;
        self.held = true;
        let returns: Vec<_> = lock(&self.shared.returns).iter().copied().collect();
        let trial = Trial::new(self.swap.clone(), self.generation, &returns, at == SwapAt::Tick);
        self.trial = Some(OnTrial { trial, held_before, refused_before, adopt: adopted });
        let when = if at == SwapAt::Tick { "" } else { " for the end of the episode" };
        Ok(format!(
            "policy {} handed over as generation {}{when}; {shadow}; {}{}",
            folder.display(),
            self.generation,
            match self.swap.trial_episodes {
                0 => String::new(),
                n => format!("it goes back by itself if it collapses within {n} episodes; "),
            },
            if adopt {
                "then the learner goes on from it"
            } else {
                "the learner keeps its networks, and its policies are held back until `swap --follow`"
            }
        ))
    }

    /// The new policy beside the one in use. Readies that one a second time: the loop has the first.
    fn shadow(&self, new: &mut Prepared) -> Result<Shadow, PolicyError> {
        let (Some(replay), Some(in_use)) = (&self.replay, &self.kept[0]) else { return Ok(Shadow::default()) };
        let observations = shadow::newest(lock(replay).online(), self.swap.shadow_steps as usize);
        let mut old = in_use.source().prepare(&self.spaces, &self.config)?;
        shadow::compare(&mut *new.backend, &mut *old.backend, &observations, &self.spaces)
    }

    fn roll_back(&mut self) -> Result<(), Unsent> {
        self.handover.send(SwapRequest::RollBack, PATIENCE)?;
        self.kept.swap(0, 1);
        self.trial = None;
        Ok(())
    }

    /// Looks after the policy on trial and after the learner that goes on from one. Called again and again.
    pub(super) fn watch(&mut self) {
        self.take_offered();
        if self.adopting && !self.shared.adopting.load(Acquire) {
            (self.adopting, self.held) = (false, false);
        }
        let Some(on_trial) = &mut self.trial else { return };
        let counters = &self.shared.counters;
        if counters.refused_policies.load(Relaxed) > on_trial.refused_before {
            // The loop has handed it back: it was never in use.
            self.held = on_trial.held_before;
            self.kept.swap(0, 1);
            self.trial = None;
            return;
        }
        let now = Counted {
            generation: counters.generation.load(Relaxed),
            steps: counters.steps.load(Relaxed),
            limited: counters.limited_actions.load(Relaxed),
            bad: counters.bad_actions.load(Relaxed),
        };
        let returns: Vec<_> = lock(&self.shared.returns).iter().copied().collect();
        match on_trial.trial.look(now, &returns) {
            Verdict::Open => {}
            Verdict::Passed => self.passed(),
            Verdict::Collapsed(reason) => self.collapsed(reason),
        }
    }

    /// The newest policy of a learner elsewhere comes as every policy from outside. It waits while an operator's choice is
    /// held and while the one before is on trial.
    fn take_offered(&mut self) {
        if self.held || self.trial.is_some() {
            return;
        }
        let Some(folder) = lock(&self.shared.offered).take() else { return };
        match self.swap(&folder, self.swap.at, false, false) {
            Ok(_) => self.held = false,
            Err(reason) => self.shared.tell(Event::Refused { reason: format!("the learner's policy: {reason}") }),
        }
        remove(&folder);
    }

    fn passed(&mut self) {
        let Some(OnTrial { adopt, .. }) = self.trial.take() else { return };
        if let Some(weights) = adopt {
            *lock(&self.shared.adoption) = Some(weights);
            self.shared.adopting.store(true, Release);
            self.adopting = true;
        }
    }

    /// Back to the policy before, once: that one is not on trial.
    fn collapsed(&mut self, reason: String) {
        let held_before = self.trial.as_ref().is_some_and(|on_trial| on_trial.held_before);
        let generation = self.generation;
        match self.roll_back() {
            Ok(()) => {
                self.held = held_before;
                self.shared.tell(Event::RolledBack { generation, reason });
            }
            Err(_) => log::warn!("generation {generation} has collapsed, but {BUSY}; asked again"),
        }
    }
}
