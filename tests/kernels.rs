//! The kernels against the plain formulas: values and gradients on random numbers and odd sizes. Compiled for the
//! processor they run in both orders of execution, and their results start as NaN, so what a kernel leaves out is seen;
//! with the feature `cuda` and a GPU they run there as well.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says what it skips")]

mod learner_problem;

use std::sync::{Mutex, Once, OnceLock, PoisonError};

use candle_core::{DType, Device, Result, Tensor, Var};
use fieldtune::config::{
    DeviceKind, LearnerConfig, OutputActivation, PretrainConfig, SamplerKind, TargetKind, TrunkKind,
};
use fieldtune::kernels::{self, Order, Staging, on_host};
use fieldtune::learner::pretrain::Pretrainer;
use fieldtune::learner::{Learner, UpdateMetrics, random_store, stream};
use fieldtune::nn::{Adam, AdamSettings, EnsembleWeights, Init, LogStdBounds, Stack, tanh_gaussian};
use fieldtune::replay::Replay;
use fieldtune::rl::actor::{self, ActorOperator};
use fieldtune::rl::critic::{self, EntropyTerm, TargetOperator};
use fieldtune::rl::density_ratio;
use fieldtune::spaces::FrameShape;
use learner_problem::{DIMS, ensemble, learner_config, random_bandit, replay, replay_config};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

const SIZES: [usize; 5] = [1, 31, 33, 256, 1000];

/// Values and gradients of one run.
type Numbers = Vec<Vec<f64>>;

/// The GPU, where there is one.
fn gpu() -> Option<&'static Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let open = || match kernels::open() {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("skipped: kernels on a GPU: {error}");
            None
        }
    };
    GPU.get_or_init(open).as_ref()
}

/// What `work` gives through the kernels: on the processor in both orders, then on the GPU, as far as they are here.
fn everywhere<T>(work: &dyn Fn(&Device) -> T) -> Vec<T> {
    let orders = [Order::Ascending, Order::Descending];
    let mut found: Vec<T> = orders.iter().filter_map(|order| on_host(*order, || work(&Device::Cpu))).collect();
    if found.is_empty() {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            eprintln!("skipped: kernels on the processor (cargo test --features host-kernels, with a C++ compiler)");
        });
    }
    if let Some(device) = gpu() {
        // The tests share the GPU's one stream.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        found.push(work(device));
    }
    found
}

fn rng(name: &str) -> ChaCha8Rng {
    stream(11, name)
}

fn draw(rng: &mut ChaCha8Rng, dims: &[usize], range: std::ops::Range<f32>) -> Tensor {
    let numbers: Vec<f32> = (0..dims.iter().product()).map(|_| rng.random_range(range.clone())).collect();
    Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Outputs of `work`, and the gradients of their weighted sum with respect to its inputs.
fn run(inputs: &[Tensor], like: (DType, &Device), work: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>) -> Numbers {
    let (dtype, device) = like;
    let own = |t: &Tensor| Var::from_tensor(&t.to_dtype(dtype)?.to_device(device)?);
    let vars: Vec<Var> = inputs.iter().map(|t| own(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let outputs = work(&tensors).unwrap();
    let mut found: Numbers = outputs.iter().map(numbers).collect();
    let mut total = Tensor::zeros((), dtype, device).unwrap();
    for output in outputs.iter().filter(|o| o.track_op()) {
        let weights: Vec<f32> = (0..output.elem_count()).map(|i| 0.5 + (i % 7) as f32 * 0.25).collect();
        let weights = Tensor::from_vec(weights, output.shape(), device).unwrap().to_dtype(dtype).unwrap();
        total = (total + (output * weights).unwrap().sum_all().unwrap()).unwrap();
    }
    if total.track_op() {
        let gradients = total.backward().unwrap();
        found.extend(vars.iter().filter_map(|v| gradients.get(v)).map(numbers));
    }
    found
}

/// `work` through the kernels against `work` in double precision without them; a GPU may be ten times as far off,
/// by 1e-4 at most.
fn agree(name: &str, inputs: &[Tensor], tolerance: f64, work: &dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    let want = run(inputs, (DType::F64, &Device::Cpu), work);
    let before = kernels::launches();
    let got = everywhere(&|device| run(inputs, (DType::F32, device), work));
    assert!(got.is_empty() || kernels::launches() > before, "{name}: no kernel ran");
    if let [up, down, ..] = &got[..] {
        assert_eq!(up, down, "{name} depends on the order");
    }
    for (place, got) in got.iter().enumerate() {
        let tolerance = if place < 2 { tolerance } else { (10.0 * tolerance).min(1e-4) };
        near(name, got, &want, tolerance);
    }
}

/// Whether all results agree, in terms of the largest number of each.
fn near(name: &str, got: &Numbers, want: &Numbers, tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{name}, result {index}");
        let largest = want.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= tolerance * largest, "{name}, result {index}: {g} instead of {w}");
        }
    }
}

