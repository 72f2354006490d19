//! A diagnosis in words: how far the critics are off, how far the data are from the robot's, and which preset that speaks
//! for. Pure; the numbers behind every sentence are in it.

use super::diagnosis::Diagnosis;

/// A divergence from here on (nats, at most 0.69) means that offline data and robot are easily told apart.
const FAR: f64 = 0.2;
/// Critics that prefer the action taken to a random one in fewer states than this know little of this robot.
const UNAWARE: f64 = 0.6;
/// A gap within this many standard deviations of the returns is called small.
const SMALL_GAP: f64 = 0.5;

/// Sentences about a diagnosis, and the preset they speak for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What was found, a sentence a line; the last one is the suggestion.
    pub lines: Vec<String>,
    /// Name of the suggested preset (`config/method`).
    pub preset: &'static str,
}

/// Puts a diagnosis into words.
pub fn advise(d: &Diagnosis) -> Advice {
    let (preset, reason) = suggestion(d);
    let spreads = d.calibration_gap.abs() / d.return_spread.max(1e-9);
    let verdict = match d.calibration_gap {
        _ if spreads <= SMALL_GAP => "on scale",
        gap if gap < 0.0 => {
            "too pessimistic: they have to climb before they can guide; first_burst_multiplier or a longer warm-up help"
        }
        _ => "too optimistic: expect a dip before they come down",
    };
    let mut lines = vec![
        format!(
            "critics    mean Q {:.1} where {} steps of the robot went on to get {:.1}: a gap of {:+.1}, {:.1} times the \
             spread of the returns; {verdict}",
            d.q_mean, d.steps, d.return_mean, d.calibration_gap, spreads
        ),
        format!(
            "           the action taken is valued above a random one in {:.0} % of the states (AUROC {:.2})",
            100.0 * d.win_rate,
            d.auroc
        ),
    ];
    if let (Some(js), Some(reward)) = (d.js_divergence, d.reward_offline) {
        let distance = if js < FAR { "alike" } else { "easily told apart" };
        lines.push(format!(
            "data       Jensen-Shannon divergence from the robot's steps {js:.2} of at most 0.69: {distance}; mean reward \
             {reward:.3} a step offline, {:.3} by the robot",
            d.reward_online
        ));
    }
    lines.push(format!("suggested  --method {preset}: {reason}"));
    Advice { lines, preset }
}

/// Keep the data or drop them: what is better, the data or the policy, is kept.
fn suggestion(d: &Diagnosis) -> (&'static str, String) {
    let Some(offline) = d.reward_offline else { return ("wsrl", "there are no offline data to keep".into()) };
    if d.win_rate < UNAWARE {
        return ("rlpd", "the critics hardly tell actions apart, so new ones beside the data lose little".into());
    }
    let Some(js) = d.js_divergence else {
        return ("off2on-code", "too few steps to say how far the data are from them; keep the data".into());
    };
    if js < FAR {
        return ("off2on-code", "the data look like what the robot does; keep them".into());
    }
    if offline >= d.reward_online {
        let reason = "the data are far from what the robot does, but better rewarded; keep them, balanced replay picks \
                      what fits";
        return ("off2on-code", reason.into());
    }
    ("wsrl", "the data are far from what the robot does and worse rewarded; drop them".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis() -> Diagnosis {
        Diagnosis {
            steps: 1000,
            q_mean: -226.0,
            return_mean: 374.0,
            calibration_gap: -600.0,
            return_spread: 100.0,
            win_rate: 0.99,
            auroc: 0.97,
            reward_online: 4.4,
            reward_offline: Some(4.7),
            js_divergence: Some(0.12),
            ..Diagnosis::default()
        }
    }

    #[test]
    fn the_better_of_data_and_policy_is_kept() {
        let preset = |change: fn(&mut Diagnosis)| {
            let mut d = diagnosis();
            change(&mut d);
            advise(&d).preset
        };
        assert_eq!(preset(|_| {}), "off2on-code");
        assert_eq!(preset(|d| d.js_divergence = Some(0.6)), "off2on-code");
        assert_eq!(preset(|d| (d.js_divergence, d.reward_offline) = (Some(0.6), Some(-1.0))), "wsrl");
        assert_eq!(preset(|d| (d.js_divergence, d.reward_offline) = (None, None)), "wsrl");
        assert_eq!(preset(|d| d.js_divergence = None), "off2on-code");
        assert_eq!(preset(|d| d.win_rate = 0.5), "rlpd");
    }

    #[test]
    fn every_sentence_has_its_numbers() {
        let lines = advise(&diagnosis()).lines.join("\n");
        for part in ["-226.0", "374.0", "-600.0", "6.0 times", "pessimistic", "99 %", "0.97", "0.12", "4.700", "4.400"]
        {
            assert!(lines.contains(part), "{part} is not in {lines}");
        }
        let near = Diagnosis { calibration_gap: 20.0, ..diagnosis() };
        assert!(advise(&near).lines[0].contains("on scale"));
        let high = Diagnosis { calibration_gap: 200.0, ..diagnosis() };
        assert!(advise(&high).lines[0].contains("optimistic"));
    }
}
