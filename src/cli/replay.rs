//! `fieldtune replay`.

use std::path::PathBuf;
use std::time::Duration;

use fieldtune::clock::monotonic;
use fieldtune::policy::{AnyBundle, PolicyOutput, checks};

use super::ConfigArgs;

/// Run recorded observations through a policy and compare its actions with the recorded ones.
///
/// Says how far the policy's deterministic action and the recorded one are apart, how many standard deviations of
/// the policy that is, and how long inference takes.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// A run folder, a replay folder or an .npz data set.
    episodes: PathBuf,
    /// The bundle; without it, policy.bundle of the configuration.
    #[arg(long, value_name = "FOLDER")]
    policy: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct EpisodeDifference {
    episode: usize,
    steps: usize,
    recorded_return: f64,
    /// Mean over steps and entries of |tanh(mean) - recorded|.
    mean_difference: f64,
    largest_difference: f32,
    /// Mean over steps and entries of |atanh(recorded) - mean| / std.
    mean_deviations: f64,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let bundle = AnyBundle::load(args.policy.as_ref().unwrap_or(&config.policy.bundle))?;
    checks::names(bundle.spaces(), &config.robot.spaces)?;
    let mut prepared = bundle.source().prepare(&config.robot.spaces, &config.policy)?;
    let (data, _) = super::data::read(&args.episodes)?;
    let mut out = PolicyOutput::default();
    let mut times = Vec::with_capacity(data.steps());
    let mut episodes = Vec::new();
    let returns = data.returns();
    for (episode, steps) in data.episodes().enumerate() {
        let (mut sum, mut largest, mut deviations) = (0.0f64, 0.0f32, 0.0f64);
        for step in steps.clone() {
            let observation = &data.observations[step * data.observation_dim..][..data.observation_dim];
            let begin = monotonic();
            prepared.backend.infer(observation, &mut out)?;
            times.push(monotonic().since(begin));
            let recorded = &data.actions[step * data.action_dim..][..data.action_dim];
            for (d, action) in recorded.iter().enumerate() {
                let difference = (out.mean[d].tanh() - action).abs();
                sum += f64::from(difference);
                largest = largest.max(difference);
                let before_tanh = action.clamp(-0.999_999, 0.999_999).atanh();
                deviations += f64::from((before_tanh - out.mean[d]).abs() / out.std[d]);
            }
        }
        let entries = (steps.len() * data.action_dim).max(1) as f64;
        episodes.push(EpisodeDifference {
            episode,
            steps: steps.len(),
            recorded_return: returns[episode],
            mean_difference: sum / entries,
            largest_difference: largest,
            mean_deviations: deviations / entries,
        });
    }
    times.sort();
    report(args.json, &episodes, &times, prepared.backend.engine());
    Ok(())
}

fn report(json: bool, episodes: &[EpisodeDifference], times: &[Duration], engine: &str) {
    let at = |share: f64| times.get((share * times.len() as f64) as usize).map_or(0, |t| t.as_micros() as u64);
    if json {
        let value = serde_json::json!({"engine": engine, "episodes": episodes,
            "inference_us": {"p50": at(0.5), "p99": at(0.99)}});
        say!("{value}");
        return;
    }
    for e in episodes {
        say!(
            "episode {:>4}  {:>5} steps  recorded return {:>9.1}  action differs by {:.3} (at most {:.3}), {:.2} standard deviations",
            e.episode,
            e.steps,
            e.recorded_return,
            e.mean_difference,
            e.largest_difference,
            e.mean_deviations
        );
    }
    say!("inference by {engine}: p50 {} us, p99 {} us over {} steps", at(0.5), at(0.99), times.len());
}
