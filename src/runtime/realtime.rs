//! A run on the machine's clock: one thread each for control, recording, learning, publishing and the socket.
//!
//! Shutdown order: control (the robot is disarmed or stopped), recorder (queue drained, synced), learner
//! (checkpoint), publisher, socket. A panic in any thread is reported; only the control thread's ends the run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::parts::{RuntimeError, Shared, lock};
use super::publisher::Publisher;
use super::recorder::Recorder;
use super::rights;
use super::run::{Ended, Outlet, Work};
use super::socket::Asked;
use super::trainer::Trainer;
use crate::clock::{Clock, Stamp};
use crate::config::{Overrun, RealtimeConfig};
use crate::control::{ControlLoop, Fault, Pacer, StepConsumer};
use crate::nn::weights::ActorWeights;

/// How often idle threads look at the wish to stop.
pub(super) const IDLE: Duration = Duration::from_millis(20);

/// Starts a named thread whose panic is reported instead of lost.
pub(super) fn spawn<T: Send + 'static>(
    name: &'static str,
    shared: &Arc<Shared>,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<Option<T>>, RuntimeError> {
    let shared = Arc::clone(shared);
    let guarded = move || {
        let outcome = catch_unwind(AssertUnwindSafe(body)).ok();
        if outcome.is_none() {
            shared.fail(format!("the {name} thread panicked"));
        }
        outcome
    };
    Builder::new().name(name.into()).spawn(guarded).map_err(RuntimeError::file(name.as_ref()))
}

/// Runs until complete, stopped or faulted.
pub(super) fn drive(work: Work, config: &RealtimeConfig, outlet: &mut Outlet<'_>) -> Result<Ended, RuntimeError> {
    let Work { control, steps, recorder, trainer, publisher, asked, shared, period, clock, last_step } = work;
    let replay = recorder.replay();
    let (wake, woken) = bounded(1);
    let (snapshots, fresh) = bounded(1);
    let (granted, rights) = bounded(1);

    let recording = {
        let shared = Arc::clone(&shared);
        spawn("recorder", &shared.clone(), move || record(steps, recorder, &shared, &wake))?
    };
    let learning = trainer.map(|trainer| {
        let (shared, newest) = (Arc::clone(&shared), (snapshots, fresh.clone()));
        spawn("learner", &shared.clone(), move || learn(trainer, &shared, &woken, &newest))
    });
    let publishing = {
        let shared = Arc::clone(&shared);
        spawn("publisher", &shared.clone(), move || publish(publisher, &shared, &fresh, &asked))?
    };
    let controlling = {
        let (shared, config) = (Arc::clone(&shared), config.clone());
        spawn("control", &shared.clone(), move || {
            let rights = rights::acquire(&config);
            shared.refuse(&rights.refused);
            let go_on = rights.refused.is_empty() || !config.required;
            let _ = granted.send(rights.refused.clone());
            if go_on {
                return steer(control, &shared, &clock, period, config.overrun, last_step);
            }
            control.finish();
            None
        })?
    };
    let refused = rights.recv().unwrap_or_default();
    // The control thread locked all memory of the process; the replay may be larger than what can be locked.
    lock(&replay).unlock_memory();
    while !controlling.is_finished() {
        outlet.wait(&shared);
    }
    let stopped = controlling.join().ok().flatten().flatten();
    shared.stop.store(true, Relaxed);
    let _ = recording.join();
    let trainer = learning.transpose()?.and_then(|t| t.join().ok().flatten().flatten());
    let _ = publishing.join();
    outlet.pump(&shared);
    if config.required && !refused.is_empty() {
        return Err(RuntimeError::Rights(refused));
    }
    Ok(Ended { trainer, stopped })
}