#[test]
fn density_ratio_and_its_loss() {
    let rng = &mut rng("density");
    for n in SIZES {
        for activation in [OutputActivation::Relu, OutputActivation::Softplus, OutputActivation::Exp] {
            let inputs = [draw(rng, &[n], 0.1..3.0), draw(rng, &[n], 0.1..3.0)];
            agree(&format!("density loss, {activation:?}, {n}"), &inputs, 1e-5, &|x| {
                let (online, offline) =
                    (density_ratio::ratio(&x[0], activation)?, density_ratio::ratio(&x[1], activation)?);
                Ok(vec![density_ratio::loss(&online, &offline)?, online, offline])
            });
            let around_zero = [draw(rng, &[n], -4.0..4.0)];
            agree(&format!("ratio, {activation:?}, {n}"), &around_zero, 1e-5, &|x| {
                Ok(vec![density_ratio::ratio(&x[0], activation)?])
            });
        }
    }
}

#[test]
fn priorities_of_the_density_ratio() {
    let rng = &mut rng("priorities");
    for (n, m) in SIZES.into_iter().zip([33, 1, 1000, 256, 31]) {
        for temperature in [1.0, 5.0] {
            let inputs = [draw(rng, &[n], 0.0..9.0), draw(rng, &[m], 0.0..9.0)];
            agree(&format!("priorities, {n} by {m}"), &inputs, 1e-5, &|x| {
                let found = density_ratio::priorities(&x[0], &x[1], temperature, 0.3, 1.7)?;
                Ok(vec![Tensor::new(&found[..], x[0].device())?])
            });
        }
    }
    let refused = |w: &[f32], offline: &[f32], words: &str| {
        let found = everywhere(&|device| {
            let row = |v: &[f32]| Tensor::new(v, device).unwrap();
            density_ratio::priorities(&row(w), &row(offline), 5.0, 1e-3, 1e3).unwrap_err().to_string()
        });
        assert!(found.iter().all(|message| message.contains(words)), "{found:?}");
    };
    for bad in [f32::NAN, f32::INFINITY] {
        refused(&[1.0, bad], &[1.0], "row 1");
        refused(&[1.0], &[1.0, bad], "offline row");
    }
}

