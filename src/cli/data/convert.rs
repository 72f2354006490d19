//! `fieldtune data import` and `fieldtune data export`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use fieldtune::config::{self, CameraConfig};
use fieldtune::episode::{self, About, Choices, Dataset, Ends, write_lerobot, write_npz};
use fieldtune::policy::manifest::Manifest;
use fieldtune::replay::{Store, episodes, export as episodes_of, open_damaged};
use fieldtune::spaces::Spaces;
use fieldtune::telemetry::read_step_log;

use super::images::{Sight, see};
use super::{folder, log};
use crate::cli::ConfigArgs;

/// What only a person knows about a data set.
#[derive(clap::Args, Default)]
pub(in crate::cli) struct ChoiceArgs {
    /// What the ends of episodes mean, where the data do not say it: terminated, truncated, or the number of steps that
    /// episodes were cut at.
    #[arg(long, value_name = "WHAT")]
    ends: Option<Ends>,
    /// An array that is part of the observation; may be repeated, in order.
    #[arg(long, value_name = "NAME")]
    observation: Vec<String>,
    /// Data without rewards: reward of a step that ends the task; 0 for the others.
    #[arg(long, value_name = "REWARD", allow_negative_numbers = true)]
    success_reward: Option<f32>,
}

impl ChoiceArgs {
    fn choices(&self) -> Choices {
        let Self { ends, observation, success_reward } = self;
        Choices { ends: *ends, observation: observation.clone(), success_reward: *success_reward }
    }
}

#[derive(clap::Args)]
pub(in crate::cli) struct Import {
    /// The data set: .npz; .hdf5 of D4RL, Minari or robomimic; folder of a LeRobot v3 or Minari set; a run folder; .mcap
    /// that this program wrote.
    source: PathBuf,
    /// Data set to write, for replay.offline.
    #[arg(long, value_name = "FILE.npz", required_unless_present = "config")]
    out: Option<PathBuf>,
    /// Configuration whose robot the data must fit; its offline buffer is made at once.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key on top of the file; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    #[command(flatten)]
    choices: ChoiceArgs,
    #[command(flatten)]
    sight: Sight,
}

#[derive(clap::Args)]
pub(in crate::cli) struct Export {
    /// A run folder, a replay folder or a data set.
    source: PathBuf,
    /// What to write: FILE.npz; FILE.mcap, a log for Foxglove, PlotJuggler or Rerun; or a folder, a LeRobot v3 set.
    #[arg(long)]
    out: PathBuf,
    /// Bundle or run folder whose names the entries get; the source itself where it is a run.
    #[arg(long, value_name = "BUNDLE")]
    names: Option<PathBuf>,
    /// Steps per second, where the data have no stamps.
    #[arg(long, value_name = "HZ", value_parser = rate)]
    control_hz: Option<f64>,
    /// LeRobot: the task in words.
    #[arg(long, default_value = "")]
    task: String,
    #[command(flatten)]
    choices: ChoiceArgs,
    #[command(flatten)]
    sight: Sight,
}

fn rate(text: &str) -> Result<f64, String> {
    let known = text.parse().ok().filter(|hz| *hz > 0.0 && *hz <= 1e6);
    known.ok_or_else(|| String::from("a number above 0 and at most 1e6"))
}

/// What is behind a path.
pub(super) struct Loaded {
    pub data: Dataset,
    pub store: Option<Store>,
    /// Names of the entries, where the source has some.
    spaces: Option<Spaces>,
}

/// Reads a data set, a log or a buffer; images of a set in the form of `robot`'s cameras.
pub(super) fn load(
    source: &Path,
    choices: &Choices,
    sight: &Sight,
    robot: Option<&CameraConfig>,
) -> anyhow::Result<Loaded> {
    let nothing_open = *choices == Choices::default() && *sight == Sight::default();
    if source.extension().is_some_and(|e| e == "mcap") {
        ensure!(nothing_open, "{}: a log of fieldtune leaves nothing open", source.display());
        let bytes = std::fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        let log = read_step_log(&bytes).with_context(|| source.display().to_string())?;
        let (observation, action) = (log.spaces.observation.len(), log.spaces.action.len());
        let data = episodes(observation, action, log.records.into_iter().map(Some));
        return Ok(Loaded { data, store: None, spaces: Some(log.spaces) });
    }
    let buffer = folder(source);
    if !buffer.join("trans.rrb").is_file() {
        let mut data = episode::read(source, choices)?;
        see(source, sight, robot, &mut data)?;
        return Ok(Loaded { data, store: None, spaces: None });
    }
    ensure!(nothing_open, "{}: a replay buffer leaves nothing open", source.display());
    let store = open_damaged(&buffer)?;
    Ok(Loaded { data: episodes_of(&store)?, store: Some(store), spaces: None })
}

