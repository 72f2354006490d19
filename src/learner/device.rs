//! Where the learner works: on the processor or on a GPU, whichever makes an update in less time. Whole updates at the
//! sizes of the run, so that what a GPU cannot do is known, and what its driver compiles or loads at the first use of an
//! operation is there, before a robot moves.

use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;

use super::LearnerError;
use super::batch::Dims;
use super::streams::stream;
use super::update::Learner;
use crate::clock;
use crate::config::{DeviceKind, LearnerConfig, ReplayConfig};
use crate::kernels;
use crate::nn::EnsembleWeights;
use crate::replay::{Layout, Replay, ReplayError, Seen, Store};
use crate::spaces::{FrameShape, StepRecord};

/// Updates that a device makes before it is timed, and timed ones, of which the median counts.
const UPDATES: (usize, usize) = (2, 5);

/// What [`choose`] decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The processor or the GPU, never "auto".
    pub device: DeviceKind,
    /// Why, in a sentence with the times.
    pub why: String,
}

/// The device for `learner.device`: with "auto" a learner as configured makes some updates on either, on random
/// transitions, and the faster one counts; with "cuda" it makes them on the GPU.
///
/// # Errors
/// When the configured device, or with "auto" not even the processor, can make an update.
pub fn choose(
    weights: &EnsembleWeights,
    dims: Dims,
    config: &LearnerConfig,
    replay: &ReplayConfig,
) -> Result<Chosen, LearnerError> {
    let on = |device| time(weights, dims, &LearnerConfig { device, ..config.clone() }, replay);
    match config.device {
        DeviceKind::Auto => Ok(decide(on(DeviceKind::Cpu)?, on(DeviceKind::Cuda))),
        DeviceKind::Cpu => {
            Ok(Chosen { device: DeviceKind::Cpu, why: "the learner works on the processor, as configured".into() })
        }
        DeviceKind::Cuda => {
            let why =
                format!("the learner works on the GPU, as configured: an update takes {}", ms(on(DeviceKind::Cuda)?));
            Ok(Chosen { device: DeviceKind::Cuda, why })
        }
    }
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn decide(cpu: Duration, gpu: Result<Duration, LearnerError>) -> Chosen {
    let (device, why) = match gpu {
        Ok(gpu) => {
            let device = if gpu < cpu { DeviceKind::Cuda } else { DeviceKind::Cpu };
            (device, format!("an update takes {} on the processor and {} on the GPU", ms(cpu), ms(gpu)))
        }
        Err(error) => (DeviceKind::Cpu, format!("an update takes {}, and there is no GPU to use: {error}", ms(cpu))),
    };
    Chosen { device, why: format!("the learner works on the {}: {why}", name(device)) }
}

fn name(device: DeviceKind) -> &'static str {
    match device {
        DeviceKind::Cuda => "GPU",
        DeviceKind::Cpu | DeviceKind::Auto => "processor",
    }
}

/// Time of an update by the clock.
fn time(
    weights: &EnsembleWeights,
    dims: Dims,
    config: &LearnerConfig,
    replay: &ReplayConfig,
) -> Result<Duration, LearnerError> {
    let config = LearnerConfig { carry_optimiser: std::path::PathBuf::new(), ..config.clone() };
    let mut learner = Learner::new(weights, dims, &config, replay, 0)?;
    let time = try_out(&mut learner, weights, dims, replay);
    let device = learner.device.clone();
    drop(learner);
    kernels::release(&device);
    time
}

/// Time of an update of `learner` on random transitions.
fn try_out(
    learner: &mut Learner,
    weights: &EnsembleWeights,
    dims: Dims,
    replay: &ReplayConfig,
) -> Result<Duration, LearnerError> {
    let frame = weights.actor.eyes.as_ref().map(|eyes| eyes.shape);
    let rows = learner.config.batch_size.max(if frame.is_some() { 64 } else { 1000 }) as u32;
    let replay = Replay::new(Some(random_store(dims, frame, rows, 1)?), random_store(dims, frame, rows, 2)?, replay)?;
    let replay = Mutex::new(replay);
    for _ in 0..UPDATES.0 {
        learner.update(&replay)?;
    }
    let mut times = Vec::new();
    for _ in 0..UPDATES.1 {
        let start = clock::precise();
        learner.update(&replay)?;
        times.push(clock::precise().saturating_sub(start));
    }
    times.sort_unstable();
    Ok(times[UPDATES.1 / 2])
}