#[test]
fn targets_of_the_critics() {
    let rng = &mut rng("targets");
    let operators = [
        TargetOperator::OwnTwinMin,
        TargetOperator::MeanOfTwinMin,
        TargetOperator::EnsembleMin,
        TargetOperator::Redq { indices: vec![1, 0, 1] },
    ];
    for (members, batch) in [(1, 1), (3, 31), (5, 33), (2, 1000)] {
        for (index, operator) in operators.iter().enumerate() {
            let critics = [members, batch];
            let mut inputs = vec![draw(rng, &critics, -5.0..5.0), draw(rng, &critics, -5.0..5.0)];
            inputs.push(draw(rng, &[batch], -1.0..1.0));
            inputs.push(draw(rng, &[batch], 0.0..1.0).round().unwrap());
            inputs.push(draw(rng, if index % 2 == 0 { &critics[1..] } else { &critics }, -4.0..4.0));
            inputs.push(Tensor::new(0.3f32, &Device::Cpu).unwrap());
            for with_entropy in [true, false] {
                let name = format!("target, {operator:?}, {critics:?}, entropy {with_entropy}");
                agree(&name, &inputs, 1e-6, &|x| {
                    let term = EntropyTerm { temperature: &x[5], next_log_prob: &x[4] };
                    let term = with_entropy.then_some(term);
                    let target = critic::bootstrapped_target((&x[0], &x[1]), operator, &x[2], &x[3], term, 0.97)?;
                    Ok(vec![target.detach()])
                });
            }
        }
    }
    let outside = TargetOperator::Redq { indices: vec![4] };
    let refused = everywhere(&|device| {
        let q = Tensor::ones((2, 3), DType::F32, device).unwrap();
        let row = q.get(0).unwrap();
        critic::bootstrapped_target((&q, &q), &outside, &row, &row, None, 0.9).is_err()
    });
    assert!(refused.iter().all(|refused| *refused));
}

#[test]
fn losses_of_critics_and_actors() {
    let rng = &mut rng("losses");
    for (members, batch) in [(1, 1), (3, 31), (5, 33), (10, 256), (2, 1000)] {
        let mut q = || draw(rng, &[members, batch], -5.0..5.0);
        let inputs = [q(), q(), q()];
        agree(&format!("twin loss, {members} by {batch}"), &inputs[..2], 1e-5, &|x| {
            let target = inputs[2].to_dtype(x[0].dtype())?.to_device(x[0].device())?;
            Ok(vec![critic::loss(&x[0], &x[1], &target)?])
        });
        for operator in [ActorOperator::MeanOfTwinMin, ActorOperator::Min, ActorOperator::Mean] {
            let name = format!("value, {operator:?}, {members} by {batch}");
            agree(&name, &inputs[..2], 1e-6, &|x| Ok(vec![actor::value(&x[0], &x[1], operator)?]));
            // Rounded values have many ties, whose gradient goes to the first.
            let tied = [inputs[0].round().unwrap(), inputs[1].round().unwrap()];
            agree(&format!("{name}, ties"), &tied, 1e-6, &|x| Ok(vec![actor::value(&x[0], &x[1], operator)?]));
        }
    }
}

#[test]
fn samples_of_the_ensemble_policy() {
    let rng = &mut rng("policy");
    for (members, batch, width, samples) in [(1, 1, 1, 1), (2, 31, 1, 3), (5, 33, 6, 1), (3, 7, 40, 2), (5, 256, 6, 1)]
    {
        // Log standard deviations on both sides of their bounds.
        let bounds = LogStdBounds { min: -2.0, max: 0.5 };
        let output = draw(rng, &[members, batch, 2 * width], -3.0..1.5);
        let noise = draw(rng, &[samples, batch, width], -2.0..2.0);
        agree(&format!("policy, {members} {batch} {width} {samples}"), &[output], 3e-5, &|x| {
            let noise = noise.to_dtype(x[0].dtype())?.to_device(x[0].device())?;
            let drawn = tanh_gaussian::draw(&x[0], &noise, bounds)?;
            Ok(vec![drawn.action, drawn.pre_tanh, drawn.log_prob])
        });
    }
    // Members that agree far out: the textbook variance would be 0 or worse, and saturated actions have no slope.
    let far = Tensor::new(&[[[40f32, -3.0]], [[40.0, -3.0]]], &Device::Cpu).unwrap();
    let noise = Tensor::new(&[[[0.5f32]]], &Device::Cpu).unwrap();
    agree("policy, far out", &[far], 1e-5, &|x| {
        let noise = noise.to_dtype(x[0].dtype())?.to_device(x[0].device())?;
        let drawn = tanh_gaussian::draw(&x[0], &noise, LogStdBounds::default())?;
        Ok(vec![drawn.action, drawn.log_prob])
    });
}

