//! Processor time of one Off2OnRL update; `cargo test --release update_speed -- --ignored --nocapture`.

use candle_core::{Device, Result, Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::actor::ActorOperator;
use super::critic::{EntropyTerm, TargetOperator};
use super::density_ratio::OutputActivation;
use super::{actor, critic, density_ratio, entropy, state_action};
use crate::nn::{Adam, AdamSettings, Init, LogStdBounds, Stack, polyak, tanh_gaussian};

/// Members, observation and action length, batch.
const N: usize = 5;
const O: usize = 17;
const A: usize = 6;
const B: usize = 256;

struct Learner {
    actor: Stack,
    critics: [Stack; 2],
    targets: [Stack; 2],
    density: Stack,
    log_alpha: Var,
    optimisers: [Adam; 5],
}

/// Rows and noise of one update.
struct Rows {
    observation: Tensor,
    action: Tensor,
    next_observation: Tensor,
    reward: Tensor,
    terminated: Tensor,
    noise: [Tensor; 2],
    online: Tensor,
    offline: Tensor,
}

impl Rows {
    fn random(device: &Device) -> Result<Self> {
        let normal = |width: usize| Tensor::randn(0f32, 1f32, (B, width), device);
        Ok(Self {
            observation: normal(O)?,
            action: normal(A)?.tanh()?,
            next_observation: normal(O)?,
            reward: normal(1)?.squeeze(1)?,
            terminated: Tensor::zeros(B, candle_core::DType::F32, device)?,
            noise: [normal(A)?, normal(A)?],
            online: normal(O + A)?,
            offline: normal(O + A)?,
        })
    }
}

impl Learner {
    fn new(threads: usize, device: &Device) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut stack = |members, dims: &[usize], last_bias| {
            let init = Init { last_bias, layer_norm: false };
            Ok::<_, candle_core::Error>(Stack::random(members, dims, init, &mut rng, device)?.with_threads(threads))
        };
        let actor = stack(N, &[O, 256, 256, 2 * A], None)?;
        let critics = [stack(N, &[O + A, 256, 256, 1], None)?, stack(N, &[O + A, 256, 256, 1], None)?];
        let targets = [stack(N, &[O + A, 256, 256, 1], None)?, stack(N, &[O + A, 256, 256, 1], None)?];
        let density = stack(1, &[O + A, 256, 256, 1], Some(1.0))?;
        let log_alpha = Var::new(0f32, device)?;
        let adam = |vars| Adam::new(vars, AdamSettings::default());
        let optimisers = [
            adam(actor.vars())?,
            adam(critics[0].vars())?,
            adam(critics[1].vars())?,
            adam(density.vars())?,
            adam(vec![log_alpha.clone()])?,
        ];
        Ok(Self { actor, critics, targets, density, log_alpha, optimisers })
    }

    fn update(&mut self, rows: &Rows) -> Result<(f32, f32)> {
        let bounds = LogStdBounds::default();
        let alpha = self.log_alpha.as_detached_tensor().exp()?;
        let x = state_action(&rows.observation, &rows.action)?;
        let ratio = |x: &Tensor| density_ratio::ratio(x, OutputActivation::Relu);
        let all = Tensor::cat(&[&rows.online, &rows.offline, &x], 0)?;
        let w = ratio(&self.density.forward(&all)?.flatten_all()?)?;
        let (online, offline) = (w.narrow(0, 0, B)?, w.narrow(0, B, B)?);
        let priorities = density_ratio::priorities(&w.narrow(0, 2 * B, B)?, &offline, 5.0, 1e-3, 1e3)?;
        assert_eq!(priorities.len(), B);
        let density_gradients = density_ratio::loss(&online, &offline)?.backward()?;

        let (mean, std) = tanh_gaussian::moments(&self.actor.forward_detached(&rows.next_observation)?, bounds)?;
        let next = tanh_gaussian::sample(&mean, &std, &rows.noise[0])?;
        let x2 = state_action(&rows.next_observation, &next.action)?;
        let [t1, t2] = [&self.targets[0], &self.targets[1]].map(|t| t.forward_detached(&x2)?.squeeze(2));
        let value = critic::next_value(&t1?, &t2?, &TargetOperator::OwnTwinMin)?;
        let term = EntropyTerm { temperature: &alpha, next_log_prob: &next.log_prob };
        let target = critic::td_target(&rows.reward, &rows.terminated, &value, Some(term), 0.99)?;
        let [q1, q2] = [&self.critics[0], &self.critics[1]].map(|c| c.forward(&x)?.squeeze(2));
        let critic_loss = critic::loss(&q1?, &q2?, &target)?;
        let critic_gradients = critic_loss.backward()?;

        let (mean, std) = tanh_gaussian::moments(&self.actor.forward(&rows.observation)?, bounds)?;
        let now = tanh_gaussian::sample(&mean, &std, &rows.noise[1])?;
        let xp = state_action(&rows.observation, &now.action)?;
        let [p1, p2] = [&self.critics[0], &self.critics[1]].map(|c| c.forward_frozen(&xp)?.squeeze(2));
        let value = actor::value(&p1?, &p2?, ActorOperator::MeanOfTwinMin)?;
        let actor_loss = actor::loss(&alpha, &now.log_prob, &value)?;
        let actor_gradients = actor_loss.backward()?;
        let temperature_gradients = entropy::loss(&self.log_alpha, &now.log_prob, -(A as f64))?.backward()?;

        let [a, c1, c2, d, t] = &mut self.optimisers;
        t.step(&temperature_gradients)?;
        a.step(&actor_gradients)?;
        c1.step(&critic_gradients)?;
        c2.step(&critic_gradients)?;
        d.step(&density_gradients)?;
        for (target, online) in self.targets.iter().zip(&self.critics) {
            polyak(target, online, 0.005)?;
        }
        Ok((critic_loss.to_scalar()?, actor_loss.to_scalar()?))
    }
}

fn milliseconds(clock: rustix::time::ClockId) -> f64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 * 1e-6
}

#[test]
#[ignore = "a measurement, not a promise: figures depend on the machine"]
fn one_update() {
    let clocks = [rustix::time::ClockId::ProcessCPUTime, rustix::time::ClockId::Monotonic];
    let rows = Rows::random(&Device::Cpu).unwrap();
    for threads in [1, 2] {
        let mut learner = Learner::new(threads, &Device::Cpu).unwrap();
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..60 {
            let start = clocks.map(milliseconds);
            learner.update(&rows).unwrap();
            for ((times, clock), start) in times.iter_mut().zip(clocks).zip(start) {
                times.push(milliseconds(clock) - start);
            }
        }
        for times in &mut times {
            times.sort_by(f64::total_cmp);
        }
        let [cpu, wall] = times.map(|t| t[30]);
        eprintln!("{threads} threads: {cpu:.1} ms of processor time per update, {wall:.1} ms by the clock (medians)");
    }
}

#[test]
fn two_threads_compute_the_same_bits() {
    let rows = Rows::random(&Device::Cpu).unwrap();
    let [one, two] = [1, 2].map(|threads| {
        let mut learner = Learner::new(threads, &Device::Cpu).unwrap();
        let losses: Vec<(f32, f32)> = (0..3).map(|_| learner.update(&rows).unwrap()).collect();
        (losses, learner.actor.to_weights().unwrap(), learner.critics[0].to_weights().unwrap())
    });
    assert!(one == two);
    assert!(one.1.is_finite() && one.0[2] != one.0[0]);
}
