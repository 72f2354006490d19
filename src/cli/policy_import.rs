//! `fieldtune policy import`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use fieldtune::config::Config;
use fieldtune::policy::ForeignBundle;
use fieldtune::policy::foreign_bundle::ForeignDescription;
use fieldtune::policy::import::{self, Given, Kind, StateScaling};
use fieldtune::policy::onnxruntime::Runtime;

use super::ConfigArgs;
use super::policy::{describe, file_name, inspect, save};

/// Make a bundle from a checkpoint: Off2OnRL, CORL, d3rlpy, Stable-Baselines3, or an ONNX actor.
///
/// Nothing in the files is executed. What they do not say (names of the entries, control rate) comes from the
/// configuration of the robot and from the options; nothing is guessed. Several checkpoints become the members of one
/// ensemble. docs/importing.md has a table of what each kind says and needs.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// The checkpoint, or one per member.
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Folder of the new bundle.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// What the sources are; without it, their content tells.
    #[arg(long)]
    kind: Option<KindArg>,
    /// What was subtracted from observations in training: .npy of numbers, one per entry.
    #[arg(long, value_name = "FILE.npy", requires = "state_std")]
    state_mean: Option<PathBuf>,
    /// What the difference was divided by, every epsilon included: .npy of numbers, one per entry.
    #[arg(long, value_name = "FILE.npy", requires = "state_mean")]
    state_std: Option<PathBuf>,
    /// Observations were not normalised in training.
    #[arg(long, conflicts_with = "state_mean")]
    raw_state: bool,
    /// CORL: the max_action that multiplied the actor's tanh.
    #[arg(long, value_name = "NUMBER")]
    action_scale: Option<f64>,
    /// d3rlpy: the params.json beside a .pt file.
    #[arg(long, value_name = "FILE.json")]
    params: Option<PathBuf>,
    /// ONNX: the output that is the action, where there are several.
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// ONNX: libonnxruntime.so, to know the actor's answers; without it, policy.onnxruntime of the configuration.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum KindArg {
    Off2onrl,
    Corl,
    D3rlpy,
    Sb3,
    Lerobot,
    Weights,
    Onnx,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Off2onrl => Self::Off2onrl,
            KindArg::Corl => Self::Corl,
            KindArg::D3rlpy => Self::D3rlpy,
            KindArg::Sb3 => Self::Sb3,
            KindArg::Lerobot => Self::Lerobot,
            KindArg::Weights => Self::Weights,
            KindArg::Onnx => Self::Onnx,
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let paths: Vec<&Path> = args.sources.iter().map(PathBuf::as_path).collect();
    let kind = match args.kind {
        Some(kind) => kind.into(),
        None => import::detect(paths[0])?,
    };
    say!("{} is {kind}", paths[0].display());
    if kind == Kind::Onnx {
        ensure!(paths.len() == 1, "an ONNX actor stands alone; {} sources were given", paths.len());
        return foreign(args, &config, paths[0]);
    }
    let imported = import::import(kind, &paths, &given(args)?)?;
    let name = if kind == Kind::Off2onrl { "Off2OnRL agents".into() } else { file_name(paths[0]) };
    let mut description = describe(&config, &name, &imported.algorithm);
    description.training_log_std = (kind == Kind::Off2onrl).then_some(import::OFF2ONRL_TRAINING_LOG_STD);
    description.discount = imported.discount.unwrap_or(description.discount);
    description.provenance.extend(imported.facts);
    let names: Vec<_> = paths.iter().map(|path| file_name(path)).collect();
    description.provenance.insert("source".into(), names.join(", "));
    save(description, imported.weights, &args.out)?;
    say!("  parity: this kind of file holds no recorded answers; compare `fieldtune policy act --obs` with your own");
    Ok(())
}

fn given(args: &Args) -> anyhow::Result<Given> {
    let state = match (&args.state_mean, &args.state_std) {
        (Some(mean), Some(std)) => Some(StateScaling { shift: numbers(mean)?, scale: numbers(std)? }),
        _ => None,
    };
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let params = args.params.as_ref().map(read).transpose()?;
    Ok(Given { state, raw_state: args.raw_state, action_scale: args.action_scale, params })
}

fn foreign(args: &Args, config: &Config, path: &Path) -> anyhow::Result<()> {
    let given = args.state_mean.is_some() || args.raw_state || args.action_scale.is_some() || args.params.is_some();
    ensure!(!given, "an ONNX actor is run as it is: scaling belongs into its graph, not into options");
    let library = args.onnxruntime.as_ref().unwrap_or(&config.policy.onnxruntime);
    if library.as_os_str().is_empty() {
        bail!(fieldtune::policy::foreign::ForeignError::NeedsRuntime);
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let description = ForeignDescription {
        name: format!("{} {}", config.robot.name, file_name(path)),
        control_hz: config.robot.control_hz,
        spaces: config.robot.spaces.clone(),
        provenance: [("source".into(), file_name(path))].into(),
    };
    let bundle = ForeignBundle::new(description, bytes, args.output.as_deref(), Runtime::load(library)?)?;
    bundle.save(&args.out)?;
    inspect(&args.out, None, false)
}

/// Numbers of an `.npy` of f32 or f64, in order.
fn numbers(path: &Path) -> anyhow::Result<Vec<f64>> {
    let name = || format!("cannot read {} as an .npy of f32 or f64", path.display());
    let file = std::fs::File::open(path).with_context(name)?;
    let npy = npyz::NpyFile::new(std::io::BufReader::new(file)).with_context(name)?;
    match npy.try_data::<f64>() {
        Ok(values) => values.collect::<Result<_, _>>().with_context(name),
        Err(npy) => Ok(npy.into_vec::<f32>().with_context(name)?.into_iter().map(f64::from).collect()),
    }
}