/// Steps with and without a target that follows; both leave the same parameters.
#[test]
fn steps_of_adam_and_of_the_targets() {
    let rng = &mut rng("adam");
    for n in SIZES {
        let (start, gradient) = (draw(rng, &[n], -1.0..1.0), draw(rng, &[n], -1.0..1.0));
        let steps = |device: &Device, followed: bool| -> Numbers {
            let new = || Var::from_tensor(&start.to_device(device).unwrap().copy().unwrap()).unwrap();
            let (var, target, gradient) = (new(), new(), gradient.to_device(device).unwrap());
            let mut adam = Adam::new(vec![var.clone()], AdamSettings::default()).unwrap();
            for _ in 0..3 {
                let gradients = (var.as_tensor() * &gradient).unwrap().sum_all().unwrap().backward().unwrap();
                if followed {
                    adam.step_followed(&gradients, std::slice::from_ref(&target), 0.25).unwrap();
                } else {
                    adam.step(&gradients).unwrap();
                }
            }
            let state = adam.state().unwrap();
            let double = |v: &Vec<f32>| v.iter().map(|v| f64::from(*v)).collect();
            vec![numbers(&var), double(&state.m[0]), double(&state.v[0]), numbers(&target)]
        };
        let want = steps(&Device::Cpu, true);
        assert!(want[3].iter().zip(numbers(&start)).any(|(t, s)| (t - s).abs() > 1e-5));
        for [followed, alone] in everywhere(&|device| [true, false].map(|followed| steps(device, followed))) {
            near("adam", &followed, &want, 1e-6);
            assert_eq!(followed[..3], alone[..3]);
            assert_eq!(alone[3], numbers(&start));
        }
    }
}

#[test]
fn images_are_normalised_and_shifted() {
    let rng = &mut rng("images");
    for (batch, height, width, channels) in [(1, 1, 1, 1), (3, 5, 7, 3), (2, 48, 48, 9)] {
        let bytes: Vec<u8> = (0..batch * height * width * channels).map(|_| rng.random()).collect();
        let shift: Vec<i32> = (0..2 * batch).map(|_| rng.random_range(-4..=4)).collect();
        let images = Tensor::from_slice(&bytes, (batch, height, width, channels), &Device::Cpu).unwrap();
        let shifts = Tensor::from_slice(&shift, (batch, 2), &Device::Cpu).unwrap();
        for shifted in [false, true] {
            let mut want = Vec::new();
            for (b, c) in (0..batch).flat_map(|b| (0..channels).map(move |c| (b, c))) {
                for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                    let moved = |at: usize, by: i32, size: usize| {
                        (at as i32 + if shifted { by } else { 0 }).clamp(0, size as i32 - 1) as usize
                    };
                    let (y, x) = (moved(y, shift[2 * b], height), moved(x, shift[2 * b + 1], width));
                    want.push(f32::from(bytes[((b * height + y) * width + x) * channels + c]) / 255.0);
                }
            }
            let found = everywhere(&|device| {
                let (images, shifts) = (images.to_device(device).unwrap(), shifts.to_device(device).unwrap());
                let got = kernels::normalise_images(&images, shifted.then_some(&shifts)).unwrap();
                assert_eq!(got.dims(), [batch, channels, height, width]);
                got.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            });
            assert!(found.iter().all(|got| *got == want));
        }
    }
}

