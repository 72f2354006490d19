//! A run on simulated time: the same parts as in [`super::realtime`], one after the other on one thread.
//!
//! Every step waits for the robot's answer, then the updates due are done, then a new policy is handed over; so
//! the same seed gives the same bytes, however busy the machine is.

use std::sync::atomic::Ordering::Relaxed;

use super::run::{Ended, Outlet, Work};
use super::trainer::Trainer;
use crate::clock;

/// Steps until the run is complete, stopped or faulted.
pub(super) fn drive(work: Work, outlet: &mut Outlet<'_>) -> Ended {
    let Work {
        mut control,
        mut steps,
        mut recorder,
        mut trainer,
        mut publisher,
        asked,
        shared,
        period,
        clock,
        last_step,
    } = work;
    let mut stopped = None;
    let mut failed = false;
    while !shared.stopping() && shared.counters.steps.load(Relaxed) < last_step {
        let begin = clock::monotonic();
        if let Err(fault) = control.tick() {
            control.stop();
            stopped = Some(fault);
            break;
        }
        shared.counters.tick(std::time::Duration::ZERO, clock::monotonic().since(begin));
        clock.advance(period);
        while let Some(record) = steps.pop() {
            recorder.take(&record);
        }
        publisher.watch();
        if trainer.as_mut().is_some_and(Trainer::adopt) {
            shared.adopting.store(false, Relaxed);
        }
        let mut latest = None;
        while let Some(trainer) = trainer.as_mut().filter(|t| !failed && t.due() > 0 && !shared.stopping()) {
            match trainer.update() {
                Ok(actor) => latest = actor.or(latest),
                Err(error) => {
                    failed = true;
                    shared.fail(format!("the learner stopped, the policy in use stays: {error}"));
                }
            }
            outlet.pump(&shared);
        }
        if let Some(actor) = latest {
            publisher.publish(&actor);
        }
        while let Ok((request, reply)) = asked.try_recv() {
            let _ = reply.send(publisher.answer(&request));
        }
        outlet.pump(&shared);
    }
    control.finish();
    while let Some(record) = steps.pop() {
        recorder.take(&record);
    }
    recorder.sync();
    outlet.pump(&shared);
    Ended { trainer: trainer.filter(|_| !failed), stopped }
}
