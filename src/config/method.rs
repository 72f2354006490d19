//! The switches of the learning method, and the presets that set them.
//!
//! A preset is a configuration file of a few lines under `config/method`, part of the program. It lies between the
//! defaults and the robot's file: what the robot's file or `--set` says wins.

use serde::{Deserialize, Serialize};

/// Which target critics bootstrap a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// `min(Q1'_i, Q2'_i)`: each member its own (Off2OnRL's published code).
    OwnTwinMin,
    /// `mean_i min(Q1'_i, Q2'_i)`, the same for all members (Off2OnRL's text).
    MeanOfTwinMin,
    /// Minimum over all target critics.
    EnsembleMin,
    /// Mean over all pairs of target critics of the lesser of the two (ENOTO).
    WeightedMinPair,
    /// Minimum over `learner.redq_subset` target critics, drawn anew for every critic step (REDQ, RLPD, WSRL).
    Redq,
}

/// How the critics judge an action of the actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorOperator {
    /// `mean_i min(Q1_i, Q2_i)` (Off2OnRL).
    MeanOfTwinMin,
    /// Minimum over all `2 N` critics (WSRL in simulation).
    Min,
    /// Mean over all `2 N` critics (REDQ, RLPD, WSRL on the robot).
    Mean,
    /// Mean over all pairs of the `2 N` critics of the lesser of the two (ENOTO).
    WeightedMinPair,
}

/// What makes the density-ratio network's output positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputActivation {
    /// `max(u, 0)`: the published code. Ratios of exactly 0 end at the smallest priority.
    Relu,
    /// `ln(1 + exp(u))`.
    Softplus,
    /// `exp(u)`: the loss is logistic regression.
    Exp,
}

/// Loss of the critics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CriticLoss {
    /// Temporal-difference error alone.
    Sac,
    /// With CQL's penalty.
    Cql,
    /// With CQL's penalty, bounded from below by the returns of the data (Cal-QL).
    CalQl,
}

/// Loss of the actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorLoss {
    /// `alpha log pi - Q`.
    Sac,
    /// `alpha log pi - log pi(a_data)`: imitation.
    Bc,
    /// `-weight log pi(a_data)`, weights from advantages (AWAC).
    Awac,
}

/// What the networks have to say about layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerNorm {
    /// As in the bundle; none for networks from scratch.
    AsGiven,
    /// All networks have it; a bundle without is refused.
    On,
    /// None has it; a bundle with it is refused.
    Off,
}

/// Where the networks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The bundle's.
    Bundle,
    /// New ones of the bundle's shape.
    Scratch,
}

/// Rows of the actor's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorBatch {
    /// All rows of the update's critic steps together (WSRL).
    All,
    /// Those of the last critic step (RLPD).
    Last,
}

/// Which critics the actor's loss sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Those from before the last critic step: its losses and the actor's use the same parameters (Off2OnRL).
    Joint,
    /// Those from after it (WSRL, RLPD).
    CriticsFirst,
}

/// How the entropy temperature is made of its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemperatureForm {
    /// `alpha = exp(p)`, loss linear in `p`.
    Exp,
    /// `alpha = softplus(p)`, loss linear in `alpha` (WSRL).
    Softplus,
}

/// The states whose entropy the temperature regulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemperatureStates {
    /// `s`.
    Current,
    /// `s'` (WSRL).
    Next,
}

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        /// Names and texts of the presets that the program brings.
        pub const PRESETS: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../config/method/", $name, ".toml"))),)*];
    };
}

presets!(
    "off2on-code",
    "off2on-paper",
    "wsrl",
    "wsrl-robot",
    "rlpd",
    "cal-ql",
    "cql-ft",
    "sac-ft",
    "sac-scratch",
    "uniform",
    "online-only",
    "awac",
);