#[test]
fn stacks_of_networks() {
    let rng = &mut rng("stacks");
    let shapes: [(usize, usize, &[usize]); 5] =
        [(1, 1, &[1, 1]), (3, 7, &[5, 33, 1]), (2, 33, &[23, 40, 31, 12]), (5, 31, &[17, 64, 64, 2]), (1, 3, &[4, 3])];
    for (members, rows, widths) in shapes {
        for (layer_norm, own_input) in [(false, false), (true, false), (false, true), (true, true)] {
            let init = Init { last_bias: None, layer_norm };
            let stack = Stack::random(members, widths, init, rng, &Device::Cpu).unwrap();
            let mut weights = stack.to_weights().unwrap();
            for layer in &mut weights.layers {
                // Biases, scales and shifts that are not 0 and 1.
                let (scale, shift) = layer.layer_norm.as_mut().map_or((None, None), |(a, b)| (Some(a), Some(b)));
                for row in [Some(&mut layer.bias), scale, shift].into_iter().flatten() {
                    for v in row {
                        *v += rng.random_range(-0.5..0.5);
                    }
                }
            }
            let dims = [members, rows, widths[0]];
            let x = draw(rng, if own_input { &dims } else { &dims[1..] }, -1.0..1.0);
            for frozen in [false, true] {
                let pass = |device: &Device| -> Numbers {
                    let stack = Stack::from_weights(&weights, device).unwrap();
                    let x = Var::from_tensor(&x.to_device(device).unwrap()).unwrap();
                    let out = if frozen { stack.forward_frozen(&x) } else { stack.forward(&x) }.unwrap();
                    let probe: Vec<f32> = (0..out.elem_count()).map(|i| (i % 5) as f32 - 1.7).collect();
                    let probe = Tensor::from_vec(probe, out.shape(), device).unwrap();
                    let gradients = (&out * probe).unwrap().sum_all().unwrap().backward().unwrap();
                    let own = gradients.get(&stack.vars()[0]).map(numbers);
                    assert_eq!(own.is_none(), frozen);
                    vec![numbers(&out), numbers(gradients.get(&x).unwrap()), own.unwrap_or_default()]
                };
                let (want, got) = (pass(&Device::Cpu), everywhere(&pass));
                if let [up, down, ..] = &got[..] {
                    assert_eq!(up, down);
                }
                let name = format!("{members} of {widths:?} on {rows}, norm {layer_norm}, own {own_input}");
                for got in &got {
                    near(&name, got, &want, 2e-5);
                }
            }
        }
    }
}

/// Weights and metrics after three updates.
fn updates(mut learner: Learner, replay: &Mutex<Replay>) -> (EnsembleWeights, UpdateMetrics) {
    let metrics = (0..3).map(|_| learner.update(replay).unwrap()).last().unwrap();
    (learner.weights().unwrap(), metrics)
}

fn on(device: &Device, config: &LearnerConfig) -> LearnerConfig {
    LearnerConfig { device: if device.is_cpu() { DeviceKind::Cpu } else { DeviceKind::Cuda }, ..config.clone() }
}

/// Whether the kernels make the updates that the processor makes.
fn same_updates(run: &dyn Fn(&Device) -> (EnsembleWeights, UpdateMetrics)) {
    let (want, metrics) = run(&Device::Cpu);
    let before = kernels::launches();
    let all = everywhere(run);
    eprintln!("{} launches per update", (kernels::launches() - before) / (3 * all.len() as u64).max(1));
    for (got, other) in all {
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * b.abs().max(1e-2);
        assert!(near(other.critic_loss, metrics.critic_loss), "{other:?} instead of {metrics:?}");
        assert!(near(other.actor_loss, metrics.actor_loss), "{other:?} instead of {metrics:?}");
        let density = [other, metrics].map(|m| m.density.unwrap().loss);
        assert!(near(density[0], density[1]), "{density:?}");
        for (got, want) in parameters(&got).iter().zip(parameters(&want)) {
            let pairs = got.iter().zip(want);
            // Three steps of Adam at 3e-3: a gradient near 0 may turn its sign.
            assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 2e-3), "too far");
            let off = pairs.filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
            assert!(off * 100 <= got.len(), "{off} of {} parameters differ", got.len());
        }
    }
}

