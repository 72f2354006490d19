//! The published Off2OnRL agents, imported, give the numbers that were measured on them elsewhere; both engines agree.

#![allow(clippy::print_stderr, reason = "what is skipped is printed")]

mod places;

use fieldtune::nn::weights::{EnsembleWeights, StackWeights};
use fieldtune::policy::checks::probe_observations;
use fieldtune::policy::import::{OFF2ONRL_TRAINING_LOG_STD, import_off2onrl};
use fieldtune::policy::manifest::Description;
use fieldtune::policy::native::NativePolicy;
use fieldtune::policy::onnxruntime::{OrtPolicy, Runtime};
use fieldtune::policy::{Bundle, PolicyBackend, PolicyOutput, onnx_file};
use fieldtune::spaces::Spaces;

const MEAN: [f32; 6] = [1.835_837, 1.625_144, 1.397_312, 0.098_222, -1.514_471, -1.831_104];
const STD: [f32; 6] = [0.898_077, 0.598_360, 0.729_138, 0.852_772, 0.952_725, 0.907_941];
const TWIN_MIN: [f64; 5] = [-461.5489, -287.2976, -342.6763, -307.4552, -406.4464];

fn agents() -> Option<EnsembleWeights> {
    let dir = places::shared("checkpoints/off2onrl_halfcheetah_medium_v0")?;
    Some(import_off2onrl(&dir).expect("the published agents are readable"))
}

fn spaces() -> Spaces {
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}_{i}")).collect();
    Spaces { observation: names("observation", 17), action: names("action", 6) }
}

/// Plain loops in f64: `(members)` outputs of a critic.
fn critic(stack: &StackWeights, input: &[f64]) -> Vec<f64> {
    let member = |m: usize| {
        let mut x = input.to_vec();
        for (index, layer) in stack.layers.iter().enumerate() {
            let weight = &layer.weight[m * layer.inputs * layer.outputs..];
            let bias = &layer.bias[m * layer.outputs..];
            let sum = |o: usize| -> f64 {
                x.iter().enumerate().map(|(i, v)| v * f64::from(weight[i * layer.outputs + o])).sum::<f64>()
                    + f64::from(bias[o])
            };
            let linear = index + 1 == stack.layers.len();
            x = (0..layer.outputs).map(sum).map(|v| if linear { v } else { v.max(0.0) }).collect();
        }
        x[0]
    };
    (0..stack.members).map(member).collect()
}

#[test]
fn imported_agents_reproduce_the_witness() {
    let Some(weights) = agents() else { return };
    let observation = probe_observations(17, 1);
    let mut out = PolicyOutput::default();
    NativePolicy::new(&weights.actor).unwrap().infer(&observation, &[], &mut out).unwrap();
    for d in 0..6 {
        assert!((out.mean[d] - MEAN[d]).abs() < 1e-4, "mean {d}: {} against {}", out.mean[d], MEAN[d]);
        assert!((out.std[d] - STD[d]).abs() < 1e-4, "std {d}: {} against {}", out.std[d], STD[d]);
    }
    let input: Vec<f64> = observation.iter().map(|v| f64::from(*v)).chain([0.0; 6]).collect();
    let (one, two) = (critic(&weights.critic1, &input), critic(&weights.critic2, &input));
    for (member, expected) in TWIN_MIN.iter().enumerate() {
        let got = one[member].min(two[member]);
        assert!((got - expected).abs() < 1e-2, "critic of member {member}: {got} against {expected}");
    }
    // The clamp the agents were trained with gives the same numbers here: no log_std of the witness is near it.
    let mut narrow = weights.actor;
    narrow.log_std = OFF2ONRL_TRAINING_LOG_STD;
    let mut again = PolicyOutput::default();
    NativePolicy::new(&narrow).unwrap().infer(&observation, &[], &mut again).unwrap();
    assert_eq!(again, out);
}

#[test]
fn imported_agents_survive_a_bundle() {
    let Some(weights) = agents() else { return };
    let description = Description {
        name: String::from("halfcheetah-cql"),
        control_hz: 20.0,
        algorithm: String::from("CQL"),
        discount: 0.99,
        training_log_std: Some(OFF2ONRL_TRAINING_LOG_STD),
        residual: None,
        spaces: spaces(),
        provenance: std::collections::BTreeMap::new(),
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("halfcheetah");
    let bundle = Bundle::new(description, weights).unwrap();
    bundle.save(&path).unwrap();
    assert_eq!(Bundle::load(&path).unwrap(), bundle);
}

#[test]
fn engines_agree_on_the_agents_over_a_thousand_observations() {
    let (Some(weights), Some(library)) = (agents(), places::onnxruntime()) else {
        return;
    };
    let bytes = onnx_file::encode(&weights.actor, &spaces(), &[]).unwrap();
    let runtime = Runtime::load(&library).unwrap();
    let mut ort = OrtPolicy::new(runtime, &bytes).unwrap();
    let mut native = NativePolicy::new(&weights.actor).unwrap();
    let (mut one, mut two) = (PolicyOutput::default(), PolicyOutput::default());
    let mut largest = 0.0_f32;
    for row in probe_observations(17, 1000).chunks_exact(17) {
        native.infer(row, &[], &mut one).unwrap();
        ort.infer(row, &[], &mut two).unwrap();
        for (a, b) in one.mean().iter().chain(one.std()).zip(two.mean().iter().chain(two.std())) {
            largest = largest.max((a - b).abs());
        }
    }
    eprintln!("{} against {}: at most {largest:e} apart", native.engine(), ort.engine());
    assert!(largest < 1e-5);
}