/// The control thread.
fn steer(
    mut control: ControlLoop,
    shared: &Shared,
    clock: &Clock,
    period: Duration,
    overrun: Overrun,
    last_step: u64,
) -> Option<Fault> {
    let first = match control.find_phase() {
        // Half a period after the robot's own tick: equal room for its lateness and for ours.
        Ok(arrival) => arrival.plus(period / 2),
        Err(fault) => {
            control.stop();
            return Some(fault);
        }
    };
    let mut pacer = Pacer::new(first, period, overrun);
    // The first tick touches everything; what faults later is counted.
    let mut fault = pace(&mut control, shared, clock, &mut pacer, last_step, 1).err();
    if fault.is_none() {
        let before = rights::page_faults();
        fault = pace(&mut control, shared, clock, &mut pacer, last_step, u64::MAX).err();
        let faults = rights::page_faults().zip(before).map_or(0, |(after, before)| after - before);
        shared.counters.page_faults.store(faults, Relaxed);
    }
    if fault.is_some() {
        control.stop();
    } else {
        control.finish();
    }
    fault
}

/// At most `ticks` ticks.
fn pace(
    control: &mut ControlLoop,
    shared: &Shared,
    clock: &Clock,
    pacer: &mut Pacer,
    last_step: u64,
    ticks: u64,
) -> Result<(), Fault> {
    let counters = &shared.counters;
    for _ in 0..ticks {
        if shared.stopping() || counters.steps.load(Relaxed) >= last_step {
            break;
        }
        let wake = pacer.wait(clock);
        let begin: Stamp = clock.now();
        control.tick()?;
        let end = clock.now();
        counters.tick(wake, end.since(begin));
        if let Some(age) = control.age() {
            pacer.follow(age);
        }
        counters.late.fetch_add(pacer.advance(end), Relaxed);
    }
    Ok(())
}

fn record(mut steps: StepConsumer, mut recorder: Recorder, shared: &Shared, wake: &Sender<()>) {
    loop {
        // Read before draining: what was queued before the wish to stop is still taken.
        let last_round = shared.stopping();
        let mut stepped = false;
        while let Some(record) = steps.pop() {
            stepped |= recorder.take(&record);
        }
        if stepped {
            let _ = wake.try_send(());
        }
        if last_round {
            return recorder.sync();
        }
        Clock::Monotonic.sleep_until(Clock::Monotonic.now().plus(Duration::from_millis(2)));
    }
}

/// The learner's way to the publisher: the newest snapshot replaces one that still waits.
pub(super) type Newest = (Sender<ActorWeights>, Receiver<ActorWeights>);

pub(super) fn learn(mut trainer: Trainer, shared: &Shared, woken: &Receiver<()>, newest: &Newest) -> Option<Trainer> {
    while !shared.stopping() {
        if trainer.adopt() {
            // A snapshot of the networks before must not follow.
            let _ = newest.1.try_recv();
            shared.adopting.store(false, Release);
        }
        let rest = trainer.rest().unwrap_or(IDLE);
        if !rest.is_zero() {
            let _ = woken.recv_timeout(rest.min(IDLE));
            continue;
        }
        match trainer.update() {
            Ok(Some(actor)) => {
                let _ = newest.1.try_recv();
                let _ = newest.0.try_send(actor);
            }
            Ok(None) => {}
            Err(error) => {
                shared.fail(format!("the learner stopped, the policy in use stays: {error}"));
                return None;
            }
        }
    }
    Some(trainer)
}

fn publish(mut publisher: Publisher, shared: &Shared, fresh: &Receiver<ActorWeights>, asked: &Receiver<Asked>) {
    while !shared.stopping() {
        publisher.watch();
        select! {
            recv(fresh) -> actor => match actor {
                Ok(actor) => publisher.publish(&actor),
                Err(_) => Clock::Monotonic.sleep_until(Clock::Monotonic.now().plus(IDLE)),
            },
            recv(asked) -> request => if let Ok((request, reply)) = request {
                let _ = reply.send(publisher.answer(&request));
            },
            default(IDLE) => {}
        }
    }
}