pub(super) fn import(args: &Import) -> anyhow::Result<bool> {
    let choices = args.choices.choices();
    let config = args
        .config
        .as_ref()
        .map(|config| ConfigArgs { config: config.clone(), method: None, overrides: args.overrides.clone() }.load());
    let config = config.transpose()?;
    let data = load(&args.source, &choices, &args.sight, config.as_ref().map(|config| &config.camera))?.data;
    describe(&data);
    if let Some(out) = &args.out {
        ensure!(out.extension().is_some_and(|e| e == "npz"), "{}: what is written is a .npz file", out.display());
        write_npz(out, &data)?;
        say!("written to {}; use it with --set replay.offline={}", out.display(), out.display());
    }
    let Some(mut config) = config else { return Ok(true) };
    if args.out.is_none() && (choices != Choices::default() || args.sight != Sight::default()) {
        bail!("what you said about the data is kept in the file that --out names; without it a run would ask again");
    }
    config.replay.offline.clone_from(args.out.as_ref().unwrap_or(&args.source));
    let store = fieldtune::runtime::open_offline(&config)?;
    say!(
        "{} transitions imported; use it with --set replay.offline={}",
        store.map_or(0, |s| s.transitions()),
        config.replay.offline.display()
    );
    Ok(true)
}

fn describe(data: &Dataset) {
    let ended = data.terminated.iter().filter(|t| **t).count();
    say!(
        "{} steps of {} episodes, {ended} of which the task ended; observation {} entries, action {}; values {}",
        data.steps(),
        data.episode_ends.len(),
        data.observation_dim,
        data.action_dim,
        &data.hash()[..16]
    );
    if let Some(images) = &data.images {
        say!("with {}", images.shape);
    }
    let largest = data.actions.iter().fold(0.0_f32, |largest, a| largest.max(a.abs()));
    if largest > 1.0 {
        say!(
            "actions reach {largest}: the actions of a policy here lie in [-1, 1], divide the others before you use them"
        );
    }
}

pub(super) fn export(args: &Export) -> anyhow::Result<bool> {
    let out = &args.out;
    let loaded = load(&args.source, &args.choices.choices(), &args.sight, None)?;
    let data = &loaded.data;
    let extension = out.extension().and_then(|e| e.to_str());
    let done = match extension {
        Some("npz") => {
            write_npz(out, data)?;
            true
        }
        Some("mcap") => match &loaded.store {
            Some(store) => return log::export_store(store, out, names(args, &loaded)?),
            None => return log::export_data(data, args.control_hz, out, names(args, &loaded)?),
        },
        None => {
            let about = About { spaces: &names(args, &loaded)?, nominal_hz: args.control_hz, task: &args.task };
            write_lerobot(out, data, &about)?;
            true
        }
        Some(other) => bail!("{}: written are .npz, .mcap and a LeRobot folder, not .{other}", out.display()),
    };
    say!("{} steps of {} episodes written to {}", data.steps(), data.episode_ends.len(), out.display());
    Ok(done)
}

/// Names of the entries: those of the source or bundle where they fit the data, else numbers.
fn names(args: &Export, loaded: &Loaded) -> anyhow::Result<Spaces> {
    let source = args.names.as_deref().unwrap_or(&args.source);
    let asked = args.names.is_some();
    if let (Some(spaces), false) = (&loaded.spaces, asked) {
        return Ok(spaces.clone());
    }
    let inner = source.join("bundle");
    let manifest = if inner.is_dir() { &inner } else { source }.join("manifest.toml");
    let found = match std::fs::read_to_string(&manifest) {
        Ok(text) => {
            Some(Manifest::from_text(&text).with_context(|| manifest.display().to_string())?.description.spaces)
        }
        Err(error) if asked => return Err(error).with_context(|| format!("cannot read {}", manifest.display())),
        // A recording without a bundle knows them from its configuration.
        Err(_) => config::load(&source.join("config.toml"), &[]).ok().map(|config| config.robot.spaces),
    };
    let data = &loaded.data;
    let fits = |spaces: &Spaces| match &loaded.store {
        Some(store) => spaces.schema_hash() == store.layout().schema_hash,
        None => (spaces.observation_dim(), spaces.action_dim()) == (data.observation_dim, data.action_dim),
    };
    if let Some(spaces) = found.filter(fits) {
        return Ok(spaces);
    }
    ensure!(!asked, "{} names another robot than the data's", manifest.display());
    say!("names are not known, entries are numbered; --names BUNDLE gives them");
    let numbered = |kind: &str, n: usize| (0..n).map(|i| format!("{kind}_{i}")).collect();
    Ok(Spaces {
        observation: numbered("observation", data.observation_dim),
        action: numbered("action", data.action_dim),
    })
}