/// Place and text of a preset: one of [`PRESETS`], or the file that `method` is the path of.
///
/// # Errors
/// A sentence that names the presets, or the system's answer.
pub(super) fn read(method: &str) -> Result<(String, String), String> {
    if let Some((name, text)) = PRESETS.iter().find(|(name, _)| *name == method) {
        return Ok((format!("method {name}"), (*text).to_owned()));
    }
    let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
    std::fs::read_to_string(method)
        .map(|text| (method.to_owned(), text))
        .map_err(|why| format!("`{method}` is no preset ({}) and no readable file: {why}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, Problem, SamplerKind, parse};

    fn problems(text: &str) -> Vec<Problem> {
        match parse("robot.toml", text, &[]) {
            Err(ConfigError::Refused(problems)) => problems,
            other => panic!("expected problems, got {other:?}"),
        }
    }

    #[test]
    fn every_preset_is_accepted_and_changes_only_the_method() {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config/method"));
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), PRESETS.len(), "a file is not in the list");
        for (name, text) in PRESETS {
            let config = parse("robot.toml", &format!("run.method = \"{name}\""), &[]);
            assert!(config.is_ok(), "{name}: {config:?}");
            let sections: toml::Table = text.parse().unwrap();
            assert!(sections.keys().all(|s| s == "replay" || s == "learner"), "{name}");
        }
    }

    #[test]
    fn the_robots_file_and_the_command_line_win_over_the_preset() {
        let text = "[run]\nmethod = \"wsrl\"\n[learner]\nwarmup_steps = 77\n";
        let config = parse("robot.toml", text, &["learner.critic_steps=3".into()]).unwrap();
        let l = &config.learner;
        assert_eq!((l.warmup_steps, l.critic_steps, l.target_operator), (77, 3, TargetKind::Redq));
        assert_eq!((config.replay.sampler, config.replay.offline.as_os_str().len()), (SamplerKind::Online, 0));
        let other = parse("robot.toml", text, &["run.method=rlpd".into()]).unwrap();
        assert_eq!((other.replay.sampler, other.learner.critic_steps), (SamplerKind::Symmetric, 20));
    }

    #[test]
    fn a_preset_of_ones_own_is_a_path_and_its_problems_name_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, "[learner]\ncritic_steps = 0\nutd = 3\n[run]\nmethod = \"wsrl\"\n").unwrap();
        let found = problems(&format!("run.method = {path:?}"));
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        let at = |line: usize| format!("{}:{line}", path.display());
        assert!(text.iter().any(|t| t.starts_with(&at(3)) && t.contains("learner.utd")), "{text:?}");
        assert!(text.iter().any(|t| t.starts_with(&at(5)) && t.contains("cannot name another")), "{text:?}");
        let unknown = &problems("[run]\nmethod = \"off2on\"\n")[0];
        assert_eq!(unknown.place, "robot.toml:2");
        assert!(unknown.message.contains("off2on-code") && unknown.message.contains("no readable file"), "{unknown}");
    }

    #[test]
    fn contradictions_are_refused_all_at_once() {
        let text = "[replay]\noffline = \"\"\nsampler = \"symmetric\"\noffline_share = 1.0\n[learner]\nstart = \"scratch\"\n\
                    members = 1\nactors = 2\ntarget_operator = \"redq\"\nredq_subset = 3\nredq_replacement = false\n\
                    zero_gradient_adam = true\ncarry_optimiser = \"runs/pretrained\"\nactor_loss = \"bc\"\ngradient_clip = nan\ntarget_entropy = inf\n";
        let mut keys: Vec<String> = problems(text).into_iter().map(|p| p.key).collect();
        keys.sort();
        let expected = [
            "learner.actor_loss",
            "learner.actors",
            "learner.carry_optimiser",
            "learner.gradient_clip",
            "learner.redq_subset",
            "learner.target_entropy",
            "learner.zero_gradient_adam",
            "replay.offline_share",
            "replay.sampler",
        ];
        assert_eq!(keys, expected);
        let further = "[replay]\noffline = \"\"\nsampler = \"trajectory\"\ntrajectory_temperature = 0.0\n[learner]\n\
                       actor_loss = \"awac\"\nanchor_weight = 1.0\nanchor_rate = 2.0\ncql_gap = 1.0\ncql_temperature = nan\n";
        let mut keys: Vec<String> = problems(further).into_iter().map(|p| p.key).collect();
        keys.sort();
        let expected = [
            "learner.anchor_rate",
            "learner.anchor_weight",
            "learner.cql_gap",
            "learner.cql_temperature",
            "replay.sampler",
            "replay.trajectory_temperature",
        ];
        assert_eq!(keys, expected);
        let penalty = "[replay]\nsampler = \"online\"\n[learner]\nstart = \"scratch\"\ncritic_loss = \"cql\"\n";
        assert_eq!(problems(penalty)[0].key, "learner.critic_loss");
        assert!(problems("[learner]\ntarget_operator = \"redk\"\n")[0].message.contains("own-twin-min"));
    }
}
