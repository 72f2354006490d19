//! What a swap of policies costs the control thread while a learner works.

use std::sync::atomic::Ordering::Relaxed;
use std::thread::Builder;
use std::time::Duration;

use serde::Serialize;

use super::rig::{BusyLearner, Rig, ensemble, spaces};
use crate::clock::{Clock, precise};
use crate::config::{Overrun, PolicyConfig, RealtimeConfig};
use crate::control::{ControlLoop, Offer, Pacer, SwapRequest};
use crate::nn::weights::ActorWeights;
use crate::policy::{PolicyBackend, PolicyError, PolicyOutput, prepare};
use crate::runtime::parts::RuntimeError;
use crate::runtime::rights;
use crate::spaces::{StepFlags, StepRecord};
use crate::telemetry::{ControlCounters, Histogram, LatencySummary};

/// What to measure.
#[derive(Clone, Debug)]
pub struct SwapOptions {
    /// Ticks per second.
    pub hz: f64,
    /// Policies to swap in, at most one per tick.
    pub swaps: u64,
    /// Processor of the loop; -1: the last one.
    pub cpu: i32,
    /// Whether a learner works on the other processors; its policies are then swapped in.
    pub learner: bool,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct SwapReport {
    /// Policies taken over.
    pub swaps: u64,
    /// Ticks.
    pub ticks: u64,
    /// Wall time.
    pub seconds: f64,
    /// Updates of the learner in that time.
    pub learner_updates: u64,
    /// Deadlines that passed during a tick.
    pub late_ticks: u64,
    /// Those during a tick that took a policy over and that the machine had woken in time, within its period.
    pub late_ticks_by_a_swap: u64,
    /// Nanoseconds of the control thread per swap, without the first run: median.
    pub exchange_p50_ns: u64,
    /// 99 of 100.
    pub exchange_p99_ns: u64,
    /// The longest.
    pub exchange_max_ns: u64,
    /// First run of the new policy on the control thread.
    pub first_run: LatencySummary,
    /// Wake-up of the control thread.
    pub wake: LatencySummary,
    /// Applied actions that were compared with the policy of the generation in their record.
    pub actions_checked: u64,
    /// Those that another generation computed.
    pub mixed_generations: u64,
    /// Whether a roll-back was in force one tick after it was asked for.
    pub rolled_back_in_one_tick: bool,
    /// Page faults of the control thread after its first tick.
    pub page_faults: u64,
    /// Real-time settings that the machine refused.
    pub refused_settings: Vec<String>,
}

/// A policy that shows its generation in the first entry of its action.
struct Marked {
    inner: Box<dyn PolicyBackend>,
    generation: u32,
}

/// Before `tanh`; a thousand values that `tanh` keeps apart.
fn mark(generation: u32) -> f32 {
    (generation % 1000) as f32 / 1000.0 - 0.5
}

impl PolicyBackend for Marked {
    fn infer(&mut self, observation: &[f32], image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        self.inner.infer(observation, image, out)?;
        out.mean[0] = mark(self.generation);
        Ok(())
    }

    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    fn observation_dim(&self) -> usize {
        self.inner.observation_dim()
    }

