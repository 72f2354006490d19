//! A learned judge of success: scores every recorded observation, beside the control loop.

use std::sync::Arc;

use super::parts::RuntimeError;
use crate::config::Config;
use crate::control::Verdict;
use crate::policy::PolicyError;
use crate::policy::foreign::{ForeignError, ForeignPolicy, inspect};
use crate::policy::onnxruntime::Runtime;
use crate::spaces::{Outcome, StepFlags, StepRecord};

/// The score of an observation.
pub(super) type Score = Box<dyn FnMut(&[f32]) -> Result<f32, PolicyError> + Send>;

/// Says that an episode is a success when enough observations in a row score high enough. On the recorder's thread.
pub(super) struct Classifier {
    score: Score,
    threshold: f32,
    hold_steps: u32,
    verdict: Arc<Verdict>,
    /// Episode and step of the newest record, and high scores in a row up to it.
    newest: (u32, u32, u32),
}

impl Classifier {
    pub(super) fn new(score: Score, threshold: f32, hold_steps: u32, verdict: Arc<Verdict>) -> Self {
        Self { score, threshold, hold_steps, verdict, newest: (0, 0, 0) }
    }

    /// The model of the configuration, if there is one.
    pub(super) fn load(config: &Config, verdict: &Arc<Verdict>) -> Result<Option<Self>, RuntimeError> {
        let episode = &config.episode;
        let path = &episode.classifier;
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let output = (!episode.classifier_output.is_empty()).then_some(episode.classifier_output.as_str());
        let runtime = Runtime::load(&config.policy.onnxruntime).map_err(PolicyError::from)?;
        let bytes = std::fs::read(path).map_err(RuntimeError::file(path))?;
        let refused = |reason: String| RuntimeError::Classifier { path: path.clone(), reason };
        let interface = inspect(&bytes, output).map_err(|error: ForeignError| refused(error.to_string()))?.interface;
        let expected = config.robot.spaces.observation_dim();
        if (interface.observation_dim, interface.action_dim) != (expected, 1) {
            let (n, m) = (interface.observation_dim, interface.action_dim);
            return Err(refused(format!("it makes {m} numbers of {n}; needed is 1 of {expected}")));
        }
        let mut model = ForeignPolicy::new(runtime, &bytes, &interface).map_err(|error| refused(error.to_string()))?;
        let score = Box::new(move |observation: &[f32]| Ok(model.action(observation)?[0]));
        Ok(Some(Self::new(score, episode.classifier_threshold, episode.hold_steps, Arc::clone(verdict))))
    }

    /// Looks at a record.
    pub(super) fn take(&mut self, record: &StepRecord) -> Result<(), PolicyError> {
        if record.flags.contains(StepFlags::OBSERVATION_ONLY) {
            return Ok(());
        }
        let score = (self.score)(&record.observation)?;
        let (episode, step, held) = self.newest;
        let follows = episode == record.episode && step + 1 == record.step;
        // A NaN is not high enough.
        let held = if score >= self.threshold { 1 + if follows { held } else { 0 } } else { 0 };
        self.newest = (record.episode, record.step, held);
        if held == self.hold_steps {
            self.verdict.say(record.episode, Outcome::Success);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Rules;

    fn classifier(verdict: &Arc<Verdict>) -> Classifier {
        Classifier::new(Box::new(|observation| Ok(observation[0])), 0.8, 3, Arc::clone(verdict))
    }

    fn record(episode: u32, step: u32, score: f32) -> StepRecord {
        let observation = heapless::Vec::from_slice(&[score]).unwrap();
        StepRecord { episode, step, observation, ..StepRecord::default() }
    }

    #[test]
    fn a_success_takes_high_scores_in_a_row_within_one_episode() {
        let mut rules = Rules::default();
        let mut classifier = classifier(&rules.verdict);
        let mut step = 0;
        let mut next = |episode, score| {
            classifier.take(&record(episode, step, score)).unwrap();
            step += 1;
            rules.judge(episode, &[score])
        };
        for score in [0.9, 0.8, f32::NAN, 0.9, 0.79, 0.9, 0.9] {
            assert_eq!(next(4, score), None);
        }
        assert_eq!(next(5, 0.9), None, "the row does not go on in another episode");
        assert_eq!(next(5, 0.9), None);
        assert_eq!(next(5, 0.9), Some(Outcome::Success));
        assert_eq!(next(5, 0.9), None, "said once");
    }

    #[test]
    fn a_lost_step_ends_the_row_and_a_late_word_is_not_the_next_episodes() {
        let mut rules = Rules::default();
        let mut classifier = classifier(&rules.verdict);
        for step in [0, 1, 3, 4] {
            classifier.take(&record(0, step, 1.0)).unwrap();
        }
        assert_eq!(rules.judge(0, &[1.0]), None);
        classifier.take(&record(0, 5, 1.0)).unwrap();
        assert_eq!(rules.judge(1, &[1.0]), None, "episode 0 was over when the word came");
        assert_eq!(rules.verdict.unheard.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[test]
    fn an_onnx_model_scores_in_onnx_runtime() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let library = root.join(".native/libonnxruntime.so");
        if !library.exists() {
            eprintln!("skipped: {} is missing; tools/setup-native fetches it", library.display());
            return;
        }
        let mut config = Config::default();
        config.policy.onnxruntime = library;
        config.episode.classifier = root.join("models/pendulum-cql/policy.onnx");
        // Any output of one number will do.
        config.episode.classifier_output = "mean".into();
        config.episode.classifier_threshold = -1e9;
        config.episode.hold_steps = 1;
        let mut rules = Rules::default();
        let mut classifier = Classifier::load(&config, &rules.verdict).unwrap().unwrap();
        let observation = heapless::Vec::from_slice(&[1.0, 0.0, 0.0]).unwrap();
        classifier.take(&StepRecord { episode: 2, observation, ..StepRecord::default() }).unwrap();
        assert_eq!(rules.judge(2, &[]), Some(Outcome::Success));
        config.robot.spaces.observation.pop();
        let refused = Classifier::load(&config, &rules.verdict).err().unwrap().to_string();
        assert!(refused.contains("needed is 1 of 2"), "{refused}");
    }
}