/// A buffer in memory with random transitions, with images if `frame` is given, in episodes of a thousand.
///
/// # Errors
/// When there is no memory for it.
pub fn random_store(dims: Dims, frame: Option<FrameShape>, transitions: u32, seed: u64) -> Result<Store, ReplayError> {
    let layout = Layout { observation_dim: dims.observation, action_dim: dims.action, schema_hash: 0 };
    let mut store = Store::in_memory_with_frames(layout, u64::from(transitions) + 1, frame)?;
    let mut pixels = vec![0; frame.map_or(0, FrameShape::bytes)];
    let rng = &mut stream(seed, "measurement data");
    for step in 0..transitions {
        let mut record =
            StepRecord { episode: step / 1000, step: step % 1000, reward: rng.random(), ..StepRecord::default() };
        record.observation.extend((0..dims.observation).map(|_| rng.random_range(-1.0..1.0f32)));
        record.action.extend((0..dims.action).map(|_| rng.random_range(-1.0..1.0f32)));
        if frame.is_some() {
            rng.fill(&mut pixels[..]);
            store.append_with_frame(&record, Seen::New { pixels: &pixels, capture_ns: 0 })?;
        } else {
            store.append(&record)?;
        }
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::config::{PretrainConfig, TrunkKind};
    use crate::kernels::NoDevice;
    use crate::learner::pretrain::Pretrainer;
    use crate::nn::{ActorWeights, Init, Stack};

    fn weights() -> EnsembleWeights {
        let stack = |inputs, outputs| {
            let rng = &mut stream(1, "device");
            Stack::random(2, &[inputs, 8, outputs], Init::default(), rng, &Device::Cpu).unwrap().to_weights().unwrap()
        };
        EnsembleWeights {
            actor: ActorWeights { stack: stack(3, 4), ..ActorWeights::default() },
            critic1: stack(5, 1),
            critic2: stack(5, 1),
            ..EnsembleWeights::default()
        }
    }

    #[test]
    fn the_faster_device_is_chosen_and_both_times_are_told() {
        let ms = Duration::from_millis;
        let gpu = decide(ms(20), Ok(ms(3)));
        assert_eq!(gpu.device, DeviceKind::Cuda);
        assert!(gpu.why.contains("20.00 ms") && gpu.why.contains("3.00 ms") && gpu.why.contains("GPU:"), "{gpu:?}");
        let cpu = decide(ms(2), Ok(ms(3)));
        assert_eq!(cpu.device, DeviceKind::Cpu);
        assert!(cpu.why.contains("2.00 ms") && cpu.why.contains("3.00 ms"), "{cpu:?}");
    }

    #[test]
    fn without_a_gpu_the_processor_works_and_says_why() {
        let dims = Dims { observation: 3, action: 2 };
        let with =
            |device| LearnerConfig { device, batch_size: 16, density_hidden: vec![8], ..LearnerConfig::default() };
        let chosen = choose(&weights(), dims, &with(DeviceKind::Auto), &ReplayConfig::default()).unwrap();
        if chosen.device == DeviceKind::Cpu {
            assert!(chosen.why.starts_with("the learner works on the processor: an update takes"), "{chosen:?}");
        }
        let kept = choose(&weights(), dims, &with(DeviceKind::Cpu), &ReplayConfig::default()).unwrap();
        assert_eq!((kept.device, kept.why.contains("ms")), (DeviceKind::Cpu, false));
        // Asked for by name, a GPU is tried as well, and its absence is no reason to take the processor.
        match choose(&weights(), dims, &with(DeviceKind::Cuda), &ReplayConfig::default()) {
            Ok(found) => assert!(found.device == DeviceKind::Cuda && found.why.contains("ms"), "{found:?}"),
            Err(error) => assert!(matches!(error, LearnerError::Device(_)), "{error}"),
        }
    }

    #[test]
    fn a_learner_that_sees_is_timed_as_well() {
        let frame = FrameShape { width: 12, height: 10, channels: 3 };
        let dims = Dims { observation: 2, action: 1 };
        for trunk in [TrunkKind::Shared, TrunkKind::Separate] {
            let config = LearnerConfig {
                trunk,
                trunk_channels: vec![3, 3],
                trunk_features: 8,
                batch_size: 8,
                device: DeviceKind::Auto,
                density_hidden: vec![8],
                ..LearnerConfig::default()
            };
            let sizes = PretrainConfig { ensemble_size: 2, hidden: vec![8], ..PretrainConfig::default() };
            let on_processor = LearnerConfig { device: DeviceKind::Cpu, ..config.clone() };
            let weights = Pretrainer::seeing(Some(frame), dims, &sizes, &on_processor, 1).unwrap().weights().unwrap();
            let chosen = choose(&weights, dims, &config, &ReplayConfig::default()).unwrap();
            assert!(chosen.why.contains("an update takes") && chosen.why.contains(" ms"), "{chosen:?}");
        }
    }

    #[test]
    fn a_gpu_without_memory_is_no_gpu_to_use() {
        let full = || LearnerError::tensor("step")(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into()));
        assert!(matches!(full(), LearnerError::Device(NoDevice::Memory)));
        let chosen = decide(Duration::from_millis(2), Err(full()));
        assert!(chosen.device == DeviceKind::Cpu && chosen.why.contains("no memory left"), "{chosen:?}");
    }
}