    fn action_dim(&self) -> usize {
        self.inner.action_dim()
    }
}

fn offer(actor: &ActorWeights, generation: u32) -> Result<Offer, RuntimeError> {
    let inner = prepare(actor, &spaces(), &PolicyConfig::default())?.backend;
    Ok(Offer { policy: Box::new(Marked { inner, generation }), generation })
}

/// Swaps policies into a running control loop as fast as it takes them.
///
/// # Errors
/// When the control loop or the learner cannot be built, or the loop stops.
pub fn measure_swaps(options: &SwapOptions) -> Result<SwapReport, RuntimeError> {
    let cpu = if options.cpu < 0 { rights::last_processor() } else { options.cpu };
    rights::stay_off(cpu.max(0) as usize);
    let weights = ensemble()?;
    let mut actor = weights.actor.clone();
    let period = Duration::from_secs_f64(1.0 / options.hz);
    let Rig { mut control, mut handover, mut steps, counters } = Rig::new(period, offer(&actor, 0)?)?;
    let learner = options.learner.then(|| BusyLearner::start(&weights, cpu)).transpose()?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let begin = precise();
    let (mut checked, mut mixed) = (0, 0);
    let mut check = |record: &StepRecord| {
        if !record.flags.contains(StepFlags::OBSERVATION_ONLY) {
            checked += 1;
            mixed += u64::from(record.action.first() != Some(&mark(record.policy_generation).tanh()));
        }
    };
    let (looped, rolled_back) = std::thread::scope(|scope| {
        let looping = Builder::new().name("control".into()).spawn_scoped(scope, || {
            let rights = rights::acquire(&RealtimeConfig { cpu, ..RealtimeConfig::default() });
            control.tick()?;
            let before = rights::page_faults();
            let late = drive(&mut control, &counters, period, &stop);
            let faults = rights::page_faults().zip(before).map_or(0, |(after, before)| after - before);
            control.finish();
            Ok::<_, RuntimeError>((late?, faults, rights.refused.clone()))
        });
        let looping = looping.map_err(RuntimeError::file("control".as_ref()))?;
        let mut publish = || {
            for generation in 1..=options.swaps as u32 {
                if let Some(newest) = learner.as_ref().and_then(|l| l.actors.try_recv().ok()) {
                    actor = newest;
                }
                let offer = offer(&actor, generation)?;
                if handover.send(SwapRequest::Offer(offer), Duration::from_secs(2)).is_err() {
                    break;
                }
                while let Some(record) = steps.pop() {
                    check(&record);
                }
            }
            Ok::<_, RuntimeError>(roll_back(&mut handover, &counters, period))
        };
        let rolled_back = publish();
        stop.store(true, Relaxed);
        let looped = looping.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, RuntimeError>((looped, rolled_back?))
    })?;
    while let Some(record) = steps.pop() {
        check(&record);
    }
    let ((late_ticks, late_ticks_by_a_swap), page_faults, refused_settings) = looped;
    let ns = |histogram: &Histogram, share| histogram.quantile(share).as_nanos() as u64;
    Ok(SwapReport {
        swaps: counters.swaps.load(Relaxed),
        ticks: counters.ticks.load(Relaxed),
        seconds: precise().saturating_sub(begin).as_secs_f64(),
        learner_updates: learner.map_or(0, BusyLearner::finish),
        late_ticks,
        late_ticks_by_a_swap,
        exchange_p50_ns: ns(&counters.swap_exchange, 0.5),
        exchange_p99_ns: ns(&counters.swap_exchange, 0.99),
        exchange_max_ns: counters.swap_exchange.longest().as_nanos() as u64,
        first_run: LatencySummary::from(&counters.swap_first_run),
        wake: counters.latency(),
        actions_checked: checked,
        mixed_generations: mixed,
        rolled_back_in_one_tick: rolled_back,
        page_faults,
        refused_settings,
    })
}

/// Ticks until `stop`; late deadlines in all ticks, and in those that were woken in time and took a policy over.
fn drive(
    control: &mut ControlLoop,
    counters: &ControlCounters,
    period: Duration,
    stop: &std::sync::atomic::AtomicBool,
) -> Result<(u64, u64), RuntimeError> {
    let clock = Clock::Monotonic;
    let mut pacer = Pacer::new(clock.now().plus(period), period, Overrun::Skip);
    let (mut late, mut late_by_a_swap) = (0, 0);
    while !stop.load(Relaxed) {
        let wake = pacer.wait(&clock);
        let (begin, swaps) = (clock.now(), counters.swaps.load(Relaxed));
        control.tick()?;
        let end = clock.now();
        counters.tick(wake, end.since(begin));
        let missed = pacer.advance(end);
        late += missed;
        late_by_a_swap += if counters.swaps.load(Relaxed) > swaps && wake < period { missed } else { 0 };
    }
    Ok((late, late_by_a_swap))
}

/// Whether the policy before is in use after the first tick that ends after the request.
fn roll_back(handover: &mut crate::control::PolicyHandover, counters: &ControlCounters, period: Duration) -> bool {
    let clock = Clock::Monotonic;
    // Whatever was offered before is taken in the meantime.
    clock.sleep_until(clock.now().plus(5 * period));
    let (before, ticks) = (counters.generation.load(Relaxed), counters.ticks.load(Relaxed));
    if before == 0 || handover.send(SwapRequest::RollBack, Duration::ZERO).is_err() {
        return false;
    }
    // A tick that was under way may end without having seen it.
    while counters.ticks.load(Relaxed) < ticks + 2 {
        clock.sleep_until(clock.now().plus(period / 10));
    }
    counters.generation.load(Relaxed) + 1 == before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_at_full_rate_mix_no_generations_and_roll_back_in_one_tick() {
        let report = measure_swaps(&SwapOptions { hz: 200.0, swaps: 100, cpu: -1, learner: false }).unwrap();
        assert_eq!(report.swaps, 100, "{report:?}");
        assert_eq!(report.mixed_generations, 0, "{report:?}");
        assert!(report.actions_checked >= 100, "{report:?}");
        assert!(report.rolled_back_in_one_tick, "{report:?}");
    }
}