/// Of actors, critics, targets and the actors' encoders, an array each.
fn parameters(weights: &EnsembleWeights) -> Vec<Vec<f32>> {
    let targets = weights.targets.as_ref().unwrap();
    let stacks = [&weights.actor.stack, &weights.critic1, &weights.critic2, &targets.0, &targets.1];
    let layers = stacks.into_iter().flat_map(|stack| &stack.layers);
    let encoders = weights.actor.eyes.iter().flat_map(|eyes| &eyes.encoders);
    let seen = encoders.flat_map(|e| {
        let convolutions = e.convolutions.iter().map(|c| [&c.weight[..], &c.bias].concat());
        convolutions.chain([[&e.dense_weight[..], &e.dense_bias].concat()])
    });
    layers.map(|layer| [&layer.weight[..], &layer.bias].concat()).chain(seen).collect()
}

#[test]
fn a_whole_update_is_that_of_the_processor() {
    let small = LearnerConfig { batch_size: 33, ..learner_config() };
    let redq = LearnerConfig {
        target_operator: TargetKind::Redq,
        redq_subset: 2,
        critic_steps: 3,
        order: fieldtune::config::Order::CriticsFirst,
        entropy_backup: false,
        ..small.clone()
    };
    let anchored = LearnerConfig { anchor_weight: 0.5, ..small.clone() };
    for config in [small, redq, anchored] {
        let weights = ensemble(3, DIMS, &[24, 24], 1);
        same_updates(&|device| {
            let replay = replay(Some(random_bandit(20, 300)), random_bandit(21, 100), SamplerKind::Balanced);
            let settings = replay_config(SamplerKind::Balanced);
            updates(Learner::new(&weights, DIMS, &on(device, &config), &settings, 5).unwrap(), &replay)
        });
    }
}

#[test]
fn a_whole_update_from_images_is_that_of_the_processor() {
    const FRAME: FrameShape = FrameShape { width: 12, height: 10, channels: 3 };
    for trunk in [TrunkKind::Shared, TrunkKind::Separate] {
        let config = LearnerConfig {
            trunk,
            trunk_channels: vec![4, 3],
            trunk_features: 9,
            shift_pixels: 2,
            batch_size: 8,
            ..learner_config()
        };
        let sizes = PretrainConfig { ensemble_size: 2, hidden: vec![16], ..PretrainConfig::default() };
        let weights = Pretrainer::seeing(Some(FRAME), DIMS, &sizes, &config, 1).unwrap().weights().unwrap();
        same_updates(&|device| {
            let store = |seed| random_store(DIMS, Some(FRAME), 60, seed).unwrap();
            let replay = replay(Some(store(1)), store(2), SamplerKind::Balanced);
            let settings = replay_config(SamplerKind::Balanced);
            updates(Learner::new(&weights, DIMS, &on(device, &config), &settings, 5).unwrap(), &replay)
        });
    }
}

/// One slot carries several minibatches to a GPU before the first has arrived.
#[test]
fn minibatches_on_their_way_are_not_overwritten() {
    const LEN: usize = 1 << 20;
    let found = everywhere(&|device| {
        let mut staging = Staging::default();
        let mut sent: Vec<[Tensor; 3]> = Vec::new();
        for i in 0..12u8 {
            let (numbers, bytes) = (vec![f32::from(i); LEN], vec![i; LEN]);
            let [first, second] = staging.upload([(&numbers, &[2, LEN / 2]), (&[0.5; 3], &[3])], device).unwrap();
            let [third] = staging.upload_bytes([(&bytes, &[LEN])], device).unwrap();
            sent.push([first, second, third]);
        }
        sent.iter().enumerate().all(|(i, [first, second, third])| {
            let all = |t: &Tensor, value: f64| numbers(t).iter().all(|v| *v == value);
            all(first, i as f64) && all(second, 0.5) && all(third, i as f64) && first.dims() == [2, LEN / 2]
        })
    });
    assert!(found.iter().all(|whole| *whole));
}
